"""The corrected adjoint cascade at one image: equations (5) to (8), and its fused and frozen forms (spec section 3).

A_l(S) = corrector_0(J_{0->1}^T corrector_1( ... corrector_{l-1}(J_{l-1->l}^T S)))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from pullback.inversion.correctors import Correctors, skipped
from pullback.operator import Jacobian


@dataclass(frozen=True)
class Frozen:
    """An affine cascade `A_l(S) = T S + t`: the normalisers (C_k, 1, 1) of every level are kept from one pass."""

    cascade: Cascade
    level: int
    normalisers: tuple[Tensor, ...]  # by level, 0 first

    def linear(self, seeds: Tensor) -> Tensor:
        """T S for seeds (K, C, H, W): (K, 3, H, W)."""
        return self._pull(seeds, biased=False)

    def offset(self) -> Tensor:
        """t: what the biases draw through the image's gates, (3, H, W)."""
        return self._pull(self.cascade.zero_seed(self.level), biased=True)[0]

    def _pull(self, seeds: Tensor, biased: bool) -> Tensor:
        correctors = self.cascade.correctors if biased else self.cascade.correctors.bias_free()
        return self.cascade.pull(seeds, self.level, lambda k, v: correctors.correct_with(k, v, self.normalisers[k]))


class Cascade:
    """A chain of Jacobians `J_{k->k+1}` at one image with correctors between."""

    def __init__(self, chain: Sequence[Jacobian], correctors: Correctors) -> None:
        self.chain = chain
        self.correctors = correctors

    def pull(self, seeds: Tensor, level: int, corrector: Callable[[int, Tensor], Tensor] | None = None) -> Tensor:
        """A_l of each seed (K, C_l, H_l, W_l), one by one: (K, 3, H, W). `corrector(k, v)` replaces the normalising one."""
        cotangent = seeds
        for k in reversed(range(level)):
            cotangent = self.chain[k].vm(cotangent)
            if not skipped(cotangent.shape[-3:]):
                cotangent = (corrector or self.correctors.correct)(k, cotangent)
        return cotangent

    def zero_seed(self, level: int) -> Tensor:
        """The null seed of a level, (1, C, H, W)."""
        return self.chain[level - 1].value.new_zeros(1, *self.chain[level - 1].out_shape)

    def skipped_levels(self, level: int) -> list[int]:
        """Levels with a single position, whose corrector would erase everything and is left out."""
        return [k for k in range(level) if skipped(self.chain[k].in_shape)]

    def freeze(self, seed: Tensor, level: int) -> tuple[Frozen, Tensor]:
        """Keep the normalisers that `seed` (C, H, W) meets; returns the frozen cascade and the picture A_l(seed), (3, H, W)."""
        kept: dict[int, Tensor] = {}

        def measuring(k: int, v: Tensor) -> Tensor:
            kept[k] = self.correctors.rms(v)[0]
            return self.correctors.correct_with(k, v, kept[k])

        picture = self.pull(seed[None], level, measuring)[0]
        normalisers = tuple(kept.get(k, seed.new_zeros(())) for k in range(level))
        return Frozen(self, level, normalisers), picture

    def own_split(self, seed: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """Own-normaliser split `B = f + t` of one seed's picture: what the seed draws, and what the biases draw; (3, H, W) each."""
        frozen, _ = self.freeze(seed, level)
        return frozen.linear(seed[None])[0], frozen.offset()
