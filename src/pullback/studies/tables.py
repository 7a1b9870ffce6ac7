"""A finished study in words and numbers: one Markdown page for people, one CSV table for programs."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from statistics import median

from pullback.pictures.plain import number, readable
from pullback.studies.bootstrap import Interval, bootstrap
from pullback.studies.metrics import LPIPS
from pullback.studies.results import LEFT, LOST_WITH_FEATURES, LOST_WITH_GATES, QUANTITIES, Results
from pullback.studies.verdict import verdict

CLAIM = """\
Claim: the picture of a stage shows the image, because the stage's features hold it. So its SSIM with the image lies above every
floor, above what the method draws without any feature and above what it draws from another image's; from another image's features
comes rather that image; and a patch that is pasted into the features appears in the picture, where it was pasted."""
PAPER = """\
The paper's own figures, SSIM x100 of the deepest stage on ImageNet at 224 px (Adjoint Inversion, table 1):

| | ResNet-50 | ResNet-18 | DenseNet-121 | ConvNeXt-B |
| --- | --- | --- | --- | --- |
| ours (fitted, additive) | 41.7 | 34.6 | 38.5 | 43.2 |
| vanilla | 4.8 | 2.5 | 4.3 | 3.7 |
| Mahendran & Vedaldi | 7.5 | 6.2 | 6.9 | 8.7 |
| robust inversion | 7.6 | 6.5 | 8.7 | 9.6 |
| UpConvNet | 15.9 | 18.5 | 14.5 | 12.0 |

It states no floors: compare with those above, which depend on the pictures alone."""
NEARNESS = f"""\
Means over the images with 95 % bootstrap intervals. SSIM x100 of de-normalised, clamped colours. *Over* a floor or a null: the
paired difference, image by image; the floor is the best of each image's. Correlation: of all preprocessed values. Misfit:
||F(x) - F|| / ||F||, 1 for no features at all. Clamped: values outside [0, 1]. LPIPS x100: {LPIPS}, not the backbone of the
paper. s/image: what one drawing takes, the null with it; but the blind inverse searches its null once for a network and a number
of steps and keeps it, so that only the first image can have paid for it, and its decoder, also taught once, is not counted. MB: the
most that the whole process (on an accelerator: its memory) held meanwhile. *(of 7)*: only so many images have the figure; a flat
picture has no correlation."""
OWNERSHIP = """\
Patch: of another image, pasted in before the features are taken, while the gates stay the image's own; the correlation of the
picture's change with the true change inside the patch (1: the patch appears; 0: nothing of it does), and the share of the
change's energy inside, beside the patch's share of the area ({area}). Swap: all features from another image, the gates the image's
own; whom does the picture resemble? Random weights: SSIM x100 minus that of the same method through the same architecture
untrained: below 0 training cost likeness. It says whether training matters, and is no part of the verdict."""
SPLIT = """\
SSIM x100 in parts that add up: what is lost when only the features are another image's, what is lost when the gates are that
image's too, and what is left, the likeness of any two such pictures. The order matters: features and gates that do not belong
together can break a picture whatever the features hold, so the first column is no evidence of features by itself."""
AGAINST_BLIND = """\
Each method minus the blind inverse, paired. Below 0 the blind inverse has the higher SSIM or correlation, and the higher, that is
worse, LPIPS."""


def page(results: Results, about: Mapping[str, str], notes: Sequence[str], sheets: Sequence[str]) -> str:
    """The page. about: settings in words by their names; notes: what a reader must know; sheets: file names of pictures."""
    parts = [
        "# Reconstruction study",
        CLAIM,
        "\n".join(f"- {name}: {_escaped(value)}" for name, value in about.items()),
        *([f"Pictures: {', '.join(f'[{s}]({s})' for s in sheets)}."] if sheets else []),
        "## How near the pictures come",
        NEARNESS,
        _nearness(results),
        _floors(results),
        PAPER,
        "## Whose pictures they are",
        OWNERSHIP.format(area=_area(results)),
        _ownership(results),
        SPLIT,
        _split(results),
        *_against_blind(results),
        "## Verdicts",
        _verdicts(results),
        *(["## Notes", "\n".join(f"- {_escaped(note)}" for note in notes)] if notes else []),
    ]
    return "\n\n".join(parts) + "\n"


def table(results: Results) -> str:
    """CSV: a line for each method, stage and quantity, with its interval, in the units of the rows."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(("method", "stage", "quantity", "mean", "low", "high", "median", "images", "failed"))
    for method, stage in results.rows:
        for quantity in QUANTITIES:
            found = results.interval(method, stage, quantity.name)
            if found.count:
                known = [v for v in results.column(method, stage, quantity.name) if v is not None and math.isfinite(v)]
                figures = (found.mean, found.low, found.high, median(known))
                ends = ("" if math.isnan(v) else f"{v:.6g}" for v in figures)
                failed = results.failed(method, stage)
                writer.writerow((method, stage, quantity.name, *ends, found.count, failed))
    return stream.getvalue()


def interval(found: Interval, scale: float = 1.0, digits: int = 2, signed: bool = False, of: int = 0) -> str:
    """ "34.6 [31.0, 38.2]", without brackets where one image is all, a dash where nothing is known.

    of: how many were drawn; "(of 7)" follows where fewer have the figure.
    """
    if found.count == 0 or math.isnan(found.mean):
        return "–"
    sign = "+" if signed else ""
    # z: what rounds to zero has no sign.
    mean, low, high = (f"{scale * v:{sign}z.{digits}f}" for v in (found.mean, found.low, found.high))
    told = mean if math.isnan(found.low) else f"{mean} [{low}, {high}]"
    return f"{told} (of {found.count})" if found.count < of else told


def _nearness(results: Results) -> str:
    head = (
        "stage", "method", "SSIM", "over the best floor", "over its null", "correlation", "null's", "misfit", "null's",
        "LPIPS", "clamped", "s/image", "MB",
    )  # fmt: skip
    lines = []
    for method, stage in results.rows:
        at = {q.name: results.interval(method, stage, q.name) for q in QUANTITIES}
        failed = results.failed(method, stage)
        drawn = len(results.images) - failed
        lines.append((
            str(stage),
            results.titles[method] + (f" ({failed} failed)" if failed else ""),
            interval(at["SSIM"], 100, 1),
            interval(at["SSIM over the best floor"], 100, 1, signed=True),
            interval(at["SSIM over its null"], 100, 1, signed=True),
            interval(at["correlation"], 1, 3, of=drawn),
            _mean(at["null: correlation"], 1, 3, of=drawn),
            _short(at["feature misfit"]),
            _short(at["null: feature misfit"]),
            interval(at["LPIPS"], 100, 1),
            _mean(at["clamped share"], 100, 0, " %"),
            _short(at["seconds"]),
            _mean(at["memory"], 1e-6, 0),
        ))  # fmt: skip
    return _markdown(head, lines)


def _floors(results: Results) -> str:
    lines = []
    for name, found in results.floors.items():
        figures = [
            bootstrap((f.get(key) for f in found), seed=results.seed) for key in ("ssim", "correlation", "lpips")
        ]
        cells = (interval(figures[0], 100, 1), interval(figures[1], 1, 3), interval(figures[2], 100, 1))
        lines.append((name, *cells))
    return _markdown(("floor", "SSIM", "correlation", "LPIPS"), lines)


def _ownership(results: Results) -> str:
    head = (
        "stage", "method", "patch: correlation", "patch: energy inside", "swap: correlation with image", "with donor",
        "SSIM over random weights",
    )  # fmt: skip
    lines = []
    for method, stage in results.rows:
        names = (
            "transplant: correlation", "transplant: energy inside", "swap: correlation with the image",
            "swap: correlation with the donor",
        )  # fmt: skip
        drawn = len(results.images) - results.failed(method, stage)
        cells = [interval(results.interval(method, stage, name), of=drawn) for name in names]
        random = interval(results.interval(method, stage, "SSIM over random weights"), 100, 1, signed=True, of=drawn)
        lines.append((str(stage), results.titles[method], *cells, random))
    return _markdown(head, lines)


def _split(results: Results) -> str:
    names = ("SSIM", LOST_WITH_FEATURES, LOST_WITH_GATES, LEFT)
    lines = []
    for method, stage in results.rows:
        cells = [interval(results.interval(method, stage, n), 100, 1, signed="lost" in n) for n in names]
        lines.append((str(stage), results.titles[method], *cells))
    head = ("lost when only the features are exchanged", "lost when the gates are exchanged after that", "left")
    return _markdown(("stage", "method", "SSIM", *head), lines)


def _against_blind(results: Results) -> list[str]:
    if "blind" not in results.titles or len(results.titles) == 1:
        return []
    names = ("SSIM over the blind inverse", "correlation over the blind inverse", "LPIPS over the blind inverse")
    lines = []
    for method, stage in results.rows:
        if method != "blind":
            scales = ((100, 1), (1, 3), (100, 1))
            found = zip(names, scales, strict=True)
            cells = [interval(results.interval(method, stage, n), s, d, signed=True) for n, (s, d) in found]
            lines.append((str(stage), results.titles[method], *cells))
    return [AGAINST_BLIND, _markdown(("stage", "method", "SSIM", "correlation", "LPIPS"), lines)]


def _verdicts(results: Results) -> str:
    lines = []
    for method, stage in results.rows:
        found = verdict(results, method, stage)
        decided = f"{found.quantity}: {interval(found.interval, digits=3, signed=True)}"
        lines.append((str(stage), results.titles[method], f"**{found.finding}**", decided))
    return _markdown(("stage", "method", "verdict", "deciding interval"), lines)


def _area(results: Results) -> str:
    areas = [row.get("transplant area") for rows in results.rows.values() for row in rows]
    known = [a for a in areas if a is not None]
    return f"{sum(known) / len(known):.2f}" if known else "–"


def _mean(found: Interval, scale: float, digits: int, unit: str = "", of: int = 0) -> str:
    fewer = f" (of {found.count})" if found.count < of else ""
    return "–" if found.count == 0 else f"{scale * found.mean:.{digits}f}{unit}{fewer}"


def _short(found: Interval) -> str:
    return "–" if found.count == 0 else number(found.mean)


def _escaped(text: str) -> str:
    return readable(text).replace("|", "\\|")


def _markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    rule = "|".join(" --- " for _ in head)
    rows = [" | ".join(map(_escaped, cells)) for cells in (head, *lines)]
    return "\n".join([f"| {rows[0]} |", f"|{rule}|", *(f"| {row} |" for row in rows[1:])])
