"""SIGKILL at five random moments, then the same call again: the same bytes as without. Real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import oracles.killed_fit
import pytest


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that can be forked")
def test_killed_five_times_it_ends_in_the_bytes_of_the_uninterrupted_fit(tmp_path: Path) -> None:
    script = Path(oracles.killed_fit.__file__)
    paths = os.pathsep.join([str(script.parents[1]), os.environ.get("PYTHONPATH", "")])
    ran = subprocess.run(
        [sys.executable, script, "0"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    uninterrupted, killed, last, same, left = json.loads(ran.stdout)
    assert (uninterrupted, killed, last) == (0, [-signal.SIGKILL] * 5, 0), ran.stderr
    assert same
    assert not left
