"""`pullback encoders`: the networks that can be named, and the stages of one."""

from __future__ import annotations

from typing import Annotated

import typer

from pullback.cli.loading import loading
from pullback.cli.options import Classes, Preprocessing, Stages, Weights, listed
from pullback.errors import OptionError


def encoders(
    text: Annotated[
        str | None,
        typer.Argument(metavar="TEXT", help="List every network of timm and torchvision with this in its name."),
    ] = None,
    show: Annotated[str | None, typer.Option(metavar="SPEC", help="Print the stages of this one instead.")] = None,
    weights: Weights = None,
    classes: Classes = None,
    preprocessing: Preprocessing = None,
    stages: Stages = None,
) -> None:
    """List the encoders that can be named, or show how one is split into stages and what was assumed about it."""
    with loading():
        from pullback.encoders import available, load_encoder

    if show is not None:
        if text is not None:
            raise OptionError(f"both {text!r} and --show {show!r} were given; list encoders or show one, not both")
        print(load_encoder(show, weights=weights, classes=classes, preprocessing=preprocessing, stages=listed(stages)))
        return
    if any(value is not None for value in (weights, classes, preprocessing, stages)):
        raise OptionError(
            "--weights, --classes, --preprocessing and --stages belong to one encoder; name it with --show SPEC"
        )
    found = available(text)
    width = max(len(entry.spec) for entry in found)
    for entry in found:
        print(f"{entry.spec:<{width}}  {entry.note}")
