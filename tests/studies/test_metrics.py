"""SSIM against a plain implementation of Wang et al. (2004); LPIPS with a backbone of the caller's own; misfit by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from oracles.small_nets import image, small_encoder
from scipy.signal import convolve2d
from torch import Tensor

from pullback.encoders.torchvision_ops import import_torchvision
from pullback.errors import ImageError, WeightsError
from pullback.pictures import Display
from pullback.studies.metrics import feature_misfit, likeness, lpips, ssim


def colours(seed: int, size: tuple[int, int] = (24, 31)) -> Tensor:
    return torch.rand(3, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plain_ssim(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    places = np.arange(-5, 6)
    bell = np.exp(-(places**2) / (2 * 1.5**2))
    window = np.outer(bell, bell) / bell.sum() ** 2

    def mean(x: NDArray[np.float64]) -> NDArray[np.float64]:
        return convolve2d(np.pad(x, 5, mode="reflect"), window, mode="valid")

    found = []
    for x, y in zip(a, b, strict=True):
        mx, my = mean(x), mean(y)
        vx, vy, cov = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
        c1, c2 = 0.01**2, 0.03**2
        found.append((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    return float(np.mean(found))


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.5, 1.0])
def test_ssim_is_that_of_a_plain_implementation(noise: float) -> None:
    a = colours(1)
    b = ((1 - noise) * a + noise * colours(2)).clamp(0, 1)
    assert ssim(a, b) == pytest.approx(plain_ssim(a.numpy(), b.numpy()), abs=2e-5)


def test_ssim_of_a_picture_with_itself_is_one() -> None:
    assert ssim(colours(3), colours(3)) == pytest.approx(1)


def test_ssim_of_two_sizes_or_below_its_window_is_refused() -> None:
    with pytest.raises(ImageError, match="SSIM of shapes"):
        ssim(colours(1), colours(1, (24, 30)))
    with pytest.raises(ImageError, match="sides of 11 or more"):
        ssim(colours(1, (8, 8)), colours(2, (8, 8)))


def test_likeness_clamps_what_is_shown_and_not_what_is_correlated() -> None:
    display = Display((0.5,) * 3, (0.25,) * 3)
    original = (colours(1) - 0.5) / 0.25
    found = likeness(3 * original, original, display, None)
    shown = (0.5 + 3 * (colours(1) - 0.5)).clamp(0, 1)
    assert found["correlation"] == pytest.approx(1)
    assert found["ssim"] == pytest.approx(plain_ssim(shown.numpy(), colours(1).numpy()), abs=2e-5)
    assert "lpips" not in found


def test_lpips_takes_the_backbone_of_the_file(data: Path) -> None:
    before = torch.get_rng_state()
    distance = lpips(data / "weights" / "squeezenet1_1.safetensors")
    a, b = colours(1, (64, 64)), colours(2, (64, 64))
    assert distance(a, a) == 0
    assert 0 < distance(a, (0.9 * a + 0.1 * b).clamp(0, 1)) < distance(a, b) < 2
    assert torch.equal(torch.get_rng_state(), before)


def test_lpips_is_the_linear_heads_on_the_differences_of_normalised_features(data: Path) -> None:
    from safetensors.torch import load_file
    from torch.nn import functional as F

    path = data / "weights" / "squeezenet1_1.safetensors"
    net = import_torchvision().models.squeezenet1_1().eval()
    net.load_state_dict({name: t.float() for name, t in load_file(path).items()})
    from torchmetrics.functional.image import lpips as module

    heads = torch.load(Path(str(module.__file__)).parent / "lpips_models" / "squeeze.pth", "cpu", weights_only=True)
    a, b = colours(1, (64, 64)).float()[None], colours(2, (64, 64)).float()[None]
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    taps = (
        1,
        4,
        7,
        9,
        10,
        11,
        12,
    )  # after the first rectifier and each fire module before a pooling, then each of the last
    total = torch.zeros(())
    with torch.no_grad():
        x, y = ((2 * p - 1 - shift[:, None, None]) / scale[:, None, None] for p in (a, b))
        for place, layer in enumerate(net.features):
            x, y = layer(x), layer(y)
            if place in taps:
                u, v = (F.normalize(p, dim=1) for p in (x, y))
                total += F.conv2d((u - v).square(), heads[f"lin{taps.index(place)}.model.1.weight"]).mean()
    assert lpips(path)(a[0], b[0]) == pytest.approx(float(total), rel=1e-3)


def test_a_backbone_of_another_network_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="do not fit torchvision:squeezenet1_1"):
        lpips(data / "weights" / "cifar10_resnet20.safetensors")
    with pytest.raises(WeightsError, match="is no file here"):
        lpips(tmp_path / "none.safetensors")


def test_misfit_is_zero_for_the_image_and_one_for_nothing_but_distance() -> None:
    encoder, x = small_encoder(), image()
    features = encoder.features(x, 2)
    assert feature_misfit(encoder, x, features, 2) == 0
    assert feature_misfit(encoder, x, 2 * features, 2) == pytest.approx(0.5)
