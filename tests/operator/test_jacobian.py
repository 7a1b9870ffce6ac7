"""The products of a Jacobian, its bias, chains and scipy view against dense matrices and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles.jacobian_nets import NETS, a_point, dense, relative
from scipy.sparse.linalg import lsqr, svds
from torch import Tensor, nn
from torch.autograd import forward_ad

from pullback.encoders.torchvision_ops import import_torchvision
from pullback.errors import OptionError
from pullback.operator import Jacobian, adjoint_test

by_net = pytest.mark.parametrize("name", NETS)


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


def test_relu_at_zero_and_ties_in_max_pool() -> None:
    relu = Jacobian(torch.relu, torch.tensor([3.0, 0.0, -2.0, -0.0]))
    assert relu.dense().tolist() == torch.diag(torch.tensor([1.0, 0, 0, 0])).tolist()
    assert relu.mv(torch.ones(4)).tolist() == [1, 0, 0, 0]
    pool = Jacobian(nn.MaxPool2d(2), torch.full((1, 2, 2), 7.0))
    assert pool.vm(torch.ones(1, 1, 1)).tolist() == [[[1, 0], [0, 0]]]
    assert pool.mv(torch.arange(1.0, 5).reshape(1, 2, 2)).tolist() == [[[1]]]


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
