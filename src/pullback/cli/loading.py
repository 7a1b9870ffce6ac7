"""Commands import what they need when they run, so that `pullback --help` does not wait for torch."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading() -> Iterator[None]:
    """While modules are imported: else Python looks through all of torch for garbage again and again, a third of a second."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # what is loaded stays, so it is not looked through later either
        gc.enable()
