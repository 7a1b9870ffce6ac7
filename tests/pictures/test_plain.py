"""Numbers and text as a reader and as JSON gets them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pullback.pictures.plain import facts, number, plain, readable, share, span


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0.083123, "0.0831"), (0.0012345, "0.00123"), (0.00012345, "1.23e-04"), (1.0, "1.00"), (12.345, "12.3"),
        (1234.5, "1234"), (123456.0, "1.23e+05"), (-2.5, "-2.50"), (0.0, "0"), (250, "250"), (True, "yes"),
        (False, "no"), (None, "none"), ("frozen", "frozen"), (float("nan"), "unknown"), (float("inf"), "infinite"),
    ],
)  # fmt: skip
def test_numbers_have_three_significant_digits(value, words):
    assert number(value) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [(0.0, "0 %"), (1.0, "100 %"), (0.0001, "< 0.1 %"), (0.9999, "> 99.9 %"), (0.0325, "3.2 %"), (0.5, "50.0 %")],
)
def test_shares_never_round_to_nothing_or_everything(value, words):
    assert share(value) == words


def test_spans_and_facts():
    assert span((-1.234, 2)) == "-1.23 to 2.00"
    assert facts({"null_misfit": 1.0, "steps": 40}) == "null misfit 1.00, steps 40"
    assert facts({}) == ""


def test_readable_text_is_one_line_that_can_be_encoded():
    assert readable("a\nb\tc") == "a b c"
    assert readable("x\x00\x1b[31m\udc80\u202e") == "x\ufffd\ufffd[31m\ufffd\ufffd"
    assert readable("tench, 漢字 <é> 😀 نمی\u200cخواهم") == "tench, 漢字 <é> 😀 نمی\u200cخواهم"


@given(st.text(st.characters()))
def test_readable_text_always_encodes(text):
    readable(text).encode()
    assert len(readable(text)) == len(text)


def test_plain_values_survive_json():
    value = {
        "path": Path("a/b"), "numpy": np.float32(0.5), "dtype": torch.float64,
        "tensor": torch.tensor([1.0, float("nan")]), "nested": ({"k": (1, 2)}, {3, 1}),
        "inf": float("inf"), 4: True, "none": None,
    }  # fmt: skip
    expected = {
        "path": "a/b", "numpy": 0.5, "dtype": "torch.float64", "tensor": [1.0, None], "nested": [{"k": [1, 2]}, [1, 3]],
        "inf": None, "4": True, "none": None,
    }  # fmt: skip
    assert json.loads(json.dumps(plain(value), allow_nan=False)) == expected


def test_a_figure_that_a_flat_picture_has_not_says_so():
    assert facts({"null: correlation": float("nan"), "steps": 3}) == "null: correlation none (flat), steps 3"
