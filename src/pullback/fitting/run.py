"""Fitting correctors, equation (9): from pictures and settings to a file, resumed where it was stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from pullback import __version__
from pullback.encoders import Encoder
from pullback.errors import NumericsError, OptionError, OutputError, WeightsError
from pullback.fitting.checkpoint import State, difference
from pullback.fitting.examples import Examples, Source, digest_of, examples_of, marks_of
from pullback.fitting.objective import correctors_of, levels_of, start_of
from pullback.fitting.recipe import PRESETS, Recipe, recipe_of
from pullback.fitting.standing import Standing
from pullback.fitting.steps import Fit
from pullback.fitting.workers import Workers
from pullback.images import check_inputs_stay, output_folder
from pullback.inversion import Correctors


def checkpoint_of(out: str | Path) -> Path:
    """Where the fit that writes `out` keeps its state while it runs."""
    return Path(out).with_name(f"{Path(out).name}.checkpoint")


def fit_correctors(
    encoder: Encoder,
    images: Source | Iterable[Source],
    preset: str | Recipe = "paper",
    *,
    mode: str | None = None,
    loss: str | None = None,
    steps: int | None = None,
    batch: int | None = None,
    channels: int | None = None,
    rate: float | None = None,
    held_back: int | None = None,
    seed: int | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    told: Callable[[Standing], None] = lambda standing: None,
) -> Correctors:
    """Fit the correctors of an encoder's deepest stage to pictures: min over gamma, beta of `|| Xhat_L - x ||`, (9).

    images: a file, a folder, a Pillow image or a preprocessed tensor (C, H, W); or several of them, or a batch (N, C, H, W).
    preset: "paper", or a Recipe; what is given of mode .. seed replaces its fields. out: a safetensors file for the result;
    the state stands beside it after every step, so that the same call carries on where it was stopped, and on the same
    machine ends in the same bytes. overwrite: begin anew, whatever stands there. told: hears how far the fit is, after
    every step.

    In a process group (torchrun) the processes share the pictures of a batch, one of them writes, and the bytes are those
    of one process alone. Each computes on one thread, since the last bits depend on their number: on a CPU with several
    cores start several processes. The card of the result has the settings, the losses and the digests of the pictures.

    Cost a step: for each of `batch` pictures a forward pass, and `channels` cascades with their derivative, about three
    cascades each. Raises OptionError (settings, too few pictures, a checkpoint or a result of other settings, a picture that
    the result would replace), ImageError, EncoderError (no stages), StageError (a picture without deepest features),
    NumericsError (a loss or a result that is not finite), OutputError.
    """
    recipe = recipe_of(
        preset,
        mode=mode,
        loss=loss,
        steps=steps,
        batch=batch,
        channels=channels,
        rate=rate,
        held_back=held_back,
        seed=seed,
    )
    levels, workers = levels_of(encoder), Workers.here(encoder.device)
    path = None if out is None else Path(out)
    with ExitStack() as stack:
        stack.enter_context(_same_bits())
        if path is not None:
            if path.is_dir():
                raise OutputError(f"{path} is a folder: name a file in it for the correctors")
            stack.enter_context(output_folder(path.parent))
        examples = examples_of(encoder, images, recipe)
        if path is not None:
            check_inputs_stay((path, checkpoint_of(path)), examples.files)
        settings = _settings(encoder, examples, recipe)
        state = State.begin(start_of(levels))
        if path is not None and not overwrite:
            there = _there(path, settings, state)
            if isinstance(there, Correctors):
                return there
            state = there
        workers.wait()  # nothing is written before every process has seen what stood there
        fit = Fit(encoder, levels, recipe, examples, workers)
        for state in fit.states(state, told):  # noqa: B020 - the last one is what is wanted
            if path is not None and workers.rank == 0:
                state.save(checkpoint_of(path), settings)
        stored = torch.zeros((), dtype=_stored(encoder.dtype), device="cpu")
        found = correctors_of(state.parameters, levels, stored)
        if not found.finite:
            if path is not None and workers.rank == 0:
                checkpoint_of(path).unlink(missing_ok=True)  # it leads nowhere else
            raise NumericsError(
                f"the correctors are not finite in {stored.dtype} after step {state.step} at rate={recipe.rate}; give a lower rate"
            )
        made = {"preset": _words(preset, recipe), "repeated pictures": examples.repeated}
        marks = marks_of((*examples.fitted, *examples.held))
        card = {**settings, **made, **marks, **fit.outcome(state)}
        found = replace(found, label=f"fitted on {len(examples.fitted)} pictures", card=card)
        if path is not None and workers.rank == 0:
            found.save(path)
            checkpoint_of(path).unlink(missing_ok=True)
        workers.wait()
        return found


def _settings(encoder: Encoder, examples: Examples, recipe: Recipe) -> dict[str, Any]:
    """All that decides the result: two fits with the same settings are the same fit."""
    return {
        "encoder": encoder.name,
        "weights": encoder.weights_digest,
        "stages": [s.name for s in encoder.stages],
        "preprocessing": str(encoder.preprocessing),
        "dtype": str(encoder.dtype),
        "device": encoder.device.type,
        **asdict(recipe),
        "pictures": digest_of(examples.fitted),
        "pictures held back": digest_of(examples.held),
        "pullback": __version__,
        "torch": torch.__version__,
    }


def _there(path: Path, settings: dict[str, Any], start: State) -> State | Correctors:
    """How far this fit has come: its checkpoint, or else its result, or else the start. Raises OptionError."""
    try:
        kept = State.load(checkpoint_of(path), settings)
    except OptionError:
        # Where a fit that overwrites this one's result was stopped, the result still stands.
        with suppress(OptionError):
            return _finished(path, settings)
        raise
    return _finished(path, settings) if kept is None and path.exists() else kept or start


def _finished(path: Path, settings: dict[str, Any]) -> Correctors:
    """The correctors that stand at `path`, if they are this fit's. Raises OptionError."""
    try:
        found = Correctors.load(path)
    except WeightsError as error:
        raise OptionError(
            f"{path} is there and holds no correctors: choose another name, or begin anew with overwrite"
        ) from error
    differing = difference({name: found.card.get(name) for name in settings}, settings)
    if differing:
        raise OptionError(
            f"{path} holds correctors of another fit: {differing}; choose another name, or begin anew with overwrite"
        )
    return found


def _words(preset: str | Recipe, recipe: Recipe) -> str:
    """The preset's name, and what was changed of it."""
    if isinstance(preset, Recipe):
        return "a recipe of its own"
    changed = [name for name, value in asdict(PRESETS[preset]).items() if getattr(recipe, name) != value]
    return f"{preset} with other {', '.join(changed)}" if changed else preset


def _stored(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


@contextmanager
def _same_bits() -> Iterator[None]:
    """One thread of torch's and cuDNN's own algorithms for a while, such that the same work gives the same bits.

    Sums are rounded in another way on another number of threads, and torchrun gives its processes one each.
    """
    before = torch.get_num_threads()
    cudnn = torch.backends.cudnn
    torch.set_num_threads(1)
    try:
        with cudnn.flags(enabled=cudnn.enabled, benchmark=False, deterministic=True, allow_tf32=cudnn.allow_tf32):
            yield
    finally:
        torch.set_num_threads(before)
