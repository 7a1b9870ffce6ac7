"""Class names: from a list, a text file, a JSON file, or a CSV table."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pullback.errors import ClassError

_FORMS = "one name a line (.txt), a JSON list or object index -> name (.json), or columns index,name (.csv)"


def read_classes(source: Sequence[str] | str | Path) -> tuple[str, ...]:
    """Class names in the order of the network's outputs: `source` itself if it is a list, else from the file it names.

    Text: one name a line. JSON: a list of names, or an object index -> name. CSV: columns index and name. UTF-8. Raises
    ClassError for a missing or unreadable file, an empty name, or indices that are not 0, 1, 2, ...
    """
    if not isinstance(source, str | Path):
        return _checked(source, "classes=")
    path = Path(source).expanduser()
    try:
        if not path.is_file():
            raise ClassError(f"classes={str(source)!r} is no file: give a list of names, or a file with {_FORMS}")
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".json":
            content = json.loads(text)
            return _checked(_by_index(content.items(), path) if isinstance(content, dict) else content, str(path))
        if path.suffix.lower() == ".csv":
            rows = csv.DictReader(text.splitlines())
            if not {"index", "name"} <= set(rows.fieldnames or ()):
                raise ClassError(f"{path} has the columns {', '.join(rows.fieldnames or ())}: expected index and name")
            return _checked(_by_index(((row["index"], row["name"]) for row in rows), path), str(path))
    except ClassError:
        raise
    except (OSError, ValueError) as error:
        raise ClassError(f"{path} cannot be read ({error}): expected {_FORMS}, in UTF-8") from error
    return _checked(text.rstrip().splitlines(), str(path))


def _by_index(pairs: Iterable[tuple[Any, Any]], path: Path) -> list[Any]:
    names: dict[int, Any] = {}
    for index, name in pairs:
        if int(index) in names:
            raise ClassError(f"{path} has the index {int(index)} twice: expected the indices 0, 1, 2, ...")
        names[int(index)] = name
    if missing := sorted(set(range(len(names))) - set(names)):
        raise ClassError(
            f"{path} has {len(names)} classes but no class {missing[0]}: expected the indices 0, 1, 2, ..."
        )
    return [names[index] for index in range(len(names))]


def _checked(names: Any, source: str) -> tuple[str, ...]:
    if isinstance(names, str) or not isinstance(names, Sequence) or not names:
        raise ClassError(f"{source} holds no class names: expected {_FORMS}")
    for index, name in enumerate(names):
        if not isinstance(name, str) or not name.strip():
            raise ClassError(f"{source}: class {index} is {name!r}, expected a name")
    return tuple(name.strip() for name in names)
