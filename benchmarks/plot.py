"""The plot: a bar for each way, a dot for each sample, a line at the floor; one panel for each network."""

from __future__ import annotations

import io
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.floor import Rates
from benchmarks.peers import BY_HAND, OURS, PUBLISHED
from benchmarks.rows import Table

_COLOURS = {PUBLISHED: "#bbbbbb", BY_HAND: "#e69f00", OURS: "#0072b2"}  # told apart without red and green, and in grey
_FLOOR = "#d55e00"


def png(tables: Sequence[Table], rates: Rates) -> bytes:
    """The figure as a PNG file's bytes."""
    figure = Figure(figsize=(9, 0.6 + 2.9 * len(tables)), layout="constrained")
    axes = figure.subplots(len(tables), 1, squeeze=False)[:, 0]
    for ax, table in zip(axes, tables, strict=True):
        _panel(ax, table, rates)
    axes[-1].set_xlabel("milliseconds per channel (bar: median; dots: every sample; dashed: the floor in float32)")
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=150)
    return stream.getvalue()


def _panel(ax: Axes, table: Table, rates: Rates) -> None:
    rows = sorted((row for row in table.rows if row.samples), key=lambda row: -row.seconds)
    names = [row.way.name for row in rows]
    ax.barh(names, [row.seconds * 1e3 for row in rows], color=[_COLOURS[row.way.origin] for row in rows], height=0.7)
    for position, row in enumerate(rows):
        times = [sample * 1e3 for sample in row.samples]
        ax.plot(times, [position] * len(times), ".", color="black", markersize=3, alpha=0.6)
        ax.annotate(f"{row.seconds * 1e3:.1f}", (max(times), position), (5, 0), textcoords="offset points", va="center")
    floor = rates.floor(table.cost, table.cotangents, "float32") * 1e3
    ax.axvline(floor, color=_FLOOR, linestyle="--", linewidth=1.2)
    ax.margins(x=0.12)
    ax.set_xlim(left=0)
    ax.set_title(
        f"{table.network}, {table.shape[-2]} x {table.shape[-1]} (floor {floor:.1f} ms)", loc="left", fontsize=10
    )
    ax.spines[["top", "right"]].set_visible(False)
