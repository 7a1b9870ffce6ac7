"""The table of rules: places, averages, matrices and layers, at odd shapes, against the dense Jacobian by autograd."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from oracles.lowered import assert_exact
from torch import Tensor, nn
from torch.nn import functional as F

Function = Callable[[Tensor], Tensor]
SHAPE = (3, 4, 5)
PLACES: dict[str, Function] = {
    "flatten": lambda x: x.flatten(1),
    "view": lambda x: x.view(1, 6, -1),
    "view of a permuted": lambda x: x.permute(0, 2, 3, 1).reshape(1, 10, 6),
    "squeeze and unsqueeze": lambda x: x.unsqueeze(2).squeeze(2).unsqueeze(-1),
    "squeezed in place": lambda x: (2 * x).unsqueeze_(1).squeeze_(1),
    "transpose": lambda x: x.transpose(1, -1),
    "transposed in place": lambda x: (2 * x).transpose_(1, 2) * 2,
    "matrix transposed": lambda x: x[0, 0].t()[None],
    "permute": lambda x: x.permute(0, -1, 1, 2),
    "moved": lambda x: x.movedim(1, 3).contiguous(),
    "expand": lambda x: x.mean(1, keepdim=True).expand(-1, 7, -1, -1),
    "expand, new axes": lambda x: x.expand(2, 1, 3, 4, 5).reshape(1, 2, 3, 4, 5),
    "expanded and written": lambda x: x.mean(1, keepdim=True).expand(-1, 3, -1, -1).exp() * x,
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last) * 2,
    "slice": lambda x: x[:, :, 1:3],
    "slice from the end": lambda x: x[:, -2:, :, :-1],
    "slice with steps": lambda x: x[:, ::2, 1::3],
    "slice beyond": lambda x: x[:, 1:99],
    "select": lambda x: x[:, 1],
    "select the last": lambda x: x[:, :, -1],
    "narrow": lambda x: x.narrow(2, 1, 2),
    "narrow from the end": lambda x: x.narrow(-1, -2, 2),
    "overlapping slices": lambda x: x[:, :2] * x[:, 1:],
    "one slice twice": lambda x: (y := x[:, :2]) + y * x[:, :2],
    "split": lambda x: (lambda a, b: a * b[:, :1])(*x.split((1, 2), 1)),
    "split in equal parts": lambda x: sum(x.split(2, 3)[:2]),
    "chunk, one unused": lambda x: x.chunk(3, 1)[1].exp(),
    "split, parts twice": lambda x: (lambda a, b, c: a * a + c * a)(*x.chunk(3, 1)),
    "cat": lambda x: torch.cat([x.exp(), x[:, :1], x], 1),
    "cat of itself": lambda x: torch.cat([x, x], 1),
    "cat of itself after": lambda x: (y := x.exp(), torch.cat([y, y, y], -1))[1],
    "cat with a constant": lambda x: torch.cat([torch.ones(1, 2, 4, 5, dtype=x.dtype), x], 1),
    "pad": lambda x: F.pad(x, (1, 2, 0, 3)),
    "pad and crop": lambda x: F.pad(x, (-1, 2, 1, -2)),
    "pad channels with a value": lambda x: F.pad(x, (0, 0, 0, 0, 1, 2), value=7.0),
    "roll": lambda x: x.roll((1, -2), (2, 3)),
    "roll, negative axis": lambda x: x.roll(3, -1),
    "shuffled channels": lambda x: x[:, :2].reshape(1, 2, 1, 4, 5).transpose(1, 2).reshape(1, 2, 4, 5),
    "space to depth": lambda x: x[..., :4].reshape(1, 3, 2, 2, 2, 2).permute(0, 3, 5, 1, 2, 4).reshape(1, 12, 2, 2),
    "detach one of two": lambda x: x.detach() * 3 + x,
    "shown again": lambda x: x.exp().as_strided((1, 3, 4, 5), (60, 20, 5, 1)),
}


@pytest.mark.parametrize("name", PLACES)
def test_places_to_places(name: str) -> None:
    assert_exact(PLACES[name], shape=SHAPE)


AVERAGES: dict[str, Function] = {
    "mean of all": lambda x: x.mean()[None],
    "mean of all, no axis left": lambda x: x.exp().mean()[None] * x.mean(),
    "global average": lambda x: x.mean((2, 3)),
    "global average, kept": lambda x: x.mean((-1, -2), keepdim=True),
    "mean of channels": lambda x: x.mean(1),
    "mean over one": lambda x: x.mean(0, keepdim=True),
    "sum of all": lambda x: x.sum()[None],
    "sum": lambda x: x.sum((1, 3)),
    "sum, kept": lambda x: x.sum(-1, keepdim=True),
    "sum that is read twice": lambda x: (y := x.sum(2)) * y,
    "average pool": lambda x: F.avg_pool2d(x, 2),
    "average pool, padded": lambda x: F.avg_pool2d(x, 3, 2, 1),
    "average pool, padding not counted": lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "average pool, ceil": lambda x: F.avg_pool2d(x, (3, 2), 2, ceil_mode=True),
    "average pool, divisor": lambda x: F.avg_pool2d(x, 2, 1, divisor_override=3),
    "adaptive to one": lambda x: F.adaptive_avg_pool2d(x, 1),
    "adaptive": lambda x: F.adaptive_avg_pool2d(x, (3, 2)),
    "adaptive, one axis": lambda x: F.adaptive_avg_pool2d(x, (None, 3)),
    "adaptive to more": lambda x: F.adaptive_avg_pool2d(x, (7, 5)),
}


@pytest.mark.parametrize("name", AVERAGES)
def test_averages(name: str) -> None:
    assert_exact(AVERAGES[name], shape=SHAPE)


def _attention(x: Tensor) -> Tensor:
    tokens = x.flatten(2).transpose(1, 2)
    return F.scaled_dot_product_attention(tokens, tokens.exp(), tokens * 2)


AFFINE: dict[str, Function] = {
    "softmax": lambda x: x.softmax(1),
    "softmax over columns": lambda x: (2 * x).softmax(-1),
    "batched matrices, both live": lambda x: x @ x.transpose(-1, -2),
    "batched matrices, left live": lambda x: x @ torch.arange(10.0, dtype=x.dtype).reshape(5, 2),
    "batched matrices, right live": lambda x: torch.arange(8.0, dtype=x.dtype).reshape(2, 4) @ x,
    "matrices, both live": lambda x: (x[0, 0] @ x[0, 1].t())[None],
    "matrix by itself": lambda x: ((y := x[0, :, :3, 0]) @ y)[None],
    "added": lambda x: torch.addmm(x[0, 2, :, :4], x[0, 0], x[0, 1].t(), beta=0.3, alpha=-2)[None],
    "added, a row": lambda x: torch.addmm(x[0, 2, 0, :4], x[0, 0], x[0, 1].t())[None],
    "added, bias alone": lambda x: torch.addmm(x[0, 2, 0], torch.ones(2, 2).double(), torch.ones(2, 5).double())[None],
    "attention": _attention,
    "gram matrix": lambda x: torch.einsum("nchw,ndhw->ncd", x, x),
}


@pytest.mark.parametrize("name", AFFINE)
def test_matrices_and_attention(name: str) -> None:
    assert_exact(AFFINE[name], shape=SHAPE)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.BatchNorm2d(3), (3, 4, 2)),
        (nn.BatchNorm2d(3, affine=False), (3, 4, 2)),
        (nn.BatchNorm1d(6), (6,)),
        (nn.BatchNorm1d(4), (4, 5)),
        (nn.BatchNorm3d(2), (2, 2, 3, 2)),
        (nn.LayerNorm(5), (3, 4, 5)),
        (nn.LayerNorm((4, 5)), (3, 4, 5)),
        (nn.LayerNorm(5, elementwise_affine=False), (4, 5)),
        (nn.LayerNorm(5, bias=False, eps=0.1), (4, 5)),
        (nn.Linear(5, 3), (5,)),
        (nn.Linear(5, 3), (4, 5)),
        (nn.Linear(5, 3, bias=False), (2, 4, 5)),
        (nn.Softmax2d(), (3, 2, 4)),
    ],
    ids=str,
)
def test_layers(layer: nn.Module, shape: tuple[int, ...]) -> None:
    assert_exact(lambda x, layer: layer(x), layer, shape=shape)


def test_layer_scale_of_a_convnext() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.up, self.down = nn.LayerNorm(3), nn.Linear(3, 6), nn.Linear(6, 3)
            self.gamma = nn.Parameter(torch.ones(3))
            self.mix = nn.Conv2d(3, 3, 3, padding=1, groups=3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(self.mix(x).permute(0, 2, 3, 1))
            return x + (self.gamma * self.down(F.gelu(self.up(y)))).permute(0, 3, 1, 2)

    assert_exact(lambda x, block: block(block(x)), Scaled(), shape=SHAPE)
