"""UpConvNet: it learns, it is the same from the same seed, it comes back from its file, and its shapes fit any stage."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from oracles.small_nets import image, small_encoder
from torch import Tensor

from pullback.errors import OptionError
from pullback.studies.upconvnet import Decoder, keep, kept, train, upconvnet


def blobs(seed: int) -> Tensor:
    """A smooth picture, so that there is something to learn."""
    small = image(seed)[None, :, :3, :3]
    return torch.nn.functional.interpolate(small, (16, 16), mode="bicubic")[0]


@pytest.mark.parametrize(
    ("shape", "size"), [((8, 8, 8), (16, 16)), ((5, 7, 9), (31, 40)), ((300, 1, 1), (16, 16)), ((4, 16, 16), (16, 16))]
)
def test_any_stage_becomes_a_picture(shape: tuple[int, int, int], size: tuple[int, int]) -> None:
    assert Decoder(shape, 3, size[0])(torch.randn(2, *shape), size).shape == (2, 3, *size)


def test_training_brings_unseen_pictures_nearer_and_leaves_the_global_generator() -> None:
    encoder = small_encoder()
    before = torch.get_rng_state()
    images = [blobs(s) for s in range(20)]
    early, late = (train(encoder, 1, images, steps=n, seed=0) for n in (1, 150))
    assert torch.equal(torch.get_rng_state(), before)
    unseen = torch.stack([blobs(s) for s in range(100, 110)])
    features = encoder.features(unseen, 1)
    errors = [float((d(features, (16, 16)) - unseen).square().mean() / unseen.square().mean()) for d in (early, late)]
    assert errors[1] < 0.7 * errors[0]


def test_same_seed_same_bits_and_the_file_gives_them_back(tmp_path: Path) -> None:
    encoder, images, path = small_encoder(), [blobs(s) for s in range(4)], tmp_path / "stage-2.safetensors"
    first, again = (train(encoder, 2, images, steps=3, seed=1) for _ in range(2))
    keep(path, first, "run")
    read = kept(path, encoder, 2, "run")
    assert read is not None
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
        assert torch.equal(value, read.state_dict()[name])
    assert kept(path, encoder, 2, "another run") is None
    flipped = bytearray(path.read_bytes())
    flipped[-3] ^= 16
    path.write_bytes(flipped)
    assert kept(path, encoder, 2, "run") is None
    keep(path, first, "run")
    path.write_bytes(path.read_bytes()[:100])
    assert kept(path, encoder, 2, "run") is None
    assert kept(tmp_path / "none", encoder, 2, "run") is None


def test_pictures_come_from_the_features_alone() -> None:
    encoder = small_encoder()
    decoder = train(encoder, 2, [blobs(s) for s in range(4)], steps=3, seed=0)
    method = upconvnet(encoder, {2: decoder}, about={}, seed=0)
    with method(blobs(1)) as session, method(blobs(2)) as other:
        own, foreign = session.stage(2), session.from_features(encoder.features(blobs(2), 2), 2)
        assert torch.equal(foreign.tensor, other.stage(2).tensor)
        assert own.null is not None and torch.equal(own.null, other.stage(2).null)
        assert not torch.equal(own.tensor, foreign.tensor)


def test_no_images_no_training() -> None:
    with pytest.raises(OptionError, match="needs images to train on"):
        train(small_encoder(), 1, [], steps=1)
