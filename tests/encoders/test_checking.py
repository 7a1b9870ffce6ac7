from __future__ import annotations

import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from oracles.awkward_modules import Plain, level, settled
from oracles.awkward_nets import AWKWARD, SPATIAL
from oracles.families import FAMILIES
from oracles.untouched import untouched
from PIL import Image
from torch import Tensor, nn

from pullback.encoders.checking import Check, check


def image(shape: tuple[int, int, int] = (3, 32, 32)) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def words(found: Check) -> str:
    return "\n".join(found.lines)


@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_networks(name: str) -> None:
    awkward = AWKWARD[name]
    net = awkward()
    with untouched(net):
        found = check(net, image(awkward.input_shape))
    assert found.fits is (name in SPATIAL and not awkward.mixes_batch)
    assert found.fits is not bool(found.problems)
    assert awkward.note in words(found)
    for stage, shape in awkward.stages:
        assert re.search(rf"\d +{re.escape(stage)} +{shape[0]} +{shape[1]} x {shape[2]}", words(found))
    assert str(found).startswith(words(found))
    assert all(problem in str(found) for problem in found.problems)


SAID = {
    "plain": [
        "network: Plain, 3,313 parameters, float32 on cpu",
        "input: 3 x 32 x 32",
        "certificate: gates are exact at every stage",
        "logits: the output itself, of shape (1, 5)",
        "head: linear after global average pooling: exact class weights",
        "fits: nothing stands in the way",
    ],
    "data_parallel": ["wrappers taken off: DataParallel"],
    "compiled": ["wrappers taken off: torch.compile"],
    "compiled_part": ["compiled parts are run without their compilation"],
    "train_mode": ["in train mode with BatchNorm2d, Dropout: the copy that pullback works on is in eval mode"],
    "dataclass_output": ["logits: .logits of the output (Output)"],
    "dict_output": ["logits: entry 'logits' of the output"],
    "tuple_output": ["logits: the first tensor of the output (tuple of 2)"],
    "half": ["float16 on cpu", "computes in float16"],
    "branching": ["depends on the image's numbers"],
    "instance_norm": [
        "signed boundaries (not the output of a ReLU): stage 1",
        "certificate: gates are exact up to stage 1",
        "a unit of stages 1, 2, 3 sees the whole image through native_batch_norm in norm",
    ],
    "custom_backward": ["signed boundaries (not the output of a ReLU): stages 1, 2, 3"],
    "batch_mixing": [
        "problem: a neighbour in the batch changes an image's result",
        "chunk=1",
        "certificate: gates are exact up to stage 2",
    ],
    "transformer": [
        "problem: the network has no spatial stages",
        "Jacobian works",
        "inversions do not",
        "does not fit",
    ],
}


@pytest.mark.parametrize("name", SAID)
def test_what_is_said(name: str) -> None:
    text = str(check(AWKWARD[name](), image(AWKWARD[name].input_shape)))
    for said in SAID[name]:
        assert said in text


def test_of_an_ordinary_network_nothing_else_is_said() -> None:
    text = str(check(AWKWARD["plain"](), image()))
    others = "wrappers|compiled|train mode|hooks|float16|depends on the image's numbers|signed boundaries|whole image|note:|problem"
    assert not re.search(others, text)


@pytest.mark.parametrize("name", FAMILIES)
def test_families_fit(name: str) -> None:
    found = check(FAMILIES[name](), image(FAMILIES[name].input_shape).double())
    assert found.fits, str(found)


class Spoilt(Plain):
    """A network whose middle is spoilt by a function of the features and of the module."""

    def __init__(self, spoil: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.spoil = spoil
        self.register_buffer("runs", torch.zeros(1))

    def features(self, x: Tensor) -> Tensor:
        return self.level3(self.spoil(self, self.level2(self.level1(x))))


def counted(net: Any, x: Tensor) -> Tensor:
    net.runs += 1
    return x * net.runs


def one_at_a_time(net: nn.Module, x: Tensor) -> Tensor:
    return x.view(1, 8, 16, 16) * 1


def raises(error: BaseException) -> Callable[[nn.Module, Tensor], Tensor]:
    def spoil(net: nn.Module, x: Tensor) -> Tensor:
        raise error

    return spoil


PROBLEMS: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "noise": (
        lambda: settled(Spoilt(lambda net, x: x + torch.randn(x.shape))),
        ["two runs on the same image differ", r"draws random numbers \(randn in the network\)"],
    ),
    "state": (lambda: settled(Spoilt(counted)), ["two runs on the same image differ", "keeps a state"]),
    "statistics of the batch": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU(), nn.Conv2d(4, 4, 3),
                              nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)),
        ["a neighbour in the batch changes"],
    ),
    "one image only": (lambda: settled(Spoilt(one_at_a_time)), ["fails on two images at once.*chunk=1"]),
    "raises": (lambda: settled(Spoilt(raises(ValueError("no luck")))), ["failed on an input of shape.*ValueError: no luck"]),
    "no gradient": (lambda: settled(Spoilt(lambda net, x: x.detach())), ["no gradient"]),
    "not finite": (lambda: settled(Spoilt(lambda net, x: x / 0)), ["not finite"]),
    "wrong channels": (lambda: settled(Plain(1)), [r"failed on an input of shape \(1, 3, 32, 32\)"]),
    "lazy": (lambda: nn.Sequential(nn.LazyConv2d(3, 1)), ["run it once"]),
    "uncopyable": (lambda: settled(Spoilt(threading.Lock())), ["Spoilt.*cannot be copied"]),  # type: ignore[arg-type]
    "no module": (lambda: torch.relu, ["expected a torch.nn.Module"]),
}  # fmt: skip


@pytest.mark.parametrize("name", PROBLEMS)
def test_problems_are_reported_and_not_raised(name: str) -> None:
    make, expected = PROBLEMS[name]
    found = check(make(), image())
    assert not found.fits
    assert len(found.problems) == 1
    for pattern in expected:
        assert re.search(pattern, found.problems[0], re.DOTALL)


def test_an_interrupt_is_no_problem_of_the_network() -> None:
    with pytest.raises(KeyboardInterrupt):
        check(settled(Spoilt(raises(KeyboardInterrupt()))), image())


@pytest.mark.parametrize(
    ("given", "pattern"),
    [
        ("missing.jpg", "missing.jpg"),
        (image() * torch.nan, "not finite"),
        (image()[0], r"got shape \(32, 32\)"),
        ((image() * 255).byte(), "uint8"),
    ],
)
def test_an_image_that_does_not_fit_is_reported(given: Any, pattern: str) -> None:
    found = check(AWKWARD["plain"](), given)
    assert len(found.problems) == 1
    assert re.search(pattern, found.problems[0])


def test_pictures_files_batches_and_no_image(tmp_path: Path) -> None:
    picture = Image.new("RGB", (60, 50), "teal")
    path = tmp_path / "teal.png"
    picture.save(path)
    net = AWKWARD["plain"]()
    for given, size in (
        (picture, 224),
        (path, 224),
        (str(path), 224),
        (None, 224),
        (image()[None].expand(2, 3, 32, 32), 32),
    ):
        found = check(net, given)
        assert found.fits
        assert f"input: 3 x {size} x {size} (channels, height, width)" in found.lines
    assert "input: 1 x 224 x 224 (channels, height, width)" in check(AWKWARD["one_channel"](), picture).lines


def test_a_network_of_a_fixed_size_is_tried_at_a_smaller_one() -> None:
    found = check(AWKWARD["perceptron"]())
    assert "input: 3 x 32 x 32 (channels, height, width)" in found.lines
    assert any(line.startswith("it does not run at 224 x 224: the network failed") for line in found.lines)


def test_maps_instead_of_classes_and_a_last_stage_of_one_position() -> None:
    maps = check(nn.Sequential(level(3, 4, 1), level(4, 8, 2), nn.Conv2d(8, 3, 1)), image())
    assert "the logits are not (N, classes): pictures of a class do not work, everything else does" in maps.lines
    tiny = check(AWKWARD["plain"](), image((3, 4, 4)))
    assert "stage 3 is left with one position by an image of 4 x 4: use a larger one" in tiny.lines
    assert any(line.startswith("a central unit of stages") for line in tiny.lines)


class TakesOneSize(nn.Module):
    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
        self.head = nn.Linear(8 * height * width // 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).flatten(1))


def test_a_picture_of_the_size_that_the_network_wants() -> None:
    found = check(TakesOneSize(28, 20), Image.new("RGB", (20, 28)))
    assert found.fits
    assert "input: 1 x 28 x 20 (channels, height, width)" in found.lines


def test_a_large_picture_is_not_tried_as_it_is() -> None:
    seen: list[tuple[int, ...]] = []

    class Watching(TakesOneSize):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(tuple(x.shape[2:]))
            return super().forward(x)

    assert not check(Watching(28, 28), Image.new("RGB", (640, 480))).fits
    assert set(seen) == {(224, 224), (32, 32)}


def test_a_size_that_the_network_does_not_take_is_to_be_said() -> None:
    for image in (None, Image.new("RGB", (30, 30))):
        found = check(TakesOneSize(28, 28), image)
        assert not found.fits
        assert "input_shape=(C, H, W), or on the command line --preprocessing" in found.problems[0]
