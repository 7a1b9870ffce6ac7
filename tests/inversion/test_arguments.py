"""What a caller may pass: whole numbers of any library's type, arguments in their order, and no option that is ignored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from oracles.small_nets import image, small_encoder

from pullback.encoders import Encoder
from pullback.errors import ClassError, OptionError, PullbackError, StageError
from pullback.inversion import Correctors, Inversion, Inverter, Prior
from pullback.inversion.inverter import METHODS, STARTS

PRIOR = Prior.natural((0.5,) * 3, (0.25,) * 3, (16, 16))
WRONG: dict[str, tuple[Callable[[Inversion], object], type[PullbackError], str]] = {
    "swapped": (
        lambda inv: inv.from_features(2, inv.features(2)),
        StageError,
        r"^expected a stage by its number or name, got a Tensor of shape \(12, 4, 4\)$",
    ),
    "swapped array": (
        lambda inv: inv.from_features(2, np.ones((12, 4, 4))),
        StageError,
        r"stage by its number or name, got a ndarray of shape \(12, 4, 4\)$",
    ),
    "a number in place of features": (lambda inv: inv.from_features(2), StageError, r"got \(\)$"),
    "stage": (lambda inv: inv.stage(1.0), StageError, "stage by its number or name, got 1.0"),
    "stage true": (
        lambda inv: inv.stage(torch.tensor(True)),
        StageError,
        r"stage by its number or name, got tensor\(True\)",
    ),
    "stage True": (lambda inv: inv.stage(True), StageError, "stage by its number or name, got True"),
    "channel's stage": (lambda inv: inv.channel(1.0, 0), StageError, "stage by its number or name, got 1.0"),
    "cls": (lambda inv: inv.cls(1.0), ClassError, "class by its index or name, got 1.0"),
    "cls of a tensor": (
        lambda inv: inv.cls(torch.ones(5)),
        ClassError,
        r"class by its index or name, got a Tensor of shape \(5,\)",
    ),
    "class_weights": (lambda inv: inv.class_weights(1.0), ClassError, "class by its index or name, got 1.0"),
    "importance": (lambda inv: inv.importance(1.0), ClassError, "class by its index or name, got 1.0"),
}


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return small_encoder()


@pytest.mark.parametrize("call", WRONG)
def test_what_is_no_stage_and_no_class_is_named(encoder: Encoder, call: str) -> None:
    ask, error, said = WRONG[call]
    with Inverter(encoder)(image()) as inv, pytest.raises(error, match=said):
        ask(inv)


def test_whole_numbers_of_any_type(encoder: Encoder) -> None:
    with Inverter(encoder)(image()) as inv:
        for one in (np.int64(1), torch.tensor(1)):
            assert torch.equal(inv.stage(one).tensor, inv.stage(1).tensor)
            assert torch.equal(inv.cls(one).full.tensor, inv.cls(1).full.tensor)
    plain = Inverter(encoder, "blind", prior=PRIOR, start="mean", starts=2, steps=3)(image()).stage(1)
    numpy = Inverter(encoder, "blind", prior=PRIOR, start="mean", starts=np.int32(2), steps=np.int64(3))(image()).stage(
        1
    )
    assert torch.equal(numpy.tensor, plain.tensor)
    assert numpy.to_dict() == plain.to_dict()
    ridges = [Inverter(encoder, "wiener", ridge=r).settings["ridge"] for r in (np.float32(0.5), np.int64(1), 2)]
    assert ridges == [0.5, 1, 2] and all(type(r) is float for r in ridges)


@pytest.mark.parametrize("ridge", [0, -1.0, True, "1", None, np.nan, np.float32(0), np.inf, 10**400])
def test_ridges_that_do_not_fit(encoder: Encoder, ridge: object) -> None:
    with pytest.raises(OptionError, match=r"ridge=.* must be a finite number above 0"):
        Inverter(encoder, "wiener", ridge=ridge)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": np.array(["vjp", "blind"])}, r"unknown method array\(.*; choose one of cascade, wiener"),
        ({"mode": np.array(["frozen", "fused"])}, r"unknown mode array\(.*; choose one of additive, fused, frozen"),
        ({"mode": None}, "unknown mode None; choose one of additive"),
        ({"method": "blind", "start": ["mean"]}, r"unknown start \['mean'\]; choose one of taught, mean"),
        ({"method": "wiener", "prior": 5}, r"expected a Prior, got int; make one with Prior\.natural"),
    ],
)
def test_what_is_no_choice_is_named(encoder: Encoder, options: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        Inverter(encoder, **options)


OPTIONS: dict[str, tuple[object, tuple[str, ...]]] = {
    "mode": ("additive", ("cascade",)),
    "correctors": (Correctors.unfitted([3, 8, 12]), ("cascade",)),
    "ridge": (0.5, ("wiener",)),
    "start": ("mean", ("blind",)),
    "starts": (2, ("blind",)),
    "steps": (2, ("wiener", "blind")),
    "seconds": (2.0, ("wiener", "blind")),
    "prior": (PRIOR, ("wiener", "blind", "decoder")),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("option", OPTIONS)
def test_no_option_is_ignored(encoder: Encoder, option: str, method: str) -> None:
    value, methods = OPTIONS[option]
    if method in methods:
        Inverter(encoder, method, **{option: value})  # type: ignore[arg-type]
        return
    with pytest.raises(OptionError, match=rf"^{option}=.* is for {' and '.join(methods)}: '{method}' would ignore it"):
        Inverter(encoder, method, **{option: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("method", METHODS)
def test_defaults_are_no_options_given(encoder: Encoder, method: str) -> None:
    Inverter(
        encoder, method, "frozen", correctors=None, prior=None, starts=1, start=STARTS[0], steps=None, seconds=None
    )
