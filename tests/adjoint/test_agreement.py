"""The check against autograd: a fault in the engine is noticed, said once, and autograd's numbers are given."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from oracles.lowered import a_point, dense, drawn, lower, network, units
from torch import Tensor, nn

from pullback.adjoint import Program, adjoint_discrepancy, rules, vjp_discrepancy
from pullback.adjoint.maps import Scale
from pullback.encoders import Encoder
from pullback.graph import record

SHAPE = (3, 12, 12)


def net() -> nn.Module:
    return drawn(
        nn.Sequential(
            nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(),
            nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
        )
    )  # fmt: skip


def with_kernel(change: Callable[[Tensor], Tensor]) -> Callable[[pytest.MonkeyPatch], None]:
    """Convolutions whose Jacobians have another kernel."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        rule = rules.RULES["convolution"]

        def wrong(a: Any) -> Any:
            out, [(k, j, local)] = rule(a)
            return out, [(k, j, replace(local, weight=change(local.weight)))]

        patch.setitem(rules.RULES, "convolution", wrong)

    return plant


def norm_of_a_wrong_scale(patch: pytest.MonkeyPatch) -> None:
    rule = rules.RULES["native_batch_norm"]

    def wrong(a: Any) -> Any:
        out, [(k, j, local)] = rule(a)
        return out, [(k, j, Scale(local.factor * 1.001, local.source))]

    patch.setitem(rules.RULES, "native_batch_norm", wrong)


def relu_of_the_wrong_sign(patch: pytest.MonkeyPatch) -> None:
    def wrong(a: Any) -> Any:
        return a.run(), [(0, 0, Scale((a.tensors[0] < 0).to(a.tensors[0].dtype)))]

    patch.setitem(rules.RULES, "relu", wrong)


def rules_without_gradient(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(rules.RULES, "mean", lambda a: (a.run(), []))


def not_a_number(patch: pytest.MonkeyPatch) -> None:
    def wrong(a: Any) -> Any:
        return a.run(), [(0, 0, Scale(torch.full((1,) * a.tensors[0].dim(), torch.nan, dtype=a.tensors[0].dtype)))]

    patch.setitem(rules.RULES, "relu", wrong)


FAULTS = {
    "a wrong scale": norm_of_a_wrong_scale,
    "a wrong kernel": with_kernel(lambda weight: weight * (1 + 1e-7)),
    "a kernel not flipped": with_kernel(lambda weight: weight.flip(-1)),
    "a wrong sign": relu_of_the_wrong_sign,
    "not a number": not_a_number,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_noticed(
    fault: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole, x = net(), a_point(*SHAPE)
    expected = dense(whole, x)
    sound = Encoder.from_module(whole, input_shape=SHAPE).jacobian(x, "logits")
    assert sound.program is not None
    FAULTS[fault](monkeypatch)
    encoder = Encoder.from_module(whole, input_shape=SHAPE)
    with caplog.at_level(logging.WARNING, "pullback"):
        for seed in (0, 0, 1):
            J = encoder.jacobian(a_point(*SHAPE, seed=seed), "logits")
            assert J.program is None
            rows = J.vm(units((4,))).flatten(1)
            assert seed == 1 or float((rows - expected).norm() / expected.norm()) < 1e-13
    warned = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warned) == 1
    assert warned[0].startswith("autograd serves Sequential from 0 to logits: the adjoint program differs")


def test_without_any_gradient_autograd_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, x = net(), a_point(*SHAPE)
    rules_without_gradient(monkeypatch)
    J = Encoder.from_module(whole, input_shape=SHAPE).jacobian(x, "logits")
    assert J.program is None
    assert float((J.vm(units((4,))).flatten(1) - dense(whole, x)).norm()) < 1e-12


def test_a_sound_program_is_silent(caplog: pytest.LogCaptureFixture) -> None:
    encoder, x = Encoder.from_module(net(), input_shape=SHAPE), a_point(*SHAPE)
    with caplog.at_level(logging.WARNING, "pullback"):
        for stage in (1, 2, "logits"):
            assert encoder.jacobian(x, stage).program is not None
    assert not caplog.records


def test_a_push_that_does_not_belong_to_the_pull_is_left_to_autograd(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the forward direction is wrong: J^T w stays the program's, J v becomes autograd's."""
    monkeypatch.setattr(Scale, "push", lambda self, v, own: v * self.factor * 0.9)
    whole, x = net(), a_point(*SHAPE)
    expected = dense(whole, x)
    J = Encoder.from_module(whole, input_shape=SHAPE).jacobian(x, "logits")
    assert J.program is not None and not J.program.pushes
    assert float((J.vm(units((4,))).flatten(1) - expected).norm()) < 1e-12
    v = a_point(5, *SHAPE, seed=3)
    assert float((J.mv(v) - v.flatten(1) @ expected.T).norm()) < 1e-12


def test_no_second_derivative_no_push() -> None:
    """Truncation leaves autograd no second derivative; both products of the encoder's Jacobian are right all the same."""
    whole = network(
        lambda x, conv: (y := conv(x), y * 2 + torch.div(y, 0.3, rounding_mode="floor"))[1].mean((2, 3)),
        nn.Conv2d(3, 4, 3, padding=1),
    )
    x = a_point(*SHAPE)
    expected = dense(whole, x)
    J = Encoder.from_module(whole, input_shape=SHAPE).jacobian(x, "logits")
    assert J.program is not None
    assert float((J.vm(units((4,))).flatten(1) - expected).norm()) < 1e-12
    v = a_point(2, *SHAPE, seed=3)
    assert float((J.mv(v) - v.flatten(1) @ expected.T).norm()) < 1e-12


def test_the_measures_themselves() -> None:
    """Zero of a sound program; of one whose kernels are 1 % too large, 1 %; of a push that is 10 % off, a tenth."""
    whole = drawn(nn.Sequential(nn.Conv2d(3, 4, 3)))
    x = a_point(*SHAPE)
    tape, _, _ = record(whole, x[None])
    program = Program.lower(tape, tape.input, tape.output, x, {})
    assert vjp_discrepancy(program, tape, tape.input, tape.output, x) < 1e-14
    assert adjoint_discrepancy(program) < 1e-14
    other = lower(drawn(nn.Sequential(nn.Conv2d(3, 4, 3))), x)
    pull = other.pull
    other.pull = lambda w, batch=None: 1.01 * pull(w, batch)  # type: ignore[method-assign]
    assert vjp_discrepancy(other, tape, tape.input, tape.output, x) == pytest.approx(0.01)
    other.pull = pull  # type: ignore[method-assign]
    push = other.push
    other.push = lambda v, batch=None: 0.9 * push(v, batch)  # type: ignore[method-assign]
    assert adjoint_discrepancy(other) == pytest.approx(1 / 0.9 - 1)


def test_a_dead_network_has_a_zero_program() -> None:
    whole = network(lambda x, conv: (conv(x) * 0).relu().mean((2, 3)), nn.Conv2d(3, 4, 3))
    x = a_point(*SHAPE)
    J = Encoder.from_module(whole, input_shape=SHAPE).jacobian(x, "logits")
    assert not J.vm(units((4,))).any()
    assert not J.mv(x).any()


def images_differ(whole: nn.Module, stage: str, *seeds: int) -> list[float]:
    """Relative errors of J^T w of one encoder at several images in turn."""
    encoder = Encoder.from_module(whole, input_shape=SHAPE)
    errors = []
    for seed in seeds:
        x = a_point(*SHAPE, seed=seed)
        expected = dense(whole, x)
        got: Tensor = encoder.jacobian(x, stage).vm(units((len(expected),))).flatten(1)
        errors.append(float((got - expected).norm() / expected.norm()))
    return errors


def test_one_check_holds_for_other_images() -> None:
    assert max(images_differ(net(), "logits", 0, 1, 2, 0)) < 1e-12
