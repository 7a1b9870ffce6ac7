"""Inversion: an open session on one image or a batch, from which pictures, class pictures and certificates are drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn import functional as F

from pullback import __version__
from pullback.encoders import Encoder
from pullback.errors import ClassError, OptionError, StageError
from pullback.graph import plain_autograd
from pullback.inversion.certificate import certify
from pullback.inversion.indices import index_of, unit_of
from pullback.inversion.iterative import WienerMethod
from pullback.inversion.methods import ROWS, Drawn, Method
from pullback.inversion.opened import Opened
from pullback.inversion.seeds import class_weights, importance, score_gradient
from pullback.measures.values import tensor_of
from pullback.pictures import Certificate, ClassPicture, Display, Picture, Provenance

if TYPE_CHECKING:
    from pullback.inversion.inverter import Inverter

StageName = int | str
P = ParamSpec("P")
R = TypeVar("R")


def _while_open(function: Callable[Concatenate[Inversion, P], R]) -> Callable[Concatenate[Inversion, P], R]:
    @wraps(function)
    def run(self: Inversion, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with self._running():
            return function(self, *args, **kwargs)

    return run


class Inversion:
    """Pictures of what an encoder keeps of one image (C, H, W) or of a batch (B, C, H, W); made by calling an `Inverter`.

    Lazy: nothing runs before it is asked for, and forward passes are shared. Use it as a context manager, or `close()` it,
    to give the kept graphs back. Every picture comes beside its null picture and says how it was made.
    """

    def __init__(
        self,
        encoder: Encoder,
        opened: Sequence[Opened],
        methods: Sequence[Method],
        *,
        batched: bool,
        home: Tensor | None,
        settings: Mapping[str, Any],
        seed: int,
    ) -> None:
        self.encoder = encoder
        self._opened = list(opened)
        self._methods = list(methods)
        self._batched = batched
        self._home = home  # an empty tensor on the caller's device, in its type
        self._settings = dict(settings)
        self._seed = seed
        self._closed = False

    # ---- pictures ------------------------------------------------------------------------------------------------

    @_while_open
    def stage(self, stage: StageName | None = None) -> Picture:
        """The picture of a whole stage (default: the deepest): `.tensor` (C, H, W), or (B, C, H, W) for a batch."""
        level = self._level(stage)
        return self._picture([m.whole(level) for m in self._methods], f"stage {level} ({self._name(level)})")

    @_while_open
    def channel(self, stage: StageName, channel: int) -> Picture:
        """The picture B_c of one channel. A dead channel (seed zero) gets the null picture and a note that says so."""
        level = self._level(stage)
        channel = self._channel(level, channel)
        drawn = []
        for opened, method in zip(self._opened, self._methods, strict=True):
            one = method.channels(level, torch.tensor([channel], device=opened.image.device))
            dead = not bool(opened.measure(level).energy[channel] > 0)
            own = one.null[0] if dead else one.own[0]
            notes = (
                (*one.notes, f"channel {channel} is dead here: its seed is zero, so this is the null picture")
                if dead
                else one.notes
            )
            drawn.append(replace(one, own=own, null=one.null[0], notes=notes))
        return self._picture(drawn, f"channel {channel} of stage {level}")

    def channels(self, stage: StageName | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Stream (indices (K,), pictures (K, C, H, W)) over the live channels of one image, a few at a time."""
        with self._running():
            level = self._level(stage)
            opened, method = self._single("channels"), self._methods[0]
            live = opened.measure(level).live
        for indices in live.split(ROWS):
            with self._running():  # not while the caller has the word
                pictures = self._return(method.channels(level, indices).own)
            yield indices, pictures

    @_while_open
    def cls(self, target: int | str | None = None, *, weights: str = "w*alpha", centred: bool = False) -> ClassPicture:
        """The class inversion X_y = sum_c omega_c B_c and its hemispheres, equation (12), at the deepest stage.

        target: class index or name, default the top-1 class. weights: omega = "w*alpha", "w" or "w*gap". centred: take the
        mean over classes out of w (needs a linear head). Raises ClassError, OptionError.
        """
        level, encoder = self.encoder.depth, self.encoder
        index = self._top() if target is None else self._class(target)
        full, positive, negative, cosines = [], [], [], []
        for opened, method in zip(self._opened, self._methods, strict=True):
            at = opened.measure(level)
            w = class_weights(encoder, opened.image, at.features, index)
            if centred:
                if encoder.head.weight is None:
                    raise OptionError("centred class weights need a linear head; this one is: " + encoder.head.kind)
                w = w - encoder.head.weight.to(w).mean(0)
            omega = importance(w, at, weights)
            both = method.directions(level, torch.stack([omega.clamp_min(0), omega.clamp_max(0)]))
            own, null = both.own.sum(0), both.null.sum(0)
            gradient = opened.whole(level).vm(score_gradient(encoder, opened.image, at.features, index))
            cosines.append(float(F.cosine_similarity(own.flatten().double(), gradient.flatten().double(), 0)))
            full.append(replace(both, own=own, null=null))
            positive.append(replace(both, own=both.own[0], null=both.null[0]))
            negative.append(replace(both, own=both.own[1], null=both.null[1]))
        name = encoder.class_name(index)
        said = f"{'centred ' if centred else ''}{weights}; head {encoder.head.kind}"
        signs = ("all channels", "channels that speak for it", "channels that speak against it")
        whole, pro, contra = (
            self._picture(drawn, f"class {index} ({name}), {part}")
            for drawn, part in zip((full, positive, negative), signs, strict=True)
        )
        figures = {"cosine with the gradient of the class score": _joined(cosines)}
        return ClassPicture(whole, pro, contra, index, name, said, figures)

    @_while_open
    def scalar(self, read_out: Callable[[Tensor], Tensor]) -> Picture:
        """The picture of any differentiable scalar of the deepest features: its gradient there is the seed, equation (18).

        read_out takes features (C, H, W) of one image and returns a tensor with one real element. Raises OptionError.
        """
        level = self.encoder.depth
        drawn = []
        for opened, method in zip(self._opened, self._methods, strict=True):
            with plain_autograd(opened.image.device):
                at = opened.levels[level].detach().clone().requires_grad_()
                value = read_out(at.clone())  # it may write to what it is given
                if not isinstance(value, Tensor) or value.numel() != 1:
                    shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                    raise OptionError(f"the read-out must return a tensor with one element, got {shape}")
                if value.is_complex():
                    raise OptionError(
                        f"the read-out must return a real number, got {value.dtype}; take its .real or .abs()"
                    )
                seed = None
                if value.grad_fn is not None:  # which may be of another graph
                    (seed,) = torch.autograd.grad(value.reshape(()), at, allow_unused=True)
                if seed is None:
                    raise OptionError("the read-out does not depend differentiably on the features that it was given")
            one = method.seeded(seed, level)
            drawn.append(replace(one, figures={**one.figures, "read-out": float(value)}))
        return self._picture(drawn, f"a read-out of stage {level}")

    @_while_open
    def from_features(self, features: Tensor | ArrayLike, stage: StageName | None = None) -> Picture:
        """The picture of foreign features (C, H, W), or (B, C, H, W) for a batch (transplant test).

        A method that uses gates, as its caption says, uses this image's. Raises StageError.
        """
        level = self._level(stage)
        features = tensor_of(features, "features", StageError)
        if not bool(torch.isfinite(features).all()):
            raise StageError("the features hold values that are not finite (NaN or infinity)")
        given = features if self._batched else features[None]
        expected = (len(self._opened), *self._opened[0].levels[level].shape)
        if tuple(given.shape) != expected:
            wanted = expected if self._batched else expected[1:]
            raise StageError(f"features of stage {level} have shape {wanted}, got {tuple(features.shape)}")
        drawn = [m.whole(level, f.to(o.image)) for m, f, o in zip(self._methods, given, self._opened, strict=True)]
        return self._picture(drawn, f"foreign features at stage {level}")

    @_while_open
    def certificate(
        self,
        stage: StageName | None = None,
        *,
        channel: int | None = None,
        unit: tuple[int, int, int] | None = None,
        region: Tensor | ArrayLike | None = None,
    ) -> Certificate:
        """Where the picture of a seed can be: of the whole stage, one channel, one unit (c, i, j), or an image region (H, W).

        A region's seed is every unit whose cell of the image touches it. Of the Wiener inverse it is the part before the
        prior, which spreads over the whole image. One image only. Raises StageError, OptionError.
        """
        level = self._level(stage)
        opened, method = self._single("certificate"), self._methods[0]
        seed, named = self._seed_of(opened, level, channel, unit, region)
        whole = channel is None and unit is None and region is None
        spread = None
        if isinstance(method, WienerMethod):
            spread, seed = "the solve mixes all positions before the pull-back", torch.ones_like(seed)
            picture = opened.whole(level).vm(seed)
        else:
            picture = method.seeded(seed, level).own
        return certify(opened, level, seed, picture, named=named, spread=spread, confined=method.confined, areas=whole)

    # ---- numbers -------------------------------------------------------------------------------------------------

    @property
    @_while_open
    def image(self) -> Tensor:
        """The preprocessed image (C, H, W), or batch (B, C, H, W)."""
        images = torch.stack([o.image for o in self._opened])
        return self._return(images if self._batched else images[0])

    @property
    @_while_open
    def logits(self) -> Tensor:
        """Class scores (K,), or (B, K)."""
        scores = torch.stack([o.logits for o in self._opened])
        return self._return(scores if self._batched else scores[0])

    @_while_open
    def features(self, stage: StageName | None = None) -> Tensor:
        """Features of a stage (default: the deepest): (C, H, W), or (B, C, H, W)."""
        found = torch.stack([o.levels[self._level(stage)] for o in self._opened])
        return self._return(found if self._batched else found[0])

    @_while_open
    def alpha(self, stage: StageName | None = None) -> Tensor:
        """The simplex measure of a stage's channels, equation (2): (C,), or (B, C); sums to 1."""
        found = torch.stack([o.measure(self._level(stage)).alpha for o in self._opened])
        return self._return(found if self._batched else found[0])

    @_while_open
    def dead(self, stage: StageName | None = None) -> int:
        """How many channels of a stage are zero everywhere, over all images of the session."""
        return sum(o.measure(self._level(stage)).dead for o in self._opened)

    @_while_open
    def class_weights(self, target: int | str) -> Tensor:
        """The class's weights w_y on the deepest channels: (C,), or (B, C); exact for a linear head, its gradient otherwise."""
        index, level = self._class(target), self.encoder.depth
        found = torch.stack([class_weights(self.encoder, o.image, o.levels[level], index) for o in self._opened])
        return self._return(found if self._batched else found[0])

    @_while_open
    def importance(self, target: int | str, weights: str = "w*alpha") -> Tensor:
        """Channel importance omega of a class, equation (12): (C,), or (B, C). weights as in `cls`."""
        index, level = self._class(target), self.encoder.depth
        found = torch.stack([
            importance(class_weights(self.encoder, o.image, o.levels[level], index), o.measure(level), weights)
            for o in self._opened
        ])  # fmt: skip
        return self._return(found if self._batched else found[0])

    # ---- lifetime ------------------------------------------------------------------------------------------------

    @_while_open
    def through(self, inverter: Inverter) -> Inversion:
        """The same images drawn by another inverter of this encoder: a session that shares features and Jacobians with this one.

        chunk, memory and precision are this session's. Closing either gives back what both share; the other makes anew what
        it needs. Raises OptionError.
        """
        from pullback.inversion.inverter import Inverter  # which imports this module

        if not isinstance(inverter, Inverter):
            raise OptionError(f"expected an Inverter, got {type(inverter).__name__}")
        if inverter.encoder is not self.encoder:
            raise OptionError(
                f"this session's encoder is {self.encoder.name}, the inverter has another or a copy of it "
                f"({inverter.encoder.name}, {inverter.encoder.dtype}): make it with session.encoder"
            )
        ours, theirs = self._opened[0].precision, inverter.precision
        if ours != theirs:
            raise OptionError(f"this session calculates with precision={ours!r}, the inverter with {theirs!r}")
        return inverter.session(self._opened, batched=self._batched, home=self._home)

    def close(self) -> None:
        """Give the kept graphs back; the session cannot be used afterwards."""
        for opened in self._opened:
            opened.close()
        self._closed = True

    def __enter__(self) -> Inversion:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        images = f"{len(self._opened)} images" if self._batched else "one image"
        return f"Inversion({self._methods[0].mode}) of {images} under {self.encoder.name}{', closed' if self._closed else ''}"

    # ---- inner -----------------------------------------------------------------------------------------------------

    @contextmanager
    def _running(self) -> Iterator[None]:
        """While the session is open, outside the caller's inference mode and autocast, and without recording a graph."""
        if self._closed:
            raise OptionError("this inversion is closed; call the inverter again to open the image anew")
        if any(opened.versions != self.encoder.versions() for opened in self._opened):
            raise OptionError(
                "the network's parameters or buffers have changed since this session was opened: open the image anew"
            )
        device = self.encoder.device.type
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(device, enabled=False):
            yield

    def _single(self, what: str) -> Opened:
        if len(self._opened) != 1:
            raise OptionError(f"{what} takes one image, this session holds {len(self._opened)}; open them one by one")
        return self._opened[0]

    def _level(self, stage: StageName | None) -> int:
        if stage is None:
            return self.encoder.depth
        named = stage if isinstance(stage, str) else index_of(stage, "a stage by its number or name")
        return self.encoder.stage(named).number

    def _class(self, target: int | str) -> int:
        named = target if isinstance(target, str) else index_of(target, "a class by its index or name", ClassError)
        return self.encoder.class_index(named)

    def _name(self, level: int) -> str:
        return self.encoder.stage(level).name

    def _channel(self, level: int, channel: int) -> int:
        index, count = index_of(channel), self.encoder.stage(level).channels
        if not 0 <= index < count:
            raise StageError(
                f"channel {index} is out of range: stage {level} ({self._name(level)}) has channels 0 to {count - 1}"
            )
        return index

    def _top(self) -> int:
        if self.encoder.class_count is None:
            raise ClassError("the network's output is not (N, classes), so it has no classes to invert")
        found = {int(o.logits.argmax()) for o in self._opened}
        if len(found) > 1:
            raise ClassError(f"the images of this batch have different top-1 classes ({sorted(found)}); name one")
        return found.pop()

    def _seed_of(
        self,
        opened: Opened,
        level: int,
        channel: int | None,
        unit: tuple[int, int, int] | None,
        region: Tensor | ArrayLike | None,
    ) -> tuple[Tensor, str]:
        if sum(given is not None for given in (channel, unit, region)) > 1:
            raise OptionError("a certificate is for one channel, one unit or one region; give a single one of them")
        features = opened.levels[level]
        keep = torch.zeros_like(features, dtype=torch.bool)
        shape = tuple(features.shape)
        if channel is not None:
            channel = self._channel(level, channel)
            keep[channel], named = True, f"channel {channel}"
        elif unit is not None:
            at = unit_of(unit)
            if len(at) != 3 or not all(0 <= u < n for u, n in zip(at, shape, strict=True)):
                raise StageError(f"unit {at} is out of range: stage {level} has shape {shape}")
            keep[at], named = True, f"unit {at}"
        elif region is not None:
            region, size = tensor_of(region, "a region", OptionError), tuple(opened.image.shape[-2:])
            if tuple(region.shape) != size:
                raise OptionError(f"a region is a boolean map of the image's size {size}, got {tuple(region.shape)}")
            inside = torch.nan_to_num(region.to(features.device, torch.float32)) > 0.5
            keep |= F.adaptive_max_pool2d(inside[None].float(), shape[1:])[0] > 0
            named = "the region"
        else:
            keep[:], named = True, "the whole stage"
        return features * keep, named

    def _return(self, tensor: Tensor) -> Tensor:
        return tensor.detach() if self._home is None else tensor.detach().to(self._home)

    def _picture(self, drawn: Sequence[Drawn], what: str) -> Picture:
        method = self._methods[0]
        own, null = torch.stack([d.own for d in drawn]), torch.stack([d.null for d in drawn])
        preprocessing = self.encoder.preprocessing
        figures = {key: _joined([d.figures[key] for d in drawn]) for key in drawn[0].figures}
        if self._opened[0].precision is not None:
            figures |= {
                "precision": self._opened[0].precision,
                "error of a product": max(o.rounding for o in self._opened),
            }
        return Picture(
            tensor=self._return(own if self._batched else own[0]),
            null=self._return(null if self._batched else null[0]),
            mode=drawn[0].mode or method.mode,
            called=method.called,
            caption=f"{what}: {method.caption}",
            natural=method.natural if drawn[0].natural is None else drawn[0].natural,
            display=Display(preprocessing.mean, preprocessing.std),
            figures=figures,
            notes=tuple(dict.fromkeys(n for d in drawn for n in d.notes)),
            provenance=Provenance(
                encoder=self.encoder.name,
                weights=self._opened[0].weights_digest,
                image=" ".join(o.digest for o in self._opened),
                settings=self._settings,
                version=__version__,
                seed=self._seed,
            ),
        )


def _joined(values: Sequence[Any]) -> Any:
    """One value as it is; those of a batch as text, in order."""
    return values[0] if len(values) == 1 else ", ".join(f"{v:.3g}" if isinstance(v, float) else str(v) for v in values)
