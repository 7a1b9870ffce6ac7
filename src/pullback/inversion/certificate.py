"""The support guarantee and its certificate: equations (10) and (11), computed and not assumed (spec section 4).

The spatial gradient of a picture lies in the one-pixel dilation of the seed's structural field when every boundary below
is the output of a ReLU-type gate (`exact`) and what feeds an active position below feeds the seed too (`nested`).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pullback.inversion.opened import Opened
from pullback.pictures import Certificate

_VISIBLE = 1e-6  # of the largest gradient: below that it is rounding
_SAMPLED = 8  # channels whose areas are told with a whole stage, strongest first


def certify(
    opened: Opened,
    level: int,
    seed: Tensor,
    picture: Tensor,
    *,
    named: str,
    spread: str | None = None,
    areas: bool = False,
) -> Certificate:
    """Certificate of `picture` (C, H, W), drawn from `seed` (C_l, H_l, W_l) at stage `level`.

    named: the seed in words. spread: why the method's own seed covers everything, if it does (the Wiener inverse). areas: add
    the areas of the fields of the stage's strongest channels.
    """
    support = opened.field(level, seed != 0 if spread is None else torch.ones_like(seed, dtype=torch.bool))
    field = support.mask[0].any(0)
    inside = dilate(field)
    energy = gradient_energy(picture)
    visible = energy.sqrt() > _VISIBLE * energy.max().sqrt()
    holds = not bool((visible & ~inside).any())
    outside = float(energy[~inside].sum() / energy.sum()) if energy.sum() > 0 else 0.0
    nested = all(not bool((opened.active_field(k) & ~field).any()) for k in range(1, level))
    exact = all(s.rectified for s in opened.encoder.stages[: level - 1])
    area = float(field.double().mean())
    vacuous = bool(field.all())
    words = _words(named, area, vacuous, holds, outside, nested, exact, spread)
    return Certificate(
        stage=level,
        seed=named,
        field=field,
        holds=holds,
        nested_condition=nested,
        exact=exact,
        outside=outside,
        area=area,
        vacuous=vacuous,
        areas=_areas(opened, level) if areas else {},
        unknown=support.unknown,
        words=words,
    )


def dilate(field: Tensor) -> Tensor:
    """One pixel in all eight directions; (H, W) bool."""
    return F.max_pool2d(field[None].float(), 3, 1, 1)[0] > 0


def gradient_energy(picture: Tensor) -> Tensor:
    """Squared forward differences to the right and below, summed over channels: (H, W) float64 on the CPU."""
    p = picture.detach().double().cpu()
    right, below = p[:, :, 1:] - p[:, :, :-1], p[:, 1:] - p[:, :-1]
    return F.pad(right, (0, 1)).square().sum(0) + F.pad(below, (0, 0, 0, 1)).square().sum(0)


def _areas(opened: Opened, level: int) -> dict[str, float]:
    """Areas of the fields of the stage's strongest channels, as shares of the image."""
    at = opened.measure(level)
    strongest = at.energy.argsort(descending=True, stable=True)[: min(_SAMPLED, len(at.live))]
    shares = []
    for c in strongest:
        seed = torch.zeros_like(at.features, dtype=torch.bool)
        seed[c] = at.features[c] != 0
        shares.append(float(opened.field(level, seed).mask[0].any(0).double().mean()))
    a = torch.tensor(shares, dtype=torch.float64)
    return {
        "channels": float(len(a)),
        "smallest": float(a.min()),
        "median": float(a.median()),
        "largest": float(a.max()),
    }


def _words(
    named: str, area: float, vacuous: bool, holds: bool, outside: float, nested: bool, exact: bool, spread: str | None
) -> str:
    if vacuous:
        why = f" ({spread})" if spread else ""
        return f"vacuous: the field of {named} is the whole image{why}, so the guarantee says nothing here"
    said = f"the field of {named} covers {100 * area:.2g} % of the image; "
    if holds:
        said += "the picture's edges lie inside it"
    else:
        said += f"{100 * outside:.2g} % of the picture's gradient energy lies outside it"
    conditions = [
        "every boundary below is rectified" if exact else "not every boundary below is rectified",
        "the fields below are nested in it" if nested else "fields below reach further",
    ]
    promise = "so this was guaranteed" if exact and nested else "so nothing was guaranteed"
    return f"{said} ({', '.join(conditions)}: {promise})"
