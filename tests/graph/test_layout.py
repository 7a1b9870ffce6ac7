from __future__ import annotations

import pytest
import torch
from oracles.awkward_nets import AWKWARD
from oracles.families import FAMILIES
from oracles.taped import Apply
from torch import Tensor, nn
from torch.nn import functional as F

from pullback.encoders.twin import read_logits, twin
from pullback.graph import Tape, channels_first, record

CHANNELS, HEIGHT, WIDTH = 4, 6, 10  # told apart by their sizes


def taped(net: nn.Module, x: Tensor | None = None) -> Tape:
    net.requires_grad_(False)
    return record(net, torch.zeros(2, CHANNELS, HEIGHT, WIDTH) if x is None else x, read_logits)[0]


def shapes(tape: Tape, *, natural: bool) -> set[tuple[int, ...]]:
    known = channels_first(tape)
    made = [t for i in tape.live for t in tape.ops[i].outputs]
    return {tape.shapes[t] for t in made if len(tape.shapes[t]) == 4 and (t in known) is natural}


def test_channels_last_blocks_are_followed_through_permutations() -> None:
    norm, rows = nn.LayerNorm(CHANNELS), nn.Linear(CHANNELS, CHANNELS)
    tape = taped(Apply(lambda x, n, r: F.gelu(r(n(x.permute(0, 2, 3, 1)))).permute(0, 3, 1, 2) + x, norm, rows))
    assert shapes(tape, natural=True) == {(2, CHANNELS, HEIGHT, WIDTH)}
    assert (2, HEIGHT, WIDTH, CHANNELS) in shapes(tape, natural=False)


def test_a_swapped_height_and_width_is_not_natural() -> None:
    tape = taped(Apply(lambda x: F.relu(x.transpose(2, 3)).transpose(3, 2).sin()))
    assert shapes(tape, natural=False) == {(2, CHANNELS, WIDTH, HEIGHT)}
    assert shapes(tape, natural=True) == {(2, CHANNELS, HEIGHT, WIDTH)}


def test_tokens_end_the_trail_and_a_convolution_takes_it_up_again() -> None:
    def tokens(x: Tensor, mix: nn.Module, conv: nn.Module) -> Tensor:
        n, c, h, w = x.shape
        heads = (
            mix(x.flatten(2).transpose(1, 2)).view(n, h * w, 2, c // 2).transpose(1, 2)
        )  # (N, heads, tokens, c / heads)
        back = (heads * 2).transpose(1, 2).reshape(n, h, w, c).permute(0, 3, 1, 2)
        return conv(back)

    tape = taped(Apply(tokens, nn.Linear(CHANNELS, CHANNELS), nn.Conv2d(CHANNELS, 5, 1)))
    assert shapes(tape, natural=True) == {(2, CHANNELS, HEIGHT, WIDTH), (2, 5, HEIGHT, WIDTH)}
    assert (2, 2, HEIGHT * WIDTH, CHANNELS // 2) in shapes(tape, natural=False)


@pytest.mark.parametrize("images", [1, 2])
def test_instance_norm_regroups_images_and_channels(images: int) -> None:
    net = nn.Sequential(nn.Conv2d(CHANNELS, 3, 1), nn.InstanceNorm2d(3), nn.ReLU())
    tape = taped(net, torch.randn(images, CHANNELS, HEIGHT, WIDTH))
    assert shapes(tape, natural=True) == {(images, 3, HEIGHT, WIDTH)}
    assert tape.returned_by("1")[0].tensor in channels_first(tape)


def test_a_reshape_of_space_ends_the_trail() -> None:
    tape = taped(
        Apply(lambda x: x.view(2, CHANNELS, WIDTH, HEIGHT).sin().view(2, 2 * CHANNELS, HEIGHT // 2, WIDTH).cos())
    )
    assert shapes(tape, natural=True) == set()


def test_pooling_over_space_tells_the_order_of_what_it_reads() -> None:
    def pooled(x: Tensor) -> Tensor:
        blocks = x.view(2, CHANNELS, 2, HEIGHT // 2, WIDTH).transpose(1, 2).reshape(2, 2 * CHANNELS, HEIGHT // 2, WIDTH)
        return blocks.mean((2, 3), keepdim=True)

    tape = taped(Apply(pooled))
    assert shapes(tape, natural=True) >= {(2, 2 * CHANNELS, HEIGHT // 2, WIDTH), (2, 2 * CHANNELS, 1, 1)}


def test_the_input_alone_is_natural_in_a_perceptron() -> None:
    tape = taped(Apply(lambda x, rows: rows(x.flatten(1)), nn.Linear(CHANNELS * HEIGHT * WIDTH, 3)))
    assert channels_first(tape) == {tape.input.tensor}


@pytest.mark.parametrize("name", [*AWKWARD, *FAMILIES])
def test_what_a_hook_on_a_convolution_sees_is_natural(name: str) -> None:
    """Whatever a convolution, batch norm or pooling module returns, and the input, is in (N, C, H, W) order."""
    made = {**AWKWARD, **FAMILIES}[name]
    net = twin(made()).double()
    tape = taped(
        net, torch.randn(2, *made.input_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    )
    known = channels_first(tape)
    spatial = (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, nn.AvgPool2d)
    modules = [n for n, m in net.named_modules() if isinstance(m, spatial)]
    points = [p for n in modules for p in tape.returned_by(n) if p.op in set(tape.live)]
    assert all(p.tensor in known for p in points)
    assert len(points) >= len(modules) - 1
    assert all(tape.shapes[t][0] == 2 for t in known)
