"""The program `pullback`: its commands, and what an error looks like to a person.

Exit status 0: done; 2: a clear error, told in one line; 130: interrupted; 1: a fault of pullback itself.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, NoReturn

import typer

from pullback import __version__
from pullback.cli.encoders import encoders
from pullback.cli.explain import explain
from pullback.cli.fit import fit
from pullback.cli.study import study
from pullback.errors import PullbackError

# Plain help and errors: file names with brackets are then never read as markup.
app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)
app.command()(explain)
app.command()(fit)
app.command()(encoders)
app.add_typer(study, name="study")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"pullback {__version__}")
        raise typer.Exit


@app.callback()
def pullback(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """See what a frozen CNN keeps of an image, pulled back to the pixels through the network's own adjoint."""


def program() -> NoReturn:
    """`main` as a process of its own, which ends without taking torch apart module by module: a tenth of a second or more."""
    try:
        main()
    except SystemExit as end:
        with suppress(
            OSError, ValueError, AttributeError
        ):  # a reader that is gone, or no stream: Python ends as it does
            sys.stdout.flush()
            sys.stderr.flush()
            atexit._run_exitfuncs()
            os._exit(end.code if isinstance(end.code, int) else 1)
        raise


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line on `arguments` (default: the process's own); always ends in `SystemExit`.

    An exception that nobody foresaw is told in one line too; with PULLBACK_TRACEBACK=1 it is raised, traceback and all.
    """
    try:
        # Typer turns usage errors into exit status 2 and Ctrl-C into 130.
        typer.main.get_command(app).main(arguments, prog_name="pullback")
    except PullbackError as error:
        _leave(str(error), 2)
    except Exception as error:
        if os.environ.get("PULLBACK_TRACEBACK", "") not in ("", "0"):
            raise
        if isinstance(error, OSError) and error.filename is not None and error.strerror is not None:
            # A folder that may not be read, a name that is too long: nothing that pullback could mend.
            place = os.fsdecode(error.filename2 or error.filename)
            _leave(f"{place}: {error.strerror}; free it, or give another path", 2)
        _leave(
            f"unexpected {type(error).__name__}: {error} (this is a fault of pullback: please report it; "
            "PULLBACK_TRACEBACK=1 shows the whole traceback)",
            1,
        )
    raise SystemExit(0)


def _leave(message: str, status: int) -> NoReturn:
    print("pullback:", " ".join(message.split()), file=sys.stderr)
    raise SystemExit(status)
