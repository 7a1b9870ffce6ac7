"""`pullback explain`: photographs in, one self-contained report for each out."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pullback.cli.loading import loading
from pullback.cli.options import Classes, Preprocessing, Spec, Stages, Weights, listed


class Start(StrEnum):
    """Where the blind inverse begins."""

    TAUGHT = "taught"
    MEAN = "mean"


class Quality(StrEnum):
    """How much time the iterative inverses may take."""

    DRAFT = "draft"
    STANDARD = "standard"
    HIGH = "high"


def explain(
    out: Annotated[Path, typer.Option(help="Folder for the reports; made where it is missing.")],
    images: Annotated[
        list[str] | None,
        typer.Argument(metavar="IMAGE|FOLDER", help="Pictures, or folders of them; none: a bundled scene."),
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(help="Mask of the object, or a folder of masks named like the pictures.")
    ] = None,
    target: Annotated[
        str | None, typer.Option(metavar="NAME|INDEX", help="Class to explain; default: the one that the network says.")
    ] = None,
    encoder: Spec = "builtin:scenes",
    weights: Weights = None,
    classes: Classes = None,
    preprocessing: Preprocessing = None,
    stages: Stages = None,
    correctors: Annotated[
        Path | None, typer.Option(help='Fitted correctors; default: those of the encoder, or none ("unfitted").')
    ] = None,
    device: Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1, mps.")] = "cpu",
    quality: Annotated[Quality, typer.Option(help="Time for the iterative inverses.")] = Quality.STANDARD,
    start: Annotated[
        Start,
        typer.Option(help="Where the blind inverse begins: at what synthetic pictures taught, or the mean colour."),
    ] = Start.TAUGHT,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of everything that is drawn at random.")] = 0,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", help="Make reports anew, whatever stands there; default: an interrupted folder carries on."
        ),
    ] = False,
) -> None:
    """Explain pictures: what each stage keeps, what the class is made of, and how much of it is the network's.

    Writes an HTML report, a panel and a JSON file for each picture, and an index for several; prints what to open.
    """
    with loading():
        from pullback.cli.progress import Progress
        from pullback.explain import Options, explain_all

    options = Options(
        images=tuple(images or ()),
        out=out,
        mask=mask,
        target=target,
        encoder=encoder,
        weights=weights,
        classes=classes,
        preprocessing=preprocessing,
        stages=listed(stages),
        correctors=correctors,
        device=device,
        quality=quality.value,
        start=start.value,
        seed=seed,
        overwrite=overwrite,
    )
    with Progress() as progress:
        try:
            report = explain_all(options, progress)
        except KeyboardInterrupt:
            again = "the same command without --overwrite" if overwrite else "the same command"
            progress.note(f"interrupted: what is finished stays; {again} carries on from there")
            raise
    typer.echo(os.fsencode(report))  # the very bytes of the name, whatever the terminal's encoding
