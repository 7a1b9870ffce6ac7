"""Every kind of file gives the right upright RGB pixels, or one ImageError."""

from __future__ import annotations

import io
import re
import struct
import warnings
import zlib
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageFile
from PIL.ExifTags import Base

from pullback.errors import ImageError
from pullback.images import load_image
from pullback.images.decoding import PIXEL_LIMIT

Pixels = NDArray[np.uint8]


def rgb(height: int = 3, width: int = 5) -> Pixels:
    """A picture in which all pixels differ, so that no turn goes unseen."""
    return np.random.default_rng(0).permutation(height * width * 3).astype(np.uint8).reshape(height, width, 3)


def pixels(source: str | Path | Image.Image) -> Pixels:
    return np.asarray(load_image(source).image)


def exif(orientation: object) -> Image.Exif:
    tags = Image.Exif()
    tags[Base.Orientation] = orientation
    return tags


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def png(width: int, height: int, *, depth: int, colour: int, rows: bytes, chunks: tuple[bytes, ...] = ()) -> bytes:
    """A PNG put together by hand, for what Pillow does not write."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    extra = b"".join(chunk(content[:4], content[4:]) for content in chunks)
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


# --- the awkward files of the data folder -----------------------------------------------------------------------------

SAME = {  # files that show exactly the same pixels
    "png_named_as.jpg": "photo.tiff",
    "lossless.webp": "photo.bmp",
    "grey16.png": "grey_alpha.png",
    "exif_orientation_2.jpg": "exif_orientation_3.jpg",
}
NEAR = {  # and nearly the same: another lossy coding, or palette
    "exif_orientation_6.jpg": "exif_orientation_3.jpg",
    "photo.webp": "plain.jpg",
    "cmyk.jpg": "plain.jpg",
    "animated.gif": "photo.tiff",
}
READ = {  # size (width, height), notes
    "all_black.png": ((224, 224), ()),
    "all_white.png": ((224, 224), ()),
    "animated.gif": ((96, 96), ("frame 1 of 6 is used",)),
    "cmyk.jpg": ((256, 256), ("CMYK turned into RGB without a colour profile",)),
    "exif_orientation_2.jpg": ((224, 192), ("turned upright from EXIF orientation 2",)),
    "exif_orientation_3.jpg": ((224, 192), ("turned upright from EXIF orientation 3",)),
    "exif_orientation_6.jpg": ((224, 192), ("turned upright from EXIF orientation 6",)),
    "grey.jpg": ((256, 256), ()),
    "grey16.png": ((128, 128), ("16-bit grey scaled to 8 bits",)),
    "grey_alpha.png": ((128, 128), ()),
    "lossless.webp": ((128, 128), ()),
    "one_pixel.png": ((1, 1), ()),
    "palette.png": ((128, 128), ("transparent parts shown on white",)),
    "photo.bmp": ((128, 128), ()),
    "photo.tiff": ((96, 96), ()),
    "photo.webp": ((256, 256), ()),
    "plain.jpg": ((256, 256), ()),
    "png_named_as.jpg": ((96, 96), ()),
    "rgba.png": ((160, 160), ("transparent parts shown on white",)),
    "strip_640x4.png": ((640, 4), ()),
}
REFUSED = {
    "bomb_30000x30000.png": r"too large: Image size \(900000000 pixels\) exceeds limit of 178956970 pixels",
    "empty.jpg": r"is empty \(0 bytes\)",
    "text_not_image.jpg": "is not a picture that can be read: save it as one of JPEG,",
    "truncated.jpg": r"is damaged or cut off \(image file is truncated",
}


def test_the_table_names_every_awkward_file(data: Path) -> None:
    assert {path.name for path in (data / "awkward").iterdir()} == {*READ, *REFUSED}


@pytest.mark.parametrize("name", READ)
def test_an_awkward_file_is_read(data: Path, name: str) -> None:
    size, notes = READ[name]
    loaded = load_image(data / "awkward" / name)
    assert (loaded.image.mode, loaded.image.size, loaded.notes, loaded.name) == ("RGB", size, notes, name)
    assert loaded.image.info == {}


@pytest.mark.parametrize("name", REFUSED)
def test_an_awkward_file_is_refused(data: Path, name: str) -> None:
    with pytest.raises(ImageError, match=REFUSED[name]) as caught:
        load_image(data / "awkward" / name)
    assert name in str(caught.value)


@pytest.mark.parametrize(("name", "other"), SAME.items())
def test_equal_pictures_have_equal_digests(data: Path, name: str, other: str) -> None:
    one, two = load_image(data / "awkward" / name), load_image(data / "awkward" / other)
    assert one.digest == two.digest
    np.testing.assert_array_equal(np.asarray(one.image), np.asarray(two.image))


@pytest.mark.parametrize(("name", "other"), NEAR.items())
def test_another_coding_shows_nearly_the_same(data: Path, name: str, other: str) -> None:
    difference = pixels(data / "awkward" / name).astype(float) - pixels(data / "awkward" / other)
    assert 0 < np.abs(difference).mean() < 5  # a mirrored or inverted picture is more than 40 away


def test_plain_white_black_and_cut_out(data: Path) -> None:
    folder = data / "awkward"
    assert (pixels(folder / "all_white.png") == 255).all()
    assert (pixels(folder / "all_black.png") == 0).all()
    assert (pixels(folder / "rgba.png")[0, 0] == 255).all()  # outside the round cut-out
    with Image.open(folder / "palette.png") as palette:
        hidden = np.asarray(palette) == 0
    assert hidden.any()
    assert (pixels(folder / "palette.png")[hidden] == 255).all()


# --- orientation ------------------------------------------------------------------------------------------------------


def stored(upright: Pixels, orientation: int) -> Pixels:
    """How a camera stores `upright`: EXIF names the visual side of the stored row 0 and column 0."""
    return {
        1: upright,  # top, left
        2: upright[:, ::-1],  # top, right
        3: upright[::-1, ::-1],  # bottom, right
        4: upright[::-1],  # bottom, left
        5: upright.swapaxes(0, 1),  # left, top
        6: upright[:, ::-1].swapaxes(0, 1),  # right, top
        7: upright[::-1, ::-1].swapaxes(0, 1),  # right, bottom
        8: upright[::-1].swapaxes(0, 1),  # left, bottom
    }[orientation]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_obeyed(tmp_path: Path, kind: str, orientation: int) -> None:
    camera = Image.fromarray(np.ascontiguousarray(stored(rgb(), orientation)))
    camera.save(tmp_path / "photo", kind, exif=exif(orientation), lossless=True)
    with Image.open(tmp_path / "photo") as opened:
        both = load_image(tmp_path / "photo"), load_image(opened)
    for loaded in both:
        np.testing.assert_array_equal(np.asarray(loaded.image), rgb())
        assert loaded.stored_size == camera.size
        assert loaded.orientation == orientation
        assert loaded.notes == ((f"turned upright from EXIF orientation {orientation}",) if orientation > 1 else ())


def test_a_picture_is_turned_once_only(tmp_path: Path) -> None:
    Image.fromarray(np.ascontiguousarray(stored(rgb(), 6))).save(tmp_path / "photo.png", exif=exif(6))
    once = load_image(tmp_path / "photo.png")
    again = load_image(once.image)
    assert (again.digest, again.orientation, again.stored_size) == (once.digest, 1, (5, 3))


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_without_meaning_changes_nothing(tmp_path: Path, orientation: int) -> None:
    Image.fromarray(rgb()).save(tmp_path / "photo.png", exif=exif(orientation))
    loaded = load_image(tmp_path / "photo.png")
    assert loaded.orientation == 1
    np.testing.assert_array_equal(np.asarray(loaded.image), rgb())


def test_damaged_tags_do_not_cost_the_picture(tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(encoded(Image.fromarray(rgb()), "PNG", exif=b"no tags at all"))
    np.testing.assert_array_equal(pixels(tmp_path / "photo.png"), rgb())


# --- pixel modes ------------------------------------------------------------------------------------------------------


def test_the_digest_is_of_size_and_pixels(tmp_path: Path) -> None:
    Image.fromarray(rgb()).save(tmp_path / "photo.png")
    assert load_image(str(tmp_path / "photo.png")).digest == sha256(b"5x3:" + rgb().tobytes()).hexdigest()
    assert load_image(Image.fromarray(rgb().reshape(5, 3, 3))).digest != load_image(Image.fromarray(rgb())).digest


@pytest.mark.parametrize(("kind", "mode"), [("PNG", "I;16"), ("TIFF", "I;16"), ("PPM", "I")])
def test_sixteen_bits_are_scaled_to_eight(tmp_path: Path, kind: str, mode: str) -> None:
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    Image.fromarray(levels).save(tmp_path / "grey", kind)
    with Image.open(tmp_path / "grey") as opened:
        assert opened.mode in (mode, "I;16")
    expected = np.round(levels.astype(np.float64) * 255 / 65535).astype(np.uint8)
    np.testing.assert_array_equal(pixels(tmp_path / "grey"), np.stack([expected] * 3, axis=-1))


def test_sixteen_bits_with_a_transparent_level_are_laid_on_white(tmp_path: Path) -> None:
    rows = b"\0" + struct.pack(">3H", 0, 515, 65535)
    (tmp_path / "grey.png").write_bytes(png(3, 1, depth=16, colour=0, rows=rows, chunks=(b"tRNS" + b"\0\0",)))
    loaded = load_image(tmp_path / "grey.png")
    assert np.asarray(loaded.image)[0, :, 0].tolist() == [255, 2, 255]
    assert loaded.notes == ("16-bit grey scaled to 8 bits", "transparent parts shown on white")


def test_alpha_is_laid_on_white() -> None:
    colour, alpha = rgb(16, 16), np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    expected = 255 + (colour.astype(float) - 255) * alpha / 255
    loaded = load_image(Image.fromarray(np.concatenate([colour, alpha], axis=2)))
    assert np.abs(np.asarray(loaded.image) - expected).max() <= 1  # Pillow's own rounding
    assert loaded.notes == ("transparent parts shown on white",)


def test_an_opaque_alpha_leaves_the_pixels_and_needs_no_note() -> None:
    loaded = load_image(Image.fromarray(rgb()).convert("RGBA"))
    np.testing.assert_array_equal(np.asarray(loaded.image), rgb())
    assert loaded.notes == ()


@pytest.mark.parametrize(("mode", "key"), [("RGB", (10, 20, 30)), ("L", 20), ("P", 0), ("P", b"\x00\xff"), ("1", 0)])
def test_a_transparent_colour_is_laid_on_white(tmp_path: Path, mode: str, key: object) -> None:
    picture = Image.new(mode, (2, 1), {"RGB": (10, 20, 30), "L": 20}.get(mode, 0))
    if mode == "P":
        picture.putpalette([10, 20, 30, 1, 2, 3])
    picture.putpixel((1, 0), {"RGB": (1, 2, 3), "L": 2}.get(mode, 1))
    picture.save(tmp_path / "key.png", transparency=key)
    loaded = load_image(tmp_path / "key.png")
    other = {"L": [2, 2, 2], "1": [255, 255, 255]}.get(mode, [1, 2, 3])
    assert np.asarray(loaded.image).tolist() == [[[255, 255, 255], other]]
    assert loaded.notes == ("transparent parts shown on white",)


def test_grey_becomes_three_equal_channels() -> None:
    grey = rgb()[..., 0]
    np.testing.assert_array_equal(pixels(Image.fromarray(grey)), np.stack([grey] * 3, axis=-1))


def test_cmyk_is_turned_into_rgb(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (255, 0, 0, 0)).save(tmp_path / "cyan.jpg")
    loaded = load_image(tmp_path / "cyan.jpg")
    assert np.abs(np.asarray(loaded.image).astype(int) - (0, 255, 255)).max() <= 2
    assert loaded.notes == ("CMYK turned into RGB without a colour profile",)


@pytest.mark.parametrize("mode", ["I", "F", "LAB", "La"])
def test_pixels_without_a_defined_white_are_refused(mode: str) -> None:
    with pytest.raises(ImageError, match=f"image has pixels of mode {mode}, without a defined white: save it as RGB"):
        load_image(Image.new(mode, (4, 4)))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_several_frames_the_first_is_used(tmp_path: Path, kind: str) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    frames[0].save(tmp_path / "film", kind, save_all=True, append_images=frames[1:], lossless=True)
    loaded = load_image(tmp_path / "film")
    assert (np.asarray(loaded.image) == (255, 0, 0)).all()
    assert loaded.notes == ("frame 1 of 3 is used",)


def test_a_pillow_film_is_used_where_it_stands(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    frames[0].save(tmp_path / "film.tiff", save_all=True, append_images=frames[1:])
    with Image.open(tmp_path / "film.tiff") as film:
        film.seek(1)
        loaded = load_image(film)
        assert film.tell() == 1
    assert (np.asarray(loaded.image) == (0, 255, 0)).all()
    assert loaded.notes == ("frame 2 of 3 is used",)


@pytest.mark.parametrize("size", [(1, 1), (640, 4), (4, 640)])
def test_tiny_and_narrow_pictures_are_read(size: tuple[int, int]) -> None:
    assert load_image(Image.new("RGB", size)).image.size == size


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where someone has switched Pillow's own check off: the limit is ours."""
    (tmp_path / "bomb.png").write_bytes(png(20000, 10000, depth=8, colour=2, rows=b""))
    with pytest.raises(ImageError, match=r"bomb\.png is too large: Image size \(200000000 pixels\) exceeds limit of"):
        load_image(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    limit = rf"bomb\.png has 20000 x 10000 = 200000000 pixels: 1 to {PIXEL_LIMIT} pixels are expected"
    with pytest.raises(ImageError, match=limit):
        load_image(tmp_path / "bomb.png")


def test_a_warning_made_an_error_is_still_one_error(tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(png(10000, 10000, depth=8, colour=2, rows=b""))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageError, match=r"large\.png is too large: Image size \(100000000 pixels\)"):
            load_image(tmp_path / "large.png")


def test_pillows_settings_stay(tmp_path: Path) -> None:
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters))
    (tmp_path / "cut.png").write_bytes(encoded(Image.fromarray(rgb(64, 64)), "PNG")[:-3000])
    with pytest.raises(ImageError):
        load_image(tmp_path / "cut.png")
    load_image(Image.fromarray(rgb()))
    assert (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters)) == before


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM"])
def test_a_file_cut_off_is_refused(tmp_path: Path, kind: str) -> None:
    whole = encoded(Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)), kind)
    (tmp_path / "cut").write_bytes(whole[: len(whole) * 55 // 100])
    with pytest.raises(ImageError, match=re.escape(str(tmp_path / "cut"))):
        load_image(tmp_path / "cut")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", r"is empty \(0 bytes\)"),
        (b"not a picture", "is not a picture that can be read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not a picture that can be read"),
        (b"\x89PNG\r\n\x1a\n", "is (not a picture|damaged)"),
    ],
)
def test_what_is_no_picture_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "file.png").write_bytes(content)
    with pytest.raises(ImageError, match=words):
        load_image(tmp_path / "file.png")


def test_other_sources_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="is a folder, where one picture is expected"):
        load_image(tmp_path)
    with pytest.raises(ImageError, match="is a URL"):
        load_image("https://example.org/cat.jpg")
    with pytest.raises(ImageError, match="not ndarray"):
        load_image(rgb())  # type: ignore[arg-type]
    with pytest.raises(ImageError, match="0 x 4 = 0 pixels"):
        load_image(Image.new("RGB", (0, 4)))


def test_a_closed_pillow_image_is_one_error(tmp_path: Path) -> None:
    Image.fromarray(rgb()).save(tmp_path / "photo.png")
    with Image.open(tmp_path / "photo.png") as closed:
        pass
    with pytest.raises(ImageError, match=r"photo\.png is damaged or cut off"):
        load_image(closed)


def test_the_callers_image_stays_as_it_is(tmp_path: Path) -> None:
    Image.fromarray(rgb()).save(tmp_path / "photo.png", exif=exif(6))
    with Image.open(tmp_path / "photo.png") as mine:
        loaded = load_image(mine)
        assert mine.getexif()[Base.Orientation] == 6
        np.testing.assert_array_equal(np.asarray(mine), rgb())
    loaded.image.putpixel((0, 0), (1, 2, 3))
    own = Image.fromarray(rgb())
    load_image(own).image.putpixel((0, 0), (1, 2, 3))
    np.testing.assert_array_equal(np.asarray(own), rgb())


CODED = {
    kind: encoded(Image.fromarray(rgb(16, 16)), kind, exif=exif(6)) for kind in ("JPEG", "PNG", "WEBP", "TIFF")
} | {kind: encoded(Image.fromarray(rgb(16, 16)), kind) for kind in ("GIF", "BMP", "PPM")}


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(sorted(CODED)),
    damage=st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), min_size=1, max_size=6),
    cut=st.integers(0, 40),
)
@pytest.mark.filterwarnings("ignore")
def test_damaged_bytes_give_a_picture_or_one_error(
    tmp_path: Path, kind: str, damage: list[tuple[int, int]], cut: int
) -> None:
    content = bytearray(CODED[kind])
    for place, value in damage:
        content[place % len(content)] = value
    (tmp_path / "damaged").write_bytes(content[: len(content) - cut])
    try:
        loaded = load_image(tmp_path / "damaged")
    except ImageError:
        return
    assert loaded.image.mode == "RGB"
