"""Print the short table of a finished study, as docs/whose.md has it.

    python scripts/study_table.py study [METHOD ...]

Of `study/reconstruction.md` (its verdicts and titles) and `reconstruction.csv`: for each stage and method SSIM x100 over the best
floor, correlation, that of the null, LPIPS x100, how far a pasted patch appears, whom the picture resembles after a swap, SSIM
x100 over random weights, the median of the seconds a picture, and the verdict. METHOD: keys as in the CSV (`blind`,
`frozen-unfitted` ...); all by default. The rows are left alone: they may be those of several studies.
"""

from __future__ import annotations

import csv
import re
import sys
from collections import defaultdict
from pathlib import Path

from pullback.errors import OptionError, OutputError, PullbackError
from pullback.inversion.inverter import MODES
from pullback.studies.bootstrap import Interval
from pullback.studies.contenders import contenders
from pullback.studies.tables import interval

HEAD = (
    "stage", "method", "SSIM x100 over the best floor", "correlation", "null's", "LPIPS x100", "patch appears",
    "after a swap like: gates' image, features' image", "SSIM x100 over random weights", "s", "verdict",
)  # fmt: skip
Key = tuple[str, str]  # stage, title of the method
Figures = dict[str, dict[str, float]]  # columns of the CSV, by quantity


def main() -> None:
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    try:
        _print(Path(sys.argv[1]), sys.argv[2:])
    except PullbackError as error:
        print("study_table.py:", error, file=sys.stderr)
        raise SystemExit(2) from None


def _print(folder: Path, wanted: list[str]) -> None:
    try:
        figures, verdicts = _table(folder / "reconstruction.csv"), _verdicts(folder / "reconstruction.md")
    except (OSError, KeyError) as error:
        raise OutputError(f"{folder} holds no finished study of this version: {error}") from None
    titles = {title for _, title in verdicts}
    chosen = [_title(method) for method in wanted] or titles
    for method in wanted:
        if _title(method) not in titles:
            raise OptionError(f"the study in {folder} has no method {method!r}; name keys of its reconstruction.csv")
    print(_line(HEAD), _line(("---",) * len(HEAD)), sep="\n")
    for (stage, title), finding in sorted(verdicts.items(), key=lambda item: int(item[0][0])):
        if title in chosen:
            print(_line((stage, title, *_figures(figures[stage, title]), finding)))


def _table(path: Path) -> dict[Key, Figures]:
    """Empty where the method failed on every image: for these the CSV has no line."""
    found: dict[Key, Figures] = defaultdict(dict)
    with path.open(encoding="utf-8") as file:
        for line in csv.DictReader(file):
            values = {name: float(line[name] or "nan") for name in ("mean", "low", "high", "median", "images")}
            found[line["stage"], _title(line["method"])][line["quantity"]] = values
    return found


def _verdicts(path: Path) -> dict[Key, str]:
    """What was found, a null by its number alone: the page says in words what it is."""
    told = map(_cells, path.read_text(encoding="utf-8").partition("## Verdicts")[2].splitlines())
    return {
        (cells[0], cells[1]): re.sub(r"(null \w+),.*", r"\1", cells[2].strip("*"))
        for cells in told
        if cells[0].isdigit()
    }


def _title(method: str) -> str:
    """The title that the page gives to a key of the CSV."""
    mode, _, fitted = method.partition("-")
    return f"cascade {mode}, {fitted.replace('-', ' ')}" if mode in MODES else contenders([method])[0].title


def _figures(found: Figures) -> tuple[str, ...]:
    swap = (_single(found, f"swap: correlation with the {whom}") for whom in ("image", "donor"))
    return (
        _known(found, "SSIM over the best floor", 100, 1, signed=True),
        _known(found, "correlation"),
        _single(found, "null: correlation"),
        _single(found, "LPIPS", 100, 0),
        _known(found, "transplant: correlation"),
        ", ".join(swap),
        _known(found, "SSIM over random weights", 100, 1, signed=True),
        # The first picture may have paid for a null that is searched once.
        _single(found, "seconds", digits=1, column="median"),
    )


def _known(found: Figures, name: str, scale: float = 1, digits: int = 2, signed: bool = False) -> str:
    if name not in found:
        return "–"
    at = found[name]
    return interval(Interval(at["mean"], at["low"], at["high"], int(at["images"])), scale, digits, signed)


def _single(found: Figures, name: str, scale: float = 1, digits: int = 2, column: str = "mean") -> str:
    return f"{scale * found[name][column]:z.{digits}f}" if name in found else "–"


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def _line(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
