"""What one explained image consists of: the plain results that the page, the panel and the record are made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL import Image
from torch import Tensor

from pullback.pictures import Certificate, ClassPicture, Picture
from pullback.report.words import HOW_TO_READ


@dataclass(frozen=True)
class StageRow:
    """One row of the encoder's stage table; `field` is the receptive field in words, or what makes it global."""

    number: int
    name: str
    shape: tuple[int, int, int]
    stride: int | str
    field: str
    channels: int
    gate: str


@dataclass(frozen=True)
class Guess:
    """One class that the network considers; `probability` is its softmax."""

    index: int
    name: str
    probability: float


@dataclass(frozen=True, eq=False)
class StageSpectrum:
    """One stage drawn three ways; a method that was left out is None and has its reason in `skipped`."""

    number: int
    name: str
    blind: Picture | None = None
    wiener: Picture | None = None
    cascade: Picture | None = None
    skipped: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class ChannelEntry:
    """One channel of the deepest stage: importance `omega = weight * alpha`, and its picture."""

    channel: int
    omega: float
    alpha: float
    weight: float
    picture: Picture


@dataclass(frozen=True)
class Foreground:
    """Share of each picture's energy inside the mask, to be read against `area`, the mask's share of the image.

    saliency: share of the saliency map's own sum; its squares would be the full picture's energy again.
    """

    full: float
    positive: float
    negative: float
    saliency: float
    area: float


@dataclass(frozen=True, eq=False)
class Explanation:
    """Everything about one image.

    picture       RGB, as the network saw it (H, W)
    origin        what the image was: a bundled scene (and which), or a file of the reader's own
    digest        SHA-256 of the image
    assumptions   what was assumed about preprocessing, one sentence each
    guesses       the classes of highest probability, best first; empty for a network without classes
    target        index and name of the explained class; None when there is none
    class_picture, saliency ((H, W), >= 0), channels: about the target; None or empty without one
    mask          (H, W): 1 object, 0 background, NaN unknown; None when no mask was given
    foreground    None when no mask was given
    dead          number of dead channels by stage number
    seconds       wall-clock seconds of each part that was done
    how_to_read   paragraphs: a heading and plain words
    """

    picture: Image.Image
    file_name: str
    origin: str
    digest: str
    encoder: str
    stages: tuple[StageRow, ...]
    assumptions: tuple[str, ...]
    guesses: tuple[Guess, ...]
    target: tuple[int, str] | None
    spectrum: tuple[StageSpectrum, ...]
    class_picture: ClassPicture | None
    channels: tuple[ChannelEntry, ...]
    saliency: Tensor | None
    certificates: tuple[Certificate, ...]
    foreground: Foreground | None
    mask: Tensor | None
    dead: Mapping[int, int]
    notes: tuple[str, ...]
    provenance: Mapping[str, Any]
    seconds: Mapping[str, float]
    how_to_read: tuple[tuple[str, str], ...] = HOW_TO_READ
