"""Recipes: what a fit does in each step, by name (spec section 3, "Fitting")."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

from pullback.errors import OptionError

MODES = ("additive", "fused", "frozen")
LOSSES = ("l1", "l2")
_COUNTS = ("steps", "batch", "channels")


@dataclass(frozen=True)
class Recipe:
    """How correctors are fitted; the numbers are ours, since the paper states neither optimiser nor subset.

    mode: "additive": the picture is the mean over `channels` channels drawn with probability alpha, unbiased for the
        whole picture; "fused": one cascade of all features; "frozen": the same picture, whose derivative takes the
        normalisers as the constants that they are in frozen pictures.
    loss: "l1", mean absolute error in preprocessed units, or "l2", mean square error.
    steps: of Adam from gamma 1, beta 0, whose rate falls from `rate` to zero along a cosine.
    batch: pictures a step. held_back: pictures kept for validation. seed: of all that is drawn at random.

    Raises OptionError for what is not offered.
    """

    mode: str = "additive"
    loss: str = "l1"
    steps: int = 240
    batch: int = 4
    channels: int = 8
    rate: float = 2e-2
    held_back: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        for name, offered in (("mode", MODES), ("loss", LOSSES)):
            if getattr(self, name) not in offered:
                raise OptionError(f"unknown {name} {getattr(self, name)!r}; choose one of {', '.join(offered)}")
        for name in (*_COUNTS, "held_back", "seed"):
            least, value = int(name in _COUNTS), getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise OptionError(f"{name}={value!r} must be a whole number, {least} or above")
        if isinstance(self.rate, bool) or not isinstance(self.rate, int | float) or not 0 < self.rate < math.inf:
            raise OptionError(f"rate={self.rate!r} must be a number above zero")

    @property
    def drawn(self) -> int:
        """Cotangents of one picture that go through the network together."""
        return self.channels if self.mode == "additive" else 1

    @property
    def interval(self) -> int:
        """Steps between two validations: a twentieth of all."""
        return max(1, self.steps // 20)

    def rate_at(self, step: int) -> float:
        """Adam's rate in step 0 .. steps - 1."""
        return self.rate * (1 + math.cos(math.pi * step / self.steps)) / 2


PRESETS = {"paper": Recipe()}


def recipe_of(preset: str | Recipe, **changed: int | float | str | None) -> Recipe:
    """The preset with some of its fields changed; None leaves a field as it is. Raises OptionError."""
    if not isinstance(preset, Recipe) and preset not in PRESETS:
        raise OptionError(f"unknown preset {preset!r}; choose one of {', '.join(PRESETS)}")
    base = preset if isinstance(preset, Recipe) else PRESETS[preset]
    given = {f.name: changed[f.name] for f in fields(Recipe) if changed.get(f.name) is not None}
    return replace(base, **given)  # type: ignore[arg-type]  # checked by the recipe itself
