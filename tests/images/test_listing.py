"""What the user's paths stand for, and which mask belongs to which picture."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pullback.errors import ImageError, MaskError
from pullback.images import find_masks, image_files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Names alone count here, so the files are empty."""
    for name in (
        "img10.JPG",
        "img2.png",
        "notes.txt",
        ".hidden.png",
        "._img2.png",
        "deeper/x.png",
        "film.png/frame.gif",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "empty").mkdir()
    return tmp_path


def names(files: list[Path]) -> list[str]:
    return [file.name for file in files]


def test_a_folder_is_its_pictures_in_natural_order(folder: Path) -> None:
    assert image_files([folder]) == [folder / "img2.png", folder / "img10.JPG"]


def test_sources_keep_their_order_and_nothing_comes_twice(folder: Path) -> None:
    again = folder / "deeper" / ".." / "img2.png"
    assert names(image_files([str(folder / "deeper" / "x.png"), folder, again])) == ["x.png", "img2.png", "img10.JPG"]


def test_a_named_file_may_have_any_suffix_or_be_hidden(folder: Path) -> None:
    assert names(image_files([folder / "notes.txt", folder / ".hidden.png"])) == ["notes.txt", ".hidden.png"]


def test_a_file_behind_a_link_is_listed_by_the_name_given(folder: Path) -> None:
    (folder / "deeper" / "link.png").symlink_to(folder / "img2.png")
    assert image_files([folder / "deeper"]) == [folder / "deeper" / "link.png", folder / "deeper" / "x.png"]


def test_no_source_is_no_file() -> None:
    assert image_files([]) == []


def test_a_folder_without_pictures_is_named(folder: Path) -> None:
    with pytest.raises(ImageError, match=r"empty has no picture directly in it: name a folder that has some"):
        image_files([folder, folder / "empty"])


def test_a_folder_of_folders_says_where_the_pictures_are(folder: Path) -> None:
    for name in ("img2.png", "img10.JPG"):
        (folder / name).unlink()
    with pytest.raises(ImageError, match="its subfolder deeper has some"):
        image_files([folder])


@pytest.mark.parametrize("url", ["https://example.org/cat.jpg", "http://example.org", "FTP://x/y.png", "file:///c.png"])
def test_a_url_is_to_be_downloaded_first(url: str) -> None:
    for source in (url, Path(url)):
        with pytest.raises(ImageError, match=r"is a URL.*download it first"):
            image_files([source])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("img2.pgn", r"img2\.pgn does not exist: check the name; the nearest name there is img2\.png"),
        ("IMG10.JPG", r"the nearest name there is img10\.JPG"),
        ("zebra.tif", r"zebra\.tif does not exist: check the name$"),
        ("nowhere/a.png", r"does not exist, nor does its folder .*nowhere"),
        ("img2.png/a.png", "cannot be opened: Not a directory"),
        ("n" * 256, "cannot be opened: File name too long"),
        ("nul\0", "cannot be opened: embedded null byte"),
    ],
)
def test_a_missing_file_is_one_error(folder: Path, name: str, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        image_files([folder / name])


def test_a_pipe_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ImageError, match="not a regular file"):
        image_files([tmp_path / "pipe.png"])


def test_a_mask_has_the_stem_of_its_picture(tmp_path: Path) -> None:
    for name in ("cat.png", "cat.b.png", "cats.png", "dog.GIF"):
        (tmp_path / name).touch()
    pictures = ["photos/cat.jpg", Path("photos/cat.b.jpg"), "dog.jpeg"]
    assert names(find_masks(pictures, str(tmp_path))) == ["cat.png", "cat.b.png", "dog.GIF"]


def test_a_mask_file_is_for_one_picture(tmp_path: Path) -> None:
    (tmp_path / "any.png").touch()
    assert find_masks(["cat.jpg"], tmp_path / "any.png") == [tmp_path / "any.png"]
    with pytest.raises(MaskError, match=r"any\.png is one mask for 2 pictures: name a folder of masks"):
        find_masks(["cat.jpg", "dog.jpg"], tmp_path / "any.png")


def test_a_picture_is_not_its_own_mask(tmp_path: Path) -> None:
    for name in ("cat.jpg", "cat.png"):
        (tmp_path / name).touch()
    assert find_masks([tmp_path / "cat.jpg"], tmp_path) == [tmp_path / "cat.png"]


@pytest.mark.parametrize(
    ("masks", "words"),
    [
        (
            ["cat_mask.png"],
            r"no mask for cat\.jpg: one named cat\.png or so is expected; the nearest .* cat_mask\.png",
        ),
        ([], r"no mask for cat\.jpg: one named cat\.png or so is expected$"),
        (["cat.png", "cat.gif"], r"several masks for cat\.jpg \(cat\.gif, cat\.png\)"),
        (None, r"masks: .*masks does not exist"),
    ],
)
def test_a_mask_that_cannot_be_told_is_one_error(tmp_path: Path, masks: list[str] | None, words: str) -> None:
    if masks is not None:
        (tmp_path / "masks").mkdir()
        for name in masks:
            (tmp_path / "masks" / name).touch()
    with pytest.raises(MaskError, match=words):
        find_masks(["cat.jpg"], tmp_path / "masks")


@pytest.mark.parametrize("kind", ["butterflies", "pets_trimap", "pets_polygon"])
def test_every_masked_photograph_finds_its_mask(data: Path, kind: str) -> None:
    images = image_files([data / "masked" / kind / "images"])
    assert len(images) > 100
    masks = find_masks(images, data / "masked" / kind / "masks")
    assert [mask.stem for mask in masks] == [image.stem for image in images]
