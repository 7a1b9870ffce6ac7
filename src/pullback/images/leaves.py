"""Dead leaves: synthetic pictures of flat shapes of all sizes that hide one another (Ruderman 1997; Lee, Mumford & Huang 2001).

They have the edges, the occlusions and the spectrum of photographs, and show nothing: what is learnt from them is how pictures
are made, not what is in them.
"""

from __future__ import annotations

from math import exp, log, pi

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Array = NDArray[np.float64]

FEWEST, MOST = 15, 400  # shapes
SMALLEST, LARGEST = 0.02, 0.6  # their radii, in longer sides
ROUND = 24  # corners of an ellipse


def dead_leaves(seed: int, size: tuple[int, int], colours: Array) -> Array:
    """One picture (c, H, W) of mean about 0, its values scattered with about the covariance `colours @ colours.T`, (c, c).

    15 to 400 ellipses and polygons whose radii follow a power law; each has its own colour, slope of light and texture (1/f
    noise), half of the pictures are blurred. The same seed gives the same picture.
    """
    dice = np.random.default_rng(seed)
    n, longer = round(exp(dice.uniform(log(FEWEST), log(MOST)))), max(size)
    centres = dice.uniform(size=(n + 1, 2)) * size
    leaf = _hiding(dice, size, centres, _radii(dice, n) * longer)
    shared = dice.uniform(0, 0.7)  # how much the colours of one picture have in common
    drawn = np.sqrt(shared) * dice.standard_normal(len(colours)) + np.sqrt(1 - shared) * dice.standard_normal(
        (n + 1, len(colours))
    )
    rows, columns = np.mgrid[: size[0], : size[1]]
    slope = dice.normal(0, 0.6, (n + 1, 2)) / longer
    light = slope[leaf, 0] * (rows - centres[leaf, 0]) + slope[leaf, 1] * (columns - centres[leaf, 1])
    strength = np.abs(dice.standard_normal(n + 1)) * dice.choice((0.0, 0.15, 0.4, 0.8))
    grain = np.where(dice.integers(0, 2, n + 1)[leaf], _noise(dice, size), _noise(dice, size)) * strength[leaf]
    grey = np.ones(len(colours))
    shades = dice.standard_normal((n + 1, len(colours))) * 0.5 + grey
    picture = (drawn[leaf] + light[..., None] * grey + grain[..., None] * shades[leaf]) @ colours.T
    if dice.uniform() < 0.5:
        from scipy.ndimage import gaussian_filter  # here: it takes longer to load than most commands need

        picture = gaussian_filter(picture, dice.uniform(0.5, 4) * longer / 160, axes=(0, 1))
    return np.ascontiguousarray(picture.transpose(2, 0, 1))


def _radii(dice: np.random.Generator, n: int) -> Array:
    """Radii between SMALLEST and LARGEST whose density falls as r^-2 or r^-3, mostly the large ones first."""
    power, u = dice.integers(1, 3), dice.uniform(size=n)
    radii = (u * SMALLEST**-power + (1 - u) * LARGEST**-power) ** (-1 / power)
    return -np.sort(-radii) if dice.uniform() < 0.7 else radii


def _hiding(dice: np.random.Generator, size: tuple[int, int], centres: Array, radii: Array) -> NDArray[np.int32]:
    """Which shape is on top at each pixel, (H, W): 0 the ground, then in the order in which they fell."""
    canvas = Image.new("I", (size[1], size[0]), 0)
    draw = ImageDraw.Draw(canvas)
    for i, radius in enumerate(radii, 1):
        if dice.uniform() < 0.5:
            angles, reach = np.linspace(0, 2 * pi, ROUND, endpoint=False), np.ones(ROUND)
        else:
            corners = dice.integers(3, 9)
            angles, reach = np.sort(dice.uniform(0, 2 * pi, corners)), dice.uniform(0.6, 1.3, corners)
        along, across = radius * reach * np.cos(angles), radius * dice.uniform(0.15, 1) * reach * np.sin(angles)
        c, s = np.cos(turn := dice.uniform(0, 2 * pi)), np.sin(turn)
        x, y = centres[i, 1] + c * along - s * across, centres[i, 0] + s * along + c * across
        draw.polygon(list(zip(x.tolist(), y.tolist(), strict=True)), fill=i)
    return np.asarray(canvas)


def _noise(dice: np.random.Generator, size: tuple[int, int]) -> Array:
    """Noise (H, W) of unit variance whose power falls as f^-1.2 to f^-3."""
    f = np.hypot(np.fft.fftfreq(size[0])[:, None], np.fft.rfftfreq(size[1]))
    f[0, 0] = np.inf
    waves = np.fft.rfft2(dice.standard_normal(size)) * f ** (-dice.uniform(1.2, 3) / 2)
    noise = np.fft.irfft2(waves, size)
    return noise / max(noise.std(), 1e-12)
