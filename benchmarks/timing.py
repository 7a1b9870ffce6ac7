"""Timing: every setting is verified first, the best setting of each way is sought, then all ways take turns.

Machines drift, so rounds are interleaved: in each round every way is timed once, and the next round begins with another.
"""

from __future__ import annotations

import gc
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from benchmarks.floor import Cost, Counter, Rates, cost
from benchmarks.machine import finish
from benchmarks.peers import LOOP, Setting, Way
from benchmarks.rows import Row, Table
from benchmarks.work import CONTIGUOUS, Work

BOUNDS = {"float64": 1e-9, "float32": 3e-2, "bfloat16": 1e-1}
"""Largest relative error of a picture against the loop's. Rounding alone stays below 1e-5 in float32; but a unit within
rounding of zero closes its gate in one order of summation and not in another, which moved pictures of an untrained ResNet-50
by 5e-3. In float64 that is unlikely, and all ways agree to 1e-14 there: it is what tells right from wrong."""

_FEW = 9  # cotangents in float64, in chunks of eight at most: one chunk is full and one is not

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Effort:
    """trials: of every setting. rounds: of every way at its best setting."""

    trials: int = 2
    rounds: int = 7


def table(work: Work, ways: Sequence[Way], effort: Effort, rates: Rates, tell: Tell) -> Table:
    """Verify, try, time and count all ways on one network; what fails says why in its row, and the others go on."""
    least = cost(work)
    tell(f"{work.network}: verifying")
    rows = verified(work, ways)
    for number in range(effort.trials):
        tell(f"{work.network}: trial {number + 1} of {effort.trials}")
        for row in _working(rows):
            _try(work, row)
    for row in _working(rows):
        row.setting = min(row.trials, key=row.trials.__getitem__)
    for number in range(effort.rounds):
        tell(f"{work.network}: round {number + 1} of {effort.rounds}")
        rates.sample()
        for row in _rotated(_working(rows), number):
            _time(work, row)
    for row in _working(rows):
        _count(work, row, least)
    return Table(
        work.network,
        work.weights,
        work.stage,
        tuple(work.image.shape),
        tuple(work.seeds.shape[1:]),
        len(work.seeds),
        least,
        rows,
    )


def verified(work: Work, ways: Sequence[Way]) -> list[Row]:
    """A row for each way, with the settings that gave the loop's numbers as its trials; a way without any has failed.

    First a few cotangents in float64, then every setting in the way's own precision, on one cotangent more than its chunk.
    """
    double = work.in_double(_FEW)
    reference = Setting(1, CONTIGUOUS)
    exact = LOOP.pull(double, double.seeds, reference)
    expected = LOOP.pull(work, work.seeds, reference)
    rows = [Row(way, failure=way.missing) for way in ways]
    for row in _working(rows):
        _verify(row, double, exact, work, expected)
    return rows


def relative_error(got: Tensor, expected: Tensor) -> float:
    """The largest |got - expected| / |expected| over the first axis, in Euclidean norm; infinite where it is no number."""
    if got.shape != expected.shape:
        return float("inf")
    gap = (got.double() - expected.double()).flatten(1).norm(dim=1)
    error = float((gap / expected.double().flatten(1).norm(dim=1).clamp_min(1e-300)).max())
    return error if error == error else float("inf")


def _verify(row: Row, double: Work, exact: Tensor, work: Work, expected: Tensor) -> None:
    checked: dict[Setting, float] = {}
    for setting in row.way.settings(len(expected)):
        few = Setting(min(setting.chunk or 8, 8), setting.layout)
        count = len(expected) if setting.chunk is None else min(len(expected), setting.chunk + 1)
        try:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                if row.way.precision == "float32" and few not in checked:
                    checked[few] = _error(row.way, double, few, exact, "float64")
                error = _error(row.way, work, setting, expected[:count], row.way.precision)
        except Exception as reason:  # a peer may fail in any way, and the others go on
            row.notes.append(f"{setting}: {_reason(reason)}")
            continue
        row.error = max(row.error, error)
        row.trials[setting] = float("inf")
        row.notes += {_first_line(str(w.message)) for w in said}.difference(row.notes)
    row.exact = max(checked.values(), default=0.0)
    if not row.trials:
        row.failure = row.notes.pop(0)


def _error(way: Way, work: Work, setting: Setting, expected: Tensor, precision: str) -> float:
    """The error of a way at a setting; ArithmeticError when it is beyond the bound."""
    error = relative_error(way.pull(work, work.seeds[: len(expected)], setting), expected)
    if not error <= BOUNDS[precision]:
        raise ArithmeticError(
            f"wrong numbers, relative error {error:.1e} in {precision}, above {BOUNDS[precision]:.0e}"
        )
    return error


def _try(work: Work, row: Row) -> None:
    """One more trial of each setting; a setting that fails is dropped, and a way without any left has failed."""
    for setting in list(row.trials):
        try:
            row.trials[setting] = min(row.trials[setting], _seconds(work, row.way, setting))
        except Exception as error:  # too little memory for a chunk, say
            del row.trials[setting]
            row.notes.append(f"{setting}: {_reason(error)}")
    if not row.trials:
        row.failure = row.notes[-1]


def _seconds(work: Work, way: Way, setting: Setting | None) -> float:
    """Seconds per cotangent of one whole call."""
    assert setting is not None
    device = work.image.device.type
    gc.collect(1)  # what the last way left behind; a full collection takes longer than many a way
    finish(device)
    start = time.perf_counter()
    pulled = way.pull(work, work.seeds, setting)
    finish(device)
    elapsed = time.perf_counter() - start
    return elapsed / len(pulled)


def _count(work: Work, row: Row, least: Cost) -> None:
    """Runs, backward passes and operations of one call at the best setting."""
    assert row.setting is not None
    before, unseen = work.runs, work.own_flops
    try:
        with Counter() as counter:
            pulled = row.way.pull(work, work.seeds, row.setting)
    except Exception as error:  # a way that works, but not while it is watched
        row.notes.append(f"not counted: {_reason(error)}")
        return
    row.runs = work.runs - before
    row.passes = round(counter.backward_convolutions / least.backward_convolutions) or None
    row.work = (counter.flops + work.own_flops - unseen) / (least.flops(len(pulled)) * len(pulled))


def _time(work: Work, row: Row) -> None:
    """One more sample at the best setting."""
    try:
        row.samples.append(_seconds(work, row.way, row.setting))
    except Exception as error:  # whatever it is, the others go on
        row.failure, row.samples = _reason(error), []


def _working(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row.failure is None]


def _rotated(rows: list[Row], by: int) -> list[Row]:
    shift = by % max(len(rows), 1)
    return rows[shift:] + rows[:shift]


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {_first_line(str(error))}"


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "no message")[:200]
