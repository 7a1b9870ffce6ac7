"""A fit that is killed five times and called again each time: `python killed_fit.py SEED` prints what came of it.

Forks its processes, so that none of them imports torch anew; in itself it computes nothing.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from oracles.small_nets import image, small_encoder

from pullback.fitting import Recipe, checkpoint_of, fit_correctors

RECIPE = Recipe(steps=45, batch=1, channels=2, held_back=1)
KILLED, WHOLE = Path("killed.safetensors"), Path("whole.safetensors")


def forked(out: Path) -> int:
    """The process that fits."""
    process = os.fork()
    if process == 0:
        fit_correctors(small_encoder(), [image(seed) for seed in range(5)], RECIPE, out=out)
        os._exit(0)
    return process


def status(process: int) -> int:
    """How it ended: 0, or minus the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def stamp() -> int:
    try:
        return checkpoint_of(KILLED).stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def killed_after(writes: int, delay: float) -> int:
    """Kill it `delay` seconds after so many further writes of its checkpoint."""
    process, last = forked(KILLED), stamp()
    while writes and not os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        now = stamp()
        writes, last = writes - (now != last), now
        time.sleep(0.0005)
    time.sleep(delay)
    os.kill(process, signal.SIGKILL)
    return status(process)


def main() -> None:
    torch.set_num_threads(1)
    dice = random.Random(int(sys.argv[1]))
    uninterrupted = status(forked(WHOLE))
    statuses = [killed_after(dice.randint(1, 5), dice.random() * 0.02) for _ in range(5)]
    last = status(forked(KILLED))
    same = WHOLE.read_bytes() == KILLED.read_bytes()
    print(json.dumps([uninterrupted, statuses, last, same, checkpoint_of(KILLED).exists()]))


if __name__ == "__main__":
    main()
