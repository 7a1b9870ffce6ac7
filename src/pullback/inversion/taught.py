"""The self-taught start of the blind inverse (specification, 3c): a ridge decoder from a stage's features to the image.

    min over W of  sum over pictures and cells of || y - W^T phi(F) ||^2  +  ridge * mean diagonal of the Gram matrix * ||W||^2

phi: signed roots of the features in a cell's neighbourhood, with a border mask and a constant; y: the colours of the image
in that cell. Closed form, on synthetic pictures sent through the same network; the ridge is the one that serves held-back
pictures best. No photograph takes part beyond the mean and the covariance of its colours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pullback.encoders import Encoder
from pullback.errors import EncoderError, NumericsError
from pullback.images.leaves import dead_leaves
from pullback.inversion.kept import kept
from pullback.inversion.prior import Prior

VERSION = 1  # of the recipe below: another one must not read this one's files
PIXELS = 7_700_000  # of all synthetic pictures together: 300 of 160 x 160
FEWEST, MOST, HELD_BACK = 64, 300, 5  # pictures, and every which of them chooses the ridge
POSITIONS = 24_000  # of a stage, in all pictures
WIDEST = 4700  # inputs of a decoder; with more it looks at its own cell alone
FINEST = 8  # values along a cell's side
RIDGES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003)
BATCH = 4  # larger ones leave the caches


@dataclass(frozen=True, eq=False)
class Decoder:
    """Draws images from the features of one stage.

    weight (inputs, c * cell * cell); cell: values along a cell's side; error: mean squared error over the variance, on the
    held-back synthetic pictures at the ridge that was chosen.
    """

    weight: Tensor
    cell: int
    ridge: float
    error: float

    def __call__(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        """Images (B, c, H, W) of the given size from features (B, C, h, w), in preprocessed units; linear in phi(F)."""
        b, _, h, w = features.shape
        rows, columns = (torch.arange(n, device=features.device) for n in (h, w))
        inputs = _inputs(features.to(self.weight.dtype), rows.repeat_interleave(w), columns.repeat(h))
        cells = (inputs @ self.weight.to(inputs)).reshape(b, h, w, -1, self.cell, self.cell)
        fine = cells.permute(0, 3, 1, 4, 2, 5).reshape(b, -1, h * self.cell, w * self.cell)
        return F.interpolate(fine, size, mode="bicubic", align_corners=False)


def decoders(encoder: Encoder, prior: Prior) -> dict[int, Decoder]:
    """The decoder of every stage for images of the prior's size, taught once and kept (`kept.py`).

    Only mean and colours of the prior count. Deterministic on one machine with one number of threads.
    """

    def make() -> dict[str, Tensor]:
        named = {}
        for number, d in _teach(encoder, prior).items():
            named[f"{number}.weight"] = d.weight
            named[f"{number}.about"] = torch.tensor([d.cell, d.ridge, d.error], dtype=torch.float64, device="cpu")
        return named

    tensors = kept(("decoders", VERSION, setting(encoder, prior)), make)
    found = {}
    for stage in encoder.stages:
        cell, ridge, error = tensors[f"{stage.number}.about"].tolist()
        found[stage.number] = Decoder(tensors[f"{stage.number}.weight"], int(cell), ridge, error)
    return found


def setting(encoder: Encoder, prior: Prior) -> tuple[object, ...]:
    """All of a network and of a prior's mean, colours and size that decides what is kept for them.

    The recorded operations belong to it: networks that differ in a pooling or an activation may have the same weights.
    """
    tape = encoder.tape(torch.zeros(1, prior.mean.numel(), *prior.size, dtype=encoder.dtype, device=encoder.device))
    return (
        encoder.weights_digest, [(s.name, s.shape) for s in encoder.stages], str(encoder.dtype), encoder.device.type,
        str(encoder.preprocessing), [(op.name, op.args, op.kwargs) for op in tape.ops], torch.__version__,
        prior.size, prior.mean.tolist(), prior.colour.tolist(),
    )  # fmt: skip


# ---- teaching -----------------------------------------------------------------------------------------------------


def _teach(encoder: Encoder, prior: Prior) -> dict[int, Decoder]:
    """Fit the decoders of all stages in one pass over the synthetic pictures."""
    count = min(max(round(PIXELS / (prior.size[0] * prior.size[1])), FEWEST), MOST)
    sums = {s.number: (_Sums(), _Sums()) for s in encoder.stages}
    dice = torch.Generator().manual_seed(VERSION)
    with torch.inference_mode(False), torch.no_grad():
        for first in range(0, count, BATCH):
            numbers = range(first, min(first + BATCH, count))
            images = torch.stack([synthetic(n, encoder, prior) for n in numbers]).to(encoder.device, encoder.dtype)
            levels = _levels(encoder, images)
            held = torch.tensor([n % HELD_BACK == 0 for n in numbers], device="cpu")
            for number, both in sums.items():
                inputs, outputs = _pairs(levels[number], images, POSITIONS // count + 1, dice)
                for group, of in zip((~held, held), both, strict=True):
                    of.add(inputs[group.to(inputs.device)], outputs[group.to(inputs.device)])
        cells = {number: _cell(prior.size[0], levels[number].shape[-2]) for number in sums}
        return {number: _solve(*sums.pop(number), cells[number]) for number in list(sums)}


def _levels(encoder: Encoder, images: Tensor) -> list[Tensor]:
    """`Encoder.levels` of a batch, one by one where the network takes no more at once."""
    try:
        return encoder.levels(images)
    except EncoderError:
        return [torch.stack(stage) for stage in zip(*map(encoder.levels, images), strict=True)]


def synthetic(number: int, encoder: Encoder, prior: Prior) -> Tensor:
    """One synthetic picture (c, H, W) in preprocessed units: the prior's colours, clipped to what a picture can show."""
    values, axes = torch.linalg.eigh(prior.colour.double())
    root = (axes * values.sqrt()) @ axes.mT
    leaves = torch.from_numpy(dead_leaves(number, prior.size, root.numpy()))
    picture = leaves + prior.mean.double()[:, None, None]
    shown = (encoder.preprocessing.mean, encoder.preprocessing.std)
    mean, std = (torch.tensor(v, dtype=torch.float64, device="cpu")[:, None, None] for v in shown)
    return torch.maximum(torch.minimum(picture, (1 - mean) / std), -mean / std).float()


@dataclass
class _Sums:
    """Sums over cells: the Gram matrix of the inputs, their products with the outputs, the outputs' own squares."""

    gram: Tensor | None = None
    mixed: Tensor | None = None
    square: float = 0.0

    def add(self, inputs: Tensor, outputs: Tensor) -> None:
        x, y = inputs.flatten(0, 1), outputs.flatten(0, 1)
        if not len(x):
            return
        self.gram = x.mT @ x if self.gram is None else self.gram.addmm_(x.mT, x)
        self.mixed = x.mT @ y if self.mixed is None else self.mixed.addmm_(x.mT, y)
        self.square += float(y.square().sum())


def _solve(fitted: _Sums, held: _Sums, cell: int) -> Decoder:
    """The weights of the ridge that has the least error on what was held back."""
    assert fitted.gram is not None and fitted.mixed is not None and held.gram is not None and held.mixed is not None
    gram, mixed, held_gram, held_mixed = (
        sums.cpu().double() for sums in (fitted.gram, fitted.mixed, held.gram, held.mixed)
    )
    scale = gram.diagonal().mean()
    best: tuple[float, float, Tensor] | None = None
    for ridge in RIDGES:
        damped = gram.clone()
        damped.diagonal().add_(ridge * scale)
        factor, failed = torch.linalg.cholesky_ex(damped)
        if int(failed):
            raise NumericsError(
                "the features of synthetic pictures have no finite Gram matrix, so no start can be learnt; use start='mean'"
            )
        weight = torch.cholesky_solve(mixed, factor)
        error = float((weight * (held_gram @ weight)).sum() - 2 * (weight * held_mixed).sum()) + held.square
        if best is not None and error >= best[0]:
            break  # the error has one valley
        best = error, ridge, weight
    assert best is not None
    error, ridge, weight = best
    return Decoder(weight.to(fitted.gram.dtype), cell, ridge, error / max(held.square, 1e-30))


def _pairs(features: Tensor, images: Tensor, positions: int, dice: torch.Generator) -> tuple[Tensor, Tensor]:
    """Inputs (B, P, n) and outputs (B, P, c * cell^2) at up to `positions` cells, the same ones in every picture of a batch."""
    h, w = features.shape[-2:]
    cell = _cell(images.shape[-2], h)
    chosen = torch.randperm(h * w, generator=dice)[:positions].sort().values.to(features.device)
    rows, columns = chosen // w, chosen % w
    fine = F.interpolate(images, (h * cell, w * cell), mode="area")
    outputs = fine.reshape(len(images), -1, h, cell, w, cell)[:, :, rows, :, columns]  # (P, B, c, cell, cell)
    return _inputs(features.to(images.dtype), rows, columns), outputs.flatten(2).transpose(0, 1)


def _inputs(features: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """phi(F) at the given cells: features (B, C, h, w) to (B, P, n)."""
    roots = features.sign() * features.abs().sqrt()
    inside = torch.ones_like(roots[:, :1])
    constant = roots.new_ones(len(roots), len(rows), 1)
    if 9 * (roots.shape[1] + 1) + 1 > WIDEST:
        return torch.cat([roots[:, :, rows, columns].mT, constant], 2)
    padded = F.pad(torch.cat([roots, inside], 1), (1, 1, 1, 1))
    around = [padded[:, :, rows + i, columns + j].mT for i in range(3) for j in range(3)]
    return torch.cat([*around, constant], 2)


def _cell(side: int, positions: int) -> int:
    """Values along the side of a cell: the image's own pixels where they are few."""
    return max(1, min(FINEST, round(side / positions)))
