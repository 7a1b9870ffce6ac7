"""Lower precision for products with a Jacobian: where the hardware has it, and what it costs in accuracy."""

from __future__ import annotations

import torch

from pullback.adjoint.agreement import gaussian, relative_gap
from pullback.adjoint.program import Program
from pullback.errors import OptionError

PRECISIONS = {"bfloat16": torch.bfloat16}
_CPU_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16")  # the last is ARM's


def has_bfloat16(device: torch.device | str) -> bool:
    """Whether the device has instructions for bfloat16 that its convolutions use."""
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    found = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}  # torch 2.9 has it
    return torch.backends.mkldnn.is_available() and any(found.get(name, False) for name in _CPU_INSTRUCTIONS)


def check_precision(precision: str | None, device: torch.device) -> torch.dtype | None:
    """The type that `precision` names; None for that of the network. Raises OptionError."""
    if precision is None:
        return None
    if precision not in PRECISIONS:
        raise OptionError(
            f"precision={precision!r} is not offered: choose {', '.join(PRECISIONS)}, or None for the network's own"
        )
    if not has_bfloat16(device):
        raise OptionError(
            f"precision={precision!r}: this {device.type} has no instructions for it; leave precision= out"
        )
    return PRECISIONS[precision]


def rounding_error(program: Program, rounded: Program) -> float:
    """|rounded.pull(w) - program.pull(w)| / |program.pull(w)| for one Gaussian w."""
    w = gaussian(program.value.shape, program.value)[None]
    return relative_gap(rounded.pull(w), program.pull(w))
