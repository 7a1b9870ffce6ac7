"""All channels' energies from a few products with random images, and the leading share of their Gram matrix.

The raw picture of channel c is P_c = J^T S_c, S_c = F 1_c. For Gaussian v, <v, P_c> = <J v, S_c> is normal with variance
||P_c||^2, so one product J v says something of every channel at once, and n of them give n / ||P_c||^2 times the mean square a
chi-squared law with n degrees of freedom: the intervals are exact. That of their sum is Satterthwaite's. Pictures are never made.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from pullback.errors import MaskError, OptionError
from pullback.measures.values import tensor_of
from pullback.operator import Jacobian

_AT_ONCE = 16  # probes whose products are held


@dataclass(frozen=True, eq=False)
class Estimate:
    """value and the ends of its interval, float64: (C,) each, of a sum () each."""

    value: Tensor
    low: Tensor
    high: Tensor


@dataclass(frozen=True, eq=False)
class ChannelEnergies:
    """energy: ||P_c||^2 of each channel. foreground: the share of it inside the mask, if one was given.

    total: the energy of all channels, the trace of their Gram matrix. confidence: of each interval on its own; that of the total
    is approximate: it holds some percent less often where few probes meet one direction over a flat rest. probes: products J v
    that were spent.
    """

    energy: Estimate
    foreground: Estimate | None
    total: Estimate
    confidence: float
    probes: int


def channel_energies(
    jacobian: Jacobian,
    *,
    features: Tensor | None = None,
    mask: Tensor | ArrayLike | None = None,
    probes: int = 32,
    confidence: float = 0.95,
    seed: int = 0,
) -> ChannelEnergies:
    """Energies of the raw channel pictures J^T (F 1_c), all from `probes` products J v.

    jacobian: of a stage (C, H, W) at an image. features: F (C, H, W), default the stage's own. mask: (h, w) of the image,
    boolean or in [0, 1], NaN where unknown: then each probe is split into its parts inside and outside, at twice the cost,
    and unknown pixels count in neither. A foreground share is that of `foreground_energy`; its interval follows from
    Fisher's law. Dead channels have energy 0. Raises OptionError, MaskError.
    """
    if probes < 2 or not 0 < confidence < 1:
        raise OptionError(f"probes={probes} and confidence={confidence}: give 2 probes or more and a number in (0, 1)")
    at = (jacobian.value if features is None else features).double()
    if tuple(at.shape) != jacobian.out_shape or at.dim() != 3:
        raise OptionError(f"features of shape {tuple(at.shape)}, where (C, H, W) = {jacobian.out_shape} was expected")
    parts = torch.ones(1, 1, 1, device=jacobian.device) if mask is None else _parts(mask, jacobian)
    generator = torch.Generator().manual_seed(seed)
    seen = []  # <v, P_c> for each probe, part and channel
    for count in _batches(probes):
        v = torch.randn(count, len(parts), *jacobian.in_shape, generator=generator, dtype=torch.float64, device="cpu")
        pushed = jacobian.mv(v.to(parts.device, jacobian.dtype) * parts[:, None].to(jacobian.dtype))
        seen.append((pushed.double() * at).sum((3, 4)))
    inner = torch.cat(seen)
    # Parts are drawn independently, so that their sum is as good a probe of the whole.
    whole = inner.sum(1)
    energy = _chi_squared(whole.square().mean(0), probes, confidence)
    foreground = None if mask is None else _share(inner.square().mean(0), probes, confidence)
    return ChannelEnergies(energy, foreground, _total(whole, confidence), confidence, probes)


def _batches(probes: int) -> list[int]:
    return [min(_AT_ONCE, probes - done) for done in range(0, probes, _AT_ONCE)]


def _parts(mask: Tensor | ArrayLike, jacobian: Jacobian) -> Tensor:
    """Weights (2, h, w) of the probes inside and outside: their squares are the mask and its complement."""
    m = tensor_of(mask, "a mask", MaskError).to(jacobian.device, torch.float64)
    if tuple(m.shape) != jacobian.in_shape[1:]:
        raise MaskError(
            f"mask of size {tuple(m.shape)} for an image of size {jacobian.in_shape[1:]}; both must be (H, W) alike"
        )
    known = ~m.isnan()
    if bool(((m < 0) | (m > 1))[known].any()):
        raise MaskError("mask values must lie in [0, 1], or be NaN for unknown")
    return torch.stack([m, 1 - m]).where(known, 0.0).sqrt()


def _chi_squared(mean: Tensor, degrees: float, confidence: float) -> Estimate:
    """Of a mean that follows a chi-squared law with so many degrees of freedom, up to its scale."""
    from scipy import special  # here: a tenth of a second that most commands need not wait

    low, high = (degrees / special.chdtri(degrees, q) for q in ((1 - confidence) / 2, (1 + confidence) / 2))
    return Estimate(mean, mean * low, mean * high)


def _total(inner: Tensor, confidence: float) -> Estimate:
    """tr G from n probes z ~ N(0, G), (n, C): chi-squared with n (tr G)^2 / tr G^2 degrees of freedom (Satterthwaite 1946).

    Both traces come from pairs of different probes, so that no probe is its own witness; they are no better known than the
    variance of n numbers, so the interval is wider as Student's is, up to that of a G of rank one, whose degrees are n.
    """
    from scipy import special

    n, channels = inner.shape
    unit = inner.abs().amax()
    if not unit:
        return Estimate(unit, unit, unit)
    z = inner / unit  # fourth powers keep their range
    own = z.square().sum(1)
    gram = z @ z.mT if n <= channels else z.mT @ z  # of the same norm
    squared_trace = own.sum().square() - own.square().sum()  # n (n - 1) times (tr G)^2
    trace_of_square = gram.square().sum() - own.square().sum()  # n (n - 1) times tr G^2, which is (tr G)^2 / C or more
    degrees = n * float(squared_trace / trace_of_square.clamp(min=squared_trace / channels))
    q = (1 + confidence) / 2
    student = special.ndtri(q) / special.stdtrit(n - 1, q)
    return _chi_squared(own.mean() * unit * unit, max(n, degrees * student**2), confidence)


def _share(energies: Tensor, n: int, confidence: float) -> Estimate:
    """Of two energies (2, C) estimated by n probes each, the ratio of whose errors follows F(n, n). Not a number without energy."""
    from scipy import special

    odds = energies[0] / energies[1]
    low, high = (odds / special.fdtri(n, n, q) for q in ((1 + confidence) / 2, (1 - confidence) / 2))
    return Estimate(*(torch.where(o.isinf(), 1.0, o / (1 + o)) for o in (odds, low, high)))


@dataclass(frozen=True)
class LeadingShare:
    """share: lambda_1 / tr G of the channels' Gram matrix, with its standard_error, which is that of the trace.

    largest: lambda_1; trace: tr G. products: cotangents and tangents that went through the network.
    """

    share: float
    standard_error: float
    largest: float
    trace: float
    products: int


def leading_share(
    jacobian: Jacobian,
    *,
    features: Tensor | None = None,
    block: int = 16,
    depth: int = 3,
    probes: int = 64,
    seed: int = 0,
) -> LeadingShare:
    """The leading share of G_ij = <P_i, P_j>, the Gram matrix of the raw channel pictures, without making all of them.

    lambda_1 by block Lanczos (Golub and Underwood 1977): a Krylov space of `depth` blocks of `block` directions, one `vm` and
    one `mv` for each. The trace is that of G on this space, exactly, and of its complement by `probes` random signs, one `vm`
    each (Hutch++, Meyer et al. 2021). Share and error are as good as the rest of the spectrum is flat: look at the standard
    error. Where `block * depth` reaches the number of live channels the answer is exact. Raises OptionError.
    """
    if min(block, depth) < 1 or probes < 2:
        raise OptionError(f"block={block}, depth={depth}, probes={probes}: give 1 or more, and 2 probes or more")
    at = jacobian.value if features is None else features
    if tuple(at.shape) != jacobian.out_shape or at.dim() != 3:
        raise OptionError(f"features of shape {tuple(at.shape)}, where (C, H, W) = {jacobian.out_shape} was expected")
    live = at.flatten(1).any(1).nonzero()[:, 0]
    if len(live) == 0:
        raise OptionError("every feature of this stage is zero at the image, so its channels have no pictures")
    at = at[live].to(jacobian.dtype)

    def pictures(u: Tensor) -> Tensor:
        """sum_c u_c P_c for rows u (k, live), float64."""
        seeds = u.new_zeros(len(u), *jacobian.out_shape, dtype=jacobian.dtype)
        seeds[:, live] = u.to(jacobian.dtype)[:, :, None, None] * at
        return jacobian.vm(seeds)

    def gram(u: Tensor) -> Tensor:
        pushed = jacobian.mv(pictures(u))[:, live]
        return (pushed.double() * at.double()).sum((2, 3))

    generator = torch.Generator().manual_seed(seed)
    count = min(block, len(live))
    new = torch.randn(len(live), count, generator=generator, dtype=torch.float64, device="cpu").to(at.device)
    basis, image = new.new_zeros(len(live), 0), new.new_zeros(len(live), 0)
    for _ in range(min(depth, -(-len(live) // count))):
        for _ in range(2):  # twice is enough
            new = new - basis @ (basis.T @ new)
            new = torch.linalg.qr(new).Q
        new = new[:, : len(live) - basis.shape[1]]
        basis = torch.cat([basis, new], 1)
        new = gram(new.T).T
        image = torch.cat([image, new], 1)
    inner = basis.T @ image
    largest = float(torch.linalg.eigvalsh((inner + inner.T) / 2)[-1])
    trace, error = float(inner.trace()), 0.0
    products = 2 * basis.shape[1]
    if basis.shape[1] < len(live):
        signs = torch.randint(0, 2, (probes, len(live)), generator=generator, device="cpu").to(basis) * 2 - 1
        rest = pictures(signs - signs @ basis @ basis.T).double().flatten(1).square().sum(1)
        trace, error = trace + float(rest.mean()), float(rest.std()) / math.sqrt(probes)
        products += probes
    return LeadingShare(largest / trace, largest / trace * error / trace, largest, trace, products)
