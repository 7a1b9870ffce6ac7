"""How near a picture comes to the image: SSIM, LPIPS, correlation, and how far its features are from those asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pullback.encoders import Encoder
from pullback.encoders.sources import build
from pullback.encoders.torchvision_ops import mended
from pullback.errors import ImageError
from pullback.measures import correlation
from pullback.pictures import Display

LPIPS = "LPIPS (SqueezeNet)"  # not the AlexNet or VGG of the papers
WINDOW = 11  # pixels a side

Distance = Callable[[Tensor, Tensor], float]


def ssim(a: Tensor, b: Tensor) -> float:
    """Structural similarity (Wang et al. 2004) of two pictures (3, H, W) with colours in [0, 1].

    Gaussian window of 11 x 11, sigma 1.5, data range 1, the border reflected; the mean over colours and positions.
    Raises ImageError for two shapes or a side below the window's.
    """
    if a.shape != b.shape or a.dim() != 3 or min(a.shape[1:]) < WINDOW:
        raise ImageError(
            f"SSIM of shapes {tuple(a.shape)} and {tuple(b.shape)}: expected two (3, H, W) alike, sides of {WINDOW} or more"
        )
    measure = mended(_torchmetrics_ssim)
    x, y = (p.detach().to("cpu", torch.float32)[None] for p in (a, b))  # float64 takes ten times as long, for 1e-5
    return float(measure(x, y, gaussian_kernel=True, sigma=1.5, kernel_size=WINDOW, data_range=1.0))


def lpips(backbone: Path) -> Distance:
    """LPIPS (Zhang et al. 2018) with the SqueezeNet 1.1 of a weights file and torchmetrics' linear heads; of [0, 1] colours.

    Nothing is downloaded and no global generator is touched. Raises WeightsError for a file of other weights.
    """
    weights = build("torchvision:squeezenet1_1", weights=backbone).module.get_submodule("features")
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        net = mended(_torchmetrics_lpips)
    for part in net.get_submodule("net.slices").children():
        for place, layer in part.named_children():
            layer.load_state_dict(weights.get_submodule(place).state_dict())

    def distance(a: Tensor, b: Tensor) -> float:
        x, y = (p.detach().to("cpu", torch.float32)[None] for p in (a, b))
        with torch.no_grad():
            return float(net(x, y, normalize=True))

    return distance


def feature_misfit(encoder: Encoder, picture: Tensor, features: Tensor, stage: int) -> float:
    """||F(x) - F|| / ||F|| of a picture x (3, H, W) in preprocessed units, not clamped; F as it was asked for."""
    found = encoder.features(picture.to(encoder.device, encoder.dtype), stage)
    return float((found - features).double().norm() / features.double().norm())


def likeness(picture: Tensor, image: Tensor, display: Display, distance: Distance | None) -> dict[str, float]:
    """Correlation of a picture (3, H, W) with the image, both in preprocessed units; SSIM, and with a distance LPIPS, of their
    de-normalised and clamped colours.
    """
    shown, original = (display.colours(x).clamp(0, 1) for x in (picture, image))
    found = {"ssim": ssim(shown, original), "correlation": correlation(picture, image)}
    return found if distance is None else {**found, "lpips": distance(shown, original)}


def _torchmetrics_ssim() -> Callable[..., Any]:
    from torchmetrics.functional.image import structural_similarity_index_measure

    return structural_similarity_index_measure


def _torchmetrics_lpips() -> torch.nn.Module:
    """With a random backbone: the public constructor would download one."""
    from torchmetrics.functional.image.lpips import _LPIPS

    return _LPIPS(net="squeeze", pnet_rand=True)
