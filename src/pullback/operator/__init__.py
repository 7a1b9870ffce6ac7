"""The Jacobian of a network at an image as a linear operator, its adjoint test, and the named cotangents."""

from __future__ import annotations

from pullback.operator import cotangents
from pullback.operator.adjoint import adjoint_test
from pullback.operator.jacobian import Jacobian
from pullback.operator.linear import LinearMap
from pullback.operator.memory import memory_budget

__all__ = ["Jacobian", "LinearMap", "adjoint_test", "cotangents", "memory_budget"]
