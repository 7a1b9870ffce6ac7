"""From a photograph to the tensor that a network expects: resize, centre crop, values in [0, 1], mean and std.

The geometry and the arithmetic are those of torchvision's Resize, CenterCrop, ToTensor and Normalize on Pillow pictures
(timm's evaluation transform is the same); masks go through the same geometry by nearest resampling.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pullback.errors import ImageError, MaskError, OptionError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
_LARGEST = 50_000_000  # pixels after resizing: 150 MB of RGB, the most a strip may ask for
_LARGEST_CROP = 4096**2  # pixels that a network is shown: 200 MB of float32


@dataclass(frozen=True)
class Preprocessing:
    """What happens to an upright RGB picture before a network sees it.

    size: (height, width) of the crop, in pixels. resize: length of the short side before the crop, or None to stretch
    the picture to `size` without a crop. interpolation: "bilinear", "bicubic" or "nearest". mean, std: one number a
    channel, for values in [0, 1]. channels: 3 (RGB) or 1 (grey, by Pillow's "L"). source: where the numbers come from.
    assumed: in words, what no card of these very weights stated. Raises OptionError on numbers that make no sense.
    """

    size: tuple[int, int]
    resize: int | None
    interpolation: str = "bilinear"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    channels: int = 3
    source: str = "given"
    assumed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        def expect(fine: bool, key: str, expected: str) -> None:
            if not fine:
                raise OptionError(f"preprocessing {key}={getattr(self, key)!r} ({self.source}): expected {expected}")

        expect(len(self.size) == 2 and min(self.size) >= 1, "size", "a height and a width of at least 1 pixel")
        expect(math.prod(self.size) <= _LARGEST_CROP, "size", f"at most {_LARGEST_CROP:,} pixels, height times width")
        shortest = math.isqrt(_LARGEST)  # of a square
        expect(self.resize is None or 1 <= self.resize <= shortest, "resize", f"1 to {shortest} pixels, or None")
        expect(self.interpolation in _RESAMPLING, "interpolation", " or ".join(_RESAMPLING))
        expect(self.channels >= 1, "channels", "at least 1; pictures become 3 (RGB) or 1 (grey)")
        for key in ("mean", "std"):
            values = getattr(self, key)
            expect(len(values) == self.channels, key, f"{self.channels} numbers, one a channel")
            expect(all(map(math.isfinite, values)), key, "finite numbers")
        expect(min(self.std) > 0, "std", "numbers above 0")

    def __call__(self, image: Image.Image) -> Tensor:
        """Preprocess one upright picture: (channels, H, W) float32, in units of std from the mean."""
        crop = self.crop(image)
        pixels = np.array(crop.convert("L"))[..., None] if self.channels == 1 else np.array(crop)
        values = torch.from_numpy(pixels).permute(2, 0, 1).contiguous().float().div(255)  # (C, H, W) in [0, 1]
        mean, std = (
            torch.tensor(numbers, dtype=torch.float32, device="cpu")[:, None, None] for numbers in (self.mean, self.std)
        )
        return values.sub_(mean).div_(std)

    def __str__(self) -> str:
        words = "; ".join(
            (self.geometry, f"mean {listed(self.mean)}", f"std {listed(self.std)}", f"from {self.source}")
        )
        return "; ".join((words, *(f"assumed: {sentence}" for sentence in self.assumed)))

    @property
    def geometry(self) -> str:
        """Resize and crop in words."""
        kind = {1: "grey", 3: "RGB"}.get(self.channels, f"{self.channels} channels (tensors only)")
        size = f"{self.size[1]} x {self.size[0]}"
        if self.resize is None:
            return f"{kind}, stretched to {size} ({self.interpolation})"
        return f"{kind}, short side resized to {self.resize} ({self.interpolation}), {size} crop"

    def crop(self, image: Image.Image) -> Image.Image:
        """The RGB picture of `size` that the network is shown. Raises ImageError."""
        if self.channels not in (1, 3):
            raise ImageError(
                f"a picture has 1 or 3 channels, and this network takes {self.channels}: pass a preprocessed tensor instead"
            )
        return self._fitted(image.convert("RGB"), _RESAMPLING[self.interpolation])

    def mask(self, values: NDArray[np.floating]) -> Tensor:
        """The mask of a picture of the same size, cropped as the picture is: (H, W) float32.

        values: (height, width) in [0, 1], 1 object, NaN unknown. Nearest resampling: no new values arise. Raises
        MaskError for another shape, ImageError as for the picture.
        """
        if values.ndim != 2:
            raise MaskError(f"a mask has height and width: expected an array of 2 axes, got the shape {values.shape}")
        fitted = self._fitted(Image.fromarray(values.astype(np.float32)), Image.Resampling.NEAREST)
        return torch.from_numpy(np.array(fitted))

    def notes(self, image: Image.Image) -> tuple[str, ...]:
        """What a reader should know about how this very picture is resized."""
        width, height = self._scaled(image)
        if width * height <= image.width * image.height:
            return ()
        return (f"the picture ({image.width} x {image.height}) was enlarged to {width} x {height} before the crop",)

    def for_channels(self, channels: int) -> Preprocessing:
        """The same for a network with 1 or 3 input channels: RGB numbers are averaged for grey, a grey one repeated."""
        if channels == self.channels:
            return self
        mean, std = ((sum(numbers) / len(numbers),) * channels for numbers in (self.mean, self.std))
        return replace(self, mean=mean, std=std, channels=channels)

    def _scaled(self, image: Image.Image) -> tuple[int, int]:
        """Width and height after resizing: as torchvision rounds them, and never less than the crop."""
        height, width = self.size
        if self.resize is not None:
            short, long = sorted((image.width, image.height))
            longer = int(self.resize * long / short)
            scaled = (self.resize, longer) if image.width <= image.height else (longer, self.resize)
            if scaled[0] < width or scaled[1] < height:
                scale = max(width / image.width, height / image.height)
                scaled = max(width, round(image.width * scale)), max(height, round(image.height * scale))
            width, height = scaled
        if width * height > _LARGEST:
            raise ImageError(
                f"a picture of {image.width} x {image.height} pixels is too elongated: it would become {width} x {height}"
                f" for a crop of {self.size[1]} x {self.size[0]}; cut it, or pass resize=None to stretch it"
            )
        return width, height

    def _fitted(self, image: Image.Image, resampling: Image.Resampling) -> Image.Image:
        width, height = self._scaled(image)
        crop_height, crop_width = self.size
        left, top = round((width - crop_width) / 2), round((height - crop_height) / 2)
        return image.resize((width, height), resampling).crop((left, top, left + crop_width, top + crop_height))


def assumed_preprocessing(shape: tuple[int, int, int]) -> Preprocessing:
    """For a network that says nothing of what it is shown: images (C, H, W) by ImageNet's habits."""
    channels, height, width = shape
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else ((0.5,) * channels, (0.5,) * channels)
    return Preprocessing(
        size=(height, width),
        resize=round(min(height, width) / 0.875),
        mean=mean,
        std=std,
        channels=channels,
        source="assumed",
        assumed=(
            f"mean {mean}, std {std}, short side resized to 8/7 of the crop: the network says nothing; pass preprocessing=",
        ),
    )


def checked_shape(given: Any, preprocessing: Preprocessing | None) -> tuple[int, int, int]:
    """(C, H, W) as given, else of the preprocessing, else of a photograph. Raises OptionError."""
    if given is None:
        return (3, 224, 224) if preprocessing is None else (preprocessing.channels, *preprocessing.size)
    try:
        channels, height, width = (operator.index(n) for n in given)
        if min(channels, height, width) >= 1:
            return channels, height, width
    except (TypeError, ValueError):
        pass
    raise OptionError(f"input_shape={given!r}: expected (channels, height, width) of one image, such as (3, 224, 224)")


def listed(numbers: tuple[float, ...]) -> str:
    """Numbers as a reader wants them."""
    return ", ".join(f"{number:.4g}" for number in numbers)
