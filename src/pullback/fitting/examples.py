"""The pictures of a fit: each read once before the first step, known by its pixels, some of them held back."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from PIL import Image
from torch import Tensor

from pullback.encoders import Encoder
from pullback.errors import ImageError, OptionError
from pullback.fitting.recipe import Recipe
from pullback.images import image_files, load_image
from pullback.inversion.correctors import PICTURES, mark_of

Source = str | Path | Image.Image | Tensor


@dataclass(frozen=True, eq=False)
class Example:
    """A picture: where it comes from, how to name it in a message, and the digest of its pixels."""

    source: Source
    name: str
    digest: str

    def read(self, encoder: Encoder) -> Tensor:
        """The picture as the encoder wants it, (C, H, W). Raises ImageError where it is no longer what it was."""
        image, digest = _read(encoder, self.source)
        if digest != self.digest:
            raise ImageError(f"{self.name} has changed since the fit began: leave the pictures alone while it runs")
        return image


@dataclass(frozen=True)
class Examples:
    """The pictures to fit on and those held back; `repeated`: how many of those given were there already; `files`: all given."""

    fitted: tuple[Example, ...]
    held: tuple[Example, ...]
    repeated: int
    files: tuple[Path, ...]


def examples_of(encoder: Encoder, images: Source | Iterable[Source], recipe: Recipe) -> Examples:
    """Read every picture once (a folder stands for those in it, a tensor (N, C, H, W) for N), and hold some back.

    These are the ones whose digests, hashed with the seed, come first: the choice depends neither on the order of the
    pictures nor on their names. No picture is on both sides: one that is there twice, by its pixels, counts once.
    Raises ImageError, naming the picture that cannot be read, and OptionError where the batch or what is held back asks for
    more pictures than there are.
    """
    found: dict[str, Example] = {}
    files: list[Path] = []
    count = 0
    for count, source in enumerate(_listed(images), 1):
        if isinstance(source, str | Path):
            files.append(Path(source))
        name = str(source) if isinstance(source, str | Path) else f"picture {count}"
        try:
            image, digest = _read(encoder, source)
        except ImageError as error:
            raise ImageError(f"picture {count} of those to fit on cannot be used: {error}") from error
        if image.ndim != 3:
            raise ImageError(f"{name} has shape {tuple(image.shape)}, where one image (C, H, W) was expected")
        found.setdefault(digest, Example(source, name, digest))
    hashed = sorted(found, key=lambda digest: hashlib.sha256(f"held back {recipe.seed} {digest}".encode()).digest())
    held = set(hashed[: recipe.held_back])
    _check(len(found), count - len(found), recipe)
    return Examples(
        tuple(e for e in found.values() if e.digest not in held),
        tuple(e for e in found.values() if e.digest in held),
        count - len(found),
        tuple(files),
    )


def digest_of(examples: Sequence[Example]) -> dict[str, int | str]:
    """How many, and SHA-256 over their digests in order."""
    return {"count": len(examples), "digest": hashlib.sha256(" ".join(e.digest for e in examples).encode()).hexdigest()}


def marks_of(examples: Sequence[Example]) -> dict[str, str]:
    """For the card: what tells each picture apart, so that a study knows its own; nothing where some came as tensors."""
    if any(isinstance(e.source, Tensor) for e in examples):
        return {}
    return {PICTURES: " ".join(mark_of(e.digest) for e in examples)}


def _listed(images: Source | Iterable[Source]) -> Iterator[Source]:
    # A tensor is one picture too, whatever its shape; only a batch is taken apart.
    one = images.ndim != 4 if isinstance(images, Tensor) else isinstance(images, str | Path | Image.Image)
    for source in cast(Iterable[Source], [images] if one else images):
        if isinstance(source, str | Path):
            yield from image_files([source])
        else:
            yield source


def _check(count: int, repeated: int, recipe: Recipe) -> None:
    given = f"{count} picture{'s' if count != 1 else ''}" + (f" ({repeated} more repeat them)" if repeated else "")
    if count == 0:
        raise ImageError("no picture to fit on was given: give some files, or a folder of them")
    if recipe.held_back >= count:
        raise OptionError(
            f"{recipe.held_back} held back of {given} leaves none to fit on: hold back fewer (--held-back), or give"
            " more"
        )
    left = count - recipe.held_back
    if left < recipe.batch:
        raise OptionError(
            f"a batch of {recipe.batch} needs as many pictures, and {given} less {recipe.held_back} held back leaves {left}:"
            " give more, hold back fewer (--held-back), or take a smaller batch (--batch)"
        )


def _read(encoder: Encoder, source: Source) -> tuple[Tensor, str]:
    """A picture as the encoder wants it, and the digest of what was given."""
    if isinstance(source, Tensor):
        image = encoder.preprocess(source)
        values = image.cpu().contiguous()
        head = f"{tuple(values.shape)} {values.dtype}".encode()
        return image, hashlib.sha256(head + values.reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()
    loaded = load_image(source)
    return encoder.preprocess(loaded.image), loaded.digest
