"""Encoder: a frozen network split into stages, its features, and its Jacobian at an image (spec section 1)."""

from __future__ import annotations

import copy
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from PIL import Image
from torch import Tensor, nn

from pullback.adjoint import Asked, Packed, Program, Unsupported, discrepancy, vjp_discrepancy
from pullback.encoders.derivative import own_discrepancy
from pullback.encoders.naming import checked_classes, class_index
from pullback.encoders.preprocessing import Preprocessing, assumed_preprocessing, checked_shape
from pullback.encoders.splitting import Boundary, find, split, split_alike
from pullback.encoders.stages import Head, Stage, describe_head, describe_stages, stage_table
from pullback.encoders.twin import buffers_of, hook_notes, moved, read_logits, renew, tensors_of, twin
from pullback.encoders.weights import digest
from pullback.errors import EncoderError, ImageError, NumericsError, OptionError, StageError
from pullback.graph import Point, Rule, Tape, plain_autograd, record
from pullback.images import load_image
from pullback.operator import Jacobian

_log = logging.getLogger(__name__)

StageName = int | str
Rules = Callable[[Tape, Point, Point], Mapping[int, Rule]]
_KEPT_TAPES = 8  # one for each batch shape in use
_AGREEMENT = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 5e-2, torch.bfloat16: 2e-1}


class Encoder:
    """A frozen CNN in eval mode, split into stages 1..L and a head. Build one with `from_module` or `pullback.load_encoder`.

    The user's module is never touched: the encoder works on a twin. Feature maps are (C, H, W) for one image and
    (B, C, H, W) for a batch; stage 0 is the image after preprocessing.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        name: str,
        stage_names: Sequence[str] | None,
        classes: Sequence[str] | None,
        preprocessing: Preprocessing,
        input_shape: tuple[int, int, int],
        notes: Sequence[str],
        source: str | None,
        reach: Iterable[Tensor] | None = None,
        buffers: Sequence[tuple[Tensor, Tensor]] = (),
    ) -> None:
        self.module = module
        self.name = name
        self.preprocessing = preprocessing
        self.input_shape = input_shape
        self._stage_names = tuple(stage_names) if stage_names is not None else None
        self._digest = source
        self._buffers = buffers
        self._seen = self.versions()
        self._tapes: OrderedDict[tuple[Any, ...], Tape] = OrderedDict()
        self._splits: WeakKeyDictionary[Tape, tuple[Boundary, ...]] = WeakKeyDictionary()
        self._packed: WeakKeyDictionary[Tape, Packed] = WeakKeyDictionary()
        self._agreed: WeakKeyDictionary[Tape, dict[tuple[Any, ...], str | bool]] = WeakKeyDictionary()
        first = next(iter((*module.parameters(), *module.buffers())), torch.zeros((), device="cpu"))
        self.device, self.dtype = first.device, first.dtype if first.is_floating_point() else torch.float32
        noise = torch.randn(1, *input_shape, generator=torch.Generator().manual_seed(0), device="cpu")
        example = noise.to(self.device, self.dtype)
        self._example = self._checked_tape(example, reach)
        logits = self._example.shapes[self._example.output.tensor]
        self.class_count = logits[1] if len(logits) == 2 else None
        self.classes = checked_classes(classes, self.class_count)
        self.notes = (*notes, *self._example.notes)
        self._split_error: StageError | EncoderError | None = None
        try:
            boundaries = split(self._example, self._stage_names)
        except EncoderError as error:
            boundaries, self._split_error = (), error
        self._stages = describe_stages(self._example, boundaries)
        self.head = (
            describe_head(self._example, boundaries[-1].point) if boundaries else Head("no spatial stages", None)
        )

    @classmethod
    def from_module(
        cls,
        module: nn.Module,
        *,
        stages: Sequence[str] | None = None,
        name: str | None = None,
        classes: Sequence[str] | None = None,
        preprocessing: Preprocessing | None = None,
        input_shape: tuple[int, int, int] | None = None,
        notes: Sequence[str] = (),
        weights_digest: str | None = None,
    ) -> Encoder:
        """Split any CNN into stages by itself, or at the modules named in `stages` (shallow to deep).

        input_shape: (C, H, W) of one preprocessed image, default that of `preprocessing`, else (3, 224, 224).
        Raises EncoderError (cannot be copied, run or recorded), StageError (`stages`), ClassError (`classes`), OptionError
        (`input_shape`, `preprocessing`). What has no spatial stages still loads: its Jacobian works, `encoder.stages` and
        the inversions raise.
        """
        if stages is not None and (isinstance(stages, str) or not all(isinstance(stage, str) for stage in stages)):
            raise StageError(f"stages={stages!r}: expected a list of module names, for example ['layer1', 'layer2']")
        if not (preprocessing is None or isinstance(preprocessing, Preprocessing)):
            raise OptionError(
                f"preprocessing={preprocessing!r}: expected a Preprocessing; load_encoder takes text and mappings too"
            )
        shape = checked_shape(input_shape, preprocessing)
        preprocessing = preprocessing or assumed_preprocessing(shape)
        memo: dict[int, Any] = {}
        copied = twin(module, memo)
        return cls(
            copied,
            name=name or type(copied).__name__,
            stage_names=stages,
            classes=classes,
            preprocessing=preprocessing,
            input_shape=shape,
            notes=(*notes, *hook_notes(copied)),
            source=weights_digest,
            reach=tensors_of(copied, memo),
            buffers=buffers_of(module, memo),
        )

    def _checked_tape(self, example: Tensor, reach: Iterable[Tensor] | None) -> Tape:
        """Record the example, and compare one random VJP of the replay with the network's own autograd."""
        tape, leaf, logits = record(self.module, example, read_logits, reach=reach)
        if not bool(torch.isfinite(logits).all()):
            bad = [
                n
                for n, p in self.module.state_dict().items()
                if p.is_floating_point() and not bool(torch.isfinite(p).all())
            ]
            where = f"; not finite: {', '.join(bad[:3])}" if bad else ""
            raise NumericsError(
                f"the network's output is not finite on a random image{where}; check its weights and dtype"
            )
        self.vjp_discrepancy, refused = own_discrepancy(tape, example, leaf, logits)
        if refused:
            tape.notes = (*tape.notes, f"the VJP could not be compared with the network's own autograd: {refused}")
        if self.vjp_discrepancy > _AGREEMENT.get(self.dtype, 1e-4):
            tape.notes = (
                *tape.notes,
                f"the VJP differs from the network's own autograd by {self.vjp_discrepancy:.1e} (relative): the network"
                " defines a backward pass that is not the derivative of its forward pass",
            )
        self._keep(example, tape)
        return tape

    # ---- what the network is -------------------------------------------------------------------------------------

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages, shallow to deep. Raises EncoderError for a network without spatial stages."""
        if self._split_error is not None:
            raise self._split_error
        return self._stages

    @property
    def depth(self) -> int:
        """L, the number of the deepest stage."""
        return len(self.stages)

    def stage(self, number: StageName) -> Stage:
        """The stage with this number or name. Raises StageError naming what there is."""
        for s in self.stages:
            if number in (s.number, s.name) and not isinstance(number, bool | float):
                return s
        raise StageError(
            f"no stage {number!r}; stages are {', '.join(f'{s.number} ({s.name})' for s in self.stages)}; print(encoder) shows them"
        )

    @property
    def data_dependent(self) -> bool:
        """True when the path through the network depends on the numbers in the image."""
        return self._example.data_dependent

    @property
    def title(self) -> str:
        """The name as headings give it; random weights must not be overlooked."""
        random = any(note.startswith("random weights") for note in self.notes)
        return f"{self.name} with RANDOM weights (no evidence, only cost)" if random else self.name

    @property
    def weights_digest(self) -> str:
        """SHA-256 over the names and bytes of the parameters and buffers that the encoder was made with, as they are now.

        A change in place by an optimizer, by training, `load_state_dict` or under `torch.no_grad` is followed. Make the encoder
        anew after one through `.data`, which torch does not count, and where a tensor is replaced or derived from the weights.
        """
        self._follow()
        if self._digest is None:
            self._digest = digest(self.module)
        return self._digest

    def class_index(self, target: StageName) -> int:
        """The index of a class given by index, name, or unambiguous part of a name. Raises ClassError with the nearest names."""
        return class_index(target, self.classes, self.class_count)

    def class_name(self, index: int) -> str:
        return self.classes[index] if self.classes else f"class {index}"

    def to(self, *, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> Encoder:
        """A copy on another device or in another floating-point type, with the weights as they are now. Raises OptionError."""
        self._follow()
        with torch.inference_mode(False):
            copied = moved(copy.deepcopy(twin(self.module)), device, dtype)
        return Encoder(
            copied,
            name=self.name,
            stage_names=self._stage_names,
            classes=self.classes,
            preprocessing=self.preprocessing,
            input_shape=self.input_shape,
            notes=[n for n in self.notes if n not in self._example.notes],
            source=self.weights_digest,
        )

    def double(self) -> Encoder:
        return self.to(dtype=torch.float64)

    def __repr__(self) -> str:
        size = "x".join(map(str, self.input_shape))
        lines = [
            f"Encoder {self.name}: input {size}, {self.class_count or 'no'} classes, {str(self.dtype)[6:]} on {self.device}"
        ]
        lines.append(stage_table(self._stages) if self._split_error is None else str(self._split_error))
        lines += [
            f"head: {self.head.kind}",
            f"preprocessing: {self.preprocessing}",
            *(f"note: {n}" for n in self.notes),
        ]
        return "\n".join(lines)

    # ---- running it ----------------------------------------------------------------------------------------------

    def preprocess(self, source: str | Path | Image.Image | Tensor) -> Tensor:
        """A picture as the network wants it: (C, H, W) on the encoder's device. Tensors are taken as preprocessed already."""
        if isinstance(source, Tensor):
            return self._as_input(source)
        return self.preprocessing(load_image(source).image).to(self.device, self.dtype)

    def _as_input(self, x: Tensor) -> Tensor:
        if x.layout is not torch.strided or x.is_nested or x.is_meta:
            kind = "meta" if x.is_meta else "nested" if x.is_nested else str(x.layout)[6:]
            raise ImageError(f"expected an image whose numbers are all there, got a {kind} tensor; make it a dense one")
        x = x.as_subclass(Tensor)
        if x.ndim not in (3, 4) or x.shape[-3] != self.input_shape[0]:
            raise ImageError(
                f"expected an image ({self.input_shape[0]}, H, W) or a batch of them, got shape {tuple(x.shape)}"
            )
        if x.ndim == 4 and len(x) == 0:
            raise ImageError(f"an empty batch of shape {tuple(x.shape)} holds no image")
        if x.dtype not in _AGREEMENT:
            raise ImageError(
                f"expected a preprocessed floating-point image, got {x.dtype}; pass the picture itself or preprocess it"
            )
        if not bool(torch.isfinite(x).all()):
            raise ImageError("the image holds values that are not finite (NaN or infinity)")
        with torch.inference_mode(False):
            x = x.detach()
            return (x.clone() if x.is_inference() else x).to(self.device, self.dtype)

    def _follow(self) -> None:
        """Forget what was derived from parameters and buffers of the user's module that have changed in place since.

        Parameters share their storage with it; buffers, which a run may write, are copied again.
        """
        versions = self.versions()
        if versions != self._seen:
            self._seen = versions
            renew(self._buffers)
            self._tapes.clear()
            self._digest = None

    def versions(self) -> tuple[int, ...]:
        """How often each parameter and each buffer of the user's module has changed in place, by torch's count."""
        return (*(p._version for p in self.module.parameters()), *(original._version for original, _ in self._buffers))

    def tape(self, batch: Tensor) -> Tape:
        """The tape for a batch (N, C, H, W): one for each batch shape, or one for each image where its numbers steer the run."""
        self._follow()
        key = (*batch.shape, batch.dtype, batch.device)
        if key in self._tapes:
            self._tapes.move_to_end(key)
            return self._tapes[key]
        tape, _, _ = record(self.module, batch, read_logits)
        self._keep(batch, tape)
        return tape

    def _keep(self, batch: Tensor, tape: Tape) -> None:
        if not tape.data_dependent:
            self._tapes[(*batch.shape, batch.dtype, batch.device)] = tape
            while len(self._tapes) > _KEPT_TAPES:
                self._tapes.popitem(last=False)

    def _boundaries(self, tape: Tape) -> tuple[Boundary, ...]:
        if tape not in self._splits:
            self._splits[tape] = split_alike(tape, self._stage_names, [(s.name, s.channels) for s in self.stages])
        return self._splits[tape]

    def point(self, tape: Tape, stage: StageName) -> Point:
        """Where a stage (0 = the image, 1..L, its name), "logits", or any module's output lies on a tape."""
        if stage == 0 and not isinstance(stage, bool):
            return tape.input
        if stage == "logits":
            return tape.output
        if not isinstance(stage, str) or any(s.name == stage for s in self._stages):
            return self._boundaries(tape)[self.stage(stage).number - 1].point
        return find(tape, stage)

    def stretch(
        self, stage: StageName, start: StageName = 0, *, along: Tensor | None = None, rules: Rules | None = None
    ) -> Callable[[Tensor], Tensor]:
        """The network from `start` to `stage` as a differentiable batch function (N, *start) -> (N, *stage).

        along: the image (C, H, W) whose path is followed, needed when `start` is not the image. rules: replacements for
        operations, given the tape, the start and the end point (for example a leaky backward pass); asked once for a tape.
        """
        if start != 0 and along is None:
            raise StageError(f"a stretch that starts at stage {start!r} needs the image whose path it follows")
        own: dict[tuple[int, ...], Tape] = {}
        found: WeakKeyDictionary[Tape, Mapping[int, Rule]] = WeakKeyDictionary()

        def run(batch: Tensor) -> Tensor:
            n = len(batch)
            if along is None:
                tape = self.tape(batch.detach())
            else:
                key = n, *self.versions()
                tape = own[key] if key in own else own.setdefault(key, self.tape(along.expand(n, *along.shape)))
            begin, end = self.point(tape, start), self.point(tape, stage)
            if end.op < begin.op:
                raise StageError(f"stage {stage!r} comes before stage {start!r}; go from shallow to deep")
            if rules is not None and tape not in found:
                found[tape] = rules(tape, begin, end)
            (value,) = tape.replay(batch.to(tape.dtypes[begin.tensor]), [end], start=begin, rules=found.get(tape))
            return self._in_full(value)

        return run

    def features(self, x: Tensor, stage: StageName | None = None) -> Tensor:
        """Features of one preprocessed image (C, H, W) or a batch (B, C, H, W) at a stage (default: the deepest)."""
        x = self._as_input(x)
        run = self.stretch(self.depth if stage is None else stage)
        batch = x if x.ndim == 4 else x[None]
        with plain_autograd(self.device), torch.no_grad():
            parts = batch.split(1) if self.data_dependent else (batch,)  # one image must not choose another's path
            out = torch.cat([run(p) for p in parts])
        return out if x.ndim == 4 else out[0]

    def levels(self, x: Tensor) -> list[Tensor]:
        """F_0 (the image itself) to F_L of one preprocessed image (C, H, W), or of a batch (B, C, H, W), from one forward pass."""
        x = self._as_input(x)
        batch = x if x.ndim == 4 else x[None]
        with plain_autograd(self.device), torch.no_grad():
            parts = batch.split(1) if self.data_dependent else (batch,)  # one image must not choose another's path
            tapes = [self.tape(p) for p in parts]
            found = [t.replay(p, [b.point for b in self._boundaries(t)]) for t, p in zip(tapes, parts, strict=True)]
            levels = [self._in_full(torch.cat(stage)) for stage in zip(*found, strict=True)]
        return [x, *(f if x.ndim == 4 else f[0] for f in levels)]

    def _in_full(self, value: Tensor) -> Tensor:
        """Features of a part that runs in fewer bits than the encoder (under autocast) in the encoder's own type."""
        return value.to(torch.promote_types(value.dtype, self.dtype)) if value.is_floating_point() else value

    def logits(self, x: Tensor) -> Tensor:
        """Class scores (K,) of one preprocessed image, or (B, K) of a batch."""
        return self.features(x, "logits")

    def _lowered(self, along: Tensor, stage: StageName, start: StageName, x: Tensor) -> Program | None:
        """The adjoint program of a stretch at x, on the path of the image `along`; None where only autograd gives the truth."""
        tape = self.tape(along[None])
        ends = self.point(tape, start), self.point(tape, stage)
        agreed = self._agreed.setdefault(tape, {})
        partly = tape.dtypes[ends[0].tensor] != x.dtype  # the stretch begins within an autocast
        if agreed.get(ends) == "autograd" or ends[1].op < ends[0].op or partly:
            return None
        try:
            program = Program.lower(tape, *ends, x, self._packed.setdefault(tape, {}))
            if ends not in agreed:
                allowed = _AGREEMENT.get(self.dtype, 1e-4)
                error = vjp_discrepancy(program, tape, *ends, x)
                if not error <= allowed:
                    raise NumericsError(f"the adjoint program differs from it by {error:.1e}")
                agreed[ends] = "program"
        except (Unsupported, NumericsError, RuntimeError) as reason:
            said = _log.info if isinstance(reason, Unsupported) else _log.warning
            said("autograd serves %s from %s to %s: %s", self.name, start, stage, str(reason).strip().splitlines()[0])
            agreed[ends] = "autograd"
            return None

        def trusted(asking: Program, asked: Asked) -> bool:
            key = *ends, asking.dtype, asked
            if key not in agreed:
                agreed[key] = discrepancy(asking, asked) <= _AGREEMENT.get(asking.dtype, 1e-4)
            return bool(agreed[key])

        program.trust = trusted
        return program

    def jacobian(
        self,
        image: str | Path | Image.Image | Tensor,
        stage: StageName,
        start: StageName = 0,
        *,
        at: Tensor | None = None,
        chunk: int | None = None,
        memory: int | str | None = None,
        precision: str | None = None,
    ) -> Jacobian:
        """The Jacobian of `stage` with respect to `start` (default: the image) at one image, as a linear operator.

        stage: 0..L, a stage's or any module's name, or "logits". at: the image's features at `start`, where they are at
        hand. chunk, memory, precision: see `pullback.Jacobian`.
        """
        x = self.preprocess(image)
        if x.ndim != 3:
            raise ImageError(
                f"the Jacobian is taken at one image (C, H, W), got shape {tuple(x.shape)}; loop over the batch"
            )
        if at is None:
            at = x if start == 0 else self.features(x, start)
        run = self.stretch(stage, start, along=x)
        lower = partial(self._lowered, x, stage, start)
        return Jacobian(run, at, chunk=chunk, memory=memory, precision=precision, lower=lower)
