"""check: what of a network fits and what does not, in plain words, before any run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pullback.encoders.encoder import Encoder
from pullback.encoders.stages import Stage, stage_table
from pullback.encoders.twin import read_logits, unwrap
from pullback.errors import EncoderError, PullbackError
from pullback.graph import plain_autograd
from pullback.images import load_image

_USUAL, _SMALL = (224, 224), (32, 32)
"""Heights and widths that are tried when no preprocessed image says the size; then a picture's own, if it is no larger."""
_ROUNDING = 50  # two runs that differ by more, in units of the last place, do so by more than rounding


@dataclass(frozen=True)
class Check:
    """The answer of `check`, to be printed.

    fits: nothing stands in the way; lines: what was found; problems: what does not work, and what to do about it.
    """

    fits: bool
    lines: tuple[str, ...]
    problems: tuple[str, ...]

    def __str__(self) -> str:
        verdict = "fits: nothing stands in the way" if self.fits else "does not fit in every way:"
        return "\n".join((*self.lines, verdict, *(f"  problem: {problem}" for problem in self.problems)))


def check(module: nn.Module, image: str | Path | Image.Image | Tensor | None = None) -> Check:
    """Say what fits and what does not when `module` becomes an encoder. The module is untouched; what can be said is not raised.

    image: a path, a picture, or a preprocessed tensor (C, H, W). A picture is cut to 224 x 224 pixels; where the network
    refuses that, to 32 x 32, and a small one is tried as it is. None tries noise of 224 x 224 and of 32 x 32.
    Costs a few forward passes and one backward pass.
    """
    lines: list[str] = []
    problems: list[str] = []
    try:
        if isinstance(module, nn.Module):
            lines += _about_module(module)
        encoder, x, sizes = _loaded(module, image)
        lines += sizes
        lines += _about_run(encoder, x)
        problems += _obstacles(encoder, x)
        lines += _about_stages(encoder)
    except PullbackError as error:
        problems.append(str(error))
    return Check(not problems, tuple(lines), tuple(problems))


# ---- the module as it came ----------------------------------------------------------------------------------------


def _about_module(module: nn.Module) -> Iterator[str]:
    inner = unwrap(module)
    count = sum(p.numel() for p in inner.parameters() if not is_lazy(p))
    kinds = ", ".join(sorted({f"{str(p.dtype)[6:]} on {p.device}" for p in inner.parameters()})) or "no parameters"
    yield f"network: {type(inner).__name__}, {count:,} parameters, {kinds}"
    if inner is not module:
        yield f"wrappers taken off: {', '.join(_wrappers(module))}"
    if any(m._compiled_call_impl is not None or hasattr(m, "_orig_mod") for m in inner.modules()):
        yield "compiled parts are run without their compilation"
    if any(m.training for m in inner.modules()):
        acts = {type(m).__name__ for m in inner.modules() if isinstance(m, _DIFFERENT_IN_TRAINING)}
        named = f" with {', '.join(sorted(acts))}" if acts else ""
        yield f"it is in train mode{named}: the copy that pullback works on is in eval mode, yours stays as it is"


_HALF = (torch.float16, torch.bfloat16)
_DIFFERENT_IN_TRAINING = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)


def _wrappers(module: nn.Module) -> Iterator[str]:
    while module is not unwrap(module):
        compiled = hasattr(module, "_orig_mod")
        yield "torch.compile" if compiled else type(module).__name__
        module = module._orig_mod if compiled else module.module  # type: ignore[assignment]


# ---- a run of its copy --------------------------------------------------------------------------------------------


def _loaded(module: nn.Module, image: str | Path | Image.Image | Tensor | None) -> tuple[Encoder, Tensor, list[str]]:
    """The encoder, a preprocessed image (C, H, W), and which sizes were tried. Raises the first size's error when none works."""
    if isinstance(image, Tensor) and image.ndim in (3, 4):
        image = image if image.ndim == 3 else image[0]
        channels, height, width = image.shape
        encoder = Encoder.from_module(module, input_shape=(channels, height, width))
        return encoder, encoder.preprocess(image), []
    given = image if image is None or isinstance(image, Tensor) else load_image(image).image
    own = [(given.height, given.width)] if isinstance(given, Image.Image) else []
    small = [size for size in own if prod(size) <= prod(_USUAL)]
    layers = module.modules() if isinstance(module, nn.Module) else ()
    channels = next((layer.in_channels for layer in layers if isinstance(layer, nn.Conv2d)), 3)
    failed: list[EncoderError] = []
    for height, width in dict.fromkeys((_USUAL, _SMALL, *small)):
        shape = (channels, height, width)
        try:
            encoder = Encoder.from_module(module, input_shape=shape)
        except EncoderError as error:
            failed.append(error)
            continue
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(1), device="cpu")
        x = encoder.preprocess(noise if given is None else given)
        return encoder, x, [f"it does not run at {_USUAL[0]} x {_USUAL[1]}: {error}" for error in failed[:1]]
    raise failed[0]


def _about_run(encoder: Encoder, x: Tensor) -> Iterator[str]:
    channels, height, width = x.shape
    tape = encoder.tape(x[None])
    yield f"input: {channels} x {height} x {width} (channels, height, width)"
    yield f"a picture becomes that by: {encoder.preprocessing}"
    yield f"copied, and recorded: {len(tape.ops)} operations; relative error of a VJP {encoder.vjp_discrepancy:.0e}"
    with plain_autograd(encoder.device), torch.no_grad():
        output = _run_again(encoder, x[None])
    logits = read_logits(output)
    yield f"logits: {_where(output, logits)}, of shape {tuple(logits.shape)}"
    if encoder.class_count is None:
        yield "the logits are not (N, classes): pictures of a class do not work, everything else does"
    if encoder.data_dependent:
        yield "the path through the network depends on the image's numbers: it is recorded anew for each image"
    if encoder.dtype in _HALF:
        yield f"it computes in {str(encoder.dtype)[6:]}: expect errors of about a percent, or use encoder.double()"
    elif partly := sorted(
        {str(tape.dtypes[t])[6:] for i in tape.live for t in tape.ops[i].outputs if tape.dtypes[t] in _HALF}
    ):
        yield f"parts of it compute in {' and '.join(partly)} (autocast?): expect errors of about a percent, or leave that out"
    yield from (f"note: {note}" for note in encoder.notes)


def _run_again(encoder: Encoder, batch: Tensor) -> Any:
    try:
        return encoder.module(batch.clone())
    except Exception as error:  # whatever a network raises
        raise EncoderError(
            f"the network ran once, and failed when it was run again ({type(error).__name__}: {error}): make its forward"
            " pass repeatable"
        ) from error


def _where(output: Any, logits: Tensor) -> str:
    if output is logits:
        return "the output itself"
    if getattr(output, "logits", None) is logits:
        return f".logits of the output ({type(output).__name__})"
    if isinstance(output, Mapping):
        return f"entry {next(key for key, value in output.items() if value is logits)!r} of the output"
    return f"the first tensor of the output ({type(output).__name__} of {len(output)})"


def _obstacles(encoder: Encoder, x: Tensor) -> Iterator[str]:
    """What changes a result behind the user's back: chance, state, neighbours in a batch."""
    other = x.flip(-1) * 0.5

    def run(*images: Tensor) -> Tensor:
        """The logits of the first of several images that run together."""
        return read_logits(_run_again(encoder, torch.stack(images)))[:1].double()

    with plain_autograd(encoder.device), torch.no_grad():
        alone, unit = run(x), run(other)
        eps = torch.finfo(encoder.dtype).eps
        if change := _change(run(x), alone, unit, eps):
            draws = ", ".join(encoder.tape(x[None]).draws)
            cause = f"it draws random numbers ({draws})" if draws else "it draws random numbers or keeps a state"
            yield (
                f"two runs on the same image differ by {change:.1%} of what another image changes: {cause}, and results"
                " hold for one run only; make its forward pass deterministic in eval mode"
            )
            return
        try:
            change = max(_change(run(x, beside), alone, unit, eps) for beside in (x, other))
        except EncoderError as error:
            why = error.__cause__
            yield f"it fails on two images at once ({type(why).__name__}: {why}): give chunk=1 wherever it is offered"
            return
        if change and not encoder.data_dependent:
            yield (
                f"a neighbour in the batch changes an image's result by {change:.1%} of what another image changes"
                " (statistics over the batch): give chunk=1 and one image at a time, or replace what mixes images"
            )


def _change(found: Tensor, expected: Tensor, unit: Tensor, eps: float) -> float:
    """|found - expected| in units of |unit - expected|; 0 for rounding, 1 for another shape."""
    if found.shape != expected.shape:
        return 1.0
    error = float((found - expected).norm())
    if error <= _ROUNDING * eps * float(expected.norm()):
        return 0.0
    return error / max(float((unit - expected).norm()), eps * error)


# ---- its stages ---------------------------------------------------------------------------------------------------


def _about_stages(encoder: Encoder) -> Iterator[str]:
    stages = encoder.stages
    yield "stages (a boundary is a feature map that every path from image to logits crosses):"
    yield from (f"  {line}" for line in stage_table(stages).splitlines())
    if signed := _numbers([s for s in stages if not s.rectified]):
        yield f"signed boundaries (not the output of a ReLU): {signed}"
    lowest = next((s.number for s in stages[:-1] if not s.rectified), None)
    exact = f"up to stage {lowest}, whose boundary is signed" if lowest else "at every stage"
    yield f"certificate: gates are exact {exact}; whether fields are nested depends on the image"
    for reason in dict.fromkeys(s.global_reason for s in stages if s.global_reason):
        seen = _numbers([s for s in stages if s.global_reason == reason])
        yield f"a unit of {seen} sees the whole image through {reason}: there the certificate is vacuous"
    height, width = encoder.input_shape[1:]
    if grown := _numbers([s for s in stages if s.field == (height, width) and not s.global_reason]):
        yield f"a central unit of {grown} sees the whole image, by the size of its windows"
    if single := _numbers([s for s in stages if s.shape[1:] == (1, 1)]):
        yield f"{single} is left with one position by an image of {height} x {width}: use a larger one"
    yield f"head: {encoder.head.kind}"


def _numbers(stages: Sequence[Stage]) -> str:
    """ "stage 2", "stages 1, 3", or nothing."""
    return f"stage{'s' if len(stages) > 1 else ''} {', '.join(str(s.number) for s in stages)}" if stages else ""
