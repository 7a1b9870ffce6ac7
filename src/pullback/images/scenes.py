"""Procedural scenes: one textured object on a textured, cluttered ground, with its class and its exact mask.

A seed gives the same picture for ever: random numbers are raw PCG64 words, and all arithmetic is float64, rounded once.
Only the object's outline depends on the class; ground, clutter, textures, colours, pose, light and occluders have random
streams of their own, so that nothing but the outline can tell the class.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi, sin

import numpy as np
from numpy.typing import NDArray

from pullback.errors import OptionError
from pullback.images.dice import Dice, Field
from pullback.images.outlines import CLUTTER, OBJECTS
from pullback.images.pieces import Piece, Pose, Sun, place, sunlight
from pullback.images.textures import Tone, Window, contrasting, noise, paint, tone

CLASSES: tuple[str, ...] = tuple(OBJECTS)

_CLASS, _GROUND, _POSE, _OUTLINE, _SURFACE, _COVERS, _LIGHT, _GRAIN = range(8)  # one independent stream of numbers each


@dataclass(frozen=True)
class Scene:
    """A picture with its class and the pixels in which the object is what one sees."""

    image: NDArray[np.uint8]  # (size, size, 3), RGB
    mask: NDArray[np.bool_]  # (size, size)
    label: int
    name: str
    seed: int


@dataclass(frozen=True)
class Layers:
    """A scene before it is put together, back to front; colours are in [0, 1] apart from highlights."""

    ground: Field  # (3, size, size), with the clutter
    object: Piece
    covers: tuple[Piece, ...]  # what lies on top of the object
    light: Field  # (size, size), a factor on everything below
    grain: Field  # (3, size, size), added at the end

    def visible(self) -> Field:  # (size, size)
        """The share of each pixel in which the object is seen, 0..1."""
        size = len(self.light)
        share = self.object.spread(size)
        for cover in self.covers:
            share = share * (1 - cover.spread(size))
        return share

    def picture(self) -> NDArray[np.uint8]:  # (size, size, 3)
        """The layers put together."""
        canvas = self.ground
        for piece in (self.object, *self.covers):
            canvas = piece.onto(canvas)
        levels = np.rint(255 * np.clip(canvas * self.light + self.grain, 0, 1)).astype(np.uint8)
        return np.ascontiguousarray(levels.transpose(1, 2, 0))


def scene(seed: int, *, label: int | None = None, size: int = 128) -> Scene:
    """The scene of a seed: a picture of one object of `CLASSES`, with its mask.

    Args:
        seed: any integer of at least 0.
        label: class number; by default the seed's own (each class equally likely). Another label changes the outline of the
            object, and nothing else.
        size: pixels a side, at least 16. `builtin:scenes` was trained at 128; other sizes show the same scene, finer or coarser.

    Returns:
        A `Scene`: `image` is 8-bit RGB; `mask` is True where the object is seen in at least half of the pixel.

    Raises:
        OptionError: a seed, label or size that is not an integer of that range.
    """
    _require("seed", seed, 0, None)
    _require("size", size, 16, None)
    if label is None:
        label = Dice(seed, _CLASS).integer(len(CLASSES))
    _require("label", label, 0, len(CLASSES) - 1)
    parts = layers(seed, label, size)
    return Scene(parts.picture(), parts.visible() >= 0.5, int(label), CLASSES[label], int(seed))


def layers(seed: int, label: int, size: int) -> Layers:
    """The parts of a scene; arguments as for `scene`."""
    window = Window.whole(size)
    light = Dice(seed, _LIGHT)
    sun = sunlight(light)

    dice = Dice(seed, _GROUND)
    base = tone(dice)
    ground = paint(window, dice, base)
    for _ in range(3 + dice.integer(4)):
        ground = _stray(size, dice, sun, base, _anywhere(dice)).onto(ground)

    pose, surface = _pose(Dice(seed, _POSE)), Dice(seed, _SURFACE)
    outline = OBJECTS[CLASSES[label]]
    thing = place(size, outline, pose, sun, Dice(seed, _OUTLINE), surface, contrasting(surface, base))

    dice = Dice(seed, _COVERS)
    covers = tuple(_stray(size, dice, sun, base, _beside(dice, pose)) for _ in range(dice.integer(3)))
    return Layers(ground, thing, covers, _illumination(window, light, sun), _grain(size, Dice(seed, _GRAIN)))


def _stray(size: int, dice: Dice, sun: Sun, base: Tone, pose: Pose) -> Piece:
    """One piece of clutter, which stands off the ground as the object does."""
    return place(size, dice.choice(CLUTTER), pose, sun, dice, dice, contrasting(dice, base))


def _pose(dice: Dice) -> Pose:
    """The object's pose: large enough to be recognised, inside the picture but for a tip."""
    radius = dice.uniform(0.27, 0.44)
    room = (0.92 * radius, 1 - 0.92 * radius)
    return Pose(
        x=dice.uniform(*room),
        y=dice.uniform(*room),
        radius=radius,
        angle=dice.uniform(0, 2 * pi),
        stretch=dice.uniform(0.88, 1.14),
        bend=dice.uniform(-0.1, 0.1),
        phase=dice.uniform(0, 2 * pi),
        mirror=dice.sign(),
    )


def _anywhere(dice: Dice) -> Pose:
    """A pose of clutter: anywhere, smaller than the objects."""
    return Pose(dice.uniform(), dice.uniform(), dice.uniform(0.06, 0.18), dice.uniform(0, 2 * pi))


def _beside(dice: Dice, pose: Pose) -> Pose:
    """A pose of something that hides a part of the object's rim, never most of it."""
    away, around = pose.radius * dice.uniform(0.6, 1.0), dice.uniform(0, 2 * pi)
    radius = pose.radius * dice.uniform(0.25, 0.45)
    return Pose(pose.x + away * cos(around), pose.y + away * sin(around), radius, dice.uniform(0, 2 * pi))


def _illumination(window: Window, dice: Dice, sun: Sun) -> Field:
    """Exposure, falling off away from the sun, under drifting soft shadows."""
    along = sun.direction[0] * (window.x - 0.5) + sun.direction[1] * (window.y - 0.5)
    drift = np.clip(2 * noise(window, dice, cells=2, octaves=2) - dice.uniform(0, 0.6), 0, 1)
    return dice.uniform(0.85, 1.15) * (1 + dice.uniform(0, 0.55) * along) * (1 - dice.uniform(0, 0.4) * drift)


def _grain(size: int, dice: Dice) -> Field:
    """The camera's noise."""
    return dice.uniform(0.0, 0.05) * (dice.field(3, size, size) - 0.5)


def _require(what: str, value: object, low: int, high: int | None) -> None:
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or value < low or (high is not None and value > high):  # type: ignore[operator]
        bounds = f"at least {low}" if high is None else f"{low} to {high}"
        raise OptionError(f"The {what} of a scene is {value!r}; expected an integer, {bounds}.")
