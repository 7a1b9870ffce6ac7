"""The adjoint engine: a recorded stretch of a network lowered to local Jacobians, for many cotangents at one image."""

from pullback.adjoint.agreement import adjoint_discrepancy, discrepancy, vjp_discrepancy
from pullback.adjoint.convolution import Packed
from pullback.adjoint.precision import PRECISIONS, check_precision, has_bfloat16, rounding_error
from pullback.adjoint.primal import primal_rules
from pullback.adjoint.program import LARGEST_BATCH, Asked, Program, Unsupported

__all__ = [
    "Asked",
    "LARGEST_BATCH",
    "PRECISIONS",
    "Packed",
    "Program",
    "Unsupported",
    "adjoint_discrepancy",
    "check_precision",
    "discrepancy",
    "has_bfloat16",
    "primal_rules",
    "rounding_error",
    "vjp_discrepancy",
]
