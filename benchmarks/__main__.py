"""The benchmark: `make bench`, or

    python -m benchmarks --networks resnet18 scenes --cotangents 64 --rounds 9 --out results

Writes speed.md, speed.json (every sample) and speed.png, and prints the first. On an idle machine, or not at all.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import plot
from benchmarks import table as written
from benchmarks.floor import Rates
from benchmarks.machine import describe
from benchmarks.memory import Probe, ProbeError, peak
from benchmarks.peers import LOOP, WAYS, Setting
from benchmarks.rows import Table
from benchmarks.timing import Effort, table
from benchmarks.work import NETWORKS, Network, chosen, prepare
from pullback.errors import PullbackError
from pullback.images import output_folder, write_together

_EQUAL_CHUNK = 8
_QUICK = {"networks": ["scenes"], "cotangents": 5, "rounds": 1, "trials": 1, "size": 32}
_QUICK_SAMPLE = 0.002  # seconds


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    options = _options(arguments)
    torch.set_num_threads(options.threads)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False  # float32 means float32
    try:
        with output_folder(options.out) as out:
            rates = Rates(options.device, _QUICK_SAMPLE) if options.quick else Rates(options.device)
            tables: list[Table] = []
            for network in chosen(options.networks):
                tables.append(_table(network, options, rates))
                text = _write(out, options, tables, rates)  # after each, so that an interrupted run keeps what it has
    except PullbackError as error:
        print(error, file=sys.stderr)
        return 2
    print(text)
    print(f"written to {options.out}")
    return 0


def _write(out: Path, options: argparse.Namespace, tables: list[Table], rates: Rates) -> str:
    settings = vars(options) | {"out": str(options.out), "equal_chunk": _EQUAL_CHUNK}
    findings = (describe(options.device), settings, tables, rates)
    text = written.markdown(*findings)
    write_together(
        {
            out / "speed.md": text.encode(),
            out / "speed.json": json.dumps(written.document(*findings), indent=1).encode(),
            out / "speed.png": plot.png(tables, rates),
        }
    )
    return text


def _table(network: Network, options: argparse.Namespace, rates: Rates) -> Table:
    work = prepare(network, options.cotangents, size=options.size, device=options.device)
    ways = [way for way in WAYS if way is LOOP or not options.ways or any(text in way.name for text in options.ways)]
    ways = [way.limited_to(options.chunks) for way in ways] if options.chunks else ways
    found = table(work, ways, Effort(options.trials, options.rounds), rates, _tell)
    if options.memory:
        _tell(f"{network.name}: memory")
        _add_memory(found, options)
    return found


def _add_memory(found: Table, options: argparse.Namespace) -> None:
    """Peak memory of each way at its best setting and in chunks of the same size."""
    for row in found.rows:
        if row.failure is not None or row.setting is None:
            continue
        equal = Setting(_EQUAL_CHUNK, row.setting.layout)
        for setting in dict.fromkeys((row.setting, *((equal,) if equal in row.trials else ()))):
            probe = Probe(
                network=found.network,
                way=row.way.name,
                chunk=setting.chunk,
                layout=setting.layout,
                cotangents=found.cotangents,
                size=options.size,
                device=options.device,
                threads=options.threads,
            )
            try:
                row.memory[setting] = peak(probe)
            except ProbeError as error:
                row.notes.append(f"memory, {setting}: {error}")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__, formatter_class=_Formatter)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), metavar="NAME", help=", ".join(NETWORKS))
    parser.add_argument(
        "--cotangents", type=_count, default=32, help="channels to pull back, at most those of the stage"
    )
    parser.add_argument("--rounds", type=_count, default=7, help="interleaved rounds at the best settings")
    parser.add_argument("--trials", type=_count, default=2, help="trials of every setting")
    parser.add_argument("--chunks", type=_count, nargs="+", help="chunk sizes to be tried, instead of all")
    parser.add_argument(
        "--ways", nargs="+", metavar="TEXT", help="only the loop and the ways with one of these in their names"
    )
    parser.add_argument("--size", type=_count, help="pixels a side, instead of each network's own")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda")
    parser.add_argument("--threads", type=_count, default=torch.get_num_threads(), help="threads of torch")
    parser.add_argument(
        "--no-memory", dest="memory", action="store_false", help="leave out the processes for the peaks"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder for the results")
    parser.add_argument("--quick", action="store_true", help="tiny, without memory: only to see that it runs")
    options = parser.parse_args(arguments)
    if options.device != "cpu" and not torch.cuda.is_available():
        parser.error(f"--device {options.device}: torch finds no GPU here; leave it out to measure on the CPU")
    for text in options.ways or ():
        if not any(text in way.name for way in WAYS):
            parser.error(f"--ways {text}: the ways are {', '.join(way.name for way in WAYS)}")
    if options.quick:
        vars(options).update(_QUICK, memory=False)
    return options


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults shown, the description's lines kept."""


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is no number of at least 1")
    return number


def _tell(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
