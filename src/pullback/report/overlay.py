"""Maps drawn on an image: saliency in colour-blind-safe colours, outlines of masks and of certified fields."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from matplotlib import colormaps
from PIL import Image, ImageChops, ImageFilter
from torch import Tensor

from pullback.errors import ImageError
from pullback.pictures.display import on_cpu, to_image
from pullback.pictures.shown import enlarged

_MAP = "cividis"  # perceptually uniform, and the same to colour-blind readers
_TOP = 0.99  # colours end at this quantile: a few extreme pixels would leave the rest black
_BLEND = 0.6
_DIMMED = 0.35


@dataclass(frozen=True)
class SaliencyView:
    """A saliency map as pictures, with the numbers of its legend.

    colours    the map alone: its colours are those of the legend
    overlay    the map blended with the grey image, to see where things are
    legend     one row of colours, from 0 to `top`
    top        value of the last colour; `above` is the share of pixels beyond it, drawn in that colour too
    low, high  value range
    """

    colours: Image.Image
    overlay: Image.Image
    legend: Image.Image
    top: float
    above: float
    low: float
    high: float


def saliency_view(image: Image.Image, saliency: Tensor) -> SaliencyView:
    """Draw `saliency` (H, W), values >= 0, for `image` of the same size."""
    values = on_cpu(saliency)
    _same_size(image, values, "saliency")
    top = values.flatten().kthvalue(max(1, round(_TOP * values.numel()))).values.item() or values.max().item()
    colours = _coloured(values / (top or 1.0))
    return SaliencyView(
        colours=colours,
        overlay=Image.blend(image.convert("L").convert("RGB"), colours, _BLEND),
        legend=_coloured(torch.linspace(0, 1, 256, device="cpu")[None]),
        top=top,
        above=(values > top).double().mean().item(),
        low=values.min().item(),
        high=values.max().item(),
    )


def outlined(image: Image.Image, inside: Tensor) -> Image.Image:
    """`image`, enlarged when it is tiny, with `inside` (H, W) bool bordered in white and what lies outside darkened."""
    _same_size(image, inside, "field")
    image, region = enlarged(image), enlarged(to_image(on_cpu(inside)[None])).convert("L")
    drawn = Image.composite(image, image.point(lambda level: int(level * _DIMMED)), region)
    framed = Image.new("L", (region.width + 2, region.height + 2))  # a region that touches the border closes there
    framed.paste(region, (1, 1))
    shrunk = [framed.filter(ImageFilter.MinFilter(size)) for size in (3, 7)]
    for outer, inner, colour in ((framed, shrunk[0], "black"), (shrunk[0], shrunk[1], "white")):
        line = ImageChops.subtract(outer, inner).crop((1, 1, 1 + region.width, 1 + region.height))
        drawn.paste(colour, mask=line)
    return drawn


def _coloured(values: Tensor) -> Image.Image:
    rgb = (colormaps[_MAP](values.clamp(0, 1).numpy())[..., :3] * 255).round().astype("uint8")
    return Image.fromarray(rgb)


def _same_size(image: Image.Image, values: Tensor, name: str) -> None:
    if tuple(values.shape) != (image.height, image.width):
        raise ImageError(
            f"a {name} of {tuple(values.shape)} does not fit an image of {image.height} x {image.width}; "
            "give both in the geometry that the network saw"
        )
