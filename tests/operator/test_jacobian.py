from __future__ import annotations

import gc
import weakref
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles.jacobian_nets import IN_SHAPE, NETS, Function, a_point
from scipy.sparse.linalg import lsqr, svds
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

from pullback.encoders.torchvision_ops import import_torchvision
from pullback.errors import EncoderError, NumericsError, OptionError
from pullback.operator import Jacobian, adjoint_test
from pullback.operator.replica import Replica

by_net = pytest.mark.parametrize("name", NETS)


def dense(function: Function, x: Tensor) -> Tensor:
    """The oracle: the Jacobian at x by autograd's own dense routine, (out_size, in_size)."""
    full = torch.autograd.functional.jacobian(lambda one: function(one[None].clone())[0], x)
    return full.reshape(-1, x.numel())


def relative(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).detach().norm() / expected.detach().norm())


def units(J: Jacobian) -> Tensor:
    return torch.eye(J.shape[1], dtype=J.dtype).reshape(-1, *J.in_shape)


@by_net
def test_both_products_are_the_dense_matrix(name: str) -> None:
    function, x = NETS[name](), a_point()
    expected = dense(function, x)
    J = Jacobian(function, x, chunk=5)
    assert J.shape == expected.shape
    assert relative(J.dense(), expected) < 1e-13
    assert relative(J.mv(units(J)).reshape(J.shape[1], -1).T, expected) < 1e-13
    assert relative(J.value, function(x[None].clone())[0]) < 1e-14


@by_net
def test_the_products_are_adjoint(name: str) -> None:
    assert adjoint_test(Jacobian(NETS[name](), a_point(1)), seed=1) < 1e-14


@by_net
def test_chunks_and_padding_change_nothing(name: str) -> None:
    function, x = NETS[name](), a_point(2)
    plain, chunked = Jacobian(function, x, chunk=1), Jacobian(function, x, chunk=4)
    w, v = a_point(3, (7, *plain.out_shape)), a_point(4, (7, *plain.in_shape))
    for whole, loop, rows in ((chunked.vm, plain.vm, w), (chunked.mv, plain.mv, v)):
        assert relative(whole(rows), loop(rows)) < 1e-13
        assert torch.equal(loop(rows), torch.stack([loop(row) for row in rows]))
        # Three rows padded to four have the bits that they have in a full chunk.
        assert torch.equal(whole(rows)[4:], whole(rows[[4, 5, 6, 0]])[:3])


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


def test_relu_at_zero_and_ties_in_max_pool() -> None:
    relu = Jacobian(torch.relu, torch.tensor([3.0, 0.0, -2.0, -0.0]))
    assert relu.dense().tolist() == torch.diag(torch.tensor([1.0, 0, 0, 0])).tolist()
    assert relu.mv(torch.ones(4)).tolist() == [1, 0, 0, 0]
    pool = Jacobian(nn.MaxPool2d(2), torch.full((1, 2, 2), 7.0))
    assert pool.vm(torch.ones(1, 1, 1)).tolist() == [[[1, 0], [0, 0]]]
    assert pool.mv(torch.arange(1.0, 5).reshape(1, 2, 2)).tolist() == [[[1]]]


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


@given(leading=st.lists(st.integers(0, 3), max_size=3))
def test_leading_axes(leading: list[int]) -> None:
    J = Jacobian(nn.AvgPool2d(2), a_point(), chunk=4)
    v, w = a_point(1, (*leading, *J.in_shape)), a_point(2, (*leading, *J.out_shape))
    assert torch.allclose(J.mv(v), v.unflatten(-1, (4, 2)).unflatten(-3, (4, 2)).mean((-1, -3)), atol=1e-15)
    assert torch.allclose(J.vm(w), w.repeat_interleave(2, -1).repeat_interleave(2, -2) / 4, atol=1e-15)


@pytest.mark.parametrize("name", ["in-place relu, batch norm, max-pool", "groups, dilation, stride", "begins in place"])
def test_bias_is_what_the_linear_part_leaves(name: str) -> None:
    function, x = NETS[name](), a_point()
    J = Jacobian(function, x)
    assert torch.allclose(J.bias(), J.value - (dense(function, x) @ x.flatten()).reshape(J.out_shape), atol=1e-13)


def test_piecewise_linear_networks_are_affine_around_the_point() -> None:
    function, x = NETS["in-place relu, batch norm, max-pool"](), a_point()
    J = Jacobian(function, x)
    near = x + 1e-7 * a_point(1)
    assert torch.allclose(J @ near + J.bias(), function(near[None])[0], rtol=0, atol=1e-14)
    with torch.no_grad():
        function[1].bias.zero_(), function[1].running_mean.zero_()
        function[4].bias.zero_(), function[5].bias.zero_(), function[5].running_mean.zero_()
    assert Jacobian(function, x).bias().abs().max() < 1e-14


class TestChain:
    first, second = (
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).double(),
        nn.Sequential(nn.Conv2d(4, 2, 3), nn.ReLU()).double(),
    )

    def maps(self) -> tuple[Jacobian, Jacobian, Jacobian]:
        x = a_point()
        J, K = Jacobian(self.first, x), Jacobian(self.second, self.first(x[None])[0])
        return J, K, Jacobian(nn.Sequential(self.first, self.second), x)

    def test_products_are_those_of_the_composition(self) -> None:
        J, K, whole = self.maps()
        chain = K @ J
        v, w = a_point(1, (2, *chain.in_shape)), a_point(2, (2, *chain.out_shape))
        assert (chain.shape, chain.in_shape, chain.out_shape) == (whole.shape, whole.in_shape, whole.out_shape)
        assert relative(chain @ v, whole.mv(v)) < 1e-13
        assert relative(chain.T @ w, whole.vm(w)) < 1e-13
        assert relative((J.T @ K.T).mv(w), whole.vm(w)) < 1e-13
        assert relative(chain.dense(), K.dense() @ J.dense()) < 1e-13
        assert adjoint_test(chain) < 1e-14

    def test_the_transpose_of_the_transpose_is_the_map(self) -> None:
        J, _, _ = self.maps()
        assert J.T.T is J
        assert J.T.shape == J.shape[::-1]
        assert torch.equal(J.T.vm(a_point(1)), J.mv(a_point(1)))

    def test_maps_that_do_not_fit(self) -> None:
        J, K, _ = self.maps()
        with pytest.raises(OptionError, match=r"left one takes \(3, 8, 8\), the right one gives \(2, 4, 4\)"):
            J @ K
        with pytest.raises(TypeError):
            J @ 3  # type: ignore[call-overload]


class TestScipy:
    def test_singular_values(self) -> None:
        function, x = NETS["in-place relu, batch norm, max-pool"](), a_point()
        operator = Jacobian(function, x).as_scipy()
        assert operator.dtype == np.float64
        found = svds(operator, k=3, v0=np.ones(min(operator.shape)), return_singular_vectors=False)
        assert np.allclose(np.sort(found), torch.linalg.svdvals(dense(function, x))[:3].flip(0), rtol=1e-12)

    def test_products_with_vectors_columns_and_blocks(self) -> None:
        J = Jacobian(NETS["functional"](), a_point())
        A, operator = J.dense().numpy(), J.as_scipy()
        V, W = (
            np.random.default_rng(0).normal(size=(A.shape[1], 3)),
            np.random.default_rng(1).normal(size=(A.shape[0], 3)),
        )
        for got, expected in [
            (operator @ V[:, 0], A @ V[:, 0]),
            (operator.matvec(V[:, :1]), A @ V[:, :1]),
            (operator @ V, A @ V),
            (operator.T @ W[:, 0], A.T @ W[:, 0]),
            (operator.rmatvec(W[:, :1]), A.T @ W[:, :1]),
            (operator.H @ W, A.T @ W),
        ]:
            assert got.shape == expected.shape
            assert np.allclose(got, expected, rtol=1e-13, atol=1e-13)
        assert np.allclose(A @ lsqr(operator, A @ V[:, 0], atol=1e-13, btol=1e-13)[0], A @ V[:, 0], atol=1e-8)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_other_dtypes_become_float32(self, dtype: torch.dtype) -> None:
        operator = Jacobian(nn.AvgPool2d(2), a_point().to(dtype)).as_scipy()
        assert (operator @ np.ones(operator.shape[1])).dtype == operator.dtype == np.float32


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


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x1_0"])
def test_real_architectures(name: str) -> None:
    net = getattr(import_torchvision().models, name)(weights=None, num_classes=7).eval().double().requires_grad_(False)
    x = a_point(0, (3, 40, 40))
    J = Jacobian(net, x, chunk=2)
    assert adjoint_test(J, trials=1) < 1e-13
    leaf, w, v = x[None].clone().requires_grad_(), a_point(1, (3, 7)), a_point(2, (3, 3, 40, 40))
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(net(forward_ad.make_dual(x[None], v[2:]))).tangent
    assert relative(J.vm(w)[2], torch.autograd.grad(net(leaf), leaf, w[2:])[0][0]) < 1e-12
    assert relative(J.mv(v)[2], tangent[0]) < 1e-12
