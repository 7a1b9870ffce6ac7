"""The Jacobian J = dF/dx of a function at one point as a linear operator: `mv` (JVP), `vm` (VJP), and the affine part."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from types import TracebackType

import torch
from torch import Tensor

from pullback.adjoint import LARGEST_BATCH, Program, check_precision, rounding_error
from pullback.errors import NumericsError, OptionError
from pullback.operator.linear import LinearMap, flat_batch
from pullback.operator.memory import memory_budget
from pullback.operator.replica import Function, Replica

_log = logging.getLogger(__name__)

_LARGEST_CHUNK = 8  # convolutions gain nothing from larger batches, while memory grows with them
_PASSES_WORTH = 3  # memory of a chunk in units of its graph: the graph, the recorded adjoint, and the pass at work

Lowering = Callable[[Tensor], Program | None]
_Product = Callable[[Replica, Tensor], Tensor]
_WAYS_TO_PUSH: tuple[_Product, ...] = (Replica.push, Replica.push_forward)


class _Counted:
    """A function that counts its runs; apart from the operator, so that no cycle keeps its graphs alive."""

    def __init__(self, function: Function) -> None:
        self.function = function
        self.runs = 0

    def __call__(self, batch: Tensor) -> Tensor:
        self.runs += 1
        return self.function(batch)


class Jacobian(LinearMap):
    """The Jacobian of `function` at `x`, of the network *as it is at x* (ReLU' = 0 at 0, max-pool takes the argmax).

    function: maps a batch (N, *in_shape) to (N, *out_shape), sample by sample.
    x: the point, (*in_shape), real; results come in its dtype and on its device, without a graph.
    chunk: cotangents per backward pass; 1 is the plain loop. None: the largest power of two within `memory`, up to 64 with a
        program and up to 8 without, settled at the first product with several cotangents.
    memory: budget in bytes or as a text ("2GB"); None is a quarter of what is free. An explicit `chunk` wins.
    precision: "bfloat16" for products in that precision, where the hardware has it and the function has a program; `rounding`
        then holds the relative error of one random VJP. None: that of x.
    lower: what lowers the function at x to an adjoint program, where it knows how (`Encoder.jacobian` gives one).

    Cost with a program: one run here, and none afterwards; from eight rows on, products of a network on the CPU leave out what
    shut gates make zero, if there is a C compiler to make their kernels with (so not a number behind a shut gate is not seen
    there). Cost without a program: one run of `function`
    here and one, on `chunk` copies of x, at the first product with several cotangents (with chunk=None one for each of 2, 4, 8
    copies that a product calls for); no further run, however many products follow (`forwards` counts). `close()`, or leaving a
    `with` block, frees what the runs keep, and the next product runs the function again. Without a program, a last chunk that
    is not full is padded with zeros, so that its numbers have the bits of a full one.

    Raises OptionError (shape, complex numbers, chunk, memory), EncoderError (the function gives no such output),
    NumericsError (no way to `mv`).

    >>> J = Jacobian(torch.relu, torch.tensor([3.0, -2.0, 0.0]))
    >>> J.mv(torch.ones(3))
    tensor([1., 0., 0.])
    """

    def __init__(
        self,
        function: Function,
        x: Tensor,
        *,
        chunk: int | None = None,
        memory: int | str | None = None,
        precision: str | None = None,
        lower: Lowering | None = None,
    ) -> None:
        if not x.is_floating_point():
            raise OptionError(f"x is {x.dtype}, where real floating-point numbers were expected")
        if chunk is not None and (isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1):
            raise OptionError(
                f"chunk={chunk!r} is no number of cotangents: give 1 or more, or None to let memory decide"
            )
        self.in_shape, self.dtype, self.device = tuple(x.shape), x.dtype, x.device
        self._function = _Counted(function)
        self._lower, self._lowerings = lower, 0
        self._program: Program | None = None
        self._precision, self.precision, self.rounding = check_precision(precision, x.device), precision, 0.0
        self._chunk, self._explicit = chunk, chunk is not None
        self._memory = memory if memory is None else memory_budget(memory, x.device)
        self._push: _Product | None = None
        self._kept: dict[int, Replica] = {}
        with torch.inference_mode(False):
            self._x = x.detach().clone()
            program = self.program
            if program is None and precision is not None:
                raise OptionError(
                    f"precision={precision!r} needs an adjoint program, and autograd serves this function: leave it out"
                )
            self.value = self._replica(1).output[0].detach().clone() if program is None else program.value
        self.out_shape = tuple(self.value.shape)

    @property
    def forwards(self) -> int:
        """Runs of the function so far."""
        return self._function.runs + self._lowerings

    @property
    def program(self) -> Program | None:
        """The adjoint program at x; None where autograd serves the function."""
        if self._program is None and self._lower is not None:
            exact = self._program = self._lower(self._x)
            if exact is None:
                self._lower = None
            else:
                self._lowerings += 1
                if self._precision is not None:
                    self._program = exact.to(self._precision)
                    self.rounding = rounding_error(exact, self._program)
        return self._program

    @property
    def chunk(self) -> int:
        """Cotangents per backward pass."""
        if self._chunk is None:
            budget = memory_budget(None, self.device) if self._memory is None else self._memory
            program = self.program
            if program is not None:
                sizes = [2**k for k in range(1 + int(math.log2(LARGEST_BATCH)))]
                fits = [c for c in sizes if program.kept_bytes + program.working_bytes("pull", c) <= budget]
                self._chunk = max(fits, default=1)
                return self._chunk
            fitting = budget // max(1, _PASSES_WORTH * self._replica(1).saved_bytes())
            self._chunk = 2 ** int(math.log2(min(max(fitting, 1), _LARGEST_CHUNK)))
        return self._chunk

    @torch.inference_mode(False)
    @torch.no_grad()
    def vm(self, w: Tensor) -> Tensor:
        """J^T w for cotangents w (..., *out_shape), any leading axes: (..., *in_shape). One backward pass per chunk."""
        cotangents = flat_batch(w, self.out_shape, self.value.dtype, self.device, "the cotangent")
        program = self.program
        if program is not None:
            pulled = program.pull(cotangents, self.chunk)
        else:
            pulled = self._by_chunks(Replica.pull, cotangents, self.in_shape)
        return pulled.reshape(w.shape[: w.dim() - len(self.out_shape)] + self.in_shape)

    @torch.inference_mode(False)
    @torch.no_grad()
    def mv(self, v: Tensor) -> Tensor:
        """J v for tangents v (..., *in_shape), any leading axes: (..., *out_shape). About the cost of `vm`.

        The first product is checked against the adjoint, |J v|^2 = <v, J^T J v>. Where an operation has no second
        derivative, or the check fails, forward-mode differentiation takes over, at about three times the cost.
        """
        tangents = flat_batch(v, self.in_shape, self.dtype, self.device, "the tangent")
        program = self.program
        if program is not None and program.pushes:
            pushed = program.push(tangents, self.chunk)
        else:
            pushed = self._by_chunks(self._push or self._first_push, tangents, self.out_shape)
        return pushed.reshape(v.shape[: v.dim() - len(self.in_shape)] + self.out_shape)

    @torch.inference_mode(False)
    @torch.no_grad()
    def bias(self) -> Tensor:
        """b = F(x) - J x, (*out_shape): for a piecewise-linear network, F = J x + b exactly on the piece of x."""
        return self.value - self.mv(self._x)

    def close(self) -> None:
        """Free what the runs keep."""
        self._kept.clear()
        self._program = None

    def __enter__(self) -> Jacobian:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _replica(self, count: int) -> Replica:
        if count not in self._kept:
            self._kept[count] = Replica(self._function, self._x, count)
        return self._kept[count]

    def _copies(self, rows: int) -> int:
        """Copies of the point for a product with so many rows: no more than it needs, unless `chunk` was given."""
        if rows == 1:
            return 1
        return self.chunk if self._explicit else min(self.chunk, 2 ** math.ceil(math.log2(rows)))

    def _by_chunks(self, product: _Product, rows: Tensor, shape: tuple[int, ...]) -> Tensor:
        if len(rows) == 0:
            return rows.new_zeros(0, *shape)
        replica = self._replica(self._copies(len(rows)))
        parts = []
        for part in rows.split(replica.count):
            padding = part.new_zeros(replica.count - len(part), *part.shape[1:])
            whole = torch.cat([part, padding])  # always a copy, so that inference tensors do not reach the graph
            parts.append(product(replica, whole)[: len(part)])
        return torch.cat(parts)

    def _first_push(self, replica: Replica, tangents: Tensor) -> Tensor:
        """J v by the first way that works and agrees with the adjoint, which is then kept."""
        found = []
        for way in _WAYS_TO_PUSH:
            try:
                pushed = way(replica, tangents)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:  # an operation without this kind of derivative
                found.append(f"{way.__name__}: {str(error).strip().splitlines()[0]}")
                _log.info("J v by %s", found[-1])
                continue
            gap = _gap(pushed, tangents, replica.pull(pushed))
            if not gap <= torch.finfo(self.dtype).eps ** 0.25:  # not a number counts as a failure
                found.append(f"{way.__name__}: differs from the adjoint by {gap:.1e}")
                _log.warning("J v by %s", found[-1])
                continue
            self._push = way
            return pushed
        raise NumericsError(f"J v cannot be had for this function ({'; '.join(found)}); J^T w works")


def _gap(pushed: Tensor, tangents: Tensor, pulled: Tensor) -> float:
    """| |J v|^2 - <v, J^T J v> | in units of the norms; 0 where nothing was pushed. Not a number where J v is not."""
    square = float(pushed.double().square().sum())
    product = float((tangents.double() * pulled.double()).sum())
    scale = square + float(tangents.double().norm() * pulled.double().norm())
    return abs(square - product) / scale if scale else 0.0
