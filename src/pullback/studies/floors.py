"""Floors of a reconstruction: pictures that know next to nothing of the image, and none of any stage (specification, section 5)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from pullback.pictures import Display

THUMBNAIL = 8  # pixels a side


def floors(image: Tensor, display: Display) -> dict[str, Tensor]:
    """Floors for a preprocessed image (C, H, W), by name, in the same units and shape.

    "constant 0.5" after de-normalising; "mean colour", the image's own; "8x8 thumbnail": means over an 8 x 8 grid, enlarged
    bicubically.
    """
    mean, std = (image.new_tensor(v)[:, None, None] for v in (display.mean, display.std))
    grid = F.adaptive_avg_pool2d(image[None], THUMBNAIL)
    return {
        "constant 0.5": ((0.5 - mean) / std).expand_as(image),
        "mean colour": image.mean((1, 2), keepdim=True).expand_as(image),
        "8x8 thumbnail": F.interpolate(grid, image.shape[1:], mode="bicubic", align_corners=False)[0],
    }
