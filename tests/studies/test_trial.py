"""One method at one stage of one image: its figures are those of the inverter, under the budget that was settled."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace

import pytest
import torch
from oracles.small_nets import image, small_encoder
from torch import Tensor

from pullback.encoders import Encoder
from pullback.errors import StageError
from pullback.inversion import Inverter
from pullback.pictures import Display
from pullback.studies.contenders import Budget, Contender, contenders
from pullback.studies.controls import Guest, paste, transplant
from pullback.studies.mahendran import mahendran
from pullback.studies.metrics import likeness
from pullback.studies.sessions import FeatureMethod, Opener, Session, Sketch
from pullback.studies.trial import Bench, try_method


def test_figures_are_those_of_the_inverter_itself() -> None:
    encoder, (x, donor) = small_encoder(), (image(0), image(1))
    display = Display((0.5,) * 3, (0.25,) * 3)
    bench = Bench(encoder, Budget(5, None), ("transplant", "swap"), None, None)
    (contender,) = contenders(("wiener",))
    patch = paste(x, donor, 0)
    found = try_method(bench, contender, 2, x, Guest(donor, patch), floor=0.2)
    with Inverter(encoder, "wiener", steps=5)(x) as session:
        own, swapped = session.stage(2), session.from_features(encoder.features(donor, 2), 2)
        pasted = session.from_features(encoder.features(patch.pasted, 2), 2)
    change = transplant(pasted.tensor - own.tensor, x, patch)
    assert found.values["transplant correlation"] == pytest.approx(change.correlation)
    assert found.values["transplant energy"] == pytest.approx(change.energy)
    assert change.energy > patch.area
    assert found.values["ssim"] == pytest.approx(likeness(own.tensor, x, display, None)["ssim"])
    assert own.null is not None
    assert found.values["null correlation"] == pytest.approx(likeness(own.null, x, display, None)["correlation"])
    swap = likeness(swapped.tensor, donor, display, None)
    assert found.values["swap correlation to donor"] == pytest.approx(swap["correlation"])
    assert "random ssim" not in found.values


def recorded(budgets: list[Budget], fails: Callable[[Tensor], bool] = lambda _: False) -> Contender:
    """Mahendran & Vedaldi's inversion that keeps the budgets it was given, and fails on some images."""

    def start(encoder: Encoder, budget: Budget) -> Opener:
        budgets.append(budget)
        opener = mahendran(encoder, steps=budget.steps, seconds=budget.seconds)

        def opened(x: Tensor) -> AbstractContextManager[Session]:
            if fails(x):
                raise StageError("nothing to see here")
            return opener(x)

        return opened

    return Contender("mahendran", "planted", start, "")


def test_what_is_measured_takes_the_steps_that_a_trial_in_seconds_settled() -> None:
    encoder, (x, donor) = small_encoder(), (image(0), image(1))
    bench = Bench(encoder, Budget(None, 1e-6), ("transplant", "swap"), None, encoder)
    budgets: list[Budget] = []
    found = try_method(bench, recorded(budgets), 1, x, Guest(donor, paste(x, donor, 0)), floor=0.2)
    settled = Budget(int(found.values["steps"]), None)
    assert budgets == [bench.budget, *[settled] * 4]  # own, own under transplant and swap, the donor's, random weights
    budgets.clear()
    try_method(replace(bench, budget=settled), recorded(budgets), 1, x, None, floor=0.2)
    assert budgets == [settled] * 2


def test_a_donor_without_a_picture_leaves_out_its_figures_alone() -> None:
    encoder, (x, donor) = small_encoder(), (image(0), image(1))
    bench = Bench(encoder, Budget(2, None), ("swap",), None, None)
    guest = Guest(donor, paste(x, donor, 0))
    whole = try_method(bench, recorded([]), 1, x, guest, floor=0.2).values
    partly = try_method(bench, recorded([], lambda opened: opened is donor), 1, x, guest, floor=0.2).values
    assert set(whole) - set(partly) == {name for name in whole if name.startswith("foreign ")} != set()
    with pytest.raises(StageError, match="nothing to see"):
        try_method(bench, recorded([], lambda opened: opened is x), 1, x, guest, floor=0.2)


def test_a_flat_picture_of_another_images_features_is_like_nobody() -> None:
    """It counts as 0, as a patch that changes nothing does: left out, the swaps that draw something would speak for all."""
    encoder, (x, donor) = small_encoder(), (image(0), image(1))
    own = encoder.features(x, 1)

    def draw(features: Tensor, stage: int, size: tuple[int, int]) -> Sketch:
        return Sketch(x if torch.equal(features, own) else torch.zeros_like(x), torch.zeros_like(x), {})

    def start(encoder: Encoder, budget: Budget) -> Opener:
        return FeatureMethod(encoder, draw, "planted", "", {}, 0)

    bench = Bench(encoder, Budget(2, None), ("swap",), None, None)
    found = try_method(
        bench, Contender("planted", "planted", start, ""), 1, x, Guest(donor, paste(x, donor, 0)), floor=0.2
    )
    assert found.values["correlation"] == pytest.approx(1)
    assert (found.values["swap correlation to image"], found.values["swap correlation to donor"]) == (0, 0)
