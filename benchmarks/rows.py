"""What was found: a row for each way, a table for each network, all samples kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

from benchmarks.floor import Cost, Rates
from benchmarks.peers import BY_HAND, OURS, PUBLISHED, Setting, Way


@dataclass
class Row:
    """One way on one network. Times are seconds per cotangent, of the whole call including the runs of the network.

    exact, error: largest relative error over the cotangents and settings, in float64 and in the way's own precision.
    trials: the fastest trial by setting. samples: of the rounds, in order. runs: of the network. passes: backward passes of
    autograd; None where the way has its own. work: operations done over those that the cotangents need. memory: peak bytes
    above the loaded network, by setting.
    """

    way: Way
    setting: Setting | None = None
    exact: float = 0.0
    error: float = 0.0
    trials: dict[Setting, float] = field(default_factory=dict)
    samples: list[float] = field(default_factory=list)
    runs: int | None = None
    passes: int | None = None
    work: float | None = None
    memory: dict[Setting, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    failure: str | None = None

    @property
    def seconds(self) -> float:
        """Median seconds per cotangent; infinite for a way that failed."""
        return median(self.samples) if self.samples else float("inf")


@dataclass
class Table:
    """One network: what was pulled, what it costs at least, and a row for each way."""

    network: str
    weights: str
    stage: str
    shape: tuple[int, ...]  # of the image
    features: tuple[int, ...]
    cotangents: int
    cost: Cost
    rows: list[Row]

    def fastest(self, origin: str) -> Row | None:
        """The fastest float32 row of an origin, or None where none worked."""
        return _least(self.rows, lambda row: row.seconds if row.way.origin == origin else float("inf"))

    def headline(self, rates: Rates) -> dict[str, float]:
        """The ratios that are claimed, by name; those that cannot be had are left out."""
        ours, published, by_hand = (self.fastest(origin) for origin in (OURS, PUBLISHED, BY_HAND))
        found = {}
        if ours:
            found["pullback over the floor"] = ours.seconds / rates.floor(self.cost, self.cotangents, "float32")
        rounded = [
            row for row in self.rows if row.way.origin == OURS and row.way.precision == "bfloat16" and row.samples
        ]
        if rounded:
            floor = rates.floor(self.cost, self.cotangents, "bfloat16")
            found["pullback in bfloat16 over its floor"] = rounded[0].seconds / floor
        if ours and published:
            found[f"fastest published way ({published.way.name}) over pullback"] = published.seconds / ours.seconds
        if ours and by_hand:
            found["by hand over pullback"] = by_hand.seconds / ours.seconds
            mine, theirs = ({s.chunk: b for s, b in row.memory.items()} for row in (ours, by_hand))
            for chunk in sorted(c for c in mine if c is not None and theirs.get(c)):
                found[f"peak memory of pullback over by hand, chunk {chunk}"] = mine[chunk] / theirs[chunk]
        return found


def _least(rows: list[Row], key: Callable[[Row], float]) -> Row | None:
    working = [row for row in rows if row.way.precision == "float32" and key(row) < float("inf")]
    return min(working, key=key, default=None)
