"""Print the short table of a finished study, as docs/whose.md has it.

    python scripts/study_table.py study [METHOD ...]

Of `study/reconstruction.md` (its verdicts and titles), `reconstruction.csv` and the rows: for each stage and method SSIM x100 over
the best floor, correlation, that of the null, LPIPS x100, how far a pasted patch appears, whom the picture resembles after a
swap, SSIM x100 over random weights, the median of the seconds a picture, and the verdict. METHOD: keys as in the CSV
(`blind`, `frozen-unfitted` ...); all by default.
"""

from __future__ import annotations

import csv
import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path

from pullback.studies.bootstrap import Interval
from pullback.studies.tables import interval

HEAD = (
    "stage", "method", "SSIM x100 over the best floor", "correlation", "null's", "LPIPS x100", "patch appears",
    "after a swap like: gates' image, features' image", "SSIM x100 over random weights", "s", "verdict",
)  # fmt: skip
Key = tuple[str, str]  # method, stage


def main() -> None:
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    folder, wanted = Path(sys.argv[1]), sys.argv[2:]
    figures: dict[Key, dict[str, Interval]] = defaultdict(dict)
    with (folder / "reconstruction.csv").open(encoding="utf-8") as file:
        for line in csv.DictReader(file):
            ends = (float(line[end] or "nan") for end in ("mean", "low", "high"))
            figures[line["method"], line["stage"]][line["quantity"]] = Interval(*ends, int(line["images"]))
    page = (folder / "reconstruction.md").read_text(encoding="utf-8")
    told = [cells for cells in map(_cells, page.partition("## Verdicts")[2].splitlines()) if cells[0].isdigit()]
    # The page and the table tell of the same methods and stages in the same order.
    verdicts = dict(zip(figures, told, strict=True))
    seconds = _seconds(folder)
    print(_line(HEAD), _line(("---",) * len(HEAD)), sep="\n")
    for (method, stage), found in sorted(figures.items(), key=lambda item: int(item[0][1])):
        if not wanted or method in wanted:
            title, finding = verdicts[method, stage][1], verdicts[method, stage][2].strip("*").partition(",")[0]
            print(_line((stage, title, *_figures(found), seconds[method, stage], finding)))


def _figures(found: dict[str, Interval]) -> tuple[str, ...]:
    swap = (_mean(found, f"swap: correlation with the {whom}") for whom in ("image", "donor"))
    return (
        _known(found, "SSIM over the best floor", 100, 1, signed=True),
        _known(found, "correlation"),
        _mean(found, "null: correlation"),
        _mean(found, "LPIPS", 100, 0),
        _known(found, "transplant: correlation"),
        ", ".join(swap),
        _known(found, "SSIM over random weights", 100, 1, signed=True),
    )


def _known(found: dict[str, Interval], name: str, scale: float = 1, digits: int = 2, signed: bool = False) -> str:
    return interval(found[name], scale, digits, signed) if name in found else "–"


def _mean(found: dict[str, Interval], name: str, scale: float = 1, digits: int = 2) -> str:
    return f"{scale * found[name].mean:z.{digits}f}" if name in found else "–"


def _seconds(folder: Path) -> dict[Key, str]:
    """Medians: the first picture may have paid for a null that is searched once."""
    taken: dict[Key, list[float]] = defaultdict(list)
    for file in (folder / "rows").glob("*.json"):
        row = json.loads(file.read_text(encoding="utf-8"))
        if not row["error"]:
            taken[row["method"], str(row["stage"])].append(row["values"]["seconds"])
    return {key: f"{statistics.median(seconds):.1f}" for key, seconds in taken.items()}


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def _line(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
