from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from oracles.awkward_modules import level, settled
from oracles.awkward_nets import SPATIAL
from torch import Tensor, nn
from torch.nn import functional as F

from pullback.encoders.encoder import Encoder
from pullback.encoders.stages import stage_table

SHAPE = (3, 8, 8)


class Headed(nn.Module):
    """Two levels of ReLU features, (8, 4, 4) at the end, and a head."""

    def __init__(self, head: Callable[[Tensor], Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(level(3, 6, 1), level(6, 8, 2))
        self.head = head
        self.parts = nn.ModuleDict(modules)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x), *self.parts.values())


def headed(head: Callable[..., Tensor], *modules: nn.Module) -> Encoder:
    net = settled(Headed(head, **{f"part{i}": deepcopy(m) for i, m in enumerate(modules)})).double()
    return Encoder.from_module(net, input_shape=SHAPE)


FC = nn.Linear(8, 5)
EXACT: dict[str, tuple[Callable[..., Tensor], nn.Module]] = {
    "mean": (lambda x, fc: fc(x.mean((2, 3))), FC),
    "mean, negative axes": (lambda x, fc: fc(x.mean((-1, -2), keepdim=True).squeeze(-1).squeeze(-1)), FC),
    "adaptive pooling": (lambda x, fc: fc(F.adaptive_avg_pool2d(x, 1).flatten(1)), FC),
    "pooling of its size": (lambda x, fc: fc(F.avg_pool2d(x, 4).view(len(x), -1)), FC),
    "no bias": (lambda x, fc: fc(x.mean((2, 3))), nn.Linear(8, 5, bias=False)),
    "channels last": (
        lambda x, fc: fc(F.adaptive_avg_pool2d(x.contiguous(memory_format=torch.channels_last), 1).flatten(1)),
        FC,
    ),
    "dropout": (lambda x, fc: fc(x.mean((2, 3))), nn.Sequential(nn.Dropout(), FC)),
}
LINEARISED: dict[str, tuple[Callable[..., Tensor], nn.Module, str]] = {
    "layer norm": (lambda x, fc: fc(x.mean((2, 3))), nn.Sequential(nn.LayerNorm(8), FC), "and a norm"),
    "two layers": (lambda x, fc: fc(x.mean((2, 3))), nn.Sequential(nn.Linear(8, 8), nn.ReLU(), FC), r"addmm, relu"),
    "scaled": (lambda x, fc: fc(2 * x.mean((2, 3))), FC, r"mul, addmm"),
    "softmax": (lambda x, fc: fc(x.mean((2, 3))).softmax(1), FC, r"addmm, softmax"),
    "largest": (lambda x, fc: fc(x.amax((2, 3))), FC, r"amax, addmm"),
    "flattened": (lambda x, fc: fc(x.flatten(1)), nn.Linear(128, 5), r"addmm"),
    "half pooled": (lambda x, fc: fc(F.avg_pool2d(x, 2).flatten(1)), nn.Linear(32, 5), r"avg_pool2d, addmm"),
    "partly pooled": (lambda x, fc: fc(F.avg_pool2d(x, 3).flatten(1)), FC, r"avg_pool2d, addmm"),
    "pooled over the wrong axes": (lambda x, fc: fc(x.mean((1, 2))), nn.Linear(4, 5), r"mean, addmm"),
    "linear before pooling": (lambda x, fc: fc(x.permute(0, 2, 3, 1)).mean((1, 2)), FC, r"bmm, add, mean"),
    "two poolings": (lambda x, fc: fc(x.mean((2, 3)) + x.mean((2, 3))), FC, r"add, addmm"),
}  # fmt: skip


@pytest.mark.parametrize("name", EXACT)
def test_a_linear_head_after_average_pooling_gives_its_weights(name: str) -> None:
    encoder = headed(*EXACT[name])
    assert encoder.head.kind == "linear after global average pooling: exact class weights"
    x = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    from_weights = encoder.features(x).mean((2, 3)) @ encoder.head.weight.t()
    rest = encoder.logits(x) - from_weights
    assert float((rest - rest[0]).norm()) < 1e-12 * float(from_weights.norm())
    assert float((from_weights - from_weights[0]).norm()) > 1e-3 * float(from_weights.norm())


@pytest.mark.parametrize("name", LINEARISED)
def test_any_other_head_is_linearised(name: str) -> None:
    head, part, words = LINEARISED[name]
    encoder = headed(head, part)
    assert encoder.head.weight is None
    assert words in encoder.head.kind


@pytest.mark.parametrize("name", [name for name, net in SPATIAL.items() if net.exact_head])
def test_exact_weights_of_awkward_networks(name: str) -> None:
    encoder = Encoder.from_module(SPATIAL[name](), input_shape=SPATIAL[name].input_shape).double()
    x = torch.randn(3, *SPATIAL[name].input_shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits = encoder.logits(x)
    rest = logits - encoder.features(x).mean((2, 3)) @ encoder.head.weight.t()
    assert float((rest - rest[0]).norm()) < 1e-12 * float(logits.norm())


@pytest.mark.parametrize(
    ("gate", "words", "rectified"),
    [
        (nn.ReLU(), "ReLU, rectified", True),
        (nn.ReLU6(), "ReLU6, rectified", True),
        (nn.Hardtanh(0, 1), "Hardtanh, rectified", True),
        (nn.Hardtanh(), "Hardtanh, signed", False),
        (nn.LeakyReLU(), "LeakyReLU, signed", False),
        (nn.SiLU(), "SiLU, signed", False),
        (nn.GELU(), "GELU, signed", False),
        (nn.PReLU(), "PReLU, signed", False),
        (nn.Sequential(nn.ReLU(), nn.MaxPool2d(3, 1, 1)), "ReLU, rectified", True),
        (nn.Sequential(nn.ReLU(), nn.BatchNorm2d(8)), "ReLU, signed", False),
        (nn.Sequential(nn.SiLU(), nn.ReLU()), "SiLU + ReLU, rectified", True),
        (nn.Identity(), "none, signed", False),
    ],
)
def test_gates_and_whether_the_boundary_is_rectified(gate: nn.Module, words: str, rectified: bool) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 8, 1), gate, nn.AdaptiveAvgPool2d(1), nn.Flatten(), FC)
    [stage] = Encoder.from_module(net, input_shape=SHAPE).stages
    assert stage.gate == f"{words} output"
    assert stage.rectified is rectified


def half_written(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, :4].relu_()
    return x


@pytest.mark.parametrize(
    ("function", "rectified"),
    [
        (lambda x: torch.cat([F.relu(x[:, :4]), F.relu(-x[:, 4:]).flip(1)[:, [0, 1, 2, 3]]], 1), False),
        (lambda x: torch.cat([F.relu(x[:, :4]), F.relu(-x[:, 4:])], 1), True),
        (half_written, False),
        (lambda x: x.relu() + x.relu(), False),
    ],
    ids=["moved by an index", "concatenated", "half written", "sum"],
)
def test_what_is_made_of_rectified_parts(function: Callable[[Tensor], Tensor], rectified: bool) -> None:
    assert headed(lambda x, fc: fc(function(x - 0.5).mean((2, 3))), FC).stages[-1].rectified is rectified


def test_the_table_says_it_all() -> None:
    encoder = Encoder.from_module(SPATIAL["instance_norm"](), input_shape=(3, 32, 32))
    lines = stage_table(encoder.stages).splitlines()
    assert [line.split()[0] for line in lines] == ["stage", "1", "2", "3"]
    for line, stage in zip(lines[1:], encoder.stages, strict=True):
        for part in (stage.name, str(stage.channels), f"{stage.shape[1]} x {stage.shape[2]}", stage.gate):
            assert part in line
    assert "32 x 32 px (global: native_batch_norm in norm)" in lines[1]
    assert stage_table(encoder.stages) in repr(encoder)
