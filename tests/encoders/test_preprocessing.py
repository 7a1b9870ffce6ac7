from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from pullback.encoders.cards import timm_card
from pullback.encoders.preprocessing import Preprocessing
from pullback.encoders.torchvision_ops import import_timm, import_torchvision
from pullback.errors import ImageError, MaskError, OptionError
from pullback.images import load_image, load_mask

import_torchvision()
from torchvision import transforms as T  # noqa: E402 - only once the import is sure to work


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def torchvision_way(preprocessing: Preprocessing) -> Callable[[Image.Image], torch.Tensor]:
    """The same numbers given to torchvision."""
    mode = T.InterpolationMode(preprocessing.interpolation)
    size = list(preprocessing.size)
    steps = [T.Resize(size, mode)] if preprocessing.resize is None else [T.Resize(preprocessing.resize, mode)]
    return T.Compose([*steps, T.CenterCrop(size), T.ToTensor(), T.Normalize(preprocessing.mean, preprocessing.std)])


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
@pytest.mark.parametrize(("size", "resize"), [((224, 224), 256), ((224, 224), 232), ((32, 32), None), ((20, 50), None)])
def test_bit_equal_to_torchvision_on_a_photograph(
    photograph: Callable[[str], Path], size: tuple[int, int], resize: int | None, interpolation: str
) -> None:
    image = load_image(photograph("zebra")).image
    preprocessing = Preprocessing(size, resize, interpolation, std=(0.2, 0.25, 0.3))
    assert torch.equal(preprocessing(image), torchvision_way(preprocessing)(image))


@settings(max_examples=60)
@given(
    width=st.integers(1, 150),
    height=st.integers(1, 150),
    side=st.integers(1, 40),
    more=st.integers(0, 13),
    seed=st.integers(0, 9),
)
def test_bit_equal_to_torchvision_at_any_size(width: int, height: int, side: int, more: int, seed: int) -> None:
    image = noise(width, height, seed)
    preprocessing = Preprocessing((side, side), side + more)
    assert torch.equal(preprocessing(image), torchvision_way(preprocessing)(image))


@pytest.mark.parametrize(
    "name", ["resnet50", "mobilenetv2_100", "darknet53", "convnext_tiny", "vit_so150m2_patch16_reg1_gap_448"]
)
def test_agrees_with_timm_by_timms_own_card(name: str) -> None:
    timm = import_timm()

    class Net(nn.Module):  # a card reads a network's configuration and its first convolution: no need to build it
        pretrained_cfg = timm.get_pretrained_cfg(name).to_dict()

    theirs = timm.data.create_transform(**timm.data.resolve_data_config(pretrained_cfg=Net.pretrained_cfg))
    image = noise(300, 211)
    torch.testing.assert_close(timm_card(timm, Net())(image), theirs(image), rtol=0, atol=1e-6)


def test_grey_is_made_from_the_shown_crop() -> None:
    image = noise(70, 50)
    preprocessing = Preprocessing((28, 28), 32, mean=(0.25,), std=(0.5,), channels=1)
    steps = [T.Resize(32), T.CenterCrop(28), T.Grayscale(), T.ToTensor(), T.Normalize((0.25,), (0.5,))]
    assert torch.equal(preprocessing(image), T.Compose(steps)(image))
    assert preprocessing.crop(image).mode == "RGB"


def test_crop_is_what_the_network_sees() -> None:
    image = noise(90, 60)
    preprocessing = Preprocessing((24, 24), 32)
    shown = torch.from_numpy(np.array(preprocessing.crop(image))).permute(2, 0, 1) / 255
    mean, std = (torch.tensor(v)[:, None, None] for v in (preprocessing.mean, preprocessing.std))
    torch.testing.assert_close(preprocessing(image) * std + mean, shown, rtol=0, atol=1e-6)


def test_mask_by_hand() -> None:
    values = np.array([[0, 1, 2, 3], [4, 5, 6, np.nan]], dtype=np.float64) / 10
    mask = Preprocessing((2, 2), None).mask(values)  # nearest to the centres: columns 1 and 3
    torch.testing.assert_close(mask, torch.tensor([[0.1, 0.3], [0.5, torch.nan]]), equal_nan=True)
    assert mask.dtype == torch.float32


@given(width=st.integers(4, 120), height=st.integers(4, 120), wide=st.booleans())
def test_mask_lies_over_its_picture(width: int, height: int, wide: bool) -> None:
    # The object is the white half of the picture: mask and picture may differ only where bilinear resampling blends.
    object_here = np.zeros((height, width), dtype=np.float32)
    object_here[:, : width // 2] = 1
    image = Image.fromarray(np.repeat(np.uint8(object_here * 255)[..., None], 3, axis=2))
    preprocessing = Preprocessing((30, 60 if wide else 30), 32, "bilinear", mean=(0, 0, 0), std=(1, 1, 1))
    picture, mask = preprocessing(image)[0], preprocessing.mask(object_here)
    assert mask.shape == picture.shape
    assert set(mask.unique().tolist()) <= {0.0, 1.0}
    assert (picture - mask).abs().max() <= 0.5 + 1 / 255


def test_masks_of_real_photographs_go_as_torchvision_takes_them(data: Path) -> None:
    preprocessing = Preprocessing((224, 224), 256)
    folder = data / "masked" / "butterflies"
    for stored in sorted((folder / "masks").iterdir())[::100]:
        loaded = load_image(folder / "images" / f"{stored.stem}.jpg")
        values = load_mask(stored, loaded).values
        nearest = T.Resize(256, T.InterpolationMode.NEAREST)
        theirs = T.CenterCrop(224)(nearest(Image.fromarray(values)))
        ours = preprocessing.mask(values)
        np.testing.assert_array_equal(ours.numpy(), np.array(theirs))
        assert ours.shape == preprocessing(loaded.image).shape[1:]


def test_no_border_is_invented() -> None:
    white = Image.new("RGB", (50, 50), "white")
    preprocessing = Preprocessing((40, 90), 40, mean=(0, 0, 0), std=(1, 1, 1))
    assert preprocessing(white).shape == (3, 40, 90)
    assert bool((preprocessing(white) == 1).all())


@pytest.mark.parametrize(("name", "size"), [("one_pixel.png", "1 x 1"), ("strip_640x4.png", "640 x 4")])
def test_small_pictures_are_enlarged_and_it_is_said(data: Path, name: str, size: str) -> None:
    image = load_image(data / "awkward" / name).image
    preprocessing = Preprocessing((224, 224), 256)
    assert preprocessing(image).shape == (3, 224, 224)
    (note,) = preprocessing.notes(image)
    assert size in note
    assert preprocessing.notes(noise(500, 300)) == ()


def test_a_picture_that_is_nearly_a_line_is_refused_unless_stretched() -> None:
    line = Image.new("RGB", (3000, 1))
    with pytest.raises(ImageError, match="3000 x 1 pixels is too elongated"):
        Preprocessing((224, 224), 256)(line)
    with pytest.raises(ImageError, match="too elongated"):
        Preprocessing((224, 224), 256).mask(np.zeros((1, 3000), dtype=np.float32))
    assert Preprocessing((224, 224), None)(line).shape == (3, 224, 224)


def test_a_mask_has_two_axes() -> None:
    with pytest.raises(MaskError, match=r"\(3, 4, 4\)"):
        Preprocessing((2, 2), None).mask(np.zeros((3, 4, 4), dtype=np.float32))


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": (0, 224)},
        {"size": (4096, 4097)},
        {"resize": 0},
        {"resize": 10**6},
        {"interpolation": "lanczos"},
        {"mean": (0.5,)},
        {"std": (0.2, 0.0, 0.2)},
        {"mean": (0.5, float("nan"), 0.5)},
        {"channels": 0},
    ],
)
def test_senseless_numbers_are_named(wrong: dict[str, object]) -> None:
    (key,) = wrong
    with pytest.raises(OptionError, match=f"preprocessing {key}="):
        Preprocessing(**{"size": (224, 224), "resize": 256, **wrong})


def test_text_says_everything() -> None:
    text = str(Preprocessing((224, 200), 256, source="a card", assumed=("the mean is a guess",)))
    for part in ("resized to 256", "200 x 224", "0.485", "0.229", "a card", "assumed: the mean is a guess"):
        assert part in text


def test_a_network_with_four_channels_takes_tensors_only() -> None:
    preprocessing = Preprocessing((8, 8), None, mean=(0.5,) * 4, std=(0.5,) * 4, channels=4)
    with pytest.raises(ImageError, match="takes 4: pass a preprocessed tensor"):
        preprocessing(Image.new("RGB", (8, 8)))
