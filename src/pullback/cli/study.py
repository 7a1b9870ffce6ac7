"""`pullback study`: claims put to the test, each method beside its rivals, floors and null models."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from pullback.cli.loading import loading
from pullback.cli.options import Classes, Preprocessing, Spec, Stages, Weights, listed

study = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Put a claim to the test, null models beside it.")


@study.callback()
def _studies() -> None:
    """Put a claim to the test, null models beside it."""


@study.command()
def reconstruction(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE|FOLDER", help="Pictures, or folders of them.")],
    out: Annotated[Path, typer.Option(help="Folder for the tables, sheets and rows; made where it is missing.")],
    encoder: Spec = "builtin:scenes",
    weights: Weights = None,
    classes: Classes = None,
    preprocessing: Preprocessing = None,
    stages: Stages = None,
    at: Annotated[
        str | None, typer.Option(metavar="STAGE,STAGE,...", help="Stages to draw, by number or name; default: all.")
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME,...",
            help="additive, fused, frozen, vjp, wiener, blind, blind-mean, decoder, mahendran, upconvnet; default: all, the last"
            " with --train.",
        ),
    ] = None,
    controls: Annotated[
        str, typer.Option(metavar="NAME,NAME,...", help='transplant, swap, random, each with its cost, or "none".')
    ] = "transplant,swap,random",
    seconds: Annotated[
        float | None,
        typer.Option(
            help="Of each iterative inverse; the first picture, drawn twice, turns them into steps. Default: 10."
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="The same in steps: equal bits on equal machines.")] = None,
    limit: Annotated[int | None, typer.Option(help="So many pictures, spread evenly over those given.")] = None,
    correctors: Annotated[
        list[Path] | None,
        typer.Option(help="A file of fitted correctors, repeatable; default: those of the encoder, if any."),
    ] = None,
    train: Annotated[
        list[str] | None,
        typer.Option(
            metavar="IMAGE|FOLDER", help="Pictures to train the UpConvNet on, none of the studied; repeatable."
        ),
    ] = None,
    train_seconds: Annotated[float, typer.Option(help="Training of each stage's UpConvNet.")] = 600.0,
    lpips_backbone: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Weights of torchvision's squeezenet1_1; without them no LPIPS.")
    ] = None,
    device: Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1, mps.")] = "cpu",
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of everything that is drawn at random.")] = 0,
) -> None:
    """Do the pictures of a stage show the image, and is it the features that make them do so?

    Writes reconstruction.md, reconstruction.csv and a contact sheet for each stage; the same command carries on after an
    interrupt. Prints what to open.
    """
    with loading():
        from pullback.cli.progress import Progress
        from pullback.studies import StudyOptions, study_reconstruction

    options = StudyOptions(
        images=tuple(images),
        out=out,
        encoder=encoder,
        weights=weights,
        classes=classes,
        preprocessing=preprocessing,
        stages=listed(stages),
        methods=listed(methods),
        at=listed(at),
        controls=() if controls == "none" else listed(controls) or (),
        seconds=seconds,
        steps=steps,
        limit=limit,
        correctors=tuple(correctors or ()),
        train=tuple(train or ()),
        train_seconds=train_seconds,
        lpips_backbone=lpips_backbone,
        device=device,
        seed=seed,
    )
    with Progress() as progress:
        try:
            written = study_reconstruction(options, progress)
        except KeyboardInterrupt:
            progress.note("interrupted: the rows that are finished stay; the same command carries on from there")
            raise
    typer.echo(os.fsencode(written))  # the very bytes of the name, whatever the terminal's encoding
