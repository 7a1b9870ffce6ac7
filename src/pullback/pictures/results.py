"""What a run gives back: pictures, class pictures and certificates, each with its null, its mode and its origin.

Frozen values, nothing here recomputes. Tensors stay on the caller's device and dtype; only drawing moves them.
Names and contents: a `Picture` is one reconstruction beside the picture of its null seed, a `ClassPicture` is equation
(12) of the specification with its hemispheres, a `Certificate` is the support guarantee of its section 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from pullback.errors import ImageError, NumericsError
from pullback.pictures.display import Display, clamped_share, on_cpu, signed, to_image
from pullback.pictures.plain import facts, number, plain, share, span
from pullback.pictures.shown import Row, Shown

_GAP = 4  # white pixels between the images of a batch


@dataclass(frozen=True)
class Provenance:
    """Where a result comes from: encoder's name, digests of its weights and of the image, settings, version, seed."""

    encoder: str
    weights: str
    image: str
    settings: Mapping[str, Any]
    version: str
    seed: int | None

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON carries it."""
        return plain(vars(self))


@dataclass(frozen=True, eq=False, repr=False)
class Picture(Shown):
    """One reconstruction, in preprocessed units, beside the picture of its null seed.

    tensor     (C, H, W), or (B, C, H, W) for a batch; finite
    null       the same shape: what the method draws without any feature; None where there is no such picture
    mode       what made it, such as "cascade, frozen, unfitted"
    called     what it may be called: "drawn from the features alone", "signal space", "adjoint picture", "raw VJP"
    natural    True: shown de-normalised and clamped to [0, 1]; False: a signed map, mid-grey + value / scale
    figures    what was measured while it was made, such as its misfit or its steps

    Raises NumericsError when a value is not finite, ImageError when shapes do not fit.
    """

    tensor: Tensor
    null: Tensor | None
    mode: str
    called: str
    caption: str
    natural: bool
    display: Display
    figures: Mapping[str, float | int | str | bool]
    notes: tuple[str, ...]
    provenance: Provenance

    def __post_init__(self) -> None:
        if self.tensor.dim() not in (3, 4) or self.tensor.numel() == 0:
            shape = tuple(self.tensor.shape)
            raise ImageError(
                f"a picture of shape {shape} cannot be drawn; expected (C, H, W) or (B, C, H, W), no zeros"
            )
        if self.null is not None and self.null.shape != self.tensor.shape:
            raise ImageError(
                f"a null picture of shape {tuple(self.null.shape)} does not belong to a picture of shape "
                f"{tuple(self.tensor.shape)}; expected the same shape"
            )
        for name, tensor in (("picture", self.tensor), ("null picture", self.null)):
            if tensor is not None and not torch.isfinite(tensor).all():
                bad = int((~torch.isfinite(tensor)).sum())
                raise NumericsError(
                    f"{bad} of {tensor.numel()} values of the {name} ({self.mode}) are NaN or infinite; expected "
                    "finite numbers: check the weights and the input, or compute in float32 or float64"
                )

    @property
    def value_range(self) -> tuple[float, float]:
        """Smallest and largest value of `tensor`, in preprocessed units."""
        return _range(self.tensor)

    @property
    def null_range(self) -> tuple[float, float] | None:
        """Smallest and largest value of `null`."""
        return None if self.null is None else _range(self.null)

    @property
    def scales(self) -> tuple[float, ...]:
        """Largest |value| of each image of a signed map: what black and white stand for; 1 for an image of zeros."""
        return tuple(on_cpu(image).abs().max().item() or 1.0 for image in _images(self.tensor))

    @property
    def clamped_share(self) -> float:
        """Share of values outside [0, 1] after de-normalising; 0 for a signed map, whose scale is its own largest."""
        return clamped_share(self.display.colours(self.tensor)) if self.natural else 0.0

    @property
    def null_clamped_share(self) -> float | None:
        """Share of the null picture's values that the picture's own mapping cannot show."""
        if self.null is None:
            return None
        return clamped_share(torch.stack(self._colours(self.null)))

    def rgb(self) -> Image.Image:
        """The picture; the images of a batch one below the other."""
        return _column([to_image(colours) for colours in self._colours(self.tensor)])

    def null_rgb(self) -> Image.Image | None:
        """The null picture, by the same mapping and the same scale as the picture."""
        return None if self.null is None else _column([to_image(colours) for colours in self._colours(self.null)])

    def mapping(self) -> str:
        """How the values became colours, in words."""
        if self.natural:
            return f"de-normalised and clamped, {share(self.clamped_share)} of values clamped"
        scales = ", ".join(number(scale) for scale in self.scales)
        return f"signed map: grey is 0, black and white are -/+ {scales}, 0 % of values clamped"

    def rows(self) -> tuple[Row, ...]:
        cells = [(self.called, self.rgb())]
        null = self.null_rgb()
        if null is not None and self.null_range is not None and self.null_clamped_share is not None:
            cells.append(("its null picture", null))
            about_null = f"null: range {span(self.null_range)}, {share(self.null_clamped_share)} of values clamped"
        else:
            about_null = "no null picture"
        mode = f"{self.mode}; range {span(self.value_range)}"
        lines = (self.caption, mode, self.mapping(), about_null, facts(self.figures))
        return (Row(tuple(cells), tuple(line for line in (*lines, *self.notes) if line)),)

    def to_dict(self) -> dict[str, Any]:
        null = {"value_range": self.null_range, "clamped_share": self.null_clamped_share}
        return plain({
            "mode": self.mode, "called": self.called, "caption": self.caption, "natural": self.natural,
            "shape": tuple(self.tensor.shape), "dtype": str(self.tensor.dtype).removeprefix("torch."),
            "value_range": self.value_range, "clamped_share": self.clamped_share,
            "scales": None if self.natural else self.scales, "null": None if self.null is None else null,
            "display": vars(self.display), "figures": self.figures, "notes": self.notes,
            "provenance": self.provenance.to_dict(),
        })  # fmt: skip

    def __repr__(self) -> str:
        size = "x".join(map(str, self.tensor.shape))
        kind = f"{size} {str(self.tensor.dtype).removeprefix('torch.')} {self.tensor.device}"
        null = "" if self.null is None else ", with null"
        return f"Picture({kind}, {self.called!r}, mode {self.mode!r}, range {span(self.value_range)}{null})"

    def _colours(self, tensor: Tensor) -> list[Tensor]:
        if self.natural:
            return [self.display.colours(image) for image in _images(tensor)]
        return [signed(image, scale) for image, scale in zip(_images(tensor), self.scales, strict=True)]


@dataclass(frozen=True, eq=False, repr=False)
class ClassPicture(Shown):
    """Class inversion (12): `full = positive + negative`, the hemispheres of positive and negative importance."""

    full: Picture
    positive: Picture
    negative: Picture
    target: int
    name: str
    weights: str
    figures: Mapping[str, float | int | str | bool]

    def saliency(self) -> Tensor:
        """Per-pixel magnitude of the full picture: (H, W), or (B, H, W) for a batch; l2 over colours, >= 0."""
        return self.full.tensor.norm(dim=-3)

    def rows(self) -> tuple[Row, ...]:
        words = (f"class {self.target}: {self.name}; weights {self.weights}", facts(self.figures))
        heading = Row((), tuple(line for line in words if line))
        parts = (("full", self.full), ("positive", self.positive), ("negative", self.negative))
        rows = [
            Row(row.cells, (f"{name}: {row.lines[0]}", *row.lines[1:])) for name, part in parts for row in part.rows()
        ]
        return (heading, *rows)

    def to_dict(self) -> dict[str, Any]:
        return plain({
            "target": self.target, "name": self.name, "weights": self.weights, "figures": self.figures,
            "full": self.full.to_dict(), "positive": self.positive.to_dict(), "negative": self.negative.to_dict(),
        })  # fmt: skip

    def __repr__(self) -> str:
        return f"ClassPicture({self.target} {self.name!r}, weights {self.weights!r}, full {self.full!r})"


@dataclass(frozen=True, eq=False, repr=False)
class Certificate(Shown):
    """Where a seed's pull-back can be, computed and not assumed (section 4 of the specification).

    stage             number of the stage, from 1
    seed              what was certified, such as "unit (17, 3, 4)"
    field             (H, W) bool: union of the structural receptive fields of the seed's positions
    holds             the picture's gradient support lies inside the field, dilated by one pixel
    nested_condition  what feeds an active middle position also feeds an active one at the stage
    exact             every boundary below the stage is the direct output of a ReLU-type gate
    outside           share of gradient energy outside
    area              field / image
    vacuous           the field is the whole image: the certificate says nothing
    areas             distribution of the areas over channels
    unknown           operations without a structural rule, taken as "whole image"
    words             the finding as a sentence
    """

    stage: int
    seed: str
    field: Tensor
    holds: bool
    nested_condition: bool
    exact: bool
    outside: float
    area: float
    vacuous: bool
    areas: Mapping[str, float]
    unknown: tuple[str, ...]
    words: str

    def rgb(self) -> Image.Image:
        """The field: white inside, black outside."""
        return to_image(on_cpu(self.field)[None])

    def rows(self) -> tuple[Row, ...]:
        facts = (
            f"area {share(self.area)}, holds: {number(self.holds)}, nested: {number(self.nested_condition)}, exact: "
            f"{number(self.exact)}, outside {share(self.outside)}, vacuous: {number(self.vacuous)}"
        )
        return (Row(((f"field, stage {self.stage}", self.rgb()),), (self.seed, self.words, facts)),)

    def to_dict(self) -> dict[str, Any]:
        size = tuple(self.field.shape)
        return plain({**{key: value for key, value in vars(self).items() if key != "field"}, "size": size})

    def __repr__(self) -> str:
        verdict = "vacuous" if self.vacuous else "holds" if self.holds else "does not hold"
        return f"Certificate(stage {self.stage}, {self.seed!r}, area {share(self.area)}, {verdict})"


def _range(tensor: Tensor) -> tuple[float, float]:
    low, high = torch.aminmax(tensor.detach())
    return low.item(), high.item()


def _images(tensor: Tensor) -> tuple[Tensor, ...]:
    return tensor.unbind(0) if tensor.dim() == 4 else (tensor,)


def _column(images: list[Image.Image]) -> Image.Image:
    """Images of one size, one below the other."""
    if len(images) == 1:
        return images[0]
    width, height = images[0].size
    column = Image.new("RGB", (width, len(images) * (height + _GAP) - _GAP), "white")
    for index, image in enumerate(images):
        column.paste(image, (0, index * (height + _GAP)))
    return column
