"""One image opened under one encoder: its features, measures and Jacobians, each made once and kept until closed."""

from __future__ import annotations

import hashlib
from functools import cached_property
from types import TracebackType

import torch
from torch import Tensor

from pullback.encoders import Encoder
from pullback.graph import Support, pull_support
from pullback.inversion.seeds import Measure, measure
from pullback.operator import Jacobian


class Opened:
    """A preprocessed image (C, H, W) on the encoder's device, with everything that is derived from it once.

    chunk, memory: how many cotangents go through the network at a time; precision: of the products. See `pullback.Jacobian`.
    """

    def __init__(
        self,
        encoder: Encoder,
        image: Tensor,
        *,
        chunk: int | None = None,
        memory: int | str | None = None,
        precision: str | None = None,
    ) -> None:
        self.encoder = encoder
        self.image = image
        self.chunk = chunk
        self.memory = memory
        self.precision = precision
        self._chain: dict[int, Jacobian] = {}
        self._whole: dict[int, Jacobian] = {}
        self._measures: dict[int, Measure] = {}
        self._fields: dict[int, Tensor] = {}
        self.weights_digest = encoder.weights_digest
        self.versions = encoder.versions()

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the preprocessed image's shape, type and bytes."""
        values = self.image.detach().cpu()
        head = f"{tuple(values.shape)} {values.dtype}".encode()
        return hashlib.sha256(head + values.reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()

    @cached_property
    def levels(self) -> list[Tensor]:
        """F_0 .. F_L of the image, without a leading axis: one forward pass."""
        return self.encoder.levels(self.image)

    @cached_property
    def logits(self) -> Tensor:
        """Class scores (K,)."""
        return self.encoder.logits(self.image)

    def measure(self, level: int) -> Measure:
        """The forward measure of stage `level`. Raises StageError (every feature is zero), NumericsError (some are not finite)."""
        if level not in self._measures:
            self._measures[level] = measure(self.levels[level], f"{level} ({self.encoder.stage(level).name})")
        return self._measures[level]

    @property
    def chain(self) -> list[Jacobian]:
        """J_{0->1} .. J_{L-1->L}."""
        return [self._step(k) for k in range(self.encoder.depth)]

    def _step(self, k: int) -> Jacobian:
        if k not in self._chain:
            self._chain[k] = self._jacobian(k + 1, k, at=self.levels[k])
        return self._chain[k]

    def whole(self, level: int) -> Jacobian:
        """J_l = dF_l / dx in one piece. Those of other levels give back what they keep, which is as much as the network makes."""
        for other, jacobian in self._whole.items():
            if other != level:
                jacobian.close()
        if level not in self._whole:
            self._whole[level] = self._jacobian(level, 0)
        return self._whole[level]

    def _jacobian(self, stage: int, start: int, at: Tensor | None = None) -> Jacobian:
        return self.encoder.jacobian(
            self.image, stage, start, at=at, chunk=self.chunk, memory=self.memory, precision=self.precision
        )

    @property
    def rounding(self) -> float:
        """The largest relative error of a random VJP through any Jacobian used so far; 0 in the network's own precision."""
        return max((j.rounding for j in (*self._chain.values(), *self._whole.values())), default=0.0)

    def field(self, level: int, seed: Tensor) -> Support:
        """The structural field in the image of a boolean seed (C_l, H_l, W_l)."""
        tape = self.encoder.tape(self.image[None])
        return pull_support(tape, seed[None].cpu(), self.encoder.point(tape, level))

    def active_field(self, level: int) -> Tensor:
        """The field (H, W) of all active positions of a stage: where its features are not zero."""
        if level not in self._fields:
            self._fields[level] = self.field(level, self.levels[level] != 0).mask[0].any(0)
        return self._fields[level]

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Give the kept graphs back."""
        for jacobian in (*self._chain.values(), *self._whole.values()):
            jacobian.close()  # but kept: methods hold it, and it makes its graphs anew when they ask
