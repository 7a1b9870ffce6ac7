"""Order of the steps: what fills only a part of a value comes after what fills the whole of it, and is added where it reaches."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from oracles.lowered import a_point, dense, gap, lower, network, units
from torch import Tensor, nn
from torch.nn import functional as F

from pullback.adjoint import Program
from pullback.adjoint.schedule import Way, scheduled


def _into(program: Program, way: Way) -> list[tuple[bool, str]]:
    """Of the steps that meet another at their target, in order: whether the map is sparse, and where the sum goes."""
    steps = [step for segment in scheduled(program.edges, way, None) for step in segment.steps]
    targets = [step.target for step in steps]
    return [
        (step.map.sparse_pull if way == "pull" else step.map.sparse_push, step.into)
        for step in steps
        if targets.count(step.target) > 1
    ]


def _is_exact(net: nn.Module, x: Tensor, program: Program) -> None:
    expected = dense(net, x)
    assert gap(program.pull(units(tuple(program.value.shape))).flatten(1), expected) < 1e-12
    assert gap(program.push(units(program.in_shape)).flatten(1).T, expected) < 1e-12


def test_a_strided_shortcut_adds_one_pixel_in_four() -> None:
    def block(x: Tensor, first: nn.Module, wide: nn.Module, short: nn.Module) -> Tensor:
        x = first(x)
        return wide(x) + short(x)  # the shortcut, recorded last, would be pulled back first

    modules = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 3, 3, 2, 1), nn.Conv2d(4, 3, 1, 2)
    net, x = network(block, *modules), a_point(2, 7, 6)
    program = lower(net, x)
    assert _into(program, "pull") == [(False, "nothing"), (True, "target")]
    _is_exact(net, x, program)


def test_slices_add_to_what_they_are_slices_of() -> None:
    def sliced(x: Tensor, first: nn.Module, whole: nn.Module, half: nn.Module) -> Tensor:
        x = first(x)
        return whole(x) + half(x[:, 1:3])

    net = network(sliced, nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 3, 3, padding=1), nn.Conv2d(2, 3, 1))
    x = a_point(2, 5, 6)
    program = lower(net, x)
    assert _into(program, "pull") == [(False, "nothing"), (True, "target")]
    _is_exact(net, x, program)


def test_pieces_that_are_concatenated_share_one_tangent() -> None:
    def joined(x: Tensor, first: nn.Module, second: nn.Module) -> Tensor:
        return torch.cat([first(x), second(x), x], 1)

    net, x = network(joined, nn.Conv2d(2, 3, 1), nn.Conv2d(2, 1, 3, padding=1)), a_point(2, 5, 4)
    program = lower(net, x)
    assert _into(program, "push") == [(True, "nothing"), (True, "target"), (True, "target")]
    _is_exact(net, x, program)


def test_a_shortcut_without_a_wide_branch_stands_alone() -> None:
    net, x = network(lambda x, short: short(x), nn.Conv2d(2, 3, 1, 2)), a_point(2, 5, 4)
    program = lower(net, x)
    assert _into(program, "pull") == []
    _is_exact(net, x, program)


def _padded(x: Tensor, a: nn.Module, b: nn.Module) -> Tensor:
    x = F.relu(a(x))
    return (F.pad(x, (0, 0, 0, 0, 1, 1)) + F.pad(F.silu(b(x)), (0, 0, 0, 0, 1, 1))).sigmoid()


def _restrided(x: Tensor, a: nn.Module, b: nn.Module) -> Tensor:
    x = F.relu(a(x))
    return torch.empty_like(x).copy_(x) + F.silu(b(x))


def _broadcast(x: Tensor, a: nn.Module, b: nn.Module) -> Tensor:
    g = a(x).mean((2, 3), keepdim=True).sigmoid()
    return b(g.expand(1, 4, 6, 6)) + torch.tanh(g)


SHARING: dict[str, Callable[[Tensor, nn.Module, nn.Module], Tensor]] = {
    "rows shifted up": lambda x, a, b: ((y := a(x).sigmoid()) + F.pad(y[:, :, 1:], (0, 0, 0, 1))).sigmoid(),
    "rows shifted down": lambda x, a, b: ((y := a(x).sigmoid()) + F.pad(y[:, :, :-1], (0, 0, 1, 0))).sigmoid(),
    "channels shifted": lambda x, a, b: ((y := a(x).sigmoid()) + F.pad(y[:, 1:], (0, 0, 0, 0, 0, 1))).sigmoid(),
    "joined to zeros": lambda x, a, b: (
        (y := a(x).sigmoid()) + torch.cat([y[:, :, 1:], torch.zeros(1, 4, 1, 6, dtype=x.dtype)], 2)
    ).sigmoid(),
    "padded beside a branch": _padded,
    "copied beside a branch": _restrided,
    "spread and used again": _broadcast,
}


@pytest.mark.parametrize("name", SHARING)
def test_values_that_share_memory_are_not_written(name: str) -> None:
    """A padding's pull shows a part of its cotangent, an expansion's push its tangent: neither may be written meanwhile."""
    net = network(SHARING[name], nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1))
    x = a_point(4, 6, 6)
    _is_exact(net, x, lower(net, x))


def _grown(seed: int) -> Callable[..., Tensor]:
    """A network of operations that show, shift, spread and add parts of the last few values, all (1, 4, 6, 6)."""
    steps: list[Callable[[Tensor, Tensor, nn.Module, nn.Module], Tensor]] = [
        lambda x, y, wide, short: wide(x),
        lambda x, y, wide, short: F.relu(x),
        lambda x, y, wide, short: x + y,
        lambda x, y, wide, short: x * y.sigmoid(),
        lambda x, y, wide, short: torch.cat([x[:, 1:3], y[:, :2]], 1),
        lambda x, y, wide, short: torch.cat([x[:, 2:], y[:, :2]], 1) + x,
        lambda x, y, wide, short: F.pad(x[:, :, 1:], (0, 0, 0, 1)),
        lambda x, y, wide, short: F.pad(x[:, :, ::2, ::2], (0, 3, 3, 0)) + y,
        lambda x, y, wide, short: F.pad(short(x), (0, 3, 0, 3)) + y,
        lambda x, y, wide, short: F.pad(x, (1, 0, 0, 0))[:, :, :, :6] + y,
        lambda x, y, wide, short: x.mean((2, 3), keepdim=True) + y,
        lambda x, y, wide, short: x.mean((2, 3), keepdim=True).expand(1, 4, 6, 6) + y.tanh(),
        lambda x, y, wide, short: x.transpose(2, 3) + y,
        lambda x, y, wide, short: x.roll(1, 1) - y,
    ]

    def run(x: Tensor, wide: nn.Module, short: nn.Module) -> Tensor:
        chosen = random.Random(seed)
        values = [wide(x)]
        for _ in range(chosen.randrange(3, 10)):
            values.append(chosen.choice(steps)(chosen.choice(values[-3:]), chosen.choice(values), wide, short))
        return values[-1].sin() if chosen.random() < 0.5 else values[-1] + values[-2]

    return run


@pytest.mark.parametrize("seed", range(60))
def test_networks_of_shared_parts(seed: int) -> None:
    net = network(_grown(seed), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1, 2))
    x = a_point(4, 6, 6)
    _is_exact(net, x, lower(net, x))
