"""The tables in Markdown, and all samples in JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.floor import BANDWIDTH, PRECISIONS, Rates
from benchmarks.rows import Row, Table
from benchmarks.timing import BOUNDS

_COLUMNS = (
    "way",
    "best setting",
    "ms per channel",
    "fastest to slowest",
    "over the floor",
    "encoder runs",
    "backward passes",
    "work",
    "peak MB",
    "at equal chunk",
    "error in float64, here",
)


def markdown(machine: Mapping[str, object], options: Mapping[str, Any], tables: Sequence[Table], rates: Rates) -> str:
    """The whole report."""
    parts = ["# All channels of the deepest stage, pulled back to the pixels", _preamble(machine, options, rates)]
    parts += [_section(table, rates, options["equal_chunk"]) for table in tables]
    return "\n\n".join(parts) + "\n"


def document(
    machine: Mapping[str, object], options: Mapping[str, Any], tables: Sequence[Table], rates: Rates
) -> dict[str, Any]:
    """The same with every sample, ready for JSON. Times in seconds per channel, rates and memory in units and bytes."""
    return {
        "schema": 1,
        "machine": dict(machine),
        "options": dict(options),
        "bounds": BOUNDS,
        "rates": dict(rates.samples),
        "networks": [_plain(table, rates) for table in tables],
    }


def _preamble(machine: Mapping[str, object], options: Mapping[str, Any], rates: Rates) -> str:
    named = ", ".join(f"{key} {value}" for key, value in machine.items())
    speeds = f"float32 convolutions {rates.best('float32') / 1e9:.0f} GFLOP/s"
    if half := rates.best("bfloat16"):
        ratio = half / rates.best("float32")
        speeds += f", bfloat16 convolutions {half / 1e9:.0f} GFLOP/s ({ratio:.1f} times float32)"
    speeds += f", copying {rates.bandwidth / 1e9:.0f} GB/s"
    return "\n".join(
        (
            f"Machine: {named}.",
            f"Measured in the same run, the best of {len(rates.samples[BANDWIDTH])} samples: {speeds}.",
            "",
            "One image, one call: the runs of the network and all cotangents (the features of one channel each, the strongest"
            f" channels first). Medians of {options['rounds']} interleaved rounds; every way at the best of its settings, each"
            f" tried {options['trials']} times. Before that every way gave the pictures of the loop, within {BOUNDS['float64']:.0e}"
            f" in float64 and at every setting within {BOUNDS['float32']:.0e} in float32 (bfloat16: {BOUNDS['bfloat16']:.0e}; the"
            " largest relative error over the cotangents; a unit within rounding of zero may close its gate in one way and not in"
            " another, which float64 makes unlikely). *Floor*: the larger of operations over the best convolution rate and of"
            " bytes over the copying rate, with the convolutions of one run shared by all cotangents: of dense products, which"
            " pullback falls below by leaving out what shut gates make zero. *Work*: operations done over those of dense"
            " products. *Peak*: in a process of its own, above the loaded network; *at equal chunk*: in chunks of"
            f" {options['equal_chunk']}.",
        )
    )


def _section(table: Table, rates: Rates, equal_chunk: int) -> str:
    floors = [
        f"{rates.floor(table.cost, table.cotangents, p) * 1e3:.1f} ms in {p}" for p in PRECISIONS if rates.best(p)
    ]
    side = f"{table.shape[-2]} x {table.shape[-1]}"
    lines = [
        f"## {table.network} ({side}, weights: {table.weights})",
        "",
        f"{table.cotangents} channels of {table.stage} {table.features}; one vector-Jacobian product takes"
        f" {table.cost.vjp_flops / 1e9:.2f} GFLOP and moves {table.cost.vjp_bytes / 1e6:.0f} MB: floor {', '.join(floors)}.",
        "",
        "| " + " | ".join(_COLUMNS) + " |",
        "| --- " * len(_COLUMNS) + "|",
        *(_line(row, table, rates, equal_chunk) for row in sorted(table.rows, key=lambda row: row.seconds)),
        "",
        *(f"- {name}: {ratio:.2f}" for name, ratio in table.headline(rates).items()),
        *(f"- {row.way.name} noted: {note}" for row in table.rows for note in row.notes),
    ]
    return "\n".join(lines)


def _line(row: Row, table: Table, rates: Rates, equal_chunk: int) -> str:
    if row.failure is not None or row.setting is None:
        cells = [row.way.name, f"failed: {row.failure}", *["-"] * (len(_COLUMNS) - 2)]
    else:
        floor = rates.floor(table.cost, table.cotangents, row.way.precision)
        at_best = row.memory.get(row.setting)
        at_equal = next((size for setting, size in row.memory.items() if setting.chunk == equal_chunk), None)
        cells = [
            row.way.name,
            str(row.setting),
            f"{row.seconds * 1e3:.1f}",
            f"{min(row.samples) * 1e3:.1f} to {max(row.samples) * 1e3:.1f}",
            f"{row.seconds / floor:.2f}",
            _shown(row.runs),
            _shown(row.passes),
            f"{row.work:.2f}" if row.work else "-",
            _megabytes(at_best),
            _megabytes(at_equal),
            f"{row.exact:.0e}, {row.error:.0e}",
        ]
    return "| " + " | ".join(cells) + " |"


def _shown(count: int | None) -> str:
    return "-" if count is None else str(count)


def _megabytes(size: int | None) -> str:
    return "-" if size is None else f"{size / 1e6:.0f}"


def _plain(table: Table, rates: Rates) -> dict[str, Any]:
    return {
        "network": table.network,
        "weights": table.weights,
        "stage": table.stage,
        "image": table.shape,
        "features": table.features,
        "cotangents": table.cotangents,
        "cost": asdict(table.cost),
        "floor": {p: rates.floor(table.cost, table.cotangents, p) for p in PRECISIONS if rates.best(p)},
        "headline": table.headline(rates),
        "rows": [
            {
                "way": row.way.name,
                "origin": row.way.origin,
                "precision": row.way.precision,
                "setting": str(row.setting) if row.setting else None,
                "median": row.seconds if row.samples else None,
                "samples": row.samples,
                "trials": {str(setting): seconds for setting, seconds in row.trials.items()},
                "exact": row.exact,
                "error": row.error,
                "runs": row.runs,
                "passes": row.passes,
                "work": row.work,
                "memory": {str(setting): size for setting, size in row.memory.items()},
                "notes": row.notes,
                "failure": row.failure,
            }
            for row in table.rows
        ],
    }
