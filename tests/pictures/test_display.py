"""The two display mappings against values computed by hand."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from pullback.errors import ImageError
from pullback.pictures.display import Display, clamped_share, png, signed, to_image


def test_natural_colours_are_x_times_std_plus_mean():
    display = Display((0.5, 0.25, 0.0), (0.5, 0.25, 1.0))
    tensor = torch.tensor([[[1.0, -2.0]], [[-1.0, 1.0]], [[0.2, 0.0]]])
    colours = display.colours(tensor)
    expected = torch.tensor([[[1.0, -0.5]], [[0.0, 0.5]], [[0.2, 0.0]]], dtype=torch.float64)
    torch.testing.assert_close(colours, expected, rtol=0, atol=1e-7)
    assert np.asarray(to_image(colours)).tolist() == [[[255, 0, 51], [0, 128, 0]]]


def test_clamped_share_counts_what_eight_bits_cannot_show():
    colours = torch.tensor([-0.1, 0.0, 0.5, 1.0, 1.5, 1.0 + 0.4 / 255, -0.4 / 255, 2.0], dtype=torch.float64)
    assert clamped_share(colours) == 3 / 8


def test_black_and_white_of_a_normalised_picture_are_not_clamped():
    display = Display((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (display.mean, display.std))
    black_and_white = torch.tensor([0.0, 1.0]).expand(3, 1, 2)
    assert clamped_share(display.colours((black_and_white - mean) / std)) == 0
    assert clamped_share(display.colours(((black_and_white - mean) / std).half())) == 0


def test_signed_maps_have_grey_for_zero_and_the_scale_for_black_and_white():
    tensor = torch.tensor([[[-2.0, 0.0, 1.0, 2.0]]]).expand(3, 1, 4)
    levels = np.asarray(to_image(signed(tensor, 2.0)))[0, :, 0]
    assert levels.tolist() == [0, 128, 191, 255]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_dtype_is_drawn_alike(dtype):
    tensor = torch.tensor([-1.0, -0.5, 0.0, 0.25, 1.0, 2.0]).view(1, 2, 3).to(dtype)
    image = to_image(Display((0.5,), (0.5,)).colours(tensor))
    assert np.asarray(image)[..., 0].tolist() == [[0, 64, 128], [159, 255, 255]]


def test_signed_maps_of_extreme_magnitude_are_drawn():
    for size in (1e-300, 1e300):
        tensor = torch.tensor([[[-size, size]]], dtype=torch.float64)
        assert np.asarray(to_image(signed(tensor, size)))[0, :, 0].tolist() == [0, 255]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_tensors_are_drawn():
    tensor = torch.zeros(3, 2, 2, device="cuda", dtype=torch.float16)
    assert np.asarray(to_image(Display((0.5,) * 3, (0.5,) * 3).colours(tensor))).tolist() == [[[128] * 3] * 2] * 2


def test_one_channel_is_grey_and_other_numbers_are_refused():
    pixels = np.asarray(to_image(torch.tensor([[[0.0, 0.2, 1.0]]])))
    assert pixels.tolist() == [[[0, 0, 0], [51, 51, 51], [255, 255, 255]]]
    with pytest.raises(ImageError, match="4 channels"):
        to_image(torch.zeros(4, 2, 2))


def test_png_keeps_the_pixels_and_carries_text():
    image = to_image(torch.rand(3, 5, 4, generator=torch.Generator().manual_seed(1)))
    back = Image.open(BytesIO(png(image, '{"α": 1}')))
    assert np.array_equal(np.asarray(back), np.asarray(image))
    assert back.text["pullback"] == '{"α": 1}'
    assert png(image) == png(image)
