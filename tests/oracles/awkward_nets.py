"""The table of awkward networks, with the stages that a person would draw by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from oracles.awkward_modules import (
    BatchMixing,
    Branching,
    CalledTwice,
    Checkpointed,
    CheckpointedReentrant,
    CompiledFunction,
    DataclassOutput,
    DictOutput,
    Dropout,
    Functional,
    InPlace,
    InPlaceOnInput,
    InstanceNormed,
    OneReLU,
    Plain,
    Quantized,
    Swish,
    TupleOutput,
    Views,
    VisionTransformer,
    backward_hooked,
    channels_last,
    compiled_part,
    compiled_whole,
    frozen,
    perceptron,
    settled,
    under_inference_mode,
    weight_normed,
)
from torch import nn

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Awkward:
    """A network and what is known about it. Calling it builds the network, always the same one.

    stages: names and shapes (C, H, W), none for a network without spatial stages. fields: what a central unit sees, in
    pixels (height, width). signed: numbers of the stages whose boundary is not the output of a ReLU.
    """

    make: Callable[[], nn.Module]
    stages: tuple[tuple[str, Shape], ...]
    fields: tuple[tuple[int, int], ...]
    signed: tuple[int, ...] = ()
    input_shape: Shape = (3, 32, 32)
    exact_head: bool = True
    piecewise_linear: bool = True
    mixes_batch: bool = False
    own_backward: bool = False  # its own backward pass refuses, or is not the derivative of its forward pass
    note: str = ""  # words that a note of the encoder must contain

    def __call__(self) -> nn.Module:
        with torch.random.fork_rng([]), torch.inference_mode(False):
            torch.manual_seed(0)
            return self.make()


def plain_stages(height: int = 32, width: int = 32) -> tuple[tuple[str, Shape], ...]:
    sizes = [(c, height // s, width // s) for c, s in ((6, 1), (8, 2), (10, 4))]
    return tuple(zip(("level1", "level2", "level3"), sizes, strict=True))


PLAIN_FIELDS = ((5, 5), (11, 11), (23, 23))  # 1 + 2 + 2, then + 2 + 4, then + 4 + 8


def _plainly(make: Callable[[], nn.Module], **known: Any) -> Awkward:
    return Awkward(make, **({"stages": plain_stages(), "fields": PLAIN_FIELDS} | known))


def _renamed(number: int, name: str) -> tuple[tuple[str, Shape], ...]:
    return tuple((name if i == number else n, shape) for i, (n, shape) in enumerate(plain_stages(), start=1))


AWKWARD: dict[str, Awkward] = {
    "plain": _plainly(lambda: settled(Plain())),
    "inplace_relu": Awkward(
        lambda: settled(InPlace()), (("layer1", (6, 32, 32)), ("layer2", (8, 16, 16))), ((7, 7), (21, 21))
    ),
    "inplace_on_input": _plainly(lambda: settled(InPlaceOnInput())),
    "one_relu": Awkward(
        lambda: OneReLU().eval(), (("relu#2", (6, 32, 32)), ("relu#4", (8, 16, 16)), ("relu#5", (10, 8, 8))),
        ((5, 5), (11, 11), (15, 15)),
    ),
    "functional": Awkward(
        lambda: Functional().eval(), (("relu#2", (6, 32, 32)), ("relu#4", (8, 16, 16))), ((5, 5), (14, 14))
    ),
    "called_twice": Awkward(
        lambda: CalledTwice().eval(), (("mix#2", (6, 32, 32)), ("down", (8, 16, 16))), ((7, 7), (8, 8))
    ),
    "views": Awkward(
        lambda: Views().eval(), (("act2", (6, 32, 32)), ("act4", (8, 16, 16))), ((5, 5), (11, 11))
    ),
    "dataclass_output": _plainly(lambda: settled(DataclassOutput())),
    "dict_output": _plainly(lambda: settled(DictOutput())),
    "tuple_output": _plainly(lambda: settled(TupleOutput())),
    "data_parallel": _plainly(lambda: nn.DataParallel(settled(Plain()))),
    "compiled": _plainly(compiled_whole),
    "compiled_part": _plainly(compiled_part),
    "compiled_function": _plainly(lambda: settled(CompiledFunction()), stages=_renamed(3, "relu after level3")),
    "train_mode": _plainly(lambda: settled(Dropout()).train()),
    "frozen": _plainly(frozen),
    "half": _plainly(lambda: settled(Plain()).half()),
    "channels_last": _plainly(channels_last),
    "one_channel": _plainly(lambda: settled(Plain(1)), input_shape=(1, 28, 28), stages=plain_stages(28, 28)),
    "non_square": _plainly(lambda: settled(Plain()), input_shape=(3, 24, 40), stages=plain_stages(24, 40)),
    "inference_mode": _plainly(under_inference_mode),
    "weight_norm": _plainly(weight_normed),
    "backward_hooks": _plainly(backward_hooked, note="the network's own hooks run on the copy too"),
    "checkpointed": _plainly(lambda: settled(Checkpointed())),
    "checkpointed_reentrant": _plainly(
        lambda: settled(CheckpointedReentrant()), own_backward=True, note="could not be compared"
    ),
    "branching": _plainly(
        lambda: settled(Branching()), stages=_renamed(1, "relu after dark"),
        fields=((7, 7), (13, 13), (25, 25)),
    ),
    "custom_backward": _plainly(
        lambda: settled(Plain(act=Swish)), signed=(1, 2, 3), piecewise_linear=False, note="own backward pass (_SwishBackward)"
    ),
    "straight_through": _plainly(
        lambda: settled(Quantized()), own_backward=True, note="own backward pass (_QuantizeBackward)",
        stages=_renamed(2, "quantize"), signed=(2,),
    ),
    "instance_norm": _plainly(
        lambda: settled(InstanceNormed()), stages=_renamed(1, "norm"), signed=(1,),
        fields=((32, 32),) * 3, piecewise_linear=False,
    ),
    "batch_mixing": _plainly(
        lambda: settled(BatchMixing()), stages=_renamed(2, "centre"), signed=(2,), mixes_batch=True
    ),
    "transformer": Awkward(lambda: VisionTransformer().eval(), (), (), exact_head=False, piecewise_linear=False),
    "perceptron": Awkward(lambda: perceptron().eval(), (), (), exact_head=False),
}  # fmt: skip
"""Name -> network. Those with an empty `stages` have no spatial stages."""

SPATIAL = {name: awkward for name, awkward in AWKWARD.items() if awkward.stages}
