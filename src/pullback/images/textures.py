"""Textures of procedural scenes: a pattern in [0, 1] on a window of the picture, coloured by a random palette.

Clouds are 1/f value noise (octaves of smoothly interpolated random grids); every pattern has its own random place, size and
direction, and palettes are drawn in OKLab (Ottosson 2020), in which a step of lightness or hue looks equally large.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import cos, pi, sin

import numpy as np

from pullback.images.dice import Dice, Field


@dataclass(frozen=True)
class Window:
    """A rectangle of pixels of the picture, `size` pixels a side; the whole picture is the unit square."""

    size: int
    rows: slice
    columns: slice

    @classmethod
    def whole(cls, size: int) -> Window:
        """The whole picture."""
        return cls(size, slice(0, size), slice(0, size))

    @property
    def x(self) -> Field:  # (w,)
        """Centres of the columns."""
        return _centres(self.size)[self.columns]

    @property
    def y(self) -> Field:  # (h, 1)
        """Centres of the rows."""
        return _centres(self.size)[self.rows, None]

    def doubled(self) -> Window:
        """The same rectangle in pixels of half the size."""
        return Window(2 * self.size, *(slice(2 * part.start, 2 * part.stop) for part in (self.rows, self.columns)))

    def turned(self, angle: float, scale: float, x: float = 0.0, y: float = 0.0) -> tuple[Field, Field]:  # each (h, w)
        """Coordinates in a frame about the point (x, y), turned by `angle` and `scale` times as fine."""
        c, s = scale * cos(angle), scale * sin(angle)
        right, down = self.x - x, self.y - y
        return c * right + s * down, c * down - s * right


@lru_cache(maxsize=64)
def _centres(size: int) -> Field:
    return _constant((np.arange(size) + 0.5) / size)


@lru_cache(maxsize=256)
def _interpolation(size: int, cells: int) -> Field:  # (size, cells + 1)
    """Smoothstep weights from `cells + 1` equally spaced knots to the centres of the pixels."""
    near = np.maximum(1 - np.abs(_centres(size)[:, None] * cells - np.arange(cells + 1)), 0)
    return _constant(near * near * (3 - 2 * near))


def _constant(values: Field) -> Field:
    values.setflags(write=False)  # it is kept in a cache
    return values


def noise(window: Window, dice: Dice, *, cells: int = 3, octaves: int = 5, roughness: float = 0.5) -> Field:  # (h, w)
    """1/f value noise, mean about 0 and range about [-1, 1]; the coarsest of its grids has `cells` cells a side."""
    total: Field = np.zeros(())
    for octave in range(octaves):
        count = cells * 2**octave
        knots = (2 * dice.field(count + 1, count + 1) - 1) * roughness**octave
        weights = _interpolation(window.size, count)
        total = total + weights[window.rows] @ knots @ weights[window.columns].T
    return total


def clouds(window: Window, dice: Dice) -> Field:
    return 0.5 + 0.5 * noise(window, dice, cells=2 + dice.integer(5), roughness=dice.uniform(0.45, 0.75))


def stripes(window: Window, dice: Dice) -> Field:
    across, _ = window.turned(dice.uniform(0, pi), dice.uniform(4, 16))
    wobble = dice.uniform(0, 1.2) * noise(window, dice, cells=3, octaves=2)
    return 0.5 + 0.5 * _edge(np.sin(2 * pi * across + wobble), dice.uniform(0.0, 3.0))


def checks(window: Window, dice: Dice) -> Field:
    u, v = window.turned(dice.uniform(0, pi), dice.uniform(2.5, 9))
    return 0.5 + 0.5 * _edge(np.sin(2 * pi * u) * np.sin(2 * pi * (v + dice.uniform())), dice.uniform(1.0, 6.0))


def dots(window: Window, dice: Dice) -> Field:
    u, v = window.turned(dice.uniform(0, pi), dice.uniform(5, 14))
    v = v + 0.5 * (np.floor(u) % 2)
    distance = np.hypot(u - np.floor(u) - 0.5, v - np.floor(v) - 0.5)
    return 1 / (1 + np.exp(25 * (distance - dice.uniform(0.2, 0.36))))


def marble(window: Window, dice: Dice) -> Field:
    across, _ = window.turned(dice.uniform(0, pi), dice.uniform(1.5, 5))
    warp = noise(window, dice, cells=3, octaves=4)
    return np.abs(np.sin(pi * across + dice.uniform(1.5, 4.0) * warp)) ** 0.7


def cells(window: Window, dice: Dice) -> Field:
    count = 10 + dice.integer(14)
    nearest, second, shade = np.full((3, len(window.y), len(window.x)), np.inf)
    for x, y, grey in dice.field(count, 3):
        squared = (window.x - (1.2 * x - 0.1)) ** 2 + (window.y - (1.2 * y - 0.1)) ** 2
        shade = np.where(squared < nearest, grey, shade)
        second = np.minimum(second, np.maximum(nearest, squared))
        nearest = np.minimum(nearest, squared)
    return np.clip(25 * (np.sqrt(second) - np.sqrt(nearest)), 0, 1) * (0.3 + 0.7 * shade)


def weave(window: Window, dice: Dice) -> Field:
    u, v = window.turned(dice.uniform(0, pi), dice.uniform(5, 12))
    over = (np.floor(u) + np.floor(v)) % 2
    thread = np.where(over > 0, np.sin(pi * u) ** 2, np.sin(pi * v) ** 2)
    return 0.15 + 0.55 * thread + 0.3 * over


def bricks(window: Window, dice: Dice) -> Field:
    u, v = window.turned(dice.choice((0.0, pi / 2)) + dice.uniform(-0.5, 0.5), dice.uniform(3, 7))
    course = np.floor(2 * v)
    u = u + 0.5 * (course % 2)
    joint = np.minimum(0.5 - np.abs(u - np.floor(u) - 0.5), 0.25 - np.abs(v - course / 2 - 0.25))
    tone = np.sin(12.9898 * np.floor(u) + 78.233 * course + dice.uniform(0, 2 * pi))
    return np.clip(joint * 18, 0, 1) * (0.6 + 0.4 * tone)


def _edge(wave: Field, steepness: float) -> Field:
    """A wave in [-1, 1] made steeper, towards a square wave."""
    return wave * (1 + steepness) / (1 + steepness * np.abs(wave))


PATTERNS = (clouds, stripes, checks, dots, marble, cells, weave, bricks)


@dataclass(frozen=True)
class Tone:
    """A colour of OKLab in polar form: lightness 0..1, chroma 0 (grey) to about 0.2, hue in radians."""

    lightness: float
    chroma: float
    hue: float

    def rgb(self) -> Field:  # (3, 1, 1)
        """The sRGB colour in [0, 1], clipped to what a screen can show."""
        a, b = self.chroma * cos(self.hue), self.chroma * sin(self.hue)
        long = (self.lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
        medium = (self.lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
        short = (self.lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
        linear = (
            4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
            -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
            -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
        )
        return np.array([min(max(value, 0.0), 1.0) ** (1 / 2.2) for value in linear])[:, None, None]


def tone(dice: Dice) -> Tone:
    """Any colour, from greyish to vivid."""
    return Tone(dice.uniform(0.35, 0.85), dice.uniform(0.02, 0.17), dice.uniform(0, 2 * pi))


def contrasting(dice: Dice, against: Tone) -> Tone:
    """A colour that stands off another one: always in lightness, often in hue."""
    step = dice.uniform(0.17, 0.36) * (1 if against.lightness < 0.6 else -1)
    turn = dice.uniform(0.7, 2 * pi - 0.7)
    return Tone(against.lightness + step, dice.uniform(0.03, 0.18), against.hue + turn)


def paint(window: Window, dice: Dice, base: Tone) -> Field:  # (3, h, w)
    """A surface whose colours lie about the base: one pattern between two tones, and fine mottling over it."""
    spread, turn = dice.uniform(0.05, 0.13) * dice.sign(), dice.uniform(-1.0, 1.0)
    first = Tone(base.lightness - spread, base.chroma, base.hue + turn).rgb()
    second = Tone(base.lightness + spread, base.chroma, base.hue - turn).rgb()
    pattern = np.clip(dice.choice(PATTERNS)(window, dice), 0, 1)
    mottling = 1 + dice.uniform(0.02, 0.12) * noise(window, dice, cells=12, octaves=3, roughness=0.8)
    return (first + pattern * (second - first)) * mottling
