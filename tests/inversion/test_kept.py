"""What is kept for next time: made once, read back bit for bit, and never an obstacle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pullback.inversion import kept as room
from pullback.inversion.kept import kept


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PULLBACK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Maker:
    """Makes other numbers each time, and counts."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self) -> dict[str, Tensor]:
        self.made += 1
        return {"a": torch.full((2, 3), 0.1 + self.made, dtype=torch.float64), "b": torch.tensor(float(self.made))}


@pytest.fixture
def forget(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    return lambda: monkeypatch.setattr(room, "_memory", type(room._memory)())


def test_made_once_and_read_back_bit_for_bit(forget: Callable[[], None], cache: Path) -> None:
    make = Maker()
    first = kept(("x", 1), make)
    assert kept(("x", 1), make) is first and make.made == 1
    assert len(list(cache.iterdir())) == 1
    forget()
    again = kept(("x", 1), make)
    assert make.made == 1 and again is not first
    assert all(torch.equal(first[n], again[n]) and first[n].dtype == again[n].dtype for n in first)
    kept(("x", 2), make)
    assert make.made == 2


def test_made_and_read_give_the_same_bits_in_products(forget: Callable[[], None]) -> None:
    """A solution of LAPACK's comes by columns, and products with it are rounded differently from those with its copy by rows."""
    made = torch.randn(700, 900, generator=torch.Generator().manual_seed(0)).T
    rows = torch.randn(25, 900, generator=torch.Generator().manual_seed(1))
    first = kept("solved", lambda: {"weight": made})["weight"]
    forget()
    again = kept("solved", lambda: {"weight": made})["weight"]
    assert first.stride() == again.stride() == (700, 1)
    assert torch.equal(rows @ first, rows @ again)


@pytest.mark.parametrize("fault", ["half", "empty", "altered", "another's", "folder"])
def test_a_file_that_is_not_whole_is_made_again(forget: Callable[[], None], cache: Path, fault: str) -> None:
    make = Maker()
    kept("x", make)
    (file,) = cache.iterdir()
    forget()
    if fault == "altered":
        whole = bytearray(file.read_bytes())
        whole[-1] ^= 1  # one bit of one number
        file.write_bytes(whole)
    elif fault == "another's":
        kept("y", Maker())
        (other,) = set(cache.iterdir()) - {file}
        other.replace(file)
        forget()
    elif fault == "folder":
        file.unlink()
        file.mkdir()
    else:
        file.write_bytes(file.read_bytes()[:60] if fault == "half" else b"")
    assert kept("x", make)["b"] == 2


def test_a_folder_that_cannot_be_written_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PULLBACK_CACHE", str(tmp_path / "file"))
    make = Maker()
    assert kept("y", make)["b"] == 1
    assert (tmp_path / "file").read_text() == ""


def test_that_nothing_can_be_kept_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    for count, folder in enumerate(("file", "file", "file/below", "cache"), 1):
        monkeypatch.setenv("PULLBACK_CACHE", str(tmp_path / folder))
        kept(("said", count), Maker())
    told = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert len(told) == 2  # of two folders
    assert all(str(tmp_path / "file") in line and "PULLBACK_CACHE" in line for line in told)


def test_the_folder_of_no_user_is_no_obstacle(
    forget: Callable[[], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PULLBACK_CACHE", "~nosuchuser/x")
    monkeypatch.chdir(tmp_path)
    make = Maker()
    assert kept("z", make)["b"] == 1
    forget()
    assert kept("z", make)["b"] == 2
    assert not list(tmp_path.iterdir())


def test_a_tilde_is_the_users_home(forget: Callable[[], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for home in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(home, str(tmp_path))
    monkeypatch.setenv("PULLBACK_CACHE", "~/x")
    make = Maker()
    kept("z", make)
    forget()
    assert kept("z", make)["b"] == 1
    assert len(list((tmp_path / "x").iterdir())) == 1


def test_memory_holds_the_latest_few(forget: Callable[[], None], cache: Path) -> None:
    forget()
    make = Maker()
    for n in range(room._IN_MEMORY + 3):
        kept(n, make)
    assert len(room._memory) == room._IN_MEMORY
    assert len(list(cache.iterdir())) == room._IN_MEMORY + 3
