"""From what a user types to a class index."""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Sequence
from contextlib import suppress

from pullback.errors import ClassError


def class_index(target: int | str, classes: Sequence[str] | None, count: int | None) -> int:
    """The index of a class given by index, name, or a part of exactly one name. Raises ClassError with the nearest names."""
    if count is None:
        raise ClassError("the network's output is not (N, classes), so it has no classes to choose from")
    if not isinstance(target, str | bool):
        with suppress(TypeError):
            target = operator.index(target)  # a whole number of any library's type
    text = str(target).strip()
    folded = [c.casefold() for c in classes or ()]
    wanted = text.casefold()
    exact = [i for i, c in enumerate(folded) if c == wanted]
    named = bool(exact) and isinstance(target, str)  # a name may be a number: "7" among the ten digits
    if re.fullmatch("-?[0-9]{1,18}", text) and not named:
        if 0 <= int(text) < count:
            return int(text)
        raise ClassError(f"class {text} is out of range: the network has classes 0 to {count - 1}")
    if classes is None:
        raise ClassError(
            f"unknown class {text!r}: the network's class names are not known; give an index 0 to {count - 1} or classes="
        )
    # A name may be a list of synonyms ("tabby, tabby cat"), or carry a group ("pets/Abyssinian").
    parts = [i for i, c in enumerate(folded) if wanted in [p.strip() for p in c.replace("/", ",").split(",")]]
    inside = [i for i, c in enumerate(folded) if wanted in c]
    for found in (exact, parts, inside):
        if len(found) == 1:
            return found[0]
        if len(found) > 1:
            names = ", ".join(f"{i} {classes[i]}" for i in found[:4])
            raise ClassError(f"class {text!r} could be {names}{' ...' if len(found) > 4 else ''}; give the index")
    near = difflib.get_close_matches(wanted, folded, 3, 0.5)
    hint = ", ".join(f"{classes[folded.index(n)]} ({folded.index(n)})" for n in near) or f"{classes[0]} (0)"
    raise ClassError(f"unknown class {text!r}; nearest: {hint}")


def checked_classes(classes: Sequence[str] | None, count: int | None) -> tuple[str, ...] | None:
    """The class names of a network with so many outputs. Raises ClassError."""
    if classes is None:
        return None
    if isinstance(classes, str) or not all(isinstance(name, str) for name in classes):
        raise ClassError(f"classes={classes!r}: expected a list of class names, for example ['cat', 'dog']")
    if count != len(classes):
        raise ClassError(
            f"{len(classes)} class names for a network with {count} outputs; give one name for each output"
        )
    return tuple(classes)
