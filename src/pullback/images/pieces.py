"""Flat things lying in a procedural scene: an outline in a pose becomes a coverage, a bevelled surface and a shadow."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, cos, floor, pi, sin

import numpy as np

from pullback.images.dice import Dice, Field
from pullback.images.outlines import Outline
from pullback.images.textures import Tone, Window, paint


@dataclass(frozen=True)
class Pose:
    """Where a thing lies: centre and radius in sides of the picture, angles in radians, deformation without unit."""

    x: float
    y: float
    radius: float
    angle: float
    stretch: float = 1.0
    bend: float = 0.0
    phase: float = 0.0
    mirror: float = 1.0

    def local(self, window: Window) -> tuple[Field, Field]:  # each (h, w)
        """Coordinates in which the thing fills the unit disc."""
        u, v = window.turned(self.angle, 1 / self.radius, self.x, self.y)
        u, v = u * (self.mirror / self.stretch), v * self.stretch
        return (u + self.bend * np.sin(2 * v + self.phase) if self.bend else u), v


@dataclass(frozen=True)
class Sun:
    """Light from one side: the unit direction towards it, the darkness of shadows and the height of bevels, 0..1."""

    direction: tuple[float, float]
    darkness: float
    relief: float


@dataclass(frozen=True)
class Piece:
    """A thing ready to be laid down, on a rectangle of the picture: `coverage` is the share of each pixel that it takes."""

    rows: slice
    columns: slice
    coverage: Field  # (h, w), 0..1
    colour: Field  # (3, h, w)
    shadow: Field  # (h, w), share of the light that it takes from what lies below

    def onto(self, canvas: Field) -> Field:
        """The canvas (3, size, size) with this piece and its shadow on it."""
        result = canvas.copy()
        below = result[:, self.rows, self.columns]
        below *= 1 - self.shadow
        below += self.coverage * (self.colour - below)
        return result

    def spread(self, size: int) -> Field:
        """The coverage on the whole picture, (size, size)."""
        whole = np.zeros((size, size))
        whole[self.rows, self.columns] = self.coverage
        return whole


def place(size: int, outline: Outline, pose: Pose, sun: Sun, shape: Dice, surface: Dice, base: Tone) -> Piece:
    """Lay an outline down on a picture of the given size; dice `shape` vary the outline, `surface` its texture about `base`."""
    reach = 1.25 * pose.radius + 0.05
    window = Window(size, _span(pose.y, reach, size), _span(pose.x, reach, size))
    fine = outline(*pose.local(window.doubled()), shape) * pose.radius
    distance = _halved(fine)
    coverage = _halved(np.clip(0.5 - fine * (2 * size), 0, 1))
    colour = paint(window, surface, base) * _bevel(distance, size, sun, 0.22 * pose.radius)
    return Piece(window.rows, window.columns, coverage, colour, _shadow(distance, size, sun, 0.14 * pose.radius))


def _span(centre: float, reach: float, size: int) -> slice:
    """The pixels of one axis within reach of the centre, at least two."""
    start = min(max(floor((centre - reach) * size), 0), size - 2)
    return slice(start, max(min(ceil((centre + reach) * size), size), start + 2))


def _halved(fine: Field) -> Field:
    """Means over blocks of 2 x 2: the supersampled edge becomes the share of the pixel."""
    return 0.25 * (fine[::2, ::2] + fine[1::2, ::2] + fine[::2, 1::2] + fine[1::2, 1::2])


def _bevel(distance: Field, size: int, sun: Sun, width: float) -> Field:
    """Brightness of a rim that slopes towards the outline: the side that faces the sun is lighter."""
    down, right = np.gradient(distance * size)
    slope = np.clip(1 + distance / width, 0, 1)
    return 1 + sun.relief * slope * np.clip(right * sun.direction[0] + down * sun.direction[1], -1, 1)


def _shadow(distance: Field, size: int, sun: Sun, height: float) -> Field:
    """A soft shadow away from the sun; rounded to whole pixels, which nobody sees under a soft edge."""
    right, down = (round(-height * size * part) for part in sun.direction)
    high, wide = distance.shape
    rows, columns = np.clip(np.arange(high) - down, 0, high - 1), np.clip(np.arange(wide) - right, 0, wide - 1)
    return sun.darkness * np.clip(0.5 - distance[rows][:, columns] / (0.5 * height + 0.01), 0, 1)


def sunlight(dice: Dice) -> Sun:
    """A sun at a random side."""
    angle = dice.uniform(0, 2 * pi)
    return Sun((cos(angle), sin(angle)), dice.uniform(0.2, 0.6), dice.uniform(0.15, 0.5))
