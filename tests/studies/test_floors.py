"""Floors by hand."""

from __future__ import annotations

import torch

from pullback.pictures import Display
from pullback.studies.floors import floors

DISPLAY = Display((0.4, 0.5, 0.6), (0.2, 0.25, 0.5))


def test_constant_is_mid_grey_after_denormalising() -> None:
    found = floors(torch.randn(3, 16, 24, generator=torch.Generator().manual_seed(0)), DISPLAY)["constant 0.5"]
    assert torch.allclose(DISPLAY.colours(found), torch.full((3, 16, 24), 0.5, dtype=torch.float64))


def test_mean_colour_is_the_images_own() -> None:
    image = torch.arange(2 * 3.0).reshape(3, 1, 2).repeat(1, 16, 8)
    found = floors(image, DISPLAY)["mean colour"]
    assert torch.equal(found, torch.tensor([0.5, 2.5, 4.5])[:, None, None].expand(3, 16, 16))


def test_thumbnail_keeps_a_slope_and_forgets_what_is_finer_than_its_grid() -> None:
    slope = torch.linspace(0, 1, 64, dtype=torch.float64).expand(3, 64, 64)
    chequers = (torch.arange(64)[:, None] + torch.arange(64)) % 2 - 0.5
    found = floors(slope + chequers, DISPLAY)["8x8 thumbnail"]
    assert (found - slope)[:, :, 8:-8].abs().max() < 0.02  # at the border the enlargement is flat
    assert found.shape == (3, 64, 64)


def test_a_picture_of_eight_by_eight_is_its_own_thumbnail() -> None:
    image = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(floors(image, DISPLAY)["8x8 thumbnail"], image, atol=1e-6)
