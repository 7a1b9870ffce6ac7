"""The panel: bounded, the pictures' own pixels, and no global state of the plotting library."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageDraw

from pullback.pictures.plain import number
from pullback.report import StageSpectrum, panel


@pytest.mark.parametrize(
    ("height", "width", "stages"), [(32, 32, 1), (224, 224, 4), (64, 300, 7), (300, 64, 7), (2, 700, 2), (32, 32, 40)]
)
def test_size_is_bounded(explain, height, width, stages):
    drawn = panel(explain(height, width, stages=stages))
    assert drawn.mode == "RGB"
    assert drawn.width <= 2400
    assert drawn.height <= 4000


def test_pictures_that_fit_keep_their_pixels(explain):
    e = explain(176, 176, stages=1)
    drawn = np.asarray(panel(e))
    for image in (e.spectrum[0].blind.rgb(), e.spectrum[0].cascade.null_rgb(), e.class_picture.negative.rgb()):
        assert _contains(drawn, np.asarray(image))
    assert not _contains(drawn, np.asarray(image)[::-1])


def test_tiny_pictures_are_enlarged_pixel_by_pixel(explain):
    e = explain(32, 32, stages=1)
    large = e.spectrum[0].wiener.rgb().resize((160, 160), Image.Resampling.NEAREST)
    assert _contains(np.asarray(panel(e)), np.asarray(large))


def test_hostile_words_stay_inside(explain):
    e = explain(32, 32, stages=1, name="W" * 5000 + "<b>\x00\udc80\n", file_name="n" * 5000, origin="o " * 5000)
    drawn = np.asarray(panel(e))
    assert drawn.shape[0] < 1500
    assert (drawn[:, -10:] == 255).all()


WIENER = {
    "correlation with the image": -0.711, "null: correlation": -0.0390, "steps": 250, "relative residual": 0.656,
    "null: relative residual": 1.6933, "ridge": 0.01,
}  # fmt: skip


def test_everything_that_is_said_is_whole_and_inside(explain, monkeypatch):
    """The longest lines that the library itself writes: none is cut, torn between a name and its number, or outside."""
    e = explain(200, 20, stages=1)
    stage = e.spectrum[0]
    long = replace(
        stage.wiener, figures=WIENER, mode="cascade, frozen, fitted on 2,000 photographs, beta x 0.5, rms only"
    )
    parts = {
        "blind": long,
        "wiener": replace(long, natural=False),
        "cascade": None,
        "skipped": {"cascade": "no time " * 9},
    }
    spectrum = (replace(stage, name="features.denseblock4.denselayer16.conv2", **parts), StageSpectrum(2, "a" * 70))
    about = {"weights": "centred w*alpha; head linear after global average pooling: exact class weights"}
    figures = {"cosine with the gradient of the class score": -0.0347}
    class_picture = replace(e.class_picture, name="American Staffordshire terrier", figures=figures, **about)
    written = []
    text = ImageDraw.ImageDraw.text

    def watched(draw, at, words, fill, font):
        right, bottom = at[0] + font.getlength(words), at[1] + font.getbbox(words)[3]
        assert right <= draw.im.size[0] and bottom <= draw.im.size[1], words
        written.append(words)
        text(draw, at, words, fill=fill, font=font)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", watched)
    drawn = panel(replace(e, spectrum=spectrum, class_picture=class_picture))
    assert not [line for line in written if line.endswith("...")]
    for key, value in WIENER.items():
        assert sum(f"{key} {number(value)}" in line for line in written) == 2
    told = " ".join(written)
    for words in (long.mode, class_picture.weights, class_picture.name, "no proof that these pixels decided"):
        assert words in told
    assert drawn.height < 1400


def test_missing_parts_are_left_out(explain):
    whole, e = panel(explain()), explain(class_picture=None, saliency=None, target=None, guesses=())
    assert panel(e).height < whole.height
    panel(explain(spectrum=(StageSpectrum(1, "layer1", skipped={"blind": "no time"}),)))


def test_same_explanation_same_bits_and_no_pyplot(explain):
    assert np.array_equal(np.asarray(panel(explain())), np.asarray(panel(explain())))
    assert "matplotlib.pyplot" not in sys.modules or "pyplot" not in panel.__globals__


def _contains(canvas, image):
    """Whether `image` stands somewhere on `canvas`, pixel by pixel."""
    height, width = image.shape[:2]
    corners = np.argwhere(
        (canvas[: canvas.shape[0] - height + 1, : canvas.shape[1] - width + 1] == image[0, 0]).all(-1)
    )
    rows = [(y, x) for y, x in corners if np.array_equal(canvas[y, x : x + width], image[0])]
    return any(np.array_equal(canvas[y : y + height, x : x + width], image) for y, x in rows)
