"""What callers have switched, what they hand in, and what they change in between: the products stay those of the network."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from oracles.encoded import encoder as family
from oracles.encoded import images
from oracles.lowered import a_point, dense, drawn, network, units
from torch import Tensor, nn
from torch.nn import functional as F

from pullback.adjoint.precision import has_bfloat16
from pullback.encoders import Encoder
from pullback.errors import EncoderError
from pullback.operator import Jacobian

SHAPE = (3, 12, 12)


def net(seed: int = 3) -> nn.Module:
    return drawn(
        nn.Sequential(
            nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 1, 2), nn.ReLU(),
            nn.Conv2d(6, 8, 3, 1, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(8), nn.Linear(8, 4),
        ),
        seed,
    )  # fmt: skip


def encoded(whole: nn.Module, shape: tuple[int, int, int] = SHAPE) -> Encoder:
    return Encoder.from_module(whole, input_shape=shape)


def error(J: Jacobian, whole: nn.Module, x: Tensor) -> float:
    """Of J^T on unit cotangents and of J on one tangent, in units of the dense Jacobian."""
    expected = dense(whole, x)
    rows = J.vm(units(J.out_shape, J.value.dtype)).reshape(len(expected), -1)
    v = a_point(*x.shape, seed=4, dtype=x.dtype)
    pushed = J.mv(v).flatten() - expected @ v.flatten()
    both = float((rows - expected).norm() / expected.norm()), float(pushed.norm() / expected.norm() / v.norm())
    return max(both)


SWITCHED: dict[str, Callable[[], object]] = {
    "inference mode": torch.inference_mode,
    "no grad": torch.no_grad,
    "grad": torch.enable_grad,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "another default device": lambda: torch.device("meta"),
}


@pytest.mark.parametrize("name", SWITCHED)
def test_what_the_caller_has_switched(name: str) -> None:
    whole, x = net(), a_point(*SHAPE)
    w = a_point(5, 4, seed=1)
    found = encoded(whole)
    expected = w @ dense(whole, x)
    before = found.jacobian(x, "logits")
    with SWITCHED[name]():  # type: ignore[attr-defined]
        J = found.jacobian(x, "logits")
        products = [J.vm(w), before.vm(w)]
    for product in products:
        assert float((product.flatten(1) - expected).norm() / expected.norm()) < 1e-12
        assert not product.requires_grad and not product.is_inference()
    assert J.program is not None


def test_another_default_type() -> None:
    whole, x = net(), a_point(*SHAPE)
    torch.set_default_dtype(torch.float64)
    try:
        assert error(encoded(whole).jacobian(x, "logits"), whole, x) < 1e-12
        half = encoded(net().float())
        assert half.jacobian(x.float(), "logits").vm(torch.ones(4)).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_cotangents_of_any_origin_are_left_alone() -> None:
    whole, x = net(), a_point(*SHAPE)
    J = encoded(whole).jacobian(x, 1)
    w = a_point(3, *J.out_shape, seed=1)
    pulled = J.vm(w)
    with torch.inference_mode():
        inferred = w.clone()
    wanted = w.clone().requires_grad_()
    for other in (
        inferred, wanted, w.float().double() * 0 + w, w.contiguous(memory_format=torch.channels_last),
        w.transpose(-1, -2).contiguous().transpose(-1, -2), torch.stack([w, w], -1)[..., 0],
    ):  # fmt: skip
        kept = other.detach().clone()
        assert float((J.vm(other) - pulled).norm() / pulled.norm()) < 1e-13
        assert torch.equal(other.detach(), kept)
    one = J.vm(w[1].permute(1, 2, 0).contiguous().permute(2, 0, 1))
    assert float((one - pulled[1]).norm() / pulled[1].norm()) < 1e-13
    assert torch.equal(J.vm(w), pulled)
    assert wanted.grad is None
    v = a_point(2, *SHAPE, seed=2)
    kept = v.clone()
    pushed = J.mv(v)
    assert torch.equal(v, kept) and torch.equal(J.mv(v), pushed)


def test_no_rows() -> None:
    whole, x = net(), a_point(*SHAPE)
    for stage in (1, "logits"):
        J = encoded(whole).jacobian(x, stage)
        assert J.vm(torch.empty(0, *J.out_shape).double()).shape == (0, *SHAPE)
        assert J.mv(torch.empty(2, 0, *SHAPE).double()).shape == (2, 0, *J.out_shape)


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float16, 5e-3), (torch.bfloat16, 4e-2)])
def test_half_precision(dtype: torch.dtype, allowed: float) -> None:
    whole, x = net().to(dtype), a_point(*SHAPE, dtype=dtype)
    J = encoded(whole).jacobian(x, "logits")
    assert J.program is not None
    wide = whole.double()
    expected = dense(wide, x.double())
    rows = J.vm(torch.eye(4, dtype=dtype))
    assert rows.dtype == dtype
    assert float((rows.double().flatten(1) - expected).norm() / expected.norm()) < allowed
    v = a_point(*SHAPE, seed=1, dtype=dtype)
    pushed = J.mv(v)
    assert pushed.dtype == dtype
    assert float((pushed.double() - expected @ v.double().flatten()).norm() / pushed.double().norm()) < allowed


def test_parameters_changed_in_place_between_two_jacobians() -> None:
    """Kernels made ready for the old parameters do not serve the new ones."""
    whole, x = net(), a_point(*SHAPE)
    found = encoded(whole)
    assert error(found.jacobian(x, "logits"), whole, x) < 1e-12
    for round_ in range(2):
        with torch.no_grad():
            for p in whole.parameters():
                p.copy_(a_point(*p.shape, seed=10 + round_))
        for stage, layers in (("2", 3), ("logits", len(whole))):
            J = found.jacobian(x, stage)
            assert J.program is not None
            assert error(J, whole[:layers], x) < 1e-12


def test_a_jacobian_outlives_the_encoders_memory_of_its_tape() -> None:
    """Many image sizes push the first tape out; the Jacobian of before, and a new one at the same size, are right."""
    whole, x = net(), a_point(*SHAPE)
    found = encoded(whole)
    J = found.jacobian(x, "logits")
    for side in range(13, 25):
        other = a_point(3, side, side, seed=side)
        K = found.jacobian(other, "logits")
        if side % 4 == 0:
            assert error(K, whole, other) < 1e-12
    assert error(J, whole, x) < 1e-12
    assert error(found.jacobian(x, "logits"), whole, x) < 1e-12


def test_two_images_and_two_stretches_in_turns() -> None:
    whole, found = net(), encoded(net())
    a, b = a_point(*SHAPE, seed=1), a_point(*SHAPE, seed=2)
    J, K, L = found.jacobian(a, "logits"), found.jacobian(b, "logits"), found.jacobian(b, 1)
    w = a_point(6, 4, seed=3)
    expected = [w @ dense(whole, x) for x in (a, b)]
    for _ in range(2):
        for one, at in ((J, 0), (K, 1)):
            assert float((one.vm(w).flatten(1) - expected[at]).norm()) < 1e-12
            assert L.vm(a_point(*L.out_shape)).shape == SHAPE
    a.mul_(0)
    assert float((J.vm(w).flatten(1) - expected[0]).norm()) < 1e-12
    J.close()
    assert float((J.vm(w).flatten(1) - expected[0]).norm()) < 1e-12


def test_an_image_under_inference_mode_and_a_network_made_there() -> None:
    with torch.inference_mode():
        x, whole = a_point(*SHAPE), net()
    J = encoded(whole).jacobian(x, "logits")
    assert J.program is not None
    assert error(J, net(), a_point(*SHAPE)) < 1e-12


# ---- what once went wrong --------------------------------------------------------------------------------------------


def test_layout_of_a_cotangent_of_an_instance_norm() -> None:
    """The check passed with a contiguous cotangent; one with channels innermost gives other numbers, silently."""
    [x] = images("instance_norm", 1)
    J = family("instance_norm").jacobian(x, 1)
    w = a_point(*J.out_shape, seed=3)
    plain, innermost = J.vm(w), J.vm(w.permute(1, 2, 0).contiguous().permute(2, 0, 1))
    assert float((innermost - plain).norm() / plain.norm()) < 1e-12


class Peak(nn.Module):
    """Divides by the largest number of the image at hand, which it keeps in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)
        self.register_buffer("peak", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        with torch.no_grad():
            self.peak.copy_(y.abs().amax())
        return self.last((y / self.peak).relu()).mean((2, 3))


def test_a_scale_in_a_buffer_that_each_image_writes() -> None:
    whole = network(lambda x, peak: peak(x), Peak())
    found = encoded(whole)
    for seed in (0, 1):
        x = a_point(*SHAPE, seed=seed)
        assert error(found.jacobian(x, "logits"), whole, x) < 1e-12


class OwnKernel(nn.Module):
    """A kernel made of the image, kept in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", torch.ones(2, 3, 3, 3))
        self.first = nn.Conv2d(3, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.kernel.copy_(x.mean((0, 2, 3)).reshape(1, 3, 1, 1).expand(2, 3, 3, 3))
        return F.conv2d(self.first(x), self.kernel).mean((2, 3))


def test_a_kernel_in_a_buffer_that_each_image_writes() -> None:
    whole = network(lambda x, block: block(x), OwnKernel())
    found = encoded(whole)
    for seed in (0, 1):
        x = a_point(*SHAPE, seed=seed)
        assert error(found.jacobian(x, "logits"), whole, x) < 1e-12


def test_a_jacobian_held_while_parameters_change() -> None:
    """It refuses, as autograd does: some of its maps keep the parameters themselves, others what was made of them."""
    whole, x = net(), a_point(*SHAPE)
    J = encoded(whole).jacobian(x, "logits")
    with torch.no_grad():
        for p in whole.parameters():
            p.copy_(a_point(*p.shape, seed=10))
    for product, rows in ((J.vm, units((4,))), (J.mv, x)):
        with pytest.raises(EncoderError, match="make a new one"):
            product(rows)
    assert error(encoded(whole).jacobian(x, "logits"), whole, x) < 1e-12


def mixed(change: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda x, first, second: second(change(first(x)).float()).mean((2, 3))


@pytest.mark.parametrize(
    "change",
    [lambda x: x * torch.arange(1, 11).double(), lambda x: x + torch.arange(1, 11).double()],
    ids=["a product in double", "a sum in double"],
)
def test_a_network_that_computes_a_part_in_double(change: Callable[[Tensor], Tensor]) -> None:
    whole = network(mixed(change), nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)).float()
    x = a_point(*SHAPE, dtype=torch.float32)
    assert error(encoded(whole).jacobian(x, "logits"), whole, x) < 1e-5


def test_no_rows_through_an_operation_without_rule() -> None:
    whole = network(lambda x, conv: F.group_norm(conv(x), 2).relu().mean((2, 3)), nn.Conv2d(3, 4, 1))
    J = encoded(whole).jacobian(a_point(*SHAPE), "logits")
    assert J.vm(torch.empty(0, 4).double()).shape == (0, *SHAPE)


@pytest.mark.skipif(not has_bfloat16("cpu"), reason="needs a processor with instructions for bfloat16")
def test_an_operation_without_rule_between_convolutions_in_bfloat16() -> None:
    whole = network(
        lambda x, conv, last: last(F.group_norm(conv(x), 2).relu()).mean((2, 3)), nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
    ).float()
    x = a_point(*SHAPE, dtype=torch.float32)
    J = encoded(whole).jacobian(x, "logits", precision="bfloat16")
    assert J.rounding < 0.05


def test_a_network_with_a_complex_part() -> None:
    whole = network(lambda x, conv: ((y := conv(x)) + (torch.fft.fft2(y) + y).imag).mean(3), nn.Conv2d(3, 4, 3))
    x = a_point(*SHAPE)
    assert error(encoded(whole).jacobian(x, "logits"), whole, x) < 1e-12


def test_an_operation_on_lists() -> None:
    def doubled(x: Tensor, conv: nn.Module) -> Tensor:
        a, b = torch._foreach_mul([conv(x), x], 2.0)
        return (a * b).mean((2, 3))

    whole, x = network(doubled, nn.Conv2d(3, 3, 1)), a_point(*SHAPE)
    assert error(encoded(whole).jacobian(x, "logits"), whole, x) < 1e-12


@pytest.mark.parametrize(
    "function",
    [
        lambda x, conv: conv(x).mean((2, 3)) * conv(x).sum().sum(-1),
        lambda x, conv: conv(x).mean((2, 3)) + conv(x).sum().softmax(0),
    ],
    ids=["a sum of a number", "a softmax of a number"],
)
def test_axes_of_a_single_number(function: Callable[..., Tensor]) -> None:
    whole, x = network(function, nn.Conv2d(3, 3, 1)), a_point(*SHAPE)
    assert error(encoded(whole).jacobian(x, "logits"), whole, x) < 1e-12


def test_a_network_that_squeezes_its_batch_away() -> None:
    whole = network(lambda x, conv: conv(x).mean((2, 3), keepdim=True).squeeze(), nn.Conv2d(3, 4, 1))
    x = a_point(*SHAPE)
    with pytest.raises(EncoderError, match="sample by sample"):
        encoded(whole).jacobian(x, "logits")


@pytest.mark.parametrize("divisor", [torch.tensor(3), torch.arange(3, 13), torch.tensor(3.0)], ids=str)
def test_quotients_in_double_by_other_types(divisor: Tensor) -> None:
    """Counts of a mask, sizes as tensors: the check notices, and autograd serves the network."""
    whole, x = network(lambda x, conv: (conv(x) / divisor).mean((2, 3)), nn.Conv2d(3, 4, 3)), a_point(*SHAPE)
    assert encoded(whole).jacobian(x, "logits").program is not None


def test_other_strides_at_a_flat_image() -> None:
    whole = network(lambda x, conv: conv(x.as_strided((1, 3, 12, 12), (432, 144, 1, 12))).mean(2), nn.Conv2d(3, 4, 3))
    found = encoded(whole)
    for x in (a_point(*SHAPE), torch.ones(SHAPE).double()):
        assert error(found.jacobian(x, "logits"), whole, x) < 1e-12
