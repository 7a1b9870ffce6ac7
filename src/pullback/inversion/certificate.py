"""The support guarantee and its certificate: equations (10) and (11), computed and not assumed (spec section 4).

The spatial gradient of a picture lies in the one-pixel dilation of the seed's structural field when nothing is added on the
way (raw VJP, rms-only correctors), or when every boundary below is the output of a ReLU-type gate (`exact`) and what feeds
an active position below feeds the seed too (`nested`).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pullback.inversion.opened import Opened
from pullback.pictures import Certificate
from pullback.pictures.plain import share

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
    confined: bool = False,
    areas: bool = False,
) -> Certificate:
    """Certificate of `picture` (C, H, W), drawn from `seed` (C_l, H_l, W_l) at stage `level`.

    named: the seed in words. spread: why it covers everything though less was asked for, if it does (the Wiener inverse).
    confined: the method adds nothing on the way. areas: add the areas of the fields of the stage's strongest channels.
    """
    support = opened.field(level, seed != 0)
    field = support.mask[0].any(0)
    inside = dilate(field)
    energy = gradient_energy(picture)
    visible = energy.sqrt() > _VISIBLE * energy.max().sqrt()
    holds = not bool((visible & ~inside).any())
    outside = float(energy[~inside].sum() / energy.sum()) if energy.sum() > 0 else 0.0
    nested = all(not bool((opened.active_field(k) & ~field).any()) for k in range(1, level))
    exact = all(s.rectified for s in opened.encoder.stages[: level - 1])
    area = float(field.double().mean())
    vacuous = bool(inside.all())
    where = named if spread is None else f"{named} ({spread})"
    words = _words(where, area, vacuous, holds, outside, _promise(confined, exact, nested))
    if not bool(seed.any()):
        words = f"every feature of {named} is zero at this image: its field is empty, and the certificate says nothing"
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
    a = torch.tensor(shares, dtype=torch.float64, device="cpu")
    return {
        "channels": float(len(a)),
        "smallest": float(a.min()),
        "median": float(a.median()),
        "largest": float(a.max()),
    }


def _words(where: str, area: float, vacuous: bool, holds: bool, outside: float, promise: str) -> str:
    if vacuous:
        rim = "" if area == 1 else ", but for a rim of one pixel"
        return f"vacuous: the field of {where} is the whole image{rim}, so the guarantee says nothing here"
    said = f"the field of {where} covers {share(area)} of the image; "
    if holds:
        said += "the picture's edges lie inside it"
    else:
        said += f"{share(outside)} of the picture's gradient energy lies outside it"
    return f"{said} ({promise})"


def _promise(confined: bool, exact: bool, nested: bool) -> str:
    if confined:
        return "nothing is added on the way: so this was guaranteed"
    gates = "every boundary below is rectified" if exact else "not every boundary below is rectified"
    fields = "the fields below are nested in it" if nested else "fields below reach further"
    return f"{gates}, {fields}: so {'this' if exact and nested else 'nothing'} was guaranteed"
