"""The adjoint program: a stretch of a recorded network at one point, lowered to its local Jacobians, run on cotangents.

Autograd keeps a graph for each copy of the image. A frozen network needs one: its local Jacobians are the same for all
cotangents. So they are kept once, batch norms are folded into kernels, neighbouring diagonals become one product, and
cotangents go through in as large a batch as still fits into the caches.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from functools import cached_property
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._pytree import tree_iter

from pullback.adjoint.applied import Applied
from pullback.adjoint.compiled import kernels
from pullback.adjoint.convolution import Packed
from pullback.adjoint.gated import FEWEST, Gated, columns, mixed
from pullback.adjoint.maps import Shape, laid_out
from pullback.adjoint.rules import lowered
from pullback.adjoint.schedule import WAYS, Edge, Segment, Way, scheduled, simplified
from pullback.adjoint.single import one_channel_each, sharpened
from pullback.errors import EncoderError, OptionError
from pullback.graph import Point, Tape, plain_autograd

_log = logging.getLogger(__name__)

_FITTING = 19 * 2**20
"""Bytes of the largest tensor of a batch on a CPU: of larger ones malloc gives back the pages, and takes them anew."""
LARGEST_BATCH = 64

Asked = Literal["push", "live pull", "live push"]
_LIVE: dict[Way, Asked] = {"pull": "live pull", "push": "live push"}


class Unsupported(Exception):
    """The recorded run cannot be lowered: it writes into memory through views."""


class Program:
    """J of a stretch of a network at one point, as a list of local Jacobians.

    value: the stretch's output at the point, (*out_shape). unknown: operations without a rule, left to autograd.
    trust: says whether another way to a product is right than `pull` on few rows; asked when it is first needed.
    """

    def __init__(
        self,
        edges: Sequence[Edge],
        end: Point,
        in_shape: Shape,
        value: Tensor,
        dtype: torch.dtype,
        unknown: tuple[str, ...],
    ) -> None:
        self.edges, self.end, self.in_shape, self.value, self.dtype, self.unknown = (
            edges,
            end,
            in_shape,
            value,
            dtype,
            unknown,
        )
        self.trust: Callable[[Program, Asked], bool] = lambda program, asked: True
        self.versions: list[tuple[Tensor, int]] = []  # of the constants that it was made of
        self._entries = _FITTING // dtype.itemsize if value.device.type == "cpu" else None
        self._schedules: dict[Way, Sequence[Segment]] = {way: scheduled(edges, way, self._entries) for way in WAYS}
        self._single = scheduled(sharpened(edges, end), "pull", self._entries)  # for cotangents of one channel each
        self._gated: dict[Way, Sequence[Segment | Gated] | None] = {}

    @classmethod
    def lower(cls, tape: Tape, start: Point, end: Point, x: Tensor, packed: Packed) -> Program:
        """Run the tape, recorded on a batch of one, from `start` with value x (*in_shape) to `end`, and keep its Jacobians.

        packed: a store of kernels for this tape, filled here. Raises Unsupported.
        """
        edges: list[Edge] = []
        live = {start}
        unknown: dict[str, None] = {}
        # What the run writes from the image into a tensor of the module's is no constant of all images.
        written = {tape.storages[t] for i, op in enumerate(tape.ops) if tape.dependent[i] for t in op.writes}

        def lowering(i: int) -> Any:
            op = tape.ops[i]
            read = {p.tensor: p for p in tape.sources[i]}

            def run(*args: Any, **kwargs: Any) -> Any:
                points = [read.get(t) for t in op.inputs]
                flags = tuple(p in live for p in points)
                if not op.grad or not any(flags):
                    return op.func(*args, **kwargs)
                fixed = tuple(t in tape.constants and tape.storages[t] not in written for t in op.inputs)
                out, found, known = lowered(Applied(op, i, args, kwargs, flags, fixed, packed))
                if not known:
                    unknown[op.name] = None
                outputs = [o for o in tree_iter(out) if isinstance(o, Tensor)]
                given = [a for a in tree_iter((args, kwargs)) if isinstance(a, Tensor)]
                for k, j, local in found:
                    if not outputs[k].dtype == given[j].dtype == x.dtype:
                        raise Unsupported(
                            f"{op.name} makes {outputs[k].dtype} of {given[j].dtype} in a run on {x.dtype}"
                        )
                    point = points[j]
                    assert point is not None
                    outer = Point(i, op.outputs[k])
                    edges.append(Edge(point, outer, local, tuple(given[j].shape), tuple(outputs[k].shape)))
                    live.add(outer)
                return out

            return run

        run = [i for i, _ in tape.program(start, [end]).steps]
        for i in run:
            for p in tape.sources[i]:
                if p != start and p.op > start.op and p.tensor not in tape.ops[p.op].outputs and tape.dependent[p.op]:
                    raise Unsupported(f"{tape.ops[p.op].name} writes into a tensor that is read by another name")
        rules = {i: lowering(i) for i in run if tape.dependent[i]}
        with plain_autograd(x.device), torch.no_grad():
            value = tape.replay(x.detach()[None], [end], start=start, rules=rules)[0]
        if unknown:
            _log.info("no adjoint rule for %s: autograd serves them, one at a time", ", ".join(unknown))
        if end not in live or start == end:
            raise Unsupported("the output does not depend on the input by any derivative")
        if value.dim() == 0 or len(value) != 1:
            raise Unsupported(f"the run makes {tuple(value.shape)} of a batch of one")
        simple = simplified(edges, start, end)
        made = cls(simple, end, tuple(x.shape), value[0].detach().clone(), x.dtype, tuple(unknown))
        changing = {tape.storages[t] for op in tape.ops for t in op.writes}  # a counter, for example: every run does
        constants = [t for i, t in tape.constants.items() if tape.storages[i] not in changing]
        made.versions = [(t, t._version) for t in constants if not t.is_inference()]
        return made

    def to(self, dtype: torch.dtype) -> Program:
        """The same Jacobian with its numbers rounded to another precision."""
        edges = [replace(e, map=e.map.to(dtype)) for e in self.edges]
        made = Program(edges, self.end, self.in_shape, self.value, dtype, self.unknown)
        made.trust, made.versions = self.trust, self.versions
        return made

    def pull(self, w: Tensor, batch: int | None = None) -> Tensor:
        """J^T w for cotangents (K, *out_shape): (K, *in_shape). batch: how many at once, None for what fits the caches."""
        return self._product("pull", w, self.in_shape, batch)

    def push(self, v: Tensor, batch: int | None = None) -> Tensor:
        """J v for tangents (K, *in_shape): (K, *out_shape)."""
        return self._product("push", v, tuple(self.value.shape), batch)

    @cached_property
    def pushes(self) -> bool:
        """Whether `push` is there and right; found out when first asked, since it needs kernels that `pull` does not.

        An operation without a rule may lack a second derivative.
        """
        return self.trust(self, "push")

    @property
    def kept_bytes(self) -> int:
        """Bytes of the numbers that belong to this point, each storage counted once."""
        storages = {
            t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for e in self.edges for t in e.map.kept
        }
        return sum(storages.values()) + sum(segment.kept_bytes for way in WAYS for segment in self._live_segments(way))

    def working_bytes(self, way: Way, batch: int) -> int:
        """Bytes that a product on `batch` rows holds at most, beside what is kept."""
        given = self.value.shape if way == "pull" else self.in_shape
        held = most = batch * prod(given)  # a copy with the channels innermost
        rows = batch
        for segment in self._schedules[way]:
            rows = min(rows, segment.batch or rows)
            most = max(most, held + rows * segment.peak)
            held += rows * segment.end
        if self._fills_vectors(batch):
            most = max(most, columns(self.dtype) * max(segment.peak for segment in self._schedules[way]))
        return most * self.dtype.itemsize

    def live_operations(self, way: Way) -> int:
        """About how many floating-point operations a row costs where the kernels of live entries have served so far."""
        return sum(segment.operations for segment in self._live_segments(way))

    def __getstate__(self) -> dict[str, Any]:
        """Without the plans of live entries, which hold addresses: a copy makes its own."""
        return self.__dict__ | {"_gated": {}}

    # ---- running ---------------------------------------------------------------------------------------------------

    def _product(self, way: Way, rows: Tensor, shape: Shape, batch: int | None) -> Tensor:
        if any(t._version != version for t, version in self.versions):
            raise EncoderError(
                "the network's parameters or buffers have changed since this Jacobian was made: make a new one"
            )
        expected = tuple(self.value.shape) if way == "pull" else self.in_shape
        if tuple(rows.shape[1:]) != expected or rows.device != self.value.device:
            raise OptionError(
                f"rows of shape {tuple(rows.shape)} on {rows.device}, where (K, *{expected}) on {self.value.device} was expected"
            )
        if len(rows) == 0:
            return rows.new_zeros(0, *shape)
        with plain_autograd(rows.device), torch.no_grad():
            made = rows.new_empty(len(rows), *shape)
            size = batch or LARGEST_BATCH
            # One way for all parts, so that a row's bits do not depend on how many are left with it.
            live = self._on_live_entries(way) if self._fills_vectors(min(len(rows), size)) else None
            for part, into in zip(rows.split(size), made.split(size), strict=True):
                given = part.clone() if part.is_inference() else part  # which autograd would not take
                schedule = self._dense(way, given) if live is None else live
                if schedule is self._schedules[way]:
                    given = laid_out(given)  # once, where most local Jacobians want it so
                _fill(into[:, None], schedule, given.to(self.dtype)[:, None])
            for segment in self._live_segments(way):
                segment.rest()
        return made

    def _dense(self, way: Way, rows: Tensor) -> Sequence[Segment]:
        return self._single if way == "pull" and one_channel_each(rows) else self._schedules[way]

    def _fills_vectors(self, rows: int) -> bool:
        return rows >= FEWEST and self.value.device.type == "cpu" and kernels(self.dtype) is not None

    def _on_live_entries(self, way: Way) -> Sequence[Segment | Gated] | None:
        if way not in self._gated:
            found = mixed(self.edges, way, self._entries, self.dtype)
            if found is not None:
                tried = copy(self)  # nobody else is served by what is not yet found right
                tried._gated = {way: found}
                if not self.trust(tried, _LIVE[way]):
                    _log.warning("%s on live entries differs from the dense one, which serves", way)
                    found = None
            self._gated[way] = found
        return self._gated[way]

    def _live_segments(self, way: Way) -> list[Gated]:
        return [segment for segment in self._gated.get(way) or () if isinstance(segment, Gated)]


def _fill(made: Tensor, segments: Sequence[Segment | Gated], rows: Tensor) -> None:
    """Rows through all segments into `made`, each segment taking as many at a time as fit it."""
    first, *rest = segments
    size = first.batch or len(rows)
    for part, into in zip(rows.split(size), made.split(size), strict=True):
        if rest:
            _fill(into, rest, first.carry(part))
        elif isinstance(first, Gated) and into.dtype == first.dtype:
            first.carry(part, into)
        else:
            into.copy_(first.carry(part))
