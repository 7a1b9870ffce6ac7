"""What tests of adjoint programs share: functions lowered to programs, and their dense Jacobians by autograd."""

from __future__ import annotations

from collections.abc import Callable

import torch
from oracles.taped import Apply
from torch import Tensor, nn

from pullback.adjoint import Program
from pullback.encoders.twin import twin
from pullback.graph import plain_autograd, record


def a_point(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def drawn(net: nn.Module, seed: int = 3) -> nn.Module:
    """In float64, with weights and batch-norm statistics of its own, frozen."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        for name, tensor in net.state_dict().items():
            if name.endswith("running_var"):
                nn.init.uniform_(tensor, 0.5, 1.5)
            elif tensor.is_floating_point():
                nn.init.normal_(tensor, 0, 0.5)
        return twin(net).double()


def network(function: Callable[..., Tensor], *modules: nn.Module) -> nn.Module:
    """A function of (x, *modules) as a frozen network."""
    return drawn(Apply(function, *modules))


def lower(net: nn.Module, x: Tensor) -> Program:
    """The program of the whole network at x (*in_shape)."""
    tape, _, _ = record(net, x[None])
    return Program.lower(tape, tape.input, tape.output, x, {})


def dense(net: nn.Module, x: Tensor) -> Tensor:
    """The oracle: rows of the Jacobian at x by as many VJPs of the network itself, (out_size, in_size)."""
    with plain_autograd(x.device):
        leaf = x.detach().clone()[None].requires_grad_()
        out = net(leaf.clone())[0].flatten()
        rows = [torch.autograd.grad(o, leaf, retain_graph=True, materialize_grads=True)[0].flatten() for o in out]
    return torch.stack(rows)


def units(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Tensor:
    size = torch.Size(shape).numel()
    return torch.eye(size, dtype=dtype).reshape(size, *shape)


def gap(a: Tensor, b: Tensor) -> float:
    """Largest difference in units of the largest entry."""
    assert a.shape == b.shape
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-300))


def assert_both_products_are_dense(program: Program, expected: Tensor, tolerance: float = 1e-12) -> None:
    """J^T and J on all unit vectors, whose number lets them come in several batches, are the matrix."""
    rows = program.pull(units(tuple(program.value.shape)))
    columns = program.push(units(program.in_shape))
    assert gap(rows.reshape(len(rows), -1), expected) < tolerance
    assert gap(columns.reshape(len(columns), -1).T, expected) < tolerance


def assert_exact(function: Callable[..., Tensor], *modules: nn.Module, shape: tuple[int, ...]) -> None:
    """A function of (x, *modules) is lowered by rules alone, to its value and its dense Jacobian."""
    net, x = network(function, *modules), a_point(*shape)
    program = lower(net, x)
    assert program.unknown == ()
    assert torch.equal(program.value, net(x[None])[0])
    assert_both_products_are_dense(program, dense(net, x))
