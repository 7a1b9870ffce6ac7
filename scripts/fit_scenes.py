"""Fit the correctors of `builtin:scenes`, equation (9), and write them beside its weights.

    python scripts/fit_scenes.py                                  # some minutes on 2 CPU cores
    python scripts/fit_scenes.py --steps 2 --out trial.safetensors

`min over gamma, beta of || Xhat_L - x ||_1` on the deepest stage, additive mode: `Xhat_L = sum_c alpha_c B_c` is estimated in
each step from a few channels drawn with probability alpha, whose plain mean is then unbiased for the picture (the l1 loss of
that mean is not unbiased: it also pushes channels to look alike). Adam from gamma 1, beta 0. The paper states neither the
optimiser nor the subset. Scenes with seeds from 30,000,000 on, which neither training nor test of the encoder use.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import pullback as pb
from pullback.encoders import Encoder
from pullback.images import scene
from pullback.inversion.cascade import Cascade
from pullback.inversion.correctors import Corrector, Correctors
from pullback.inversion.opened import Opened

FIRST_SEED = 30_000_000
OUT = (
    Path(__file__).resolve().parents[1] / "src" / "pullback" / "encoders" / "weights" / "scenes.correctors.safetensors"
)


class _PullBack(torch.autograd.Function):
    """w -> J^T w, whose own adjoint is J: the derivative that reaches the deeper levels' parameters."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, jacobian: pb.Jacobian) -> Tensor:
        ctx.jacobian = jacobian
        return jacobian.vm(w)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.jacobian.mv(grads[0]), None


class _Trainable:
    """A Jacobian whose `vm` takes part in a graph."""

    def __init__(self, jacobian: pb.Jacobian) -> None:
        self.jacobian = jacobian
        self.in_shape, self.out_shape, self.value = jacobian.in_shape, jacobian.out_shape, jacobian.value

    def vm(self, w: Tensor) -> Tensor:
        return _PullBack.apply(w, self.jacobian) if w.requires_grad else self.jacobian.vm(w)


def opened_scenes(encoder: Encoder, chunk: int) -> Iterator[Opened]:
    """Scenes without end, each opened for one step."""
    seed = FIRST_SEED
    while True:
        yield Opened(encoder, encoder.preprocess(Image.fromarray(scene(seed).image)), chunk=chunk)
        seed += 1


def loss_of(opened: Opened, correctors: Correctors, channels: int, generator: torch.Generator) -> Tensor:
    """Mean absolute error of the picture estimated from `channels` channels drawn with probability alpha."""
    level = opened.encoder.depth
    at = opened.measure(level)
    drawn = torch.multinomial(at.alpha.cpu(), channels, replacement=True, generator=generator).to(at.alpha.device)
    cascade = Cascade([_Trainable(j) for j in opened.chain], correctors)
    return (cascade.pull(at.seeds(drawn), level).mean(0) - opened.image).abs().mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--batch", type=int, default=4, help="scenes a step")
    parser.add_argument("--channels", type=int, default=8, help="channels drawn for each scene")
    parser.add_argument("--rate", type=float, default=2e-2, help="Adam's rate, cosine to zero")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT)
    chosen = parser.parse_args()

    encoder = pb.load_encoder("builtin:scenes")
    channels = [encoder.input_shape[0], *(s.channels for s in encoder.stages[:-1])]
    levels = tuple(
        Corrector(c.gamma.requires_grad_(), c.beta.requires_grad_()) for c in Correctors.unfitted(channels).levels
    )
    parameters = [p for c in levels for p in (c.gamma, c.beta)]
    optimiser = torch.optim.Adam(parameters, lr=chosen.rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, chosen.steps)
    generator = torch.Generator().manual_seed(chosen.seed)
    scenes = opened_scenes(encoder, chosen.channels)
    begun, smooth = time.monotonic(), 0.0
    for step in range(chosen.steps):
        optimiser.zero_grad()
        for _ in range(chosen.batch):
            with next(scenes) as opened:
                loss = loss_of(opened, Correctors(levels), chosen.channels, generator) / chosen.batch
                loss.backward()
            smooth += (float(loss.detach()) * chosen.batch - smooth) * (0.02 if step else 1)
        optimiser.step()
        schedule.step()
        if step % 20 == 19 or step + 1 == chosen.steps:
            print(f"{time.monotonic() - begun:6.0f} s  step {step + 1}  mean absolute error {smooth:.4f}", flush=True)
    card = {
        "encoder": encoder.name, "weights": encoder.weights_digest, "objective": "additive, l1, deepest stage",
        "channels a scene": chosen.channels, "scenes a step": chosen.batch, "steps": chosen.steps, "rate": chosen.rate,
        "optimiser": "Adam, cosine to zero", "first scene": FIRST_SEED, "seed": chosen.seed, "torch": torch.__version__,
        "mean absolute error": round(smooth, 4),
    }  # fmt: skip
    fitted = tuple(Corrector(c.gamma.detach(), c.beta.detach()) for c in levels)
    Correctors(fitted, label="fitted on scenes", card=card).save(chosen.out)
    print(f"wrote {chosen.out}")


if __name__ == "__main__":
    main()
