"""Masks: the conventions of their values, and the picture's geometry."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from PIL.ExifTags import Base
from PIL.Image import Transpose

from pullback.errors import MaskError
from pullback.images import Loaded, Mask, find_masks, image_files, load_image, load_mask

NAN = float("nan")


def photo(width: int, height: int, orientation: int = 1) -> Loaded:
    """A photograph of this stored size and EXIF orientation."""
    picture = Image.new("RGB", (width, height), "green")
    picture.getexif()[Base.Orientation] = orientation
    return load_image(picture)


def read(levels: list[list[float]] | NDArray[np.generic], dtype: type = np.uint8, mode: str | None = None) -> Mask:
    picture = Image.fromarray(np.asarray(levels, dtype))
    return load_mask(picture if mode is None else picture.convert(mode), photo(*picture.size))


@pytest.mark.parametrize(
    ("levels", "values", "note"),
    [
        ([0, 1, 255], [0, 1, NAN], "read as 0 background, 1 object, 255 unknown"),
        ([0, 1, 1], [0, 1, 1], "read as 0 background, 1 object, 255 unknown"),
        ([1, 1, 255], [1, 1, NAN], "read as 0 background, 1 object, 255 unknown"),
        ([0, 255, 255], [0, 1, 1], "read as 0 background, 255 object"),
        ([255, 255, 255], [1, 1, 1], "read as 0 background, 255 object"),
        ([0, 128, 255], [0, NAN, 1], "read as 0 background, 255 object, 128 unknown"),
        ([0, 127, 255], [0, NAN, 1], "read as 0 background, 255 object, 127 unknown"),
        (
            [0, 51, 102, 120, 128, 140, 153, 204],
            [0, 0.2, 0.4, 120 / 255, 128 / 255, 140 / 255, 0.6, 0.8],
            "read as a soft mask, 0 background to 255 object",
        ),
    ],
)
def test_values_of_eight_bits(levels: list[float], values: list[float], note: str) -> None:
    mask = read([levels])
    assert mask.values.dtype == np.float32
    np.testing.assert_array_equal(mask.values, np.array([values], np.float32))
    assert mask.notes == (note,)


@pytest.mark.parametrize(
    ("levels", "values"),
    [
        ([0, 65535, 65535], [0, 1, 1]),
        ([0, 1, 65535], [0, 1, NAN]),
        ([0, 1, 255], [0, 1, NAN]),
        ([0, 255, 255], [0, 1, 1]),
        ([0, 32768, 65535], [0, NAN, 1]),
        ([0, 1e4, 2e4, 3e4, 4e4, 5e4, 6e4, 65535], [0, *(n * 1e4 / 65535 for n in range(1, 7)), 1]),
    ],
)
@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_values_of_sixteen_bits(levels: list[float], values: list[float], dtype: type) -> None:
    np.testing.assert_array_equal(read([levels], dtype).values, np.array([values], np.float32))


def test_values_of_floats() -> None:
    mask = read([[0, 0.25, NAN, 1]], np.float32)
    np.testing.assert_array_equal(mask.values, [[0, 0.25, NAN, 1]])
    assert mask.notes == ("read as floats in [0, 1], NaN unknown",)


@pytest.mark.parametrize("levels", [[0, 0, 0], [0, 128, 128]])
def test_an_empty_mask_is_read_with_a_note(levels: list[float]) -> None:
    mask = read([levels])
    assert not (mask.values > 0).any()
    assert mask.notes[-1] == "the mask is empty: no pixel of it is object"


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "1"])
def test_equal_channels_are_one(mode: str) -> None:
    np.testing.assert_array_equal(read([[0, 255, 255]], mode=mode).values, [[0, 1, 1]])


@pytest.mark.parametrize(
    ("palette", "values"),
    [
        ([0, 0, 0, 128, 0, 0] + [9, 9, 9] * 253 + [224, 224, 192], [0, 1, NAN]),  # colours of labels: indices count
        ([255] * 3 + [0] * 765, [1, 0, 0]),  # greys in any order: the greys count
    ],
)
def test_a_palette(palette: list[int], values: list[float]) -> None:
    labels = Image.fromarray(np.array([[0, 1, 255]], np.uint8))
    labels.putpalette(palette)
    assert labels.mode == "P"
    np.testing.assert_array_equal(load_mask(labels, photo(3, 1)).values, [values])


@pytest.mark.parametrize(
    ("levels", "dtype", "shown"),
    [
        ([0, 15, 255], np.uint8, "0, 15, 255,"),  # a map of labels
        ([1, 2, 3], np.uint8, "1, 2, 3,"),  # a trimap of the pets, as first published
        ([0, 1, 2], np.uint8, "0, 1, 2,"),
        ([0, 127, 128, 255], np.uint8, "0, 127, 128, 255,"),
        (list(range(20)), np.uint8, "0, 1, 2, 3, 4, 5, ...,"),  # labels too: nothing is near white
        ([0, 300, 301], np.uint16, "0, 300, 301,"),
        ([-1, 0, 1], np.int32, "-1, 0, 1,"),
        ([0, 70000], np.int32, "0, 70000,"),
        ([0, 1.5], np.float32, "0, 1.5,"),
        ([-0.5, NAN], np.float32, "-0.5,"),
        ([0, float("inf")], np.float32, "0, inf,"),
    ],
)
def test_values_without_a_known_meaning_are_refused(levels: list[float], dtype: type, shown: str) -> None:
    with pytest.raises(MaskError) as caught:
        read([levels], dtype)
    assert f"has the values {shown} whose meaning is not known" in str(caught.value)
    assert "0 background, 1 object, 255 unknown" in str(caught.value)


def test_colours_transparency_and_strange_modes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MaskError, match="coloured, its channels differ"):
        load_mask(Image.new("RGB", (3, 2), "red"), photo(3, 2))
    with pytest.raises(MaskError, match="transparent pixels"):
        load_mask(Image.new("RGBA", (3, 2), (255, 255, 255, 0)), photo(3, 2))
    with pytest.raises(MaskError, match="mode LAB"):
        load_mask(Image.new("LAB", (3, 2)), photo(3, 2))
    with pytest.raises(MaskError, match=r"mask: .*does not exist"):
        load_mask(tmp_path / "missing.png", photo(3, 2))
    (tmp_path / "empty.png").touch()
    with pytest.raises(MaskError, match=r"mask: .*empty\.png is empty"):
        load_mask(tmp_path / "empty.png", photo(3, 2))


# --- geometry ---------------------------------------------------------------------------------------------------------

UPRIGHT = np.array([[1, 0, 0, 0, 1], [0, 1, 0, 0, 0], [0, 0, 0, 1, 1]])  # (H, W) = (3, 5): no turn leaves it as it is
STORED = {  # how a camera that was held so stores it (see EXIF, tag 274)
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.T,
    6: UPRIGHT[:, ::-1].T,
    7: UPRIGHT[::-1, ::-1].T,
    8: UPRIGHT[::-1].T,
}


def mask_file(path: Path, values: NDArray[np.generic], orientation: int | None = None) -> Path:
    tags = Image.Exif()
    if orientation is not None:
        tags[Base.Orientation] = orientation
    Image.fromarray(np.ascontiguousarray(values, dtype=np.uint8)).save(path, exif=tags)
    return path


def like(orientation: int) -> Loaded:
    return photo(*STORED[orientation].shape[::-1], orientation)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_mask_with_an_orientation_of_its_own_obeys_it(tmp_path: Path, orientation: int) -> None:
    mask = load_mask(mask_file(tmp_path / "mask.png", STORED[orientation], orientation), like(orientation))
    np.testing.assert_array_equal(mask.values, UPRIGHT)
    assert not any("taken to be upright" in note for note in mask.notes)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_mask_of_the_upright_size_is_upright(tmp_path: Path, orientation: int) -> None:
    mask = load_mask(mask_file(tmp_path / "mask.png", UPRIGHT), like(orientation))
    np.testing.assert_array_equal(mask.values, UPRIGHT)
    doubtful = "its picture was turned upright; the mask is taken to be upright already"
    assert (doubtful in mask.notes) == (orientation in (2, 3, 4))  # where the size alone does not tell


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_mask_of_the_stored_size_is_turned_with_its_picture(tmp_path: Path, orientation: int) -> None:
    mask = load_mask(mask_file(tmp_path / "mask.png", STORED[orientation]), like(orientation))
    np.testing.assert_array_equal(mask.values, UPRIGHT)
    assert mask.notes[0] == f"turned as its picture is, EXIF orientation {orientation}"


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_mask_of_another_size_names_both(tmp_path: Path, orientation: int) -> None:
    with pytest.raises(MaskError, match=r"mask\.png is 4 x 3 \(width x height\), its picture image 5 x 3: resize"):
        load_mask(mask_file(tmp_path / "mask.png", UPRIGHT[:, :4]), like(orientation))


def test_a_mask_is_not_turned_twice(tmp_path: Path) -> None:
    """Upright by its own tag it has only the stored size: it was drawn on something else."""
    with pytest.raises(MaskError, match="is 3 x 5"):
        load_mask(mask_file(tmp_path / "mask.png", UPRIGHT, 6), like(6))


@pytest.mark.parametrize("kind", ["butterflies", "pets_trimap", "pets_polygon"])
def test_the_masks_of_the_data_folder(data: Path, kind: str) -> None:
    folder = data / "masked" / kind
    images = image_files([folder / "images"])[::10]
    for image, path in zip(images, find_masks(images, folder / "masks"), strict=True):
        with Image.open(path) as stored_mask:
            stored = np.asarray(stored_mask).astype(np.float32)
        mask = load_mask(path, load_image(image))
        np.testing.assert_array_equal(mask.values, np.where(stored == 255, np.nan, stored))
        assert mask.notes == ("read as 0 background, 1 object, 255 unknown",)


def test_a_mask_beside_an_awkward_photograph(data: Path, tmp_path: Path) -> None:
    """Drawn on the stored pixels of a photograph on its side, then as those are shown upright."""
    picture = load_image(data / "awkward" / "exif_orientation_6.jpg")
    drawn = Image.new("L", (192, 224))
    drawn.paste(255, (0, 0, 60, 100))
    drawn.save(tmp_path / "mask.png")
    upright = np.asarray(drawn.transpose(Transpose.ROTATE_270)) / 255
    assert load_mask(tmp_path / "mask.png", picture).values.shape == (192, 224)
    np.testing.assert_array_equal(load_mask(tmp_path / "mask.png", picture).values, upright)
