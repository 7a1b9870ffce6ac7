"""The floor under every way: operations over the machine's best convolution rate, bytes over its bandwidth.

A vector-Jacobian product of a frozen network is a chain of convolutions with respect to their inputs; whatever else it
does, it must do those, and it must read a cotangent and write a result at each of them.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks.machine import finish
from benchmarks.work import CONTIGUOUS, Work
from pullback.adjoint import has_bfloat16

aten = torch.ops.aten

_SHAPES = ((64, 56), (128, 28), (256, 14), (512, 7))  # channels, side: the 3x3 convolutions of a ResNet at 224 pixels
_COPIED_BYTES = 2**26
BANDWIDTH = "bytes copied"
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Counter(TorchDispatchMode):
    """Within its scope: operations (2 for a multiplication and an addition), bytes, and backward convolutions.

    bytes: read and written by convolutions and matrix products, without their weights (which a chunk of cotangents shares).
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.bytes = self.backward_convolutions = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        count = flop_registry.get(func.overloadpacket)
        if count is not None:
            self.flops += count(*args, **(kwargs or {}), out_val=out)
            self.backward_convolutions += func.overloadpacket is aten.convolution_backward
            made = out[0] if isinstance(out, tuple) else out
            self.bytes += sum(t.nbytes for t in (args[0], made) if isinstance(t, Tensor))
        return out


@dataclass(frozen=True)
class Cost:
    """Of one image: a run of the network to the stage, and one vector-Jacobian product from there to the pixels."""

    run_flops: int
    run_bytes: int
    vjp_flops: int
    vjp_bytes: int
    backward_convolutions: int

    def flops(self, cotangents: int) -> float:
        """Operations per cotangent when so many share one run."""
        return self.vjp_flops + self.run_flops / cotangents

    def bytes(self, cotangents: int) -> float:
        """Bytes per cotangent when so many share one run."""
        return self.vjp_bytes + self.run_bytes / cotangents


def cost(work: Work) -> Cost:
    """What the work costs at least, counted on one image and one backward pass."""
    leaf = work.leaf(1, CONTIGUOUS)
    with Counter() as run:
        out = work.trunk(CONTIGUOUS)(leaf)
    with Counter() as vjp:
        torch.autograd.grad(out, leaf, work.seeds[:1])
    return Cost(run.flops, run.bytes, vjp.flops, vjp.bytes, vjp.backward_convolutions)


@dataclass
class Rates:
    """Rates of the machine, sampled again and again during a benchmark.

    samples: by name, operations or bytes per second, each sustained for `seconds`. The floor takes the best of them.
    """

    device: str
    seconds: float = 0.05
    samples: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def sample(self) -> None:
        """One more sample of everything: float32 and, where the machine has it, bfloat16 convolutions; copying."""
        for name, dtype in PRECISIONS.items():
            if dtype is torch.bfloat16 and not has_bfloat16(self.device):
                continue
            for channels, side in _SHAPES:
                run, flops = _convolution(channels, side, dtype, self.device)
                self.samples[f"{name}, {channels} channels"].append(flops * self._per_second(run))
        source = torch.zeros(_COPIED_BYTES // 4, device=self.device)
        target = torch.empty_like(source)
        self.samples[BANDWIDTH].append(2 * _COPIED_BYTES * self._per_second(lambda: target.copy_(source)))

    def best(self, precision: str) -> float:
        """Operations per second of the fastest convolution in this precision; 0.0 where none was measured."""
        found = [rate for name, rates in self.samples.items() if name.startswith(f"{precision},") for rate in rates]
        return max(found, default=0.0)

    @property
    def bandwidth(self) -> float:
        """Bytes per second, read and written."""
        return max(self.samples[BANDWIDTH])

    def floor(self, cost: Cost, cotangents: int, precision: str) -> float:
        """Seconds per cotangent that no way can go below: the larger of operations and bytes over their rates."""
        moved = cost.bytes(cotangents) * PRECISIONS[precision].itemsize / 4  # the cost was counted in float32
        return max(cost.flops(cotangents) / self.best(precision), moved / self.bandwidth)

    def _per_second(self, run: Callable[[], object]) -> float:
        run()
        finish(self.device)
        done, start = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - start) < self.seconds:
            for _ in range(4):
                run()
            finish(self.device)
            done += 4
        return done / elapsed


def _convolution(channels: int, side: int, dtype: torch.dtype, device: str) -> tuple[Callable[[], Tensor], int]:
    """A 3x3 convolution, channels-last, of 8 images (64 on a GPU, which 8 would not fill), and its operations."""
    batch = 8 if device == "cpu" else 64
    x = torch.ones(batch, channels, side, side, dtype=dtype, device=device).to(memory_format=torch.channels_last)
    weight = torch.ones(channels, channels, 3, 3, dtype=dtype, device=device).to(memory_format=torch.channels_last)

    @torch.no_grad()
    def run() -> Tensor:
        return F.conv2d(x, weight, padding=1)

    return run, 2 * 9 * channels**2 * batch * side**2
