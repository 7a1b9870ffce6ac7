"""What the page on speed claims beside the main table, each measured against its rival in the same run:

    python -m benchmarks.claims [leading coverage selection bfloat16 wiener search memory]

On an idle machine, or not at all.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar

import torch
from scipy.linalg import lapack
from torch import Tensor

from benchmarks.memory import Probe, peak
from benchmarks.peers import IDIOM, OURS, WAYS
from benchmarks.work import CHANNELS_LAST, NETWORKS, prepare
from pullback.adjoint import has_bfloat16
from pullback.graph import plain_autograd
from pullback.interference.selection import pivoted
from pullback.inversion import Prior
from pullback.inversion.iterative import BOLD
from pullback.inversion.leaky import leaky_rules, search_rules
from pullback.inversion.wiener import WienerSolver
from pullback.measures import channel_energies, leading_share

R = TypeVar("R")

_ALL = 10**6  # cotangents: those of all channels
_CHUNK = 8
_ROUNDS = 15


def leading() -> Iterator[str]:
    """The leading Gram share on ResNet-50 shapes, sketched and exact."""
    work = prepare(NETWORKS["resnet50"], _ALL)
    with work.encoder.jacobian(work.image, work.stage) as jacobian:
        jacobian.vm(work.seeds[:2])

        def exactly() -> float:
            pictures = jacobian.vm(work.seeds).flatten(1)
            eigenvalues = torch.linalg.eigvalsh((pictures @ pictures.mT).double())
            return float(eigenvalues[-1] / eigenvalues.sum())

        exact, seconds = _timed(exactly)
        for seed in range(3):
            found, quick = _timed(partial(leading_share, jacobian, seed=seed))
            yield (
                f"leading share, {len(work.seeds)} channels of ResNet-50: exact {exact:.4f} in {seconds:.1f} s; sketched"
                f" {found.share:.4f} +- {found.standard_error:.4f} in {quick:.1f} s: {abs(found.share / exact - 1):.2%} off,"
                f" {seconds / quick:.1f} times faster, {found.products} products"
            )


def coverage() -> Iterator[str]:
    """How often the 95 % intervals of the sketched energies hold the truth, on the embedded encoder."""
    work, trials = prepare(NETWORKS["scenes"], _ALL), 100
    with work.encoder.jacobian(work.image, work.stage) as jacobian:
        channel = work.seeds.flatten(2).any(2).float().argmax(1)  # of each seed
        truth = jacobian.vm(work.seeds).double().square().sum((1, 2, 3))
        hits, sums = [], []
        for seed in range(trials):
            found = channel_energies(jacobian, probes=32, seed=seed)
            low, high = found.energy.low[channel], found.energy.high[channel]
            hits.append(float(((low <= truth) & (truth <= high)).double().mean()))
            sums.append(bool(found.total.low <= truth.sum() <= found.total.high))
    yield (
        f"intervals of 32 probes, {trials} trials of {len(truth)} channels: {statistics.mean(hits):.1%} hold the energy of"
        f" their channel; {statistics.mean(sums):.0%} of the trials hold that of all channels"
    )


def selection() -> Iterator[str]:
    """512 of 2048 channels by pivoted Cholesky, and LAPACK's pstrf stopped there."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(4096, 2048, generator=generator, dtype=torch.float64)
    sigma = mixing.mT @ mixing / len(mixing)
    channels, gains = pivoted(sigma, 512)
    matrix, least = sigma.numpy().copy(order="F"), float(gains[-1]) * (1 - 1e-9)
    ours, theirs = [], []
    for _ in range(7):
        time.sleep(0.1)  # until the other library's threads no longer wait for work
        ours.append(_timed(lambda: pivoted(sigma, 512))[1])
        time.sleep(0.1)
        (_, pivots, rank, _), seconds = _timed(lambda: lapack.dpstrf(matrix, tol=least, lower=1))
        theirs.append(seconds)
    same = (torch.from_numpy(pivots[:512]) - 1 == channels).all()
    yield (
        f"512 of 2048 channels: {statistics.median(ours) * 1e3:.0f} ms; pstrf, stopped at {rank}:"
        f" {statistics.median(theirs) * 1e3:.0f} ms; the same channels: {bool(same)}"
    )


def bfloat16() -> Iterator[str]:
    """What the lower precision changes: pictures, energies and leading Gram share of 256 channels of the deepest stage."""
    if not has_bfloat16("cpu"):
        yield "no bfloat16 on this machine"
        return
    for name, network in NETWORKS.items():
        work = prepare(network, 256)
        found = []
        for precision in (None, "bfloat16"):
            with work.encoder.jacobian(work.image, work.stage, precision=precision) as jacobian:
                found.append(jacobian.vm(work.seeds).flatten(1).double())
        exact, rounded = found
        energy, coarse = (p.square().sum(1) for p in (exact, rounded))
        picture, off = (exact - rounded).norm(dim=1) / energy.sqrt(), (coarse / energy - 1).abs()
        share, other = (float(torch.linalg.eigvalsh(p @ p.mT)[-1] / p.square().sum()) for p in (exact, rounded))
        yield (
            f"{name}, {len(exact)} channels in bfloat16: pictures {float(picture.median()):.2%} off (worst"
            f" {float(picture.max()):.2%}), energies {float(off.median()):.2%} (worst {float(off.max()):.2%}), their sum"
            f" {abs(float(coarse.sum() / energy.sum()) - 1):.2%}, leading Gram share {share:.4f} and {other:.4f}"
        )


def wiener() -> Iterator[str]:
    """Misfit by steps of the Wiener inverse, in the image's coordinates and, as before, in feature space."""
    work = prepare(NETWORKS["resnet18"], 1)
    encoder, image = work.encoder, work.image
    preprocessing, size = encoder.preprocessing, (image.shape[1], image.shape[2])
    prior = Prior.natural(preprocessing.mean, preprocessing.std, size)
    with encoder.jacobian(image, 3) as jacobian:
        residual = jacobian.mv(image - prior.mu(image))[None]
        solver = WienerSolver(jacobian.mv, jacobian.vm, prior, jacobian.in_shape, jacobian.out_shape)
        solver.solve(residual, steps=2)
        for steps in (2, 5, 10, 20, 60):
            found = solver.solve(residual, steps=steps)
            (before, seconds) = _timed(partial(_in_feature_space, solver, residual, steps))
            yield (
                f"Wiener, ResNet-18 stage 3, {steps} steps: misfit {float(found.misfit):.2f} in {found.seconds:.1f} s; solved in"
                f" feature space {before:.2f} in {seconds:.1f} s"
            )


def search() -> Iterator[str]:
    """A gradient of the blind inverse's search: through the recorded network as it is, and through its quick form."""
    for name in NETWORKS:
        work = prepare(NETWORKS[name], 1)
        stage = work.encoder.depth
        ways = (partial(leaky_rules, slope=BOLD), partial(search_rules, slope=BOLD))
        runs = [work.encoder.stretch(stage, rules=rules) for rules in ways]
        seconds: list[list[float]] = [[], []]
        found: list[Tensor] = []
        with plain_autograd(work.encoder.device):
            for _ in range(2 + _ROUNDS):  # the first two warm up
                found = []
                for run, taken in zip(runs, seconds, strict=True):
                    gradient, second = _timed(partial(_gradient, run, work.image[None]))
                    taken.append(second)
                    found.append(gradient)
        plain, quick = (statistics.median(taken[2:]) * 1000 for taken in seconds)
        apart = float((found[1] - found[0]).norm() / found[0].norm())
        yield (
            f"{name}, stage {stage}: a gradient in {quick:.1f} ms, through the network as it is in {plain:.1f}"
            f" ({plain / quick:.2f}); {apart:.0e} apart"
        )


def _gradient(run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(run(leaf).norm(), leaf)[0]


def memory() -> Iterator[str]:
    """Peak memory at equal chunk, ours over the idiom's."""
    (ours,) = (way for way in WAYS if way.origin == OURS and way.precision == "float32")
    for network in NETWORKS:
        used = {
            way.name: peak(Probe(network, way.name, _CHUNK, layout, 4 * _CHUNK, None, "cpu", torch.get_num_threads()))
            for way, layout in ((ours, "own"), (IDIOM, CHANNELS_LAST))
        }
        yield (
            f"{network}, chunk {_CHUNK}: {used[ours.name] / 1e6:.0f} MB; by hand {used[IDIOM.name] / 1e6:.0f} MB:"
            f" {used[ours.name] / used[IDIOM.name]:.2f}"
        )


def _in_feature_space(solver: WienerSolver, residual: Tensor, steps: int) -> float:
    """The misfit of conjugate gradients on (J C J^T + ridge m I) z = r after so many steps."""
    ridge = solver.ridge * solver.scale(residual)
    z, left, p = torch.zeros_like(residual), residual.clone(), residual.clone()
    power = left.square().sum()
    for _ in range(steps):
        curved = solver.mv(solver.prior.covariance(solver.vm(p))) + ridge * p
        alpha = power / (p * curved).sum()
        z, left = z + alpha * p, left - alpha * curved
        power, before = left.square().sum(), power
        p = left + power / before * p
    drawn = solver.mv(solver.prior.covariance(solver.vm(z)))
    return float((drawn - residual).norm() / residual.norm())


def _timed(run: Callable[[], R]) -> tuple[R, float]:
    start = time.perf_counter()
    return run(), time.perf_counter() - start


CLAIMS = {claim.__name__: claim for claim in (leading, coverage, selection, bfloat16, wiener, search, memory)}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.claims", description=__doc__)
    parser.add_argument("claims", nargs="*", default=list(CLAIMS), metavar="CLAIM", help=", ".join(CLAIMS))
    chosen = parser.parse_args().claims
    if unknown := set(chosen) - set(CLAIMS):
        parser.error(f"no claim {unknown.pop()!r}; there are {', '.join(CLAIMS)}")
    for name in chosen:
        for line in CLAIMS[name]():
            print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
