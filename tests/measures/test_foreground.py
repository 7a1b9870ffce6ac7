"""Foreground energy and correlation by hand, of tensors, arrays and nested lists alike."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import pullback as pb
from pullback.errors import ImageError, MaskError
from pullback.measures import correlation

VALUES = np.arange(12, dtype=np.float32).reshape(3, 2, 2)  # energy by pixel: 80, 107, 140, 179
MASK = np.array([[True, False], [False, True]])
UNKNOWN = [[1, math.nan], [0.0, 0.5]]


def read_only(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flags.writeable = False
    return array


KINDS: dict[str, Callable[[np.ndarray], Any]] = {
    "tensor": torch.from_numpy,
    "array": lambda array: array,
    "array turned over": lambda array: np.ascontiguousarray(array[..., ::-1])[..., ::-1],
    "array that is read only": read_only,
    "nested lists": np.ndarray.tolist,
    "integers": lambda array: array.astype(np.uint16),
}


@pytest.mark.parametrize("mask", KINDS)
@pytest.mark.parametrize("picture", KINDS)
def test_energy_inside_a_mask(picture: str, mask: str) -> None:
    energy = pb.foreground_energy(KINDS[picture](VALUES), KINDS[mask](MASK))
    assert energy.share == pytest.approx((80 + 179) / 506)
    assert energy.area == 0.5
    assert energy.lift == pytest.approx(2 * 259 / 506)


def test_unknown_pixels_leave_both_sums() -> None:
    energy = pb.foreground_energy(VALUES[0], UNKNOWN)
    assert energy.share == pytest.approx((0 + 0.5 * 9) / (0 + 4 + 9))
    assert energy.area == 0.5


def test_a_pillow_mask() -> None:
    assert pb.foreground_energy(VALUES, Image.fromarray(MASK.astype(np.uint8))).area == 0.5


def test_no_energy_and_no_mask_are_not_a_number() -> None:
    assert math.isnan(pb.foreground_energy(0 * VALUES, MASK).share)
    empty = pb.foreground_energy(VALUES, 0 * MASK)
    assert math.isnan(empty.share) and math.isnan(empty.lift) and empty.area == 0


@pytest.mark.parametrize(
    ("picture", "mask", "error", "words"),
    [
        (VALUES, MASK[:1], MaskError, r"mask of size \(1, 2\) for a picture of size \(2, 2\)"),
        (VALUES, 2 * MASK, MaskError, "reach from 0 to 2"),
        (VALUES, "mask.png", MaskError, "a mask of type str cannot be read as real numbers"),
        (VALUES, None, MaskError, "a mask of type NoneType cannot"),
        (VALUES, [[1, 0], [1]], MaskError, "a mask of type list cannot"),
        ("photo.png", MASK, ImageError, "a picture of type str cannot"),
        (VALUES + 1j, MASK, ImageError, "complex"),
        (
            torch.from_numpy(VALUES + 1j),
            MASK,
            ImageError,
            "a picture: expected a dense tensor of real numbers, got a complex",
        ),
        (VALUES, torch.ones(2, 2).to_sparse(), MaskError, "a mask: .*sparse_coo"),
        (torch.ones(3, 2, 2, device="meta"), MASK, ImageError, "meta"),
    ],
)
def test_what_cannot_be_measured(picture: Any, mask: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        pb.foreground_energy(picture, mask)


def test_correlation() -> None:
    other = VALUES[::-1].copy()
    expected = np.corrcoef(VALUES.ravel(), other.ravel())[0, 1]
    assert correlation(torch.from_numpy(VALUES), other) == pytest.approx(expected)
    assert correlation(VALUES.tolist(), -2 * VALUES + 3) == pytest.approx(-1)
    assert math.isnan(correlation(VALUES, 0 * VALUES))
    with pytest.raises(ImageError, match=r"shapes \(3, 2, 2\) and \(2, 2\)"):
        correlation(VALUES, MASK)
    with pytest.raises(ImageError, match="a picture of type str"):
        correlation(VALUES, "photo.png")
    with pytest.raises(ImageError, match="real numbers, got a complex64 one"):
        correlation(torch.tensor([1j, 2]), torch.tensor([1, 0]))
