"""Does the cost grow with the channels and the images, and nothing else?

    python -m benchmarks.growth --out growth.png

Seconds by the number of channels and of images, and peak memory by the number of channels, pictures not held; ResNet-18's
deepest stage at 224 pixels. Prints the figures and draws them. On an idle machine, or not at all.
"""

from __future__ import annotations

import argparse
import io
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.memory import Probe, peak
from benchmarks.peers import STREAMED, Setting
from benchmarks.work import NETWORKS, Work, prepare

_CHANNELS = (32, 64, 128, 256, 512)
_IMAGES = (1, 2, 4, 8)
_EACH = 32  # channels of each of the images
_ROUNDS = 3
_CHUNK = 32

Curve = list[tuple[int, float]]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("growth.png"), help="the plot")
    out = parser.parse_args().out
    work = prepare(NETWORKS["resnet18"], max(_CHANNELS))
    _seconds(work, _EACH, 1)
    by_channels, by_images = _seconds_by(work)
    by_memory: Curve = []
    for count in _CHANNELS:
        probe = Probe("resnet18", STREAMED.name, _CHUNK, "own", count, None, "cpu", torch.get_num_threads())
        by_memory.append((count, peak(probe) / 1e6))
    for name, unit, curve in (
        ("channels", "s", by_channels),
        (f"images of {_EACH} channels", "s", by_images),
        (f"channels in chunks of {_CHUNK}", "MB", by_memory),
    ):
        print(f"{name}: " + ", ".join(f"{n}: {value:.3g} {unit}" for n, value in curve))
    out.write_bytes(_png(by_channels, by_images, by_memory))
    return 0


def _seconds_by(work: Work) -> tuple[Curve, Curve]:
    """The best of some rounds, all sizes taking turns."""
    channels, images = dict.fromkeys(_CHANNELS, float("inf")), dict.fromkeys(_IMAGES, float("inf"))
    for _ in range(_ROUNDS):
        for count in _CHANNELS:
            channels[count] = min(channels[count], _seconds(work, count, 1))
        for count in _IMAGES:
            images[count] = min(images[count], _seconds(work, _EACH, count))
    return list(channels.items()), list(images.items())


def _seconds(work: Work, channels: int, images: int) -> float:
    begun = time.perf_counter()
    for _ in range(images):
        STREAMED.pull(work, work.seeds[:channels], Setting(_CHUNK, "own"))
    return time.perf_counter() - begun


def _png(by_channels: Curve, by_images: Curve, by_memory: Curve) -> bytes:
    figure = Figure(figsize=(10.5, 3.2), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    _panel(left, by_channels, "channels of one image", "seconds")
    _panel(middle, by_images, f"images, {_EACH} channels each", "seconds")
    _panel(right, by_memory, f"channels, in chunks of {_CHUNK}", "peak memory, MB", line=False)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=130)
    return stream.getvalue()


def _panel(ax: Axes, curve: Sequence[tuple[int, float]], along: str, up: str, *, line: bool = True) -> None:
    """Dots, and the straight line through the first and the last of them."""
    sizes, values = [n for n, _ in curve], [value for _, value in curve]
    if line:
        ends = [0, -1]
        ax.plot([sizes[i] for i in ends], [values[i] for i in ends], "--", color="#d55e00", linewidth=1.2)
    ax.plot(sizes, values, "o", color="#0072b2")
    ax.set_xlabel(along)
    ax.set_ylabel(up)
    ax.set_xlim(left=0)
    ax.set_ylim(0, 1.15 * max(values))
    ax.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    sys.exit(main())
