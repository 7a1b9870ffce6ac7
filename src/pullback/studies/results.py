"""What a finished study knows: the rows of every method at every stage, image by image, and quantities with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pullback.studies.bootstrap import Interval, bootstrap, differences
from pullback.studies.rows import Row

Column = list[float | None]
"""One value for each image, in the order of the images; None where a row has none."""

LOST_WITH_FEATURES = "SSIM lost when only the features are exchanged"
LOST_WITH_GATES = "SSIM lost when the gates are exchanged after that"
LEFT = "SSIM left when both are exchanged"


@dataclass(frozen=True)
class Quantity:
    """A figure of the rows, or the difference of two. less: figure to take away; of: the method whose rows have it, if another."""

    name: str
    figure: str
    less: str | None = None
    of: str | None = None


QUANTITIES = (
    Quantity("SSIM", "ssim"),
    Quantity("SSIM over the best floor", "ssim", "floor"),
    Quantity("SSIM over its null", "ssim", "null ssim"),
    Quantity("SSIM over the raw VJP", "ssim", "ssim", "vjp"),
    Quantity("SSIM over the blind inverse", "ssim", "ssim", "blind"),
    Quantity("SSIM over random weights", "ssim", "random ssim"),
    Quantity(LOST_WITH_FEATURES, "ssim", "swap ssim to image"),
    Quantity(LOST_WITH_GATES, "swap ssim to image", "foreign ssim"),
    Quantity(LEFT, "foreign ssim"),
    Quantity("correlation", "correlation"),
    Quantity("null: correlation", "null correlation"),
    Quantity("correlation over the blind inverse", "correlation", "correlation", "blind"),
    Quantity("correlation over random weights", "correlation", "random correlation"),
    Quantity("feature misfit", "misfit"),
    Quantity("null: feature misfit", "null misfit"),
    Quantity("LPIPS", "lpips"),
    Quantity("null: LPIPS", "null lpips"),
    Quantity("LPIPS over the blind inverse", "lpips", "lpips", "blind"),
    Quantity("clamped share", "clamped"),
    Quantity("transplant: correlation", "transplant correlation"),
    Quantity("transplant: energy inside", "transplant energy"),
    Quantity("transplant: energy inside over the area", "transplant energy", "transplant area"),
    Quantity("swap: correlation with the image", "swap correlation to image"),
    Quantity("swap: correlation with the donor", "swap correlation to donor"),
    Quantity("swap: SSIM with the image", "swap ssim to image"),
    Quantity("swap: SSIM with the donor", "swap ssim to donor"),
    Quantity("swap: donor over image", "swap correlation to donor", "swap correlation to image"),
    Quantity("seconds", "seconds"),
    Quantity("memory", "memory"),
    Quantity("steps", "steps"),
)
_BY_NAME = {quantity.name: quantity for quantity in QUANTITIES}


@dataclass(frozen=True)
class Results:
    """titles: of the methods, by key. stages: names by number. rows: by method and stage, one for each image, in their order.

    floors: likeness of each floor, by its name, image by image.
    """

    images: Sequence[str]
    titles: Mapping[str, str]
    stages: Mapping[int, str]
    rows: Mapping[tuple[str, int], Sequence[Row]]
    floors: Mapping[str, Sequence[Mapping[str, float]]]
    seed: int

    def column(self, method: str, stage: int, name: str) -> Column:
        """A quantity by its name. Against a method that is not in the study: all None."""
        quantity = _BY_NAME[name]
        own = self._figures(method, stage, quantity.figure)
        if quantity.less is None:
            return own
        return differences(own, self._figures(quantity.of or method, stage, quantity.less))

    def interval(self, method: str, stage: int, name: str) -> Interval:
        """Its mean over the images that have it, with the interval."""
        return bootstrap(self.column(method, stage, name), seed=self.seed)

    def failed(self, method: str, stage: int) -> int:
        """How many images the method could not draw."""
        return sum(row.error is not None for row in self.rows[method, stage])

    def _figures(self, method: str, stage: int, figure: str) -> Column:
        rows = self.rows.get((method, stage))
        return [None] * len(self.images) if rows is None else [row.get(figure) for row in rows]
