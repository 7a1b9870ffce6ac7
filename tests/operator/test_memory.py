from __future__ import annotations

import pytest

from pullback.errors import OptionError
from pullback.operator import memory_budget


@pytest.mark.parametrize(
    ("memory", "size"),
    [
        (1, 1), (10**9, 10**9), ("300", 300), ("300B", 300), ("2GB", 2 * 10**9), ("1.5 GiB", 3 * 2**29),
        (" 500 mb ", 5 * 10**8), ("8kB", 8000), ("1KiB", 1024), ("1TB", 10**12),
    ],
)  # fmt: skip
def test_sizes(memory: int | str, size: int) -> None:
    assert memory_budget(memory, "cpu") == size


@pytest.mark.parametrize("memory", [0, -5, True, 1.5, "", "GB", "-2GB", "2 XB", "0MB", "0.1B", "1e9", "two GB"])
def test_what_is_no_size(memory: object) -> None:
    with pytest.raises(OptionError, match=r"is no size: .*'2GB'"):
        memory_budget(memory, "cpu")  # type: ignore[arg-type]


def test_the_default_is_a_quarter_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"SC_AVPHYS_PAGES": 1000, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr("os.sysconf", answers.__getitem__)
    assert memory_budget(None, "cpu") == 1_024_000


def test_a_system_that_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("os.sysconf")
    assert memory_budget(None, "cpu") == 2 * 10**9
