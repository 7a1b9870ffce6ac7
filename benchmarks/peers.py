"""The ways to pull cotangents through a frozen network at one image: the public ones, the best by hand, and pullback's.

Each is a function (work, seeds (K, C, h, w), setting) -> gradients (K, 3, H, W), and gives J^T w for every seed w.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.work import CHANNELS_LAST, CONTIGUOUS, Work, laid
from pullback.encoders.torchvision_ops import import_torchvision

CHUNKS = (1, 4, 8, 16, 32)
PUBLISHED, BY_HAND, OURS = "published", "by hand", "ours"


@dataclass(frozen=True)
class Setting:
    """chunk: cotangents at once; None leaves it to the library. layout: memory format; "own" leaves it to the library."""

    chunk: int | None
    layout: str

    def __str__(self) -> str:
        chunk = "own choice" if self.chunk is None else f"chunk {self.chunk}"
        return chunk if self.layout == "own" else f"{chunk}, {self.layout}"


Pull = Callable[[Work, Tensor, Setting], Tensor]


@dataclass(frozen=True)
class Way:
    """One way. origin: who offers it. package: what must be installed. precision: of its arithmetic."""

    name: str
    pull: Pull
    origin: str = PUBLISHED
    chunks: tuple[int | None, ...] = CHUNKS
    layouts: tuple[str, ...] = (CONTIGUOUS, CHANNELS_LAST)
    package: str | None = None
    precision: str = "float32"

    def settings(self, cotangents: int) -> Iterator[Setting]:
        """All settings to be tried, but for chunks that so few cotangents cannot fill."""
        for layout in self.layouts:
            for chunk in self.chunks:
                if chunk is None or chunk <= cotangents:
                    yield Setting(chunk, layout)

    def limited_to(self, chunks: Sequence[int]) -> Way:
        """The same with only these chunk sizes to be tried, besides its own choice and the only one that it has."""
        left = tuple(c for c in self.chunks if c is None or c in chunks)
        return replace(self, chunks=left or self.chunks)

    @property
    def missing(self) -> str | None:
        """Why the way cannot be tried here, or None."""
        if self.package is None or find_spec(self.package) is not None:
            return None
        return f"{self.package} is not installed: pip install -c constraints.txt -e '.[bench]'"


def loop(work: Work, seeds: Tensor, setting: Setting) -> Tensor:
    """One run of one image, one backward pass for each cotangent."""
    leaf = work.leaf(1, setting.layout)
    out = work.trunk(setting.layout)(leaf)
    return torch.cat([_grad(out, leaf, laid(seed[None], setting.layout)) for seed in seeds])


def batched_grad(work: Work, seeds: Tensor, setting: Setting) -> Tensor:
    """One run of one image; torch.autograd.grad over chunks of cotangents with is_grads_batched."""
    leaf = work.leaf(1, setting.layout)
    out = work.trunk(setting.layout)(leaf)
    parts = []
    for chunk in seeds.split(setting.chunk or len(seeds)):
        (part,) = torch.autograd.grad(out, leaf, chunk[:, None], is_grads_batched=True, retain_graph=True)
        parts.append(part[:, 0])
    return torch.cat(parts)


def func_vjp(work: Work, seeds: Tensor, setting: Setting) -> Tensor:
    """torch.func.vjp at the image, its result under torch.vmap in chunks."""
    trunk = work.trunk(setting.layout)
    vjp = torch.func.vjp(trunk, work.leaf(1, setting.layout).detach())[1]
    (pulled,) = torch.vmap(vjp, chunk_size=setting.chunk)(seeds[:, None])
    return pulled[:, 0]


def replicate(work: Work, seeds: Tensor, setting: Setting) -> Tensor:
    """For each chunk of cotangents one run on as many copies of the image, and one backward pass."""
    parts = []
    for chunk in seeds.split(setting.chunk or len(seeds)):
        leaf = work.leaf(len(chunk), setting.layout)
        out = work.trunk(setting.layout)(leaf)
        parts.append(torch.autograd.grad(out, leaf, laid(chunk, setting.layout))[0])
    return torch.cat(parts)


def zennit(work: Work, seeds: Tensor, setting: Setting) -> Tensor:
    """zennit's Gradient attributor on copies of the image; it runs the network at every call."""
    import_torchvision()  # zennit imports it, and it may need mending
    from zennit.attribution import Gradient

    attributor = Gradient(model=work.trunk(setting.layout))
    parts = []
    for chunk in seeds.split(setting.chunk or len(seeds)):
        copies = work.leaf(len(chunk), setting.layout).detach()
        parts.append(attributor(copies, laid(chunk, setting.layout))[1])
    return torch.cat(parts)


def captum(work: Work, seeds: Tensor, setting: Setting) -> Tensor:
    """captum's NeuronGradient on copies of the image, each with its own cotangent as the neuron that is selected.

    One attribution per channel costs a run of the network and a backward pass each; copies in a chunk are its fastest use.
    """
    from captum.attr import NeuronGradient

    trunk = work.trunk(setting.layout)
    gradient = NeuronGradient(trunk, trunk)
    parts = []
    for chunk in seeds.split(setting.chunk or len(seeds)):
        weights = laid(chunk, setting.layout)
        leaf = work.leaf(len(chunk), setting.layout)
        selected = gradient.attribute(leaf, lambda features, w=weights: (features * w).flatten(1).sum(1))
        parts.append(selected.detach())
    return torch.cat(parts)


def torchjd(work: Work, seeds: Tensor, setting: Setting) -> Tensor:
    """torchjd's jac with the cotangents as initial Jacobian; one run of one image."""
    from torchjd.autojac import jac

    leaf = work.leaf(1, setting.layout)
    out = work.trunk(setting.layout)(leaf)
    (pulled,) = jac(out, leaf, jac_outputs=seeds[:, None], parallel_chunk_size=setting.chunk)
    return pulled[:, 0]


def idiom(work: Work, seeds: Tensor, setting: Setting) -> Tensor:
    """The best that we know by hand: copies of the image run once, graph kept, one backward pass for each chunk."""
    count = setting.chunk or len(seeds)
    leaf = work.leaf(count, setting.layout)
    out = work.trunk(setting.layout)(leaf)
    parts = []
    for chunk in seeds.split(count):
        full = F.pad(chunk, (0, 0, 0, 0, 0, 0, 0, count - len(chunk)))
        parts.append(_grad(out, leaf, laid(full, setting.layout))[: len(chunk)])
    return torch.cat(parts)


def ours(work: Work, seeds: Tensor, setting: Setting, precision: str | None = None) -> Tensor:
    """`encoder.jacobian(image, stage).vm(seeds)`, from the first run to the last picture."""
    with work.encoder.jacobian(work.image, work.stage, chunk=setting.chunk, precision=precision) as jacobian:
        pulled = jacobian.vm(seeds)
        work.own_runs += jacobian.forwards
        if jacobian.program is not None:
            work.own_flops += jacobian.program.live_operations("pull") * len(seeds)
    return pulled


def streamed(work: Work, seeds: Tensor, setting: Setting) -> Tensor:
    """The same, each chunk's pictures given up before the next."""
    with work.encoder.jacobian(work.image, work.stage, chunk=setting.chunk) as jacobian:
        for chunk in seeds.split(setting.chunk or 64):
            pulled = jacobian.vm(chunk)
        work.own_runs += jacobian.forwards
    return pulled


def _grad(out: Tensor, leaf: Tensor, cotangents: Tensor) -> Tensor:
    (pulled,) = torch.autograd.grad(out, leaf, cotangents, retain_graph=True)
    return pulled


LOOP = Way("autograd.grad in a loop", loop, chunks=(1,))
IDIOM = Way("kept graph of copies, by hand", idiom, origin=BY_HAND)

WAYS = (
    LOOP,
    Way("autograd.grad, is_grads_batched", batched_grad),
    Way("torch.func.vjp + vmap", func_vjp),
    Way("image replicated per chunk", replicate),
    Way("zennit Gradient", zennit, package="zennit"),
    Way("captum NeuronGradient", captum, package="captum"),
    Way("torchjd jac", torchjd, package="torchjd"),
    IDIOM,
    Way("pullback", ours, origin=OURS, chunks=(None, *CHUNKS), layouts=("own",)),
    Way(
        "pullback, bfloat16",
        partial(ours, precision="bfloat16"),
        origin=OURS,
        chunks=(None, *CHUNKS),
        layouts=("own",),
        precision="bfloat16",
    ),
)
"""Every way of the suite; the first is the one that the others are verified against."""

STREAMED = Way("pullback, pictures not held", streamed, origin=OURS, chunks=(None, *CHUNKS), layouts=("own",))
"""For the growth of cost alone: it returns the last chunk's pictures, where all others return all."""
