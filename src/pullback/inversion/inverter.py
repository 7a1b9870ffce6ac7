"""Inverter: how pictures are to be drawn; calling it on an image opens an `Inversion`."""

from __future__ import annotations

import math
import numbers
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from pullback.adjoint import check_precision
from pullback.encoders import Encoder
from pullback.errors import OptionError, StageError
from pullback.inversion.budget import check_budget
from pullback.inversion.correctors import Correctors
from pullback.inversion.indices import index_of
from pullback.inversion.iterative import BlindMethod, DecoderMethod, WienerMethod
from pullback.inversion.methods import CascadeMethod, Method, VjpMethod
from pullback.inversion.opened import Opened
from pullback.inversion.prior import Prior
from pullback.inversion.session import Inversion
from pullback.inversion.wiener import RIDGE

METHODS = ("cascade", "wiener", "blind", "decoder", "vjp")
MODES = ("additive", "fused", "frozen")
STARTS = ("taught", "mean")
MOST_STARTS = 16
ITERATIVE = ("wiener", "blind")  # the methods that work within a budget
ROUNDED = (
    "cascade",
    "vjp",
)  # the methods that are one product; a solve or a search ends where the products' errors begin


class Inverter:
    """Draws what an encoder keeps of an image.

    method: "cascade" (corrected adjoint), "wiener" (signal space), "blind" (features alone), "decoder" (an instant draft of
    the blind inverse) or "vjp" (raw pull-back).
    mode (cascade): "additive" (8), "fused" or "frozen" (spec section 3). correctors: None for gamma 1, beta 0, captioned
    "unfitted"; `correctors.bias_free()` switches the biases off. prior: image prior of the Wiener and blind inverses, default
    `Prior.natural` of the encoder's preprocessing. ridge: the Wiener inverse's noise, lambda. start (blind): "taught", what a
    decoder draws from the features, fitted once for each encoder and size of image on synthetic pictures and kept in the user's
    cache folder, or "mean", the mean colour. starts (blind): searches from so many places around that, at once, with the memory
    that so many images take; the nearest is shown, and the figures say how far they lie apart. steps, seconds: budget of the
    iterative inverses, for each picture, without what the blind inverse makes once and keeps (decoders, the null of a number of
    steps); `steps` gives the same bits every time, both together no more than `steps`. chunk, memory: see `pullback.Jacobian`.
    precision (cascade, vjp): "bfloat16" for the products, where the hardware has it, two to three times as fast; each picture
    then says the error of one product. seed: of what they draw at random, 0 to 2**63 - 1. Raises OptionError for an unknown
    method, mode or start, a number that does not fit, or an option that the method would ignore, EncoderError for a network
    without spatial stages.
    """

    def __init__(
        self,
        encoder: Encoder,
        method: str = "cascade",
        mode: str = "frozen",
        *,
        correctors: Correctors | None = None,
        prior: Prior | None = None,
        ridge: float = RIDGE,
        start: str = "taught",
        starts: int = 1,
        steps: int | None = None,
        seconds: float | None = None,
        chunk: int | None = None,
        memory: int | str | None = None,
        precision: str | None = None,
        seed: int = 0,
    ) -> None:
        if not isinstance(encoder, Encoder):
            raise OptionError(
                f"expected an Encoder, got {type(encoder).__name__}; make one with pullback.Encoder.from_module(network)"
            )
        if not (correctors is None or isinstance(correctors, Correctors)):
            raise OptionError(
                f"expected Correctors, got {type(correctors).__name__}; read a file with Correctors.load(path)"
            )
        if not (prior is None or isinstance(prior, Prior)):
            raise OptionError(
                f"expected a Prior, got {type(prior).__name__}; make one with Prior.natural(mean, std, (height, width))"
            )
        for name, value, offered in (("method", method, METHODS), ("mode", mode, MODES), ("start", start, STARTS)):
            if not isinstance(value, str) or value not in offered:
                raise OptionError(f"unknown {name} {reprlib.repr(value)}; choose one of {', '.join(offered)}")
        if steps is not None or seconds is not None:
            steps = check_budget(steps, seconds)
        if not 1 <= _whole(starts) <= MOST_STARTS:
            raise OptionError(f"starts={starts!r} must be a whole number from 1 to {MOST_STARTS}")
        if not 0 < _real(ridge) < math.inf:
            raise OptionError(f"ridge={reprlib.repr(ridge)} must be a finite number above 0")
        if not 0 <= _whole(seed) < 2**63:
            raise OptionError(f"seed={seed!r} must be a whole number from 0 to 2**63 - 1")
        only: tuple[tuple[str, object, object, tuple[str, ...]], ...] = (
            ("mode", mode, "frozen", ("cascade",)),
            ("correctors", correctors, None, ("cascade",)),
            ("ridge", ridge, RIDGE, ("wiener",)),
            ("start", start, STARTS[0], ("blind",)),
            ("starts", starts, 1, ("blind",)),
            ("steps", steps, None, ITERATIVE),
            ("seconds", seconds, None, ITERATIVE),
            ("prior", prior, None, ("wiener", "blind", "decoder")),
        )
        for option, given, default, methods in only:
            if given != default and method not in methods:
                said = f"{option}={reprlib.repr(given)} is for {' and '.join(methods)}"
                raise OptionError(f"{said}: {method!r} would ignore it; leave it out")
        if encoder.dtype in (torch.float16, torch.bfloat16):
            # Sums over a feature map and 1 / alpha leave the range of half precision; the weights are the same numbers.
            encoder = encoder.to(dtype=torch.float32)
        check_precision(precision, encoder.device)
        if precision is not None and method not in ROUNDED:
            raise OptionError(
                f"precision={precision!r} is for {' and '.join(ROUNDED)}: {method!r} needs exact products; leave it out"
            )
        self.encoder = encoder
        self.method = method
        self.mode = mode
        shapes = [encoder.input_shape, *(s.shape for s in encoder.stages)]
        self.correctors = correctors or Correctors.unfitted([s[0] for s in shapes[:-1]])
        self.correctors.check(encoder.name, [s[0] for s in shapes[:-1]])
        self.prior = prior
        self.ridge = _real(ridge)
        self.start = start
        self.starts = _whole(starts)
        self.steps = steps
        self.seconds = 10.0 if steps is None and seconds is None else seconds
        self.chunk = chunk
        self.memory = memory
        self.precision = precision
        self.seed = _whole(seed)

    def __call__(self, image: str | Path | Image.Image | Tensor) -> Inversion:
        """Open a path, a PIL picture, a preprocessed image (C, H, W) or a batch (B, C, H, W)."""
        x = self.encoder.preprocess(image)
        batched = x.ndim == 4
        with torch.inference_mode(False):
            # Copies: the session is lazy, and the caller may change the tensor meanwhile.
            images = [one.clone(memory_format=torch.contiguous_format) for one in (x if batched else x[None])]
            opened = [
                Opened(self.encoder, one, chunk=self.chunk, memory=self.memory, precision=self.precision)
                for one in images
            ]
            home = image.detach().as_subclass(Tensor).new_empty(0) if isinstance(image, Tensor) else None
        return self.session(opened, batched=batched, home=home)

    def session(self, opened: Sequence[Opened], *, batched: bool, home: Tensor | None) -> Inversion:
        """A session on images that are opened already; `Inversion.through` is the way to it."""
        return Inversion(
            self.encoder,
            opened,
            [self._method(o) for o in opened],
            batched=batched,
            home=home,
            settings=self.settings,
            seed=self.seed,
        )

    @property
    def settings(self) -> dict[str, object]:
        """What made a picture, for its provenance."""
        cascade = {
            "mode": self.mode, "correctors": self.correctors.label, "correctors (SHA-256)": self.correctors.digest,
        }  # fmt: skip
        prior = "natural" if self.prior is None else repr(self.prior)
        iterative = {"steps": self.steps, "seconds": self.seconds, "prior": prior}
        return {
            "method": self.method,
            **(cascade if self.method == "cascade" else {}),
            **({"ridge": self.ridge} if self.method == "wiener" else {}),
            **({"start": self.start, "starts": self.starts} if self.method == "blind" else {}),
            **(iterative if self.method in ITERATIVE else {}),
            **({"precision": self.precision} if self.precision is not None else {}),
            **({"prior": prior} if self.method == "decoder" else {}),
        }

    def _method(self, opened: Opened) -> Method:
        if self.method == "cascade":
            return CascadeMethod(opened, self.correctors.to(opened.image), self.mode)
        if self.method == "vjp":
            return VjpMethod(opened)
        preprocessing = self.encoder.preprocessing
        size = (opened.image.shape[-2], opened.image.shape[-1])
        prior = self.prior or Prior.natural(preprocessing.mean, preprocessing.std, size)
        if prior.size != size:
            raise OptionError(f"the prior is for images of {prior.size}, this one is {size}; make one for this size")
        if self.method == "wiener":
            return WienerMethod(opened, prior, self.ridge, self.steps, self.seconds, self.seed)
        if self.method == "decoder":
            return DecoderMethod(opened, prior)
        return BlindMethod(opened, prior, self.start, self.starts, self.steps, self.seconds, self.seed)


def _whole(value: Any) -> int:
    """A whole number of any library's type as a plain int; -1 for anything else, True and 1.0 included."""
    try:
        return index_of(value)
    except StageError:
        return -1


def _real(value: Any) -> float:
    """A real number of any library's type as a plain float; nan for anything else, True included."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.nan
