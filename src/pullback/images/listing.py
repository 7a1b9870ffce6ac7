"""Finding pictures: which files are pictures, what the user's paths stand for, which mask belongs to which picture."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

from pullback.errors import ImageError, MaskError

# Pillow's name of each format that is read, with its suffixes: plain rasters only, none that runs a program (EPS).
FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "MPO": (".mpo",),
    "PNG": (".png", ".apng"),
    "GIF": (".gif",),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp", ".dib"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "JPEG2000": (".jp2", ".j2k", ".jpx"),
    "AVIF": (".avif",),
}
_SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)
_URL = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)


def existing_file(source: str | Path) -> Path:
    """The regular file that `source` names.

    Raises ImageError for a URL, a missing file (with the nearest name that exists), a folder, or a device.
    """
    path = _existing(source)
    if path.is_dir():
        raise ImageError(f"{path} is a folder, where one picture is expected: name a file in it")
    if not path.is_file():
        raise ImageError(f"{path} is not a regular file: copy its content into one")
    return path


def image_files(sources: Iterable[str | Path]) -> list[Path]:
    """The picture files that `sources` stand for: a file is itself, a folder is the pictures directly in it.

    The sources keep their order; the pictures of a folder are sorted by name, numbers by value ("2.jpg", "10.jpg"). A
    file named twice is listed once. Subfolders and hidden files are left out; a file named itself may have any suffix.

    Raises ImageError for a URL, a missing file or folder, or a folder without pictures.
    """
    found: dict[Path, Path] = {}
    for source in sources:
        path = _existing(source)
        for file in _folder_images(path) if path.is_dir() else [existing_file(path)]:
            found.setdefault(file.resolve(), file)
    return list(found.values())


def find_masks(images: Iterable[str | Path], masks: str | Path) -> list[Path]:
    """The mask of each picture file, in order: the picture in the folder `masks` that has the same stem.

    `masks` may also be one file, for one picture. Raises MaskError for a picture with no mask there, or with several.
    """
    pictures = [Path(image) for image in images]
    try:
        path = _existing(masks)
        by_stem: dict[str, list[Path]] = {}
        for file in _pictures(path) if path.is_dir() else ():
            by_stem.setdefault(file.stem, []).append(file)
    except ImageError as error:
        raise MaskError(f"masks: {error}") from error
    if path.is_dir():
        return [_mask_of(image, by_stem, path) for image in pictures]
    if len(pictures) > 1:
        raise MaskError(f"{path} is one mask for {len(pictures)} pictures: name a folder of masks, or one picture")
    return [path for _ in pictures]


def _mask_of(image: Path, by_stem: dict[str, list[Path]], folder: Path) -> Path:
    fitting = [file for file in by_stem.get(image.stem, []) if file.resolve() != image.resolve()]
    if not fitting:
        near = _nearest(f"{image.stem}.png", (file.name for files in by_stem.values() for file in files))
        raise MaskError(f"{folder} has no mask for {image.name}: one named {image.stem}.png or so is expected{near}")
    if len(fitting) > 1:
        names = ", ".join(file.name for file in fitting)
        raise MaskError(f"{folder} has several masks for {image.name} ({names}): keep one, or name the file itself")
    return fitting[0]


def _existing(source: str | Path) -> Path:
    if _URL.match(str(source)):
        raise ImageError(f"{source} is a URL, and nothing is fetched from the network: download it first")
    path = Path(source)
    try:
        path.stat()
    except FileNotFoundError as error:
        if not path.parent.is_dir():
            raise ImageError(f"{path} does not exist, nor does its folder {path.parent}") from error
        near = _nearest(path.name, (file.name for file in _entries(path.parent)))
        raise ImageError(f"{path} does not exist: check the name{near}") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"{str(path)!r} cannot be opened: {reason}") from error
    return path


def _folder_images(folder: Path) -> list[Path]:
    images = _pictures(folder)
    if images:
        return images
    below = [child.name for child in _entries(folder) if child.is_dir() and _pictures(child)]
    advice = f"its subfolder {below[0]} has some, name that one" if below else "name a folder that has some, or a file"
    raise ImageError(f"{folder} has no picture directly in it: {advice}")


def _pictures(folder: Path) -> list[Path]:
    return [file for file in _entries(folder) if file.suffix.lower() in _SUFFIXES and file.is_file()]


def _entries(folder: Path) -> list[Path]:
    """What is directly in `folder`, hidden files left out, in natural order."""
    try:
        return sorted((file for file in folder.iterdir() if not file.name.startswith(".")), key=_natural)
    except OSError as error:
        raise ImageError(f"{folder} cannot be listed: {error.strerror}") from error


def _natural(path: Path) -> tuple[list[str | int], str]:
    parts = re.split(r"(\d+)", path.name.casefold())
    return [int(part) if odd % 2 else part for odd, part in enumerate(parts)], path.name


def _nearest(name: str, names: Iterable[str]) -> str:
    lowered = {other.casefold(): other for other in names}
    close = get_close_matches(name.casefold(), lowered, n=1)
    return f"; the nearest name there is {lowered[close[0]]}" if close else ""
