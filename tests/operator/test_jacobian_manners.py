"""A Jacobian and its surroundings: ways to push, refusals, types, what stays the user's, lifetime and memory."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import pytest
import torch
from oracles.jacobian_nets import IN_SHAPE, NETS, Function, a_point, dense, relative
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pullback.errors import EncoderError, NumericsError, OptionError
from pullback.operator import Jacobian, adjoint_test
from pullback.operator.replica import Replica

by_net = pytest.mark.parametrize("name", NETS)


@by_net
@pytest.mark.parametrize("scope", [nullcontext, torch.no_grad, torch.inference_mode])
def test_works_whatever_the_caller_is_in(name: str, scope: Callable[[], AbstractContextManager[object]]) -> None:
    function = NETS[name]()
    with scope():
        J = Jacobian(function, a_point() + 0, chunk=2)
        results = [
            J.value,
            J.bias(),
            J.mv(a_point(1, (3, *IN_SHAPE)) + 0),
            J.vm(a_point(2, (3, *J.out_shape)) + 0),
            J.dense(),
        ]
    assert not any(result.requires_grad or result.is_inference() for result in results)
    assert relative(results[-1], dense(function, a_point())) < 1e-13


def test_a_product_with_many_cotangents_runs_the_function_once_more() -> None:
    J = Jacobian(NETS["module used three times"](), a_point(), chunk=3)
    assert J.forwards == 1
    for _ in range(3):
        J.vm(a_point(1, J.out_shape))
        J.mv(a_point(1))
    assert J.forwards == 1
    for rows in (2, 3, 50):
        J.vm(a_point(1, (rows, *J.out_shape)))
        J.mv(a_point(1, (rows, *J.in_shape)))
    assert J.forwards == 2


class TestWaysToPush:
    """Which derivative serves `mv`, seen by whether a product runs the function again."""

    def runs(self, function: Function, x: Tensor) -> int:
        J = Jacobian(function, x)
        J.mv(x)
        before = J.forwards
        J.mv(x)
        return J.forwards - before

    def test_the_kept_graph_serves(self) -> None:
        assert self.runs(NETS["group and layer norm, gelu"](), a_point()) == 0

    def test_forward_mode_stands_in_where_a_second_derivative_is_missing(self) -> None:
        function = NETS["hard sigmoid (no second derivative)"]()
        J = Jacobian(function, a_point())
        expected = dense(function, a_point()) @ a_point(1).flatten()
        assert relative(J.mv(a_point(1)).flatten(), expected) < 1e-13
        assert relative(J.mv(a_point(1)).flatten(), expected) < 1e-13

    def test_a_wrong_second_derivative_is_caught(self, caplog: pytest.LogCaptureFixture) -> None:
        J = Jacobian(_Cube.apply, a_point())
        assert relative(J.mv(a_point(1)), 3 * a_point() ** 2 * a_point(1)) < 1e-14
        assert "differs from the adjoint" in caplog.text

    @pytest.mark.parametrize(
        ("function", "reason"),
        [
            (lambda x: _Once.apply(x), "jvp"),
            (lambda x: _Once.apply(x) if torch.is_grad_enabled() else 2 * x.detach(), "the tangent was lost"),
        ],
    )
    def test_neither_way(self, function: Function, reason: str) -> None:
        J = Jacobian(function, a_point())
        assert torch.equal(J.vm(a_point(1)), 2 * a_point(1))
        with pytest.raises(NumericsError, match=rf"J v cannot be had.*push: .*push_forward: .*{reason}"):
            J.mv(a_point(1))

    def test_a_product_is_one_convolution_for_each_of_the_network(self) -> None:
        J = Jacobian(NETS["in-place relu, batch norm, max-pool"](), a_point())
        J.mv(a_point(1))
        with _Counter() as counter:
            J.mv(a_point(1))
        assert {name: n for name, n in counter.seen.items() if "conv" in name or "norm" in name} == {"convolution": 2}

    def test_zero_and_not_a_number_are_no_disagreement(self) -> None:
        J = Jacobian(NETS["functional"](), a_point())
        assert not J.mv(torch.zeros(IN_SHAPE)).any()
        assert J.mv(torch.full(IN_SHAPE, torch.nan)).isnan().any()


class _Counter(TorchDispatchMode):
    """Counts the operations that run, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.seen[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


class _Cube(torch.autograd.Function):
    """x^3 with a forward derivative, and a backward pass that hides half of its dependence on the cotangent."""

    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)
        return x**3

    @staticmethod
    def backward(ctx, w):  # type: ignore[no-untyped-def]
        (x,) = ctx.saved_tensors
        return 3 * x**2 * (w + w.detach()) / 2

    @staticmethod
    def jvp(ctx, v):  # type: ignore[no-untyped-def]
        (x,) = ctx.saved_tensors
        return 3 * x**2 * v


class _Once(torch.autograd.Function):
    """2 x, differentiable once, and only backwards."""

    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        return 2 * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, w):  # type: ignore[no-untyped-def]
        return 2 * w


class TestRefusals:
    def test_shapes(self) -> None:
        J = Jacobian(nn.AvgPool2d(2), a_point())
        with pytest.raises(OptionError, match=r"tangent has shape \(3, 8\), where \(\.\.\., 3, 8, 8\) was expected"):
            J.mv(torch.zeros(3, 8))
        with pytest.raises(
            OptionError, match=r"cotangent has shape \(3, 8, 8\), where \(\.\.\., 3, 4, 4\) was expected"
        ):
            J.vm(torch.zeros(3, 8, 8))

    def test_complex_numbers(self) -> None:
        J = Jacobian(nn.AvgPool2d(2), a_point())
        with pytest.raises(OptionError, match="complex"):
            J.mv(torch.zeros(IN_SHAPE, dtype=torch.complex128))
        with pytest.raises(OptionError, match="complex64"):
            Jacobian(torch.relu, torch.zeros(3, dtype=torch.complex64))

    @pytest.mark.parametrize("chunk", [0, -1, 2.0, True])
    def test_chunk(self, chunk: object) -> None:
        with pytest.raises(OptionError, match="chunk="):
            Jacobian(torch.relu, a_point(), chunk=chunk)  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("function", "words"),
        [
            (lambda x: (x, x), "returned a tuple"),
            (lambda x: x.sum(), "batch of 1"),
            (lambda x: x.detach(), "no gradient"),
            (lambda x: x > 0, "torch.bool"),
        ],
    )
    def test_functions_that_are_none(self, function: Function, words: str) -> None:
        with pytest.raises(EncoderError, match=words):
            Jacobian(function, a_point())

    def test_a_function_that_mixes_the_batch_away(self) -> None:
        J = Jacobian(lambda x: x[:1], a_point(), chunk=2)
        with pytest.raises(EncoderError, match="batch of 2"):
            J.vm(a_point(1, (3, *IN_SHAPE)))


def test_dtypes_are_those_of_the_point() -> None:
    J = Jacobian(nn.AvgPool2d(2), a_point().float())
    assert J.dtype == J.mv(a_point()).dtype == J.vm(torch.ones(3, 4, 4, dtype=torch.int64)).dtype == torch.float32


def test_half_precision() -> None:
    function = NETS["in-place relu, batch norm, max-pool"]()
    J = Jacobian(function.bfloat16(), a_point().bfloat16())
    assert J.mv(a_point(1)).dtype == J.vm(a_point(1, J.out_shape)).dtype == torch.bfloat16
    assert adjoint_test(J) < 0.02


def test_the_user_keeps_what_is_theirs() -> None:
    function, x = NETS["trainable weights"](), a_point().requires_grad_()
    before = {name: tensor.clone() for name, tensor in function.state_dict().items()}
    state = torch.get_rng_state()
    with Jacobian(function, x) as J:
        J.mv(a_point(1)), J.vm(a_point(1, J.out_shape).requires_grad_()), J.bias()
    assert x.grad is None
    assert all(p.grad is None and p.requires_grad for p in function.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in function.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())


def test_a_later_change_of_the_point_changes_nothing() -> None:
    x = a_point()
    J = Jacobian(lambda batch: batch**2, x, chunk=2)
    x.zero_()
    assert torch.equal(J.vm(torch.ones(2, *IN_SHAPE, dtype=x.dtype))[1], 2 * a_point())


def test_an_error_of_the_function_comes_through_and_leaves_a_working_operator() -> None:
    calls = []

    def fails_on_its_second_run(x: Tensor) -> Tensor:
        calls.append(len(x))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return 2 * x

    J = Jacobian(fails_on_its_second_run, a_point(), chunk=2)
    w = a_point(1, (2, *IN_SHAPE))
    with pytest.raises(KeyboardInterrupt):
        J.vm(w)
    assert torch.equal(J.vm(w), 2 * w)
    assert calls == [1, 2, 2]


def test_closing_frees_the_graphs() -> None:
    outputs: list[weakref.ref[Tensor]] = []

    def function(x: Tensor) -> Tensor:
        out = x.exp()
        outputs.append(weakref.ref(out))
        return out

    with Jacobian(function, a_point(), chunk=2) as J:
        expected = J.mv(a_point(1, (3, *IN_SHAPE)))
        assert all(ref() is not None for ref in outputs)
    gc.collect()
    assert [ref() for ref in outputs] == [None, None]
    assert torch.equal(J.mv(a_point(1, (3, *IN_SHAPE))), expected)
    assert J.forwards == 3


class TestMemory:
    net = staticmethod(NETS["in-place relu, batch norm, max-pool"])

    def test_the_budget_chooses_a_power_of_two(self) -> None:
        per_copy = 3 * self.saved()
        for memory, chunk in [
            (1, 1),
            (2 * per_copy - 1, 1),
            (2 * per_copy, 2),
            (7 * per_copy, 4),
            ("1GB", 8),
            (None, 8),
        ]:
            assert Jacobian(self.net(), a_point(), memory=memory).chunk == chunk

    def test_an_explicit_chunk_wins(self) -> None:
        assert Jacobian(self.net(), a_point(), chunk=13, memory=1).chunk == 13

    @by_net
    def test_saved_bytes_are_those_that_hooks_see(self, name: str) -> None:
        function = NETS[name]()
        weights = function.state_dict().values() if isinstance(function, nn.Module) else []
        owned = {tensor.untyped_storage().data_ptr() for tensor in weights}
        packed: list[Tensor] = []

        def pack(tensor: Tensor) -> Tensor:
            packed.append(tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            replica = Replica(function, a_point(), 1)
        sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in packed}
        seen = sum(size for storage, size in sizes.items() if storage not in owned)
        assert seen > 1000
        assert replica.saved_bytes() == pytest.approx(seen, abs=100)  # numbers, and the scales of batch norms

    def saved(self) -> int:
        return Replica(self.net(), a_point(), 1).saved_bytes()


def test_an_array_of_another_library_is_no_tensor() -> None:
    J = Jacobian(torch.relu, torch.ones(3))
    for product in (J.vm, J.mv):
        with pytest.raises(OptionError, match=r"is a ndarray, where a tensor was expected: pass torch.as_tensor\(it\)"):
            product(np.ones(3))  # type: ignore[arg-type]


def test_a_tensor_that_the_graph_keeps_has_changed() -> None:
    weight = torch.full((3,), 2.0)
    J = Jacobian(lambda x: (weight * x).sin() * x, torch.ones(3))
    products = J.vm, J.mv
    for product in products:
        product(torch.ones(3))
    weight += 1
    for product in products:
        with pytest.raises(
            EncoderError, match=r"such as a network.s parameter, has changed since it was made: make a new one"
        ):
            product(torch.ones(3))
