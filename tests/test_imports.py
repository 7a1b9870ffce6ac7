"""What an import costs and what it gives: no torch for `--help`, every public name there, no two tests of one name."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import pullback as pb

HEAVY = ("torch", "torchvision", "timm", "matplotlib", "scipy", "numpy")


@pytest.mark.parametrize(
    "program",
    [
        "import pullback",
        "from pullback.cli import main; main(['--help'])",
        "from pullback.cli import main; main(['--version'])",
        "from pullback.cli import main; main(['explain', '--help'])",
        "from pullback.cli import main; main(['encoders', '--help'])",
        "from pullback.cli import main; main(['fit', '--help'])",
        "from pullback.cli import main; main(['study', '--help'])",
        "from pullback.cli import main; main(['study', 'reconstruction', '--help'])",
    ],
)
def test_light_entrances_do_not_import_torch(program: str) -> None:
    report = f"import sys; print('loaded:', *(name for name in {HEAVY} if name in sys.modules))"
    code = f"try:\n    {program}\nexcept SystemExit as end:\n    assert end.code == 0, end.code\n{report}"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == "loaded:"


def test_explaining_loads_no_compiler(tmp_path: Path) -> None:
    """Torch loads sympy or its compiler for some plain functions (`broadcast_shapes`, `unravel_index`): half a second each."""
    slow = ("sympy", "torch._dynamo", "torch.fx.experimental.symbolic_shapes")
    parts = "'stage 1: blind', 'stage 1: wiener', 'stage 1: cascade', 'class and channels', 'certificates'"
    code = (
        "import json, sys; from pathlib import Path\n"
        "from pullback.cli import main\n"
        f"ask = ['explain', '--quality', 'draft', '--start', 'mean', '--out', {str(tmp_path)!r}]\n"
        "try:\n    main(ask)\nexcept SystemExit as end:\n    assert end.code == 0, end.code\n"
        f"told = json.loads(Path({str(tmp_path)!r}, 'scene.json').read_text())\n"
        f"assert {{{parts}}} <= set(told['seconds']), told['seconds']\n"
        f"print('loaded:', *(name for name in {slow} if name in sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == "loaded:"


@pytest.mark.parametrize("name", pb.__all__)
def test_every_public_name_resolves(name: str) -> None:
    assert getattr(pb, name) is not None


def test_unknown_name_is_an_attribute_error_that_lists_the_public_ones() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'Invertor'.*Inverter"):
        pb.Invertor  # noqa: B018


def test_every_test_file_has_its_own_name() -> None:
    names = Counter(path.name for path in Path(__file__).parent.rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []
