"""Maps on an image: colours that mean what the legend says, outlines where the field ends."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from pullback.errors import ImageError
from pullback.report.overlay import outlined, saliency_view


def test_every_colour_of_the_map_is_its_value_on_the_legend():
    values = torch.linspace(0, 4, 20 * 30, dtype=torch.float64).view(20, 30)
    view = saliency_view(Image.new("RGB", (30, 20), "gray"), values)
    legend = np.asarray(view.legend)[0].astype(int)
    drawn = np.asarray(view.colours).reshape(-1, 3).astype(int)
    nearest = np.abs(drawn[:, None] - legend[None]).sum(-1).argmin(1) / 255 * view.top
    assert np.abs(nearest - values.flatten().clamp(max=view.top).numpy()).max() < view.top / 100
    assert view.top == values.flatten()[593].item()
    assert view.above == pytest.approx(6 / 600)
    assert (view.low, view.high) == (0, 4)


def test_lightness_of_the_legend_rises_evenly():
    legend = saliency_view(Image.new("RGB", (2, 2)), torch.rand(2, 2)).legend.convert("L")
    steps = np.diff(np.asarray(legend)[0].astype(int))
    assert steps.min() >= -1
    assert steps.max() <= 2


def test_a_map_of_zeros_and_a_map_of_few_peaks_are_drawn():
    dark = saliency_view(Image.new("RGB", (20, 20)), torch.zeros(20, 20))
    assert dark.top == 0
    assert len(set(np.asarray(dark.colours).reshape(-1, 3).sum(1))) == 1
    peaks = torch.zeros(20, 20)
    peaks[3, 4] = 7.0
    view = saliency_view(Image.new("RGB", (20, 20)), peaks.half())
    assert view.top == 7
    assert view.above == 0


def test_outline_runs_along_the_inside_of_the_field():
    inside = torch.zeros(120, 120, dtype=torch.bool)
    inside[20:60, 30:70] = True
    drawn = np.asarray(outlined(Image.new("RGB", (120, 120), (200, 100, 50)), inside))
    assert drawn[40, 30:35, 0].tolist() == [0, 255, 255, 200, 200]
    assert drawn[40, 65:70, 0].tolist() == [200, 200, 255, 255, 0]
    assert drawn[10, 10].tolist() == [70, 35, 17]
    assert drawn[40, 50].tolist() == [200, 100, 50]


def test_a_field_of_the_whole_image_is_framed():
    drawn = np.asarray(outlined(Image.new("RGB", (120, 150), "gray"), torch.ones(150, 120, dtype=torch.bool)))
    assert (drawn[0] == 0).all()
    assert (drawn[:, -1] == 0).all()
    assert (drawn[1, 1:-1] == 255).all()
    assert (drawn[3:-3, 3:-3] == 128).all()


def test_tiny_images_are_enlarged_under_the_outline():
    inside = torch.zeros(32, 32, dtype=torch.bool)
    inside[8, 8] = True
    drawn = np.asarray(outlined(Image.new("RGB", (32, 32), "white"), inside))
    assert drawn.shape == (128, 128, 3)
    assert (drawn[32:36, 32:36] == 0).any()


def test_a_map_of_another_size_is_refused():
    with pytest.raises(ImageError, match="does not fit"):
        saliency_view(Image.new("RGB", (3, 4)), torch.zeros(3, 4))
    with pytest.raises(ImageError, match="does not fit"):
        outlined(Image.new("RGB", (3, 4)), torch.zeros(3, 4, dtype=torch.bool))
