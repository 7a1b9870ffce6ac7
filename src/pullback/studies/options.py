"""What the reconstruction study was asked to do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

METHODS = (
    "additive", "fused", "frozen", "vjp", "wiener", "blind", "blind-mean", "decoder", "mahendran", "upconvnet",
)  # fmt: skip
CONTROLS = ("transplant", "swap", "random")


@dataclass(frozen=True)
class StudyOptions:
    """The options of `pullback study reconstruction`; images, encoder and device as in `pullback explain`.

    methods: of METHODS, None for all that can run (`upconvnet` needs `train`); "blind-mean" is the blind inverse from the mean
    colour, "decoder" its taught start alone. at: stages to draw, by number or name, None for
    all. controls: of CONTROLS. seconds or steps: of each iterative inverse for one picture (Wiener and Mahendran & Vedaldi:
    seconds of the null too); seconds become steps at the first picture, and all others take as many, while `steps` gives the
    same bits every time. limit: so many
    pictures, spread evenly over those given. correctors: files of fitted ones; empty for those that come with the encoder, if
    any. train: pictures for the UpConvNet, train_seconds for each stage's. lpips_backbone: a file of torchvision's
    `squeezenet1_1`.
    """

    images: tuple[str, ...]
    out: Path
    encoder: str = "builtin:scenes"
    weights: str | None = None
    classes: Path | None = None
    preprocessing: str | None = None
    stages: tuple[str, ...] | None = None
    methods: tuple[str, ...] | None = None
    at: tuple[str, ...] | None = None
    controls: tuple[str, ...] = CONTROLS
    seconds: float | None = None
    steps: int | None = None
    limit: int | None = None
    correctors: tuple[Path, ...] = ()
    train: tuple[str, ...] = ()
    train_seconds: float = 600.0
    lpips_backbone: Path | None = None
    device: str = "cpu"
    seed: int = 0
