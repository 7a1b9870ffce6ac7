"""Order of the steps: what fills only a part of a value comes after what fills the whole of it, and is added where it reaches."""

from __future__ import annotations

import torch
from oracles.lowered import a_point, dense, gap, lower, network, units
from torch import Tensor, nn

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
