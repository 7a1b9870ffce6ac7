"""`pullback encoders`: what can be named, and the stage table of one network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Run = Callable[..., Any]  # the fixture `run`: a command line in; exit status, stdout and stderr out


def test_lists_the_builtin_encoder_and_how_to_name_others(run: Run) -> None:
    ran = run("encoders")
    assert (ran.status, ran.err) == (0, "")
    specs = [line.split()[0] for line in ran.out.splitlines()]
    assert specs[0] == "builtin:scenes"
    assert {"torchvision:resnet18", "timm:resnet50", "module:package.module:factory"} <= set(specs)


def test_text_searches_the_libraries(run: Run) -> None:
    ran = run("encoders", "SqueezeNet")
    assert ran.status == 0
    assert [line.split()[0] for line in ran.out.splitlines()] == [
        "torchvision:squeezenet1_1",
        "torchvision:squeezenet1_0",
    ]


def test_show_prints_the_stages_of_one(run: Run) -> None:
    ran = run("encoders", "--show", "torchvision:squeezenet1_1", "--stages", "features.4, features.7,features.12")
    assert (ran.status, ran.err) == (0, "")
    table = [line.split()[:3] for line in ran.out.splitlines()]
    assert table[2:5] == [["1", "features.4", "128"], ["2", "features.7", "256"], ["3", "features.12", "512"]]
    assert "random" in ran.out  # what it was not told, it says


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["squeezenett"], "squeezenett"),
        (["--show", "torchvision:resnet19"], "resnet18"),
        (["--show", "resnet18"], "torchvision:resnet18"),
        (["squeezenet", "--show", "torchvision:resnet18"], "not both"),
        (["--weights", "net.safetensors"], "--show"),
        (["--show", "torchvision:resnet18", "--weights", "missing.safetensors"], "missing.safetensors"),
        (["--show", "torchvision:resnet18", "--stages", "layer7"], "layer7"),
    ],
)
def test_mistakes_are_one_line_with_2(run: Run, arguments: list[str], word: str) -> None:
    ran = run("encoders", *arguments)
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.startswith("pullback: ")
    assert ran.err.count("\n") == 1
    assert word in ran.err
