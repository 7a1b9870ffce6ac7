"""Two processes under torchrun write the bytes of one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from oracles.command import NET, TINY, picture, saved
from torch import Tensor, distributed

from pullback.cli import main
from pullback.fitting.workers import Workers, joined

ARGUMENTS = ["fit", "pictures", *TINY, "--steps", "4", "--batch", "3", "--channels", "3", "--held-back", "3"]
GLOO = pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available()), reason="this torch was built without gloo"
)


def test_one_process_does_every_row_in_order() -> None:
    seen: list[int] = []

    def row(index: int) -> Tensor:
        seen.append(index)
        return torch.tensor([index, -index])

    alone = Workers.here(torch.device("cpu"))
    assert alone.rows(3, 2, row).tolist() == [[0, 0], [1, -1], [2, -2]]
    assert seen == [0, 1, 2]
    alone.wait()


def test_without_torchrun_this_process_leads_on_the_device_named() -> None:
    with joined("cuda:1") as (device, leads):
        assert (device, leads) == ("cuda:1", True)
    assert not distributed.is_initialized()


@GLOO
@pytest.mark.timeout(240)
def test_two_processes_write_the_bytes_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "hostile_tiny_net", raising=False)
    Path("hostile_tiny_net.py").write_text(NET)
    for seed in range(7):
        saved(f"pictures/{seed}.png", picture(seed=seed))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(
            2
        )  # where nobody says how many, torchrun gives its processes one and a plain command has more
        with pytest.raises(SystemExit, match="0"):
            main([*ARGUMENTS, "--out", "one.safetensors"])
    finally:
        torch.set_num_threads(before)
    one = capsys.readouterr().err

    unsaid = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    two = subprocess.run(
        [*torchrun, "-m", "pullback", *ARGUMENTS, "--out", "two.safetensors"],
        env={**unsaid, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert two.returncode == 0, two.stderr
    assert Path("one.safetensors").read_bytes() == Path("two.safetensors").read_bytes()
    assert one.count("before the first step") == two.stderr.count("before the first step") == 1  # one of them talks
    assert sorted(p.name for p in tmp_path.glob("*.safetensors*")) == ["one.safetensors", "two.safetensors"]
