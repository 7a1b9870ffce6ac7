"""The adjoint test: do `mv` and `vm` of an operator belong to each other, <J v, w> = <v, J^T w>?"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from pullback.errors import OptionError


class Operator(Protocol):
    """Anything with two products and two shapes."""

    @property
    def in_shape(self) -> tuple[int, ...]: ...

    @property
    def out_shape(self) -> tuple[int, ...]: ...

    def mv(self, v: Tensor, /) -> Tensor: ...

    def vm(self, w: Tensor, /) -> Tensor: ...


def adjoint_test(operator: Operator, *, seed: int | torch.Generator = 0, trials: int = 3) -> float:
    """The largest |<J v, w> - <v, J^T w>| / (|J v| |w| + |v| |J^T w|) over `trials` pairs of Gaussian tensors v, w.

    operator: `mv` takes (*in_shape) to (*out_shape), `vm` goes back; tensors have its `dtype` and `device`, or float64 on
    the CPU where it names none. seed: a number, or a CPU generator to draw from. Returns a number in [0, 1]: about 1e-16
    in float64 and 1e-8 in float32 for a true adjoint, about 1e-3 to 1 for a wrong one; nan where a product is not a
    number. Costs `trials` products of either kind. Raises OptionError for less than one trial.
    """
    if trials < 1:
        raise OptionError(f"trials={trials} tests nothing: give 1 or more")
    generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
    device, dtype = getattr(operator, "device", "cpu"), getattr(operator, "dtype", torch.float64)

    def draw(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu").to(device, dtype)

    found = []
    for _ in range(trials):
        v, w = draw(operator.in_shape), draw(operator.out_shape)
        pushed, pulled = operator.mv(v).double(), operator.vm(w).double()
        v, w = v.double(), w.double()
        difference = (pushed * w).sum() - (v * pulled).sum()
        scale = pushed.norm() * w.norm() + v.norm() * pulled.norm()
        found.append(difference.abs() / scale if scale else scale)
    return float(torch.stack(found).max())
