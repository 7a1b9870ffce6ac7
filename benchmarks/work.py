"""The work that is measured: cotangents of single channels at the deepest stage of a frozen network, pulled to the pixels.

One image, one network in eval mode with frozen weights, K seeds S_c = F 1_c (the features of one channel, zero elsewhere).
"""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

import pullback as pb
from pullback.errors import OptionError, StageError
from pullback.images import scene

CONTIGUOUS, CHANNELS_LAST = "contiguous", "channels-last"
_FORMATS = {CONTIGUOUS: torch.contiguous_format, CHANNELS_LAST: torch.channels_last}


@dataclass(frozen=True)
class Network:
    """A network of the suite. weights: a file of the data folder, or None for the library's own or random ones."""

    name: str
    spec: str
    weights: str | None
    size: int  # pixels a side


NETWORKS = {
    network.name: network
    for network in (
        Network("resnet18", "torchvision:resnet18", "resnet18_finetuned", 224),
        Network("resnet50", "torchvision:resnet50", None, 224),
        Network("mobilenetv2", "timm:mobilenetv2_100?pad_type=same", "mobilenetv2_100_same", 224),
        Network("squeezenet1_1", "torchvision:squeezenet1_1", "squeezenet1_1", 224),
        Network("scenes", "builtin:scenes", None, 128),
    )
}


class Trunk(nn.Module):
    """A network that stops at the output of one of its modules: what a user of plain PyTorch would cut out by hand.

    runs: how often it has run.
    """

    def __init__(self, module: nn.Module, stage: str, layout: str) -> None:
        super().__init__()
        names = dict(module.named_modules())
        if stage not in names:
            raise StageError(f"stage {stage!r} is no module of the network; choose a stage that is a module's output")
        copied = copy.deepcopy(module)
        self.module = copied.to(memory_format=_FORMATS[layout])  # type: ignore[call-overload]  # torch's stubs lack it
        self.module.get_submodule(stage).register_forward_hook(_stop)
        self.runs = 0

    def forward(self, x: Tensor) -> Tensor:  # (N, 3, H, W) -> (N, C, h, w)
        self.runs += 1
        try:
            self.module(x)
        except _Reached as reached:
            return reached.features
        raise StageError("the network ended without coming by its stage; choose a stage that every image passes")


class _Reached(Exception):
    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.features = features


def _stop(module: nn.Module, inputs: object, features: Tensor) -> None:
    raise _Reached(features)


@dataclass(eq=False)
class Work:
    """What every way is given. image: (3, H, W). seeds: (K, C, h, w). own_runs: network runs that passed by the trunks.

    own_flops: operations of kernels that PyTorch does not see.
    """

    network: str
    weights: str
    encoder: pb.Encoder
    stage: str
    image: Tensor
    seeds: Tensor
    own_runs: int = 0
    own_flops: int = 0
    _trunks: dict[str, Trunk] = field(default_factory=dict)

    def trunk(self, layout: str) -> Trunk:
        """The network up to the stage with its weights in this memory format, copied at the first call."""
        if layout not in self._trunks:
            self._trunks[layout] = Trunk(self.encoder.module, self.stage, layout)
        return self._trunks[layout]

    def leaf(self, count: int, layout: str) -> Tensor:
        """`count` copies of the image (count, 3, H, W) in this memory format, to be differentiated with respect to."""
        copies = self.image.expand(count, *self.image.shape).contiguous(memory_format=_FORMATS[layout])
        return copies.detach().clone().requires_grad_()

    def in_double(self, cotangents: int) -> Work:
        """The same in float64, with the first few cotangents."""
        encoder, seeds = self.encoder.double(), self.seeds[:cotangents].double()
        return Work(self.network, self.weights, encoder, self.stage, self.image.double(), seeds)

    @property
    def runs(self) -> int:
        """Runs of the network so far, by all ways."""
        return self.own_runs + sum(trunk.runs for trunk in self._trunks.values())


def laid(batch: Tensor, layout: str) -> Tensor:
    """A batch (N, C, H, W) in this memory format."""
    return batch.contiguous(memory_format=_FORMATS[layout])


def chosen(names: Sequence[str]) -> list[Network]:
    """The networks of these names. Raises OptionError naming what there is."""
    for name in names:
        if name not in NETWORKS:
            raise OptionError(f"no network {name!r} in the suite; there are {', '.join(NETWORKS)}")
    return [NETWORKS[name] for name in names]


def data_folder() -> Path | None:
    """The folder of trained weights: $PULLBACK_DATA, or shared/data beside the repository; None where neither is there."""
    beside = Path(__file__).resolve().parents[1] / "../shared/data"
    folder = Path(os.environ.get("PULLBACK_DATA") or beside).resolve()
    return folder if (folder / "weights").is_dir() else None


def prepare(network: Network, cotangents: int, *, size: int | None = None, device: str = "cpu") -> Work:
    """Load a network and set up its work on a drawn scene. size: another side of the image than the network's own."""
    side = size or network.size
    folder = data_folder()
    file = folder / "weights" / f"{network.weights}.safetensors" if folder and network.weights else None
    encoder = pb.load_encoder(
        network.spec,
        weights=file,
        preprocessing={"size": side, "resize": side} if side != network.size else None,
        device=device,
    )
    if network.spec.startswith("builtin:"):
        weights = "its own"
    elif file:
        weights = file.stem
    else:
        weights = "random (the data folder is not there)" if network.weights else "random"
    return work_on(encoder, encoder.preprocess(_picture(side)), cotangents, name=network.name, weights=weights)


def work_on(encoder: pb.Encoder, image: Tensor, cotangents: int, *, name: str, weights: str) -> Work:
    """The work on an encoder and a preprocessed image (3, H, W): the channels of the most energy, strongest first."""
    features = encoder.features(image)
    count = min(cotangents, len(features))
    strongest = features.square().sum((1, 2)).topk(count).indices
    seeds = features.new_zeros(count, *features.shape)
    seeds[torch.arange(count), strongest] = features[strongest]
    return Work(name, weights, encoder, encoder.stages[-1].name, image, seeds)


def _picture(side: int) -> Image.Image:
    return Image.fromarray(scene(3, size=side).image)
