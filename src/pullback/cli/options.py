"""Options that several commands share: which network, with which weights, seen how."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Spec = Annotated[
    str,
    typer.Option(metavar="SPEC", help="builtin:NAME, timm:NAME, torchvision:NAME or module:PACKAGE.MODULE:FACTORY."),
]
Weights = Annotated[
    str | None, typer.Option(metavar="pretrained|PATH", help="Download the source's own weights, or read a file.")
]
Classes = Annotated[
    Path | None, typer.Option(help="Class names in the order of the outputs: .txt with one a line, .json or .csv.")
]
Preprocessing = Annotated[
    str | None,
    typer.Option(
        metavar="KEY=VALUE;...", help='How the network wants its pictures, e.g. "mean=0.5;std=0.5;size=224;resize=256".'
    ),
]
Stages = Annotated[
    str | None, typer.Option(metavar="NAME,NAME,...", help="Modules whose outputs end a stage; default: found.")
]


def listed(text: str | None) -> tuple[str, ...] | None:
    """The names of a comma-separated option, or None where it was not given."""
    return None if text is None else tuple(name.strip() for name in text.split(","))
