"""load_encoder: from a name such as "timm:resnet50" to a network with its weights, class names and preprocessing."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from pullback.encoders.cards import Given, Sidecar, parsed, settle, sidecar
from pullback.encoders.classes import read_classes
from pullback.encoders.encoder import Encoder
from pullback.encoders.libraries import FORMS, Source, find, nearest, timm_names, torchvision_names
from pullback.encoders.preprocessing import Preprocessing
from pullback.encoders.torchvision_ops import import_torchvision
from pullback.encoders.twin import moved
from pullback.encoders.weights import class_count, classifier, digest, fill, read_checkpoint, renamed
from pullback.errors import EncoderError, PullbackError, WeightsError

SEED = 0
"""Random weights are drawn from this seed, whatever the state of the global generators."""

TESTED = (
    "torchvision:resnet18",
    "torchvision:resnet50",
    "torchvision:densenet121",
    "torchvision:vgg16_bn",
    "torchvision:squeezenet1_1",
    "torchvision:mobilenet_v2",
    "torchvision:mobilenet_v3_small",
    "torchvision:efficientnet_b0",
    "torchvision:convnext_tiny",
    "torchvision:regnet_y_400mf",
    "torchvision:shufflenet_v2_x1_0",
    "torchvision:googlenet",
    "timm:resnet50",
    "timm:convnext_tiny",
    "timm:mobilenetv2_100?pad_type=same",
    "timm:efficientnet_lite0",
    "timm:darknet53",
    "timm:repvgg_a0",
)
"""The networks whose stages and adjoints the tests check."""

_BUILTIN = "trained on pictures drawn by rule; weights included"
_TESTED = "split and adjoint are tested; random weights unless weights= is given"
_UNTRIED = "not among the tested ones; random weights unless weights= is given"


@dataclass(frozen=True)
class Built:
    """A network in eval mode with all that is known about it: the arguments of `Encoder.from_module`."""

    module: nn.Module
    name: str
    classes: tuple[str, ...] | None
    preprocessing: Preprocessing
    input_shape: tuple[int, int, int]
    weights_digest: str
    notes: tuple[str, ...]


def load_encoder(
    spec: str,
    *,
    weights: str | Path | None = None,
    classes: Sequence[str] | str | Path | None = None,
    preprocessing: Given | None = None,
    stages: Sequence[str] | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Encoder:
    """A frozen network by name.

    spec: "builtin:scenes", "timm:mobilenetv2_100?pad_type=same", "torchvision:convnext_tiny", or
    "module:package.mod:factory" (importable, or in the current folder; called without arguments). weights: None (the
    builtin's own; else random ones from a fixed seed), "pretrained" (downloads the library's), or a file: safetensors,
    or a torch checkpoint that needs no unpickling; the number of classes is then the file's. classes: names, or their
    file. preprocessing: a Preprocessing, a mapping, or text such as "mean=0.5;std=0.5;size=224;resize=256"; else from a
    card beside the file, else from the library's card, and what was assumed is in `encoder.preprocessing.assumed`.
    stages: as in Encoder.from_module.

    Raises EncoderError, WeightsError, ClassError, OptionError or StageError, each naming the value and what to do.
    """
    built = build(spec, weights=weights, classes=classes, preprocessing=preprocessing)
    return Encoder.from_module(
        moved(built.module, device, dtype),
        stages=stages,
        name=built.name,
        classes=built.classes,
        preprocessing=built.preprocessing,
        input_shape=built.input_shape,
        notes=built.notes,
        weights_digest=built.weights_digest,
    )


def build(
    spec: str,
    *,
    weights: str | Path | None = None,
    classes: Sequence[str] | str | Path | None = None,
    preprocessing: Given | None = None,
) -> Built:
    """The network of `load_encoder` on the CPU, before it is split. Global random generators stay as they are."""
    explicit = parsed(preprocessing) if preprocessing is not None else {}
    given_names = read_classes(classes) if classes is not None else None
    with _private_randomness():  # the factory's module may draw when it is imported, and is imported only once
        source = find(spec)
    path, beside = source.own_weights if weights in (None, "pretrained") else Path(weights).expanduser(), None
    with _private_randomness():
        if path is not None:
            module, notes = _from_file(source, path)
            beside = sidecar(path)
        elif weights == "pretrained":
            module, notes = _downloaded(source)
        else:
            module, notes = _with_random_weights(source)
    names, said = _names(source, module, given_names, path, beside)
    if isinstance(explicit, Preprocessing):
        settled = explicit
    else:
        certain = source.certain and path == source.own_weights  # a file says nothing of what its network was shown
        settled = settle(source.card(module, weights == "pretrained"), explicit, beside, certain=certain)
    return Built(
        module=module.eval(),
        name=source.spec,
        classes=names,
        preprocessing=settled,
        input_shape=(settled.channels, *settled.size),
        weights_digest=digest(module),
        notes=(*notes, *said),
    )


@dataclass(frozen=True)
class Listing:
    """One line of `pullback encoders`: what to write, and what it means."""

    spec: str
    note: str


def available(text: str | None = None) -> list[Listing]:
    """What can be named. text: only names that contain it, sought through all of timm and torchvision (imports both).

    Raises EncoderError, with the nearest names, when nothing contains it.
    """
    listed = [Listing("builtin:scenes", _BUILTIN), *(Listing(spec, _TESTED) for spec in TESTED)]
    if text is None:
        return [
            *listed,
            Listing(FORMS["torchvision"], "any classification network of torchvision"),
            Listing(FORMS["timm"], "any network of timm"),
            Listing(FORMS["module"], "a function without arguments that returns a torch.nn.Module; installed, or here"),
        ]
    known = {entry.spec.partition("?")[0] for entry in listed}
    names = {"torchvision": torchvision_names(), "timm": timm_names()}
    others = [
        spec for library in names for spec in (f"{library}:{name}" for name in names[library]) if spec not in known
    ]
    every = [*listed, *(Listing(spec, _UNTRIED) for spec in others)]
    found = [entry for entry in every if text.casefold() in entry.spec.casefold()]
    if not found:
        close = nearest(text.partition(":")[2] or text, [*names["torchvision"], *names["timm"]])
        raise EncoderError(f"no encoder's name contains {text!r}{close}")
    return found


def _with_random_weights(source: Source) -> tuple[nn.Module, list[str]]:
    module = _constructed(source)
    if source.certain:
        return module, [
            f"random weights (seed {SEED}): give weights=PATH or weights='pretrained' for what training found"
        ]
    return module, [f"weights as the factory made them: random (seed {SEED}) unless it reads its own"]


def _downloaded(source: Source) -> tuple[nn.Module, list[str]]:
    if source.download is None:
        raise WeightsError(f"{source.spec} has no pretrained weights to download: give weights=PATH")
    notes = ["weights downloaded by the library: 'pretrained'"]
    if not source.free_classes:
        notes.append("num_classes was given: where the download has another number, the last layer is random")
    try:
        return source.download(), notes
    except TypeError as error:
        raise EncoderError(f"{source.spec} cannot be built with these options: {error}") from error
    except Exception as error:  # each library and each kind of broken connection has its own
        reason = str(error).strip().partition("\n")[0]
        raise WeightsError(
            f"the pretrained weights of {source.spec} cannot be had ({type(error).__name__}: {reason}): check "
            "the connection, or download the file elsewhere and give weights=PATH"
        ) from error


def _from_file(source: Source, path: Path) -> tuple[nn.Module, list[str]]:
    checkpoint = read_checkpoint(path)
    implied = source.implied(checkpoint)
    module = _constructed(source, **implied)
    checkpoint = renamed(checkpoint, module.state_dict().keys())
    notes = list(checkpoint.notes)
    if implied:
        options = ", ".join(f"{key}={value}" for key, value in implied.items())
        notes.append(f"taken for these weights: {options}; the name can say otherwise (?option=value)")
    if source.free_classes and (count := class_count(checkpoint, module)):
        module = _constructed(source, num_classes=count, **implied)
        notes.append(f"num_classes={count} taken from the checkpoint")
    fill(module, checkpoint, source.spec)
    return module, notes


def _constructed(source: Source, **options: object) -> nn.Module:
    try:
        return source.build(**options)
    except PullbackError:
        raise
    except (Exception, SystemExit) as error:  # whatever a constructor does with its options
        raise EncoderError(
            f"{source.spec} cannot be built ({type(error).__name__}: {error}); check its options"
        ) from error


def _names(
    source: Source, module: nn.Module, given: tuple[str, ...] | None, path: Path | None, beside: Sidecar | None
) -> tuple[tuple[str, ...] | None, list[str]]:
    """Class names: given, beside the weights, in the card there, or ImageNet's for 1000 outputs; and a note."""
    if given is not None:
        return given, []
    if path is not None and (listed := path.with_suffix(".classes.txt")).is_file():
        return read_classes(listed), [f"class names from {listed.name} beside the weights"]
    if beside is not None and beside.classes is not None:
        return read_classes(beside.classes), [f"class names from {beside.path.name} beside the weights"]
    last = classifier(module)
    if source.imagenet and last is not None and module.state_dict()[f"{last}.weight"].shape[0] == 1000:
        import_torchvision()
        from torchvision.models._meta import _IMAGENET_CATEGORIES

        assumed = ["class names: ImageNet's, assumed because the network has 1000 outputs"] if path is not None else []
        return tuple(_IMAGENET_CATEGORIES), assumed
    return None, []


@contextmanager
def _private_randomness() -> Iterator[None]:
    """Constructors draw from generators seeded here; on leaving, the global ones go on as if nothing had happened."""
    python, legacy_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - saved and restored
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(SEED)
        random.seed(SEED)
        np.random.seed(SEED)  # noqa: NPY002
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy_numpy)  # noqa: NPY002
