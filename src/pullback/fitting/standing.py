"""How far a fit is, in numbers that say what its loss is worth."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Losses:
    """Mean losses over some pictures, all in the unit of the objective.

    loss: of what the correctors draw from the features; floor: of each picture's own best single colour;
    zero: of what the same correctors draw from a zero seed, through the same gates, without any feature.
    """

    loss: float
    floor: float
    zero: float

    @property
    def lift(self) -> float:
        """What is better than the best single colour: floor - loss."""
        return self.floor - self.loss

    def rounded(self) -> dict[str, float]:
        """For a card."""
        return {name: round(value, 6) for name, value in {**asdict(self), "lift": self.lift}.items()}


@dataclass(frozen=True)
class Standing:
    """A fit after `step` of `steps` steps.

    fitted: over the steps since the last validation; None before the first step. held: of the pictures that were held back,
    with channels drawn as in a step; only at validations. due: a validation was due here.
    """

    step: int
    steps: int
    fitted: Losses | None = None
    held: Losses | None = None
    due: bool = False
