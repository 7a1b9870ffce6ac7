"""From preprocessed units to pixels: the two display mappings, stated and never silent.

*Natural* pictures are de-normalised (`x * std + mean`) and clamped to [0, 1]; the share of clamped values is reported.
*Signed* maps are drawn as mid-grey plus `value / scale`: black is `-scale`, grey 0, white `+scale`.
All of it runs in float64 on the CPU, so that half, float64 and CUDA tensors of any magnitude are drawn alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO

import torch
from PIL import Image, PngImagePlugin
from torch import Tensor

from pullback.errors import ImageError

_HALF_LEVEL = 0.5 / 255  # what 8 bits round away is not clamping


def on_cpu(tensor: Tensor) -> Tensor:
    """`tensor` detached, on the CPU, in float64 (in this order: some devices have no float64)."""
    return tensor.detach().cpu().to(torch.float64)


@dataclass(frozen=True)
class Display:
    """How preprocessed units become colours: `x * std + mean`, one mean and one std per channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def colours(self, tensor: Tensor) -> Tensor:
        """Colours of `tensor` (..., C, H, W), de-normalised, not clamped: float64 on the CPU; [0, 1] can be shown."""
        mean, std = (torch.tensor(v, dtype=torch.float64, device="cpu").view(-1, 1, 1) for v in (self.mean, self.std))
        return on_cpu(tensor) * std + mean


def clamped_share(colours: Tensor) -> float:
    """Share of values that [0, 1] cannot show, by more than half of an 8-bit level."""
    return ((colours < -_HALF_LEVEL) | (colours > 1 + _HALF_LEVEL)).double().mean().item()


def signed(tensor: Tensor, scale: float) -> Tensor:
    """The signed map of `tensor` as colours: 0 is mid-grey, `-scale` black, `+scale` white; not clamped."""
    return 0.5 + 0.5 * (on_cpu(tensor) / scale)


def to_image(colours: Tensor) -> Image.Image:
    """RGB picture of `colours` (3, H, W) or (1, H, W) in [0, 1]; values outside are clamped.

    Raises ImageError for another number of channels.
    """
    channels, height, width = colours.shape
    if channels not in (1, 3):
        raise ImageError(f"a tensor of {channels} channels cannot be drawn; expected 1 (grey) or 3 (RGB)")
    levels = (colours.clamp(0, 1) * 255).round().to(torch.uint8).expand(3, height, width)
    return Image.frombytes("RGB", (width, height), levels.permute(1, 2, 0).contiguous().numpy().tobytes())


_QUICK = 3  # of zlib: half the time of its default, files a tenth larger


def png(image: Image.Image, text: str | None = None) -> bytes:
    """`image` as PNG bytes; `text` travels in the file under the key "pullback"."""
    info = PngImagePlugin.PngInfo()
    if text is not None:
        info.add_itxt("pullback", text, zip=True)
    buffer = BytesIO()
    image.save(buffer, "PNG", pnginfo=info, compress_level=_QUICK)
    return buffer.getvalue()
