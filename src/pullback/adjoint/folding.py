"""Two local Jacobians in a row as one: scales of batch norms into kernels, masks into each other and through max-pooling."""

from __future__ import annotations

from dataclasses import replace

from pullback.adjoint.convolution import Convolution
from pullback.adjoint.maps import Identity, Map, Scale
from pullback.adjoint.pooling import MaxPool


def composed(inner: Map, outer: Map) -> Map | None:
    """The Jacobian of `outer` after `inner`, where it is one map of ours; otherwise None."""
    match inner, outer:
        case Identity(), _:
            return outer
        case _, Identity():
            return inner
        case Scale(), Scale():
            return _product(inner, outer)
        case Convolution(), Scale() if outer.per_channel():
            return replace(inner, outer=outer if inner.outer is None else _product(inner.outer, outer))
        case Scale(), Convolution() if inner.per_channel():
            return replace(outer, inner=inner if outer.inner is None else _product(inner, outer.inner))
        case Scale(), MaxPool():
            return outer.gated(inner.factor)
    return None


def _product(inner: Scale, outer: Scale) -> Scale:
    from_parameters = None if inner.source is None or outer.source is None else (*inner.source, *outer.source)
    return Scale(inner.factor * outer.factor, from_parameters)
