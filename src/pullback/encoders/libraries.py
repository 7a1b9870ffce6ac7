"""What "builtin:", "timm:", "torchvision:" and "module:" names mean: how to build the network, its preprocessing."""

from __future__ import annotations

import ast
import copy
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from torch import nn

from pullback.encoders.cards import bare_card, timm_card, torchvision_card
from pullback.encoders.preprocessing import Preprocessing
from pullback.encoders.torchvision_ops import import_timm, import_torchvision, mended
from pullback.encoders.twin import twin
from pullback.encoders.weights import Checkpoint
from pullback.errors import EncoderError

FORMS = {
    "builtin": "builtin:scenes",
    "timm": "timm:NAME?option=value&...",
    "torchvision": "torchvision:NAME?option=value&...",
    "module": "module:package.module:factory",
}
_WEIGHTS_FOLDER = Path(__file__).parent / "weights"
_WEIGHTS_OPTIONS = {"weights", "progress", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path"}
_WITH_HELPERS = ("googlenet", "inception_v3")  # networks with auxiliary classifiers, which eval mode never runs


@dataclass(frozen=True)
class Source:
    """One named network, before it has weights.

    build: the network with random weights, given further options of its constructor. card: its preprocessing by the
    library, for the original weights, or for those that `download` fetches. certain: whether that card is about the
    network itself (not assumed). implied: constructor options that a checkpoint asks for. free_classes: whether build
    takes `num_classes` and the name left it open. imagenet: whether 1000 outputs are ImageNet's.
    """

    spec: str
    build: Callable[..., nn.Module]
    card: Callable[[nn.Module, bool], Preprocessing]
    certain: bool = True
    download: Callable[[], nn.Module] | None = None
    own_weights: Path | None = None
    implied: Callable[[Checkpoint], dict[str, Any]] = lambda checkpoint: {}
    free_classes: bool = False
    imagenet: bool = False


def find(spec: str) -> Source:
    """The source that `spec` names. Raises EncoderError for a form or name that does not exist, with the nearest."""
    if not isinstance(spec, str):
        raise EncoderError(
            f"expected a name such as {FORMS['builtin']}, got {type(spec).__name__}: use Encoder.from_module"
        )
    kind, colon, rest = spec.partition(":")
    if kind == "builtin":
        return _builtin(spec, rest)
    if kind == "module":
        return _module(spec, rest)
    name, _, text = rest.partition("?")
    if kind == "timm":
        return _timm(spec, name, _options(spec, text))
    if kind == "torchvision":
        return _torchvision(spec, name, _options(spec, text))
    hint = "" if colon else f"; did you mean torchvision:{kind} or timm:{kind}?"
    raise EncoderError(f"encoder {spec!r} is not understood: expected {', '.join(FORMS.values())}{hint}")


def torchvision_names() -> list[str]:
    """Every classification network of torchvision."""
    torchvision = import_torchvision()
    return list(torchvision.models.list_models(module=torchvision.models))


def timm_names() -> list[str]:
    """Every network of timm."""
    return list(import_timm().list_models())


def nearest(name: str, names: Sequence[str]) -> str:
    """The end of an error message: the names closest to `name`, if any is close."""
    close = get_close_matches(name, names, n=3)
    return f"; nearest: {', '.join(close)}" if close else ""


# ---- the four kinds -----------------------------------------------------------------------------------------------


def _builtin(spec: str, name: str) -> Source:
    if name != "scenes":
        raise EncoderError(f"no builtin encoder {name!r}: there is builtin:scenes")
    from pullback.encoders.scenes_net import scenes_net

    return Source(
        spec,
        build=scenes_net,
        card=lambda module, downloaded: Preprocessing((128, 128), 128, source="the builtin card"),
        own_weights=_WEIGHTS_FOLDER / "scenes.safetensors",
    )


def _timm(spec: str, name: str, options: Mapping[str, Any]) -> Source:
    timm = import_timm()
    if not timm.is_model(name):
        raise EncoderError(f"timm {timm.__version__} has no network {name!r}{nearest(name, timm_names())}")
    return Source(
        spec,
        build=lambda **more: timm.create_model(name, pretrained=False, **{**options, **more}),
        card=lambda module, downloaded: timm_card(timm, module),
        download=lambda: timm.create_model(name, pretrained=True, **options),
        free_classes="num_classes" not in options,
        imagenet=True,
    )


def _torchvision(spec: str, name: str, options: Mapping[str, Any]) -> Source:
    torchvision = import_torchvision()
    if name not in torchvision_names():
        raise EncoderError(
            f"torchvision {torchvision.__version__} has no classification network {name!r}"
            + nearest(name, torchvision_names())
        )
    lean = {"aux_logits": False, "init_weights": True} if name in _WITH_HELPERS else {}

    def implied(checkpoint: Checkpoint) -> dict[str, Any]:
        if name not in _WITH_HELPERS:
            return {}
        # torchvision's own weights of these two expect their input rescaled, which the weights do not say.
        asked = {"aux_logits": any("aux" in key.lower() for key in checkpoint.tensors), "transform_input": True}
        return {key: value for key, value in asked.items() if key not in options}

    return Source(
        spec,
        build=lambda **more: torchvision.models.get_model(name, weights=None, **{**lean, **options, **more}),
        card=lambda module, downloaded: torchvision_card(torchvision, name, default=downloaded),
        download=lambda: torchvision.models.get_model(name, weights="DEFAULT", **options),
        implied=implied,
        free_classes="num_classes" not in options,
        imagenet=True,
    )


def _module(spec: str, rest: str) -> Source:
    path, _, name = rest.partition(":")
    if not name.isidentifier() or path.endswith(".py") or not all(part.isidentifier() for part in path.split(".")):
        raise EncoderError(
            f"encoder {spec!r}: expected {FORMS['module']}, an import name (no slash, no .py) and a function in it"
        )
    factory = _imported(spec, path, name)

    def build() -> nn.Module:
        with _current_directory():
            module = mended(factory)
        if not isinstance(module, nn.Module):
            raise EncoderError(
                f"{spec} returned {type(module).__name__}: expected a function that returns a torch.nn.Module"
            )
        # The factory may hand out one and the same network, the user's: weights= must not reach its parameters.
        return copy.deepcopy(twin(module))

    def card(module: nn.Module, downloaded: bool) -> Preprocessing:
        return bare_card(module, getattr(factory, "input_size", getattr(module, "input_size", None)))

    return Source(spec, build, card, certain=False)


# ---- names and options --------------------------------------------------------------------------------------------


def _options(spec: str, text: str) -> dict[str, Any]:
    """Constructor options from "key=value&key=value"; values are Python literals, true/false/none, or else text."""
    options: dict[str, Any] = {}
    for pair in filter(None, text.split("&")):
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier() or key in options:
            raise EncoderError(
                f"encoder {spec!r}: option {pair!r} is not understood: expected name=value, each name once"
            )
        if key in _WEIGHTS_OPTIONS:
            raise EncoderError(f"encoder {spec!r}: {key} is no option of a network; weights are chosen with weights=")
        options[key] = _literal(value)
    return options


def _literal(text: str) -> Any:
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _imported(spec: str, path: str, name: str) -> Callable[[], Any]:
    """The factory `name` of the module `path`. Raises EncoderError in place of anything that importing it raises."""
    try:
        with _current_directory():
            module = mended(lambda: importlib.import_module(path))
    except (Exception, SystemExit) as error:  # whatever the user's code does
        if isinstance(error, ModuleNotFoundError) and error.name and (path + ".").startswith(error.name + "."):
            raise EncoderError(
                f"{spec}: there is no module {error.name!r}, neither installed nor in the folder {Path.cwd()}"
            ) from error
        raise EncoderError(f"{spec}: importing {path} stopped with {type(error).__name__}: {error}") from error
    factory = getattr(module, name, None)
    if factory is None:
        raise EncoderError(
            f"{spec}: {path} has no {name!r}{nearest(name, [key for key in vars(module) if not key.startswith('_')])}"
        )
    if isinstance(factory, nn.Module) or not callable(factory):
        raise EncoderError(
            f"{spec}: {name} is of type {type(factory).__name__}, expected a function without arguments that returns"
            " a new network (a network at hand goes into Encoder.from_module)"
        )
    return factory


@contextmanager
def _current_directory() -> Iterator[None]:
    """Modules in the current folder can be imported within, after installed ones of the same name."""
    here = str(Path.cwd())
    sys.path.append(here)
    importlib.invalidate_caches()  # a file may be newer than Python's last look at its folder
    try:
        yield
    finally:
        if here in sys.path:  # the imported code may have changed the path itself
            sys.path.reverse()
            sys.path.remove(here)
            sys.path.reverse()
