"""Procedural scenes: the same for ever, exact masks, and nothing but the outline that tells the class."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pullback.errors import OptionError
from pullback.images.dice import Dice
from pullback.images.outlines import OBJECTS
from pullback.images.scenes import CLASSES, Layers, layers, scene

DIGESTS = {  # sha256 of image and mask; a change here changes the data that the shipped network was trained and tested on
    0: "755f2300b974befc23cbf5ab979bfaa39a2da1043099c778ad05629d29d47f45",
    1: "8bada75c66f766a3c10700c94c2d07971dff01d1cdd115b248ee69ff6f233f30",
    2: "bb426353772f2ccd3d9700f31159dfe5b3a1fe6266d7b2f8c5fee24025f2d27a",
    12_345: "8654c47dd59deab8f32351e4e4d3f5b61191af1c5ec53ac65ec845ebf9e9f69f",
    10_000_000: "e1bb2e37bc8df7b9a9d763592a92e609b3e498c106a33e22cf8b6f0afa303822",
    20_000_000: "6bcb35fba6b2b9c6deac51c1e1bc43ee5e5a48e74f90bbe00493c2a221f00b56",
    1_099_511_627_776: "f3b221e4a9290b2622a2813cf349ef1df388e39e3fb70e9cac602bdf25f64938",
}


@pytest.mark.parametrize("seed", DIGESTS)
def test_a_seed_gives_the_same_picture_for_ever(seed: int) -> None:
    drawn = scene(seed)
    assert hashlib.sha256(drawn.image.tobytes() + drawn.mask.tobytes()).hexdigest() == DIGESTS[seed]


def test_a_scene_is_what_it_says() -> None:
    drawn = scene(7)
    assert (drawn.image.shape, drawn.image.dtype) == ((128, 128, 3), np.uint8)
    assert (drawn.mask.shape, drawn.mask.dtype) == ((128, 128), np.bool_)
    assert drawn.name == CLASSES[drawn.label] and drawn.seed == 7
    again = scene(7)
    assert np.array_equal(drawn.image, again.image) and np.array_equal(drawn.mask, again.mask)


def test_seeds_differ() -> None:
    assert len({scene(seed, size=32).image.tobytes() for seed in range(100)}) == 100


def test_every_class_is_about_equally_likely() -> None:
    counts = np.bincount([scene(seed, size=16).label for seed in range(800)], minlength=len(CLASSES))
    assert ((counts - 50) ** 2 / 50).sum() < 37.7  # chi-square with 15 degrees of freedom, 0.1 %


def test_a_label_can_be_chosen() -> None:
    for label, name in enumerate(CLASSES):
        drawn = scene(3, label=label, size=32)
        assert (drawn.label, drawn.name) == (label, name)


def painted(parts: Layers, level: float) -> np.ndarray:
    """The scene before light and grain, the object painted in one grey and casting no shadow."""
    thing = parts.object
    canvas = parts.ground.copy()
    below = canvas[:, thing.rows, thing.columns]
    below += thing.coverage * (level - below)
    for cover in parts.covers:
        canvas = cover.onto(canvas)
    return canvas


@pytest.mark.parametrize("seed", range(12))
def test_the_mask_is_where_the_object_is_seen(seed: int) -> None:
    parts = layers(seed, seed % len(CLASSES), 128)
    through_shadow = np.ones((128, 128))
    for cover in parts.covers:
        through_shadow[cover.rows, cover.columns] *= 1 - cover.shadow
    share = (
        painted(parts, 1.0) - painted(parts, 0.0)
    ) / through_shadow  # of the pixel's light that comes from the object
    assert np.allclose(share, parts.visible(), atol=1e-12)
    assert np.array_equal(scene(seed, label=seed % len(CLASSES)).mask, share.mean(0) >= 0.5)


@pytest.mark.parametrize("name", CLASSES)
def test_coverage_is_the_share_of_the_pixel_inside_the_outline(name: str) -> None:
    label = CLASSES.index(name)
    coarse, fine = (layers(11, label, size).object.spread(size) for size in (64, 512))
    inside = (fine > 0.5).reshape(64, 8, 64, 8).mean((1, 3))
    assert np.abs(coarse - inside).max() < 0.35  # a tip thinner than a pixel is the worst case
    assert np.abs(coarse - inside).mean() < 0.003


@pytest.mark.parametrize("seed", [0, 5])
def test_only_the_outline_depends_on_the_class(seed: int) -> None:
    first = layers(seed, 0, 32)
    for label in range(1, len(CLASSES)):
        other = layers(seed, label, 32)
        assert np.array_equal(first.ground, other.ground)
        assert np.array_equal(first.light, other.light) and np.array_equal(first.grain, other.grain)
        assert all(
            np.array_equal(a.onto(first.ground), b.onto(first.ground))
            for a, b in zip(first.covers, other.covers, strict=True)
        )
        assert not np.array_equal(first.object.coverage, other.object.coverage)


def test_the_surface_of_the_object_does_not_depend_on_the_class() -> None:
    first, other = (layers(9, label, 64).object for label in (0, 3))
    deep = np.minimum(first.coverage, other.coverage) == 1
    ratio = first.colour[:, deep] / other.colour[:, deep]  # bevels differ, one factor for the three colours
    assert deep.sum() > 50 and np.allclose(ratio, ratio[0], rtol=1e-9)


def test_most_of_the_object_is_seen() -> None:
    for seed in range(160):
        parts = layers(seed, seed % len(CLASSES), 32)
        assert parts.visible().sum() > 0.6 * parts.object.spread(32).sum()
        assert parts.visible().mean() > 0.03


@pytest.mark.parametrize("size", [16, 17, 64, 100, 200])
def test_every_size_shows_the_same_scene(size: int) -> None:
    small, large = scene(4, size=size), scene(4, size=128)
    assert small.image.shape == (size, size, 3) and small.mask.shape == (size, size)
    assert abs(small.mask.mean() - large.mask.mean()) < 0.03
    assert np.abs(small.image.mean((0, 1)) - large.image.mean((0, 1))).max() < 4


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**64), label=st.integers(0, len(CLASSES) - 1))
def test_any_seed_draws(seed: int, label: int) -> None:
    drawn = scene(seed, label=label, size=32)
    assert drawn.mask.any() and not drawn.mask.all()
    assert drawn.image.std() > 5


@pytest.mark.parametrize("name", CLASSES)
def test_outlines_fill_the_unit_disc(name: str) -> None:
    axis = np.linspace(-1.5, 1.5, 301)
    x, y = np.broadcast_arrays(axis[None, :], axis[:, None])
    for seed in range(5):
        inside = OBJECTS[name](x, y, Dice(seed)) < 0
        assert 0.8 < np.hypot(x, y)[inside].max() < 1.25


@pytest.mark.parametrize(
    "arguments", [{"seed": -1}, {"seed": 1.5}, {"seed": True}, {"seed": 0, "label": 16}, {"seed": 0, "label": -1},
                  {"seed": 0, "size": 15}, {"seed": 0, "size": 64.0}],
)  # fmt: skip
def test_nonsense_is_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(OptionError, match="of a scene is"):
        scene(**arguments)
