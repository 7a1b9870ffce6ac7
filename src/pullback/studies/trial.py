"""One trial: a method at a stage of an image, its picture and null measured, and every control drawn beside them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from math import isnan

import torch
from PIL import Image
from torch import Tensor

from pullback.encoders import Encoder
from pullback.errors import PullbackError
from pullback.pictures import Display, Picture
from pullback.studies.contenders import Budget, Contender
from pullback.studies.controls import Guest, transplant
from pullback.studies.floors import floors
from pullback.studies.memory import forget_peak, peak
from pullback.studies.metrics import Distance, feature_misfit, likeness
from pullback.studies.sessions import Opener


@dataclass(frozen=True)
class Bench:
    """What all trials of a study share. stranger: the same architecture with random weights, or None for no such control."""

    encoder: Encoder
    budget: Budget
    controls: tuple[str, ...]
    distance: Distance | None
    stranger: Encoder | None

    @property
    def display(self) -> Display:
        return Display(self.encoder.preprocessing.mean, self.encoder.preprocessing.std)


@dataclass(frozen=True, eq=False)
class Tried:
    """values: figures of a row by name. picture: the tensor (C, H, W). shown: what a sheet shows, by name."""

    values: Mapping[str, float]
    picture: Tensor
    shown: Mapping[str, Image.Image] = field(default_factory=dict)


def floor_values(bench: Bench, image: Tensor) -> dict[str, dict[str, float]]:
    """Likeness of each floor, by its name."""
    found = floors(image, bench.display)
    return {name: likeness(picture, image, bench.display, bench.distance) for name, picture in found.items()}


def try_method(
    bench: Bench,
    contender: Contender,
    stage: int,
    image: Tensor,
    guest: Guest | None,
    *,
    floor: float,
    donor_picture: Tensor | None = None,
) -> Tried:
    """Draw and measure. image: (C, H, W) preprocessed; without a guest no features are exchanged.

    floor: SSIM of the image's best floor. donor_picture: the method's picture of the donor at this stage, where it is at hand.
    Seconds become steps by a trial that is thrown away: a search that lateness cut off is no match for one of as many steps,
    and what is measured, its controls and all other images are to take the same. The donor's own picture and the random
    network's may fail: their figures are left out. Raises PullbackError for all else that cannot be drawn.
    """
    encoder, device = bench.encoder, bench.encoder.device
    features = encoder.features(image, stage)
    budget = bench.budget
    own, seconds, memory = _clocked(contender.start(encoder, budget), image, stage, device)
    again = budget.at(_steps(own))
    if again != budget:
        own, seconds, memory = _clocked(contender.start(encoder, again), image, stage, device)
    steps = _steps(own)
    values = {
        **likeness(own.tensor, image, bench.display, bench.distance),
        "misfit": feature_misfit(encoder, own.tensor, features, stage),
        "clamped": own.clamped_share,
        "seconds": seconds,
        "floor": floor,
    }
    if memory is not None:
        values["memory"] = float(memory)
    if steps is not None:
        values["steps"] = steps
    assert own.null is not None
    null = likeness(own.null, image, bench.display, bench.distance)
    values |= {f"null {name}": value for name, value in null.items()}
    values["null misfit"] = feature_misfit(encoder, own.null, features, stage)
    shown = {"own": own.rgb(), "null": _null(own)}
    if guest is not None and {"transplant", "swap"} & set(bench.controls):
        patch, donor = guest.patch, guest.donor
        with contender.start(encoder, again)(image) as session:
            if "transplant" in bench.controls:
                picture = session.from_features(encoder.features(patch.pasted, stage), stage)
                found = transplant(picture.tensor - own.tensor, image, patch)
                if found is not None:
                    values |= {"transplant correlation": found.correlation, "transplant energy": found.energy}
                    values["transplant area"] = patch.area
                shown["transplant"] = picture.rgb()
            if "swap" in bench.controls:
                picture = session.from_features(encoder.features(donor, stage), stage)
                shown["swap"] = picture.rgb()
                for to, whom in (("image", image), ("donor", donor)):
                    there = likeness(picture.tensor, whom, bench.display, None)
                    if isnan(there["correlation"]):
                        there["correlation"] = 0.0  # a flat picture is like nobody's, as in `transplant`
                    values |= {f"swap {name} to {to}": value for name, value in there.items()}
                if donor_picture is None:
                    with suppress(PullbackError), contender.start(encoder, again)(donor) as other:
                        donor_picture = other.stage(stage).tensor
                if donor_picture is not None:
                    there = likeness(donor_picture, image, bench.display, None)
                    values |= {f"foreign {name}": value for name, value in there.items()}
    if bench.stranger is not None and not contender.learned:
        with suppress(PullbackError), contender.start(bench.stranger, again)(image) as session:
            picture = session.stage(stage)
            there = likeness(picture.tensor, image, bench.display, None)
            values |= {f"random {name}": value for name, value in there.items()}
            shown["random"] = picture.rgb()
    return Tried(values, own.tensor, shown)


def _clocked(opener: Opener, image: Tensor, stage: int, device: torch.device) -> tuple[Picture, float, int | None]:
    """The picture of a stage, the seconds it took, and the most memory held meanwhile."""
    forget_peak(device)
    begun = time.perf_counter()
    with opener(image) as session:
        picture = session.stage(stage)
        return picture, time.perf_counter() - begun, peak(device)


def _steps(picture: Picture) -> float | None:
    taken = picture.figures.get("steps")
    return float(taken) if isinstance(taken, int | float) else None


def _null(picture: Picture) -> Image.Image:
    null = picture.null_rgb()
    assert null is not None
    return null
