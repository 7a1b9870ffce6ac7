"""Shared fixtures: the folder of real networks and photographs beside the repository, and how hypothesis runs here."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import settings
from PIL import Image
from torch import Tensor, nn

# Reproducible everywhere, and no deadline: a busy machine is no failure.
settings.register_profile("pullback", deadline=None, derandomize=True)
settings.load_profile("pullback")

# What the blind inverse keeps for next time goes to a folder of this run, which its workers and programs share.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _cache = tempfile.TemporaryDirectory(prefix="pullback-tests-")
    os.environ["PULLBACK_CACHE"] = _cache.name

# Small networks gain nothing from threads, and `make test` runs a process on each core.
torch.set_num_threads(1)


@pytest.fixture
def elsewhere() -> Iterator[None]:
    """The caller's default device is another one, on which nothing can be computed."""
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


@pytest.fixture(scope="session")
def data() -> Path:
    """The data folder: $PULLBACK_DATA, or shared/data beside the repository."""
    beside = Path(__file__).resolve().parents[1] / "../shared/data"
    folder = Path(os.environ.get("PULLBACK_DATA") or beside).resolve()
    if not (folder / "load.py").is_file():
        pytest.skip(f"needs the data folder: {folder} has no load.py; PULLBACK_DATA names another place")
    return folder


@pytest.fixture(scope="session")
def load(data: Path) -> ModuleType:
    """The reader that comes with the data: load.model, load.preprocess, load.masked, load.classes ..."""
    from pullback.encoders.torchvision_ops import import_torchvision

    import_torchvision()  # a torchvision whose compiled operators do not fit is mended before load.py imports it
    spec = spec_from_file_location("pullback_test_data", data / "load.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def real_net(load: ModuleType) -> Callable[[str], nn.Module]:
    """real_net("squeezenet1_1"): a trained network in eval mode, read once; deep-copy it before changing it."""
    return cache(load.model)


@pytest.fixture(scope="session")
def real_input(load: ModuleType, photograph: Callable[[str], Path]) -> Callable[[str, str], Tensor]:
    """real_input("squeezenet1_1", "zebra"): a photograph as that network wants it, (3, H, W)."""

    def prepared(network: str, name: str) -> Tensor:
        with Image.open(photograph(name)) as image:
            return load.preprocess(network)(image)

    return prepared


@pytest.fixture(scope="session")
def photograph(data: Path) -> Callable[[str], Path]:
    """photograph("zebra"), photograph("n02391049"): a picture by its name in the showcase, or by its file's stem."""
    rows = (line.split(" ", 2) for line in (data / "imagenet" / "showcase.txt").read_text().splitlines())
    showcase = {name: data / "imagenet" / file for file, _, name in rows}

    def find(name: str) -> Path:
        return showcase.get(name, data / "imagenet" / "images" / f"{name}.jpg")

    return find


@pytest.fixture(scope="session")
def masked(load: ModuleType) -> Callable[[str, int], list[tuple[Path, Path]]]:
    """masked("butterflies", 3): picture and mask of as many examples, spread evenly over the set."""

    def pairs(name: str, count: int) -> list[tuple[Path, Path]]:
        paths = [path for path, *_ in load.masked(name, limit=count)]
        return [(path, path.parents[1] / "masks" / f"{path.stem}.png") for path in paths]

    return pairs
