"""The kernels of live entries: made once by the machine's compiler, kept whole, and no obstacle where they cannot be had."""

from __future__ import annotations

import ctypes
import logging
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from oracles.lowered import a_point, assert_both_products_are_dense, dense, drawn, lower
from torch import nn

from pullback.adjoint import compiled


@pytest.fixture(autouse=True)
def compiler() -> None:
    if compiled.kernels(torch.float64) is None:
        pytest.skip("needs a C compiler")


@pytest.fixture
def afresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache folder, and nothing loaded."""
    monkeypatch.setenv("PULLBACK_CACHE", str(tmp_path))
    compiled.kernels.cache_clear()
    yield tmp_path
    compiled.kernels.cache_clear()


def check_products() -> None:
    net = drawn(nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 12, 3, padding=1), nn.ReLU()))
    x = a_point(3, 8, 8)
    assert_both_products_are_dense(lower(net, x), dense(net, x))


def test_the_compiler_runs_once_and_leaves_one_whole_file(afresh: Path) -> None:
    assert compiled.kernels(torch.float64) is not None
    (made,) = afresh.iterdir()
    assert made.suffix == ".so"
    compiled.kernels.cache_clear()
    with patch.object(subprocess, "run", side_effect=AssertionError("compiled again")):
        assert compiled.kernels(torch.float64) is not None
    check_products()


@pytest.mark.parametrize("left", [0, 100, 4096, -1, "zeros at the end"])
def test_a_damaged_library_is_made_again(left: int | str, afresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a library that is cut off would end the process."""
    assert compiled.kernels(torch.float64) is not None
    (made,) = afresh.iterdir()
    damaged = afresh / "elsewhere" / made.name
    damaged.parent.mkdir()
    content = made.read_bytes()
    damaged.write_bytes(content[:left] if isinstance(left, int) else content[:9000] + bytes(len(content) - 9000))
    monkeypatch.setenv("PULLBACK_CACHE", str(damaged.parent))
    compiled.kernels.cache_clear()
    assert compiled.kernels(torch.float64) is not None
    assert damaged.stat().st_size == made.stat().st_size
    check_products()


def a_compiler(folder: Path, name: str, script: str) -> Path:
    made = folder / name
    made.write_text(script)
    made.chmod(0o755)
    return made


@pytest.mark.parametrize("compilers", [(), ("cc",), ("cc", "gcc", "clang")])
def test_without_a_compiler_products_are_dense(
    compilers: tuple[str, ...],
    afresh: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """None on the path; or such as fail, with words that are no UTF-8."""
    path = tmp_path_factory.mktemp("path")
    for name in compilers:
        a_compiler(path, name, "#!/bin/sh\nprintf '\\351 no such flag' >&2\nexit 3\n")
    monkeypatch.setenv("PATH", str(path))
    monkeypatch.delenv("CC", raising=False)
    with caplog.at_level(logging.INFO, "pullback"):
        check_products()
    assert "products run dense, for want of a C compiler" in caplog.text
    assert ("no such flag" in caplog.text) == bool(compilers)
    assert not list(afresh.iterdir())


@pytest.mark.parametrize("given", [" ", '"gcc', "no-such-compiler", "false", "env cc", "cc -O1"])
def test_a_compiler_of_ones_own(given: str, afresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its arguments; where it fails or makes no sense, the system's."""
    monkeypatch.setenv("CC", given)
    assert compiled.kernels(torch.float64) is not None
    check_products()
    assert len(list(afresh.iterdir())) == 1


@pytest.mark.parametrize("folder", ["file/below", "open to all", ".", "~nobody-of-this-name/cache"])
def test_folders_that_cannot_serve_are_no_obstacle(
    folder: str, afresh: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    (afresh / "file").write_text("in the way")
    (afresh / "open to all").mkdir()
    (afresh / "open to all").chmod(0o777)
    temporary = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.chdir(afresh)
    monkeypatch.setenv("PULLBACK_CACHE", folder if folder[0] in ".~" else str(afresh / folder))
    assert compiled.kernels(torch.float64) is not None
    check_products()
    assert not list(temporary.iterdir())
    assert not list((afresh / "open to all").iterdir())
    assert len(list(afresh.glob("*.so"))) == (folder == ".")


def test_half_precision_has_no_kernels() -> None:
    assert compiled.kernels(torch.bfloat16) is None


def test_the_structures_are_those_of_the_source() -> None:
    """Sizes that the compiler sees against those that Python fills."""
    program = '#include <stdio.h>\nint main() { printf("%zu %zu", sizeof(Step), sizeof(Outside)); }'
    source = f'#define REAL float\n#include "{compiled._SOURCE}"\n{program}\n'
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "sizes.c").write_text(source)
        binary = Path(folder) / "sizes"
        subprocess.run(
            [os.environ.get("CC", "cc"), str(Path(folder) / "sizes.c"), "-o", binary, "-pthread"], check=True
        )
        printed = subprocess.run([binary], capture_output=True, text=True, check=True).stdout
    assert printed == f"{ctypes.sizeof(compiled.Step)} {ctypes.sizeof(compiled.Outside)}"
