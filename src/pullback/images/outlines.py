"""Outlines of the objects and of the clutter in procedural scenes, as signed distances (negative inside).

An outline takes coordinates in which the thing fills the disc of radius 1, and dice for its own variations. Distances
are exact near straight and round edges and bounds at corners, which is what anti-aliasing and bevels need.
Primitives after Inigo Quilez, "2D distance functions".
"""

from __future__ import annotations

from collections.abc import Callable
from math import cos, hypot, pi, sin

import numpy as np

from pullback.images.dice import Dice, Field

Outline = Callable[[Field, Field, Dice], Field]
Point = tuple[float, float]


def disc(x: Field, y: Field, centre: Point, radius: float) -> Field:
    """Distance to a disc."""
    return np.hypot(x - centre[0], y - centre[1]) - radius


def box(x: Field, y: Field, centre: Point, half: Point, rounding: float = 0.0) -> Field:
    """Distance to an upright box of the given half width and height, corners rounded."""
    dx, dy = np.abs(x - centre[0]) - (half[0] - rounding), np.abs(y - centre[1]) - (half[1] - rounding)
    return np.hypot(np.maximum(dx, 0), np.maximum(dy, 0)) + np.minimum(np.maximum(dx, dy), 0) - rounding


def stick(x: Field, y: Field, start: Point, end: Point, radius: float) -> Field:
    """Distance to a line segment with round ends."""
    ex, ey = end[0] - start[0], end[1] - start[1]
    along = np.clip(((x - start[0]) * ex + (y - start[1]) * ey) / (ex * ex + ey * ey), 0, 1)
    return np.hypot(x - start[0] - along * ex, y - start[1] - along * ey) - radius


def convex(x: Field, y: Field, *corners: Point) -> Field:
    """Distance to a convex polygon, its corners given clockwise or counter-clockwise: a bound beyond a corner."""
    (ax, ay), (bx, by), (cx, cy) = corners[:3]
    turn = 1.0 if (bx - ax) * (cy - by) - (by - ay) * (cx - bx) > 0 else -1.0
    distance = np.full(np.broadcast(x, y).shape, -np.inf)
    for (px, py), (qx, qy) in zip(corners, corners[1:] + corners[:1], strict=True):
        scale = turn / hypot(qx - px, qy - py)
        np.maximum(distance, (x - px) * ((qy - py) * scale) - (y - py) * ((qx - px) * scale), out=distance)
    return distance


def ellipse(x: Field, y: Field, centre: Point, half: Point, angle: float) -> Field:
    """Distance to a turned ellipse, to first order about its edge."""
    dx, dy = x - centre[0], y - centre[1]
    u, v = (dx * cos(angle) + dy * sin(angle)) / half[0], (dy * cos(angle) - dx * sin(angle)) / half[1]
    level = np.hypot(u, v)
    return level * (level - 1) / np.maximum(np.hypot(u / half[0], v / half[1]), 1e-9)


def union(*parts: Field) -> Field:
    """What is inside any part."""
    whole = parts[0]
    for part in parts[1:]:
        whole = np.minimum(whole, part)
    return whole


def without(whole: Field, hole: Field) -> Field:
    """What is inside the whole and outside the hole."""
    return np.maximum(whole, -hole)


def fold(x: Field, y: Field, count: int) -> tuple[Field, Field]:
    """Coordinates of the first of `count` equal sectors, its axis along +x, mirrored to y >= 0."""
    radius, angle, sector = np.hypot(x, y), np.arctan2(y, x), 2 * pi / count
    angle = angle - sector * np.round(angle / sector)
    return radius * np.cos(angle), radius * np.abs(np.sin(angle))


def ring(x: Field, y: Field, dice: Dice) -> Field:
    thickness = dice.uniform(0.16, 0.27)
    return np.abs(disc(x, y, (0, 0), 0.95 - thickness)) - thickness


def star(x: Field, y: Field, dice: Dice) -> Field:
    inner = dice.uniform(0.40, 0.54)
    u, v = fold(x, y, 5)
    tip, notch = 1.08, (inner * cos(pi / 5), inner * sin(pi / 5))
    scale = 1 / hypot(tip - notch[0], notch[1])
    return (u - tip) * notch[1] * scale + v * (tip - notch[0]) * scale


def cross(x: Field, y: Field, dice: Dice) -> Field:
    half, rounding = dice.uniform(0.22, 0.32), dice.uniform(0.0, 0.12)
    return union(box(x, y, (0, 0), (0.95, half), rounding), box(x, y, (0, 0), (half, 0.95), rounding))


def heart(x: Field, y: Field, dice: Dice) -> Field:
    point = dice.uniform(0.95, 1.05)
    lobes = union(disc(x, y, (-0.45, 0.35), 0.5), disc(x, y, (0.45, 0.35), 0.5))
    return union(lobes, convex(x, y, (0.0, -point), (0.845, 0.045), (0.45, 0.35), (-0.45, 0.35), (-0.845, 0.045)))


def mug(x: Field, y: Field, dice: Dice) -> Field:
    width, height = dice.uniform(0.46, 0.56), dice.uniform(0.62, 0.78)
    middle, taper = width - 0.78, dice.uniform(-0.06, 0.10)
    left, right = middle - width, middle + width
    body = convex(x, y, (left, height), (right, height), (right - taper, -height), (left + taper, -height))
    handle = np.abs(disc(x, y, (right + 0.08, 0.02), dice.uniform(0.34, 0.40))) - dice.uniform(0.09, 0.12)
    return union(body, np.maximum(handle, right - 0.08 - x))


def fish(x: Field, y: Field, dice: Dice) -> Field:
    lift, tail = dice.uniform(0.25, 0.45), dice.uniform(0.44, 0.58)
    radius = hypot(0.68, lift)
    body = np.maximum(disc(x, y, (0.3, lift), radius), disc(x, y, (0.3, -lift), radius))
    fan = convex(x, y, (-0.18, 0.0), (-1.0, tail), (-1.0, -tail))
    fin = convex(x, y, (0.42, 0.2), (0.0, radius - lift + 0.22), (-0.05, 0.1))
    return union(body, without(fan, disc(x, y, (-1.15, 0), 0.38)), fin)


def key(x: Field, y: Field, dice: Dice) -> Field:
    bow, shaft = dice.uniform(0.29, 0.35), dice.uniform(0.09, 0.12)
    head = np.abs(disc(x, y, (-0.58, 0), bow)) - 0.12
    blade = box(x, y, (0.35, 0), (0.65, shaft))
    teeth = [box(x, y, (at, 0.24), (0.075, dice.uniform(0.18, 0.24))) for at in (0.92, 0.66)]
    return union(head, blade, *teeth)


def clover(x: Field, y: Field, dice: Dice) -> Field:
    radius, spread = dice.uniform(0.36, 0.41), dice.uniform(0.43, 0.47)
    places = [(spread * cos(angle), 0.2 + spread * sin(angle)) for angle in (pi / 2, pi * 7 / 6, -pi / 6)]
    bend = dice.uniform(-0.25, 0.25)
    stem = stick(x + bend * (y * y - 0.2), y, (0.0, 0.2), (0.0, -0.95), 0.075)
    return union(disc(x, y, (0, 0.2), 0.15), *(disc(x, y, place, radius) for place in places), stem)


def butterfly(x: Field, y: Field, dice: Dice) -> Field:
    side, tilt = np.abs(x), dice.uniform(0.55, 0.75)
    upper = ellipse(side, y, (0.50, 0.36), (dice.uniform(0.50, 0.56), 0.34), tilt)
    lower = ellipse(side, y, (0.38, -0.42), (0.40, dice.uniform(0.24, 0.29)), -tilt - 0.15)
    feeler = stick(side, y, (0.03, 0.5), (0.24, 0.95), 0.035)
    return union(upper, lower, feeler, ellipse(x, y, (0, 0.0), (0.085, 0.68), 0.0))


def gear(x: Field, y: Field, dice: Dice) -> Field:
    u, v = fold(x, y, 8 + dice.integer(4))
    radius = np.hypot(x, y)
    teeth = np.maximum(u - 0.97, v + 0.35 * (u - 0.85) - dice.uniform(0.12, 0.15))
    return without(union(radius - 0.72, np.maximum(teeth, -u)), radius - dice.uniform(0.22, 0.34))


def moon(x: Field, y: Field, dice: Dice) -> Field:
    away, bite = dice.uniform(0.36, 0.52), dice.uniform(0.72, 0.80)
    return without(disc(x, y, (-0.12, 0), 0.95), disc(x, y, (away - 0.12, 0), bite))


def arrow(x: Field, y: Field, dice: Dice) -> Field:
    half, neck = dice.uniform(0.14, 0.22), dice.uniform(0.0, 0.25)
    wing = dice.uniform(0.58, 0.74)
    head = convex(x, y, (1.0, 0.0), (neck, wing), (neck, -wing))
    return union(head, box(x, y, ((neck - 0.95) / 2, 0), ((neck + 0.95) / 2 + 0.02, half)))


def bolt(x: Field, y: Field, dice: Dice) -> Field:
    width = dice.uniform(0.28, 0.38)
    upper = convex(x, y, (0.15, 1.0), (-0.55, -0.15), (0.1, -0.15), (0.15 + 1.5 * width, 1.0))
    lower = convex(x, y, (-0.15, -1.0), (0.55, 0.22), (-0.1 - width, 0.22))
    return union(upper, np.maximum(lower, -x - y - 1.2))


def umbrella(x: Field, y: Field, dice: Dice) -> Field:
    scallop = np.abs(np.abs(x) - 0.475) - 0.2375  # folds the rim into four equal bays
    canopy = without(np.maximum(disc(x, y, (0, 0.0), 0.95), -y), np.hypot(scallop, y + 0.1) - 0.26)
    shaft = stick(x, y, (0, 0.9), (0, -0.7), 0.06)
    hook = np.maximum(np.abs(disc(x, y, (0.19, -0.7), 0.19)) - dice.uniform(0.055, 0.075), y + 0.7)
    return union(canopy, shaft, hook)


def hourglass(x: Field, y: Field, dice: Dice) -> Field:
    waist, width, plate = dice.uniform(0.06, 0.14), dice.uniform(0.55, 0.68), dice.uniform(0.06, 0.11)
    slope = (width - waist) / 0.8
    glass = np.maximum((np.abs(x) - waist - slope * np.abs(y)) / hypot(1, slope), np.abs(y) - 0.85)
    return union(glass, box(x, np.abs(y), (0, 0.88), (width + 0.1, plate), 0.05))


def bone(x: Field, y: Field, dice: Dice) -> Field:
    knob, half = dice.uniform(0.22, 0.27), dice.uniform(0.12, 0.17)
    shaft = box(x, y, (0, 0), (0.72, half))
    return union(shaft, disc(np.abs(x), np.abs(y), (0.72, 0.2), knob))


OBJECTS: dict[str, Outline] = {
    outline.__name__: outline
    for outline in (
        ring, star, cross, heart, mug, fish, key, clover, butterfly, gear, moon, arrow, bolt, umbrella, hourglass, bone,
    )
}  # fmt: skip


def pebble(x: Field, y: Field, dice: Dice) -> Field:
    squeeze, lean = dice.uniform(0.65, 1.0), dice.uniform(-0.3, 0.3)
    return ellipse(x + lean * y * y, y, (0, 0), (0.95, 0.9 * squeeze), 0.0)


def tile(x: Field, y: Field, dice: Dice) -> Field:
    return box(x, y, (0, 0), (0.8, dice.uniform(0.35, 0.8)), dice.uniform(0.0, 0.25))


def wedge(x: Field, y: Field, dice: Dice) -> Field:
    return convex(x, y, (0.95, 0.0), (-0.6, dice.uniform(0.5, 0.8)), (-0.6, -dice.uniform(0.5, 0.8)))


def rod(x: Field, y: Field, dice: Dice) -> Field:
    return stick(x, y, (-0.85, 0), (0.85, 0), dice.uniform(0.1, 0.22))


def hexagon(x: Field, y: Field, dice: Dice) -> Field:
    return fold(x, y, 6)[0] - 0.85


def dome(x: Field, y: Field, dice: Dice) -> Field:
    return np.maximum(disc(x, y, (0, -0.3), 0.95), dice.uniform(-0.35, 0.0) - y)


def slab(x: Field, y: Field, dice: Dice) -> Field:
    slant = dice.uniform(0.2, 0.45)
    return convex(x, y, (-0.85 - slant, -0.4), (0.85 - slant, -0.4), (0.85, 0.4), (-0.85, 0.4))


CLUTTER: tuple[Outline, ...] = (pebble, tile, wedge, rod, hexagon, dome, slab)
