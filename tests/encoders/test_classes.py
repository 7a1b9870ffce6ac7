from __future__ import annotations

import json
from pathlib import Path

import pytest

from pullback.encoders.classes import read_classes
from pullback.errors import ClassError

NAMES = ("tabby, tabby cat", "Käfer", "<b>bold</b>")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("names.txt", "tabby, tabby cat\nKäfer\n<b>bold</b>\n\n"),
        ("names.txt", "\ufefftabby, tabby cat\r\nKäfer\r\n<b>bold</b>"),
        ("names.json", json.dumps(NAMES)),
        ("names.json", json.dumps({"2": NAMES[2], "0": NAMES[0], "1": NAMES[1]})),
        ("names.csv", 'index,wnid,name\n1,n2,Käfer\n0,n1,"tabby, tabby cat"\n2,n3,<b>bold</b>\n'),
    ],
)
def test_every_form_of_file(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    assert read_classes(path) == read_classes(str(path)) == NAMES


def test_a_list_is_taken_as_it_is() -> None:
    assert read_classes(list(NAMES)) == NAMES


def test_the_names_that_come_with_the_data(data: Path) -> None:
    assert read_classes(data / "imagenet" / "classes.csv")[340] == "zebra"
    assert len(read_classes(data / "weights" / "resnet18_finetuned.classes.txt")) == 44


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("names.txt", b"one\n\nthree\n", "class 1 is ''"),
        ("names.txt", b"\n", "no class names"),
        ("names.txt", b"\xff\xfe\x00", "UTF-8"),
        ("names.json", b"[1, 2]", "class 0 is 1"),
        ("names.json", b"[", "cannot be read"),
        ("names.json", b'{"a": "b"}', "cannot be read"),
        ("names.json", b'"tabby"', "no class names"),
        ("names.csv", b"name\ntabby\n", "columns name: expected index and name"),
        ("names.csv", b"index,name\n0,a\n2,c\n", "no class 1"),
        ("names.csv", b"index,name\n0,a\n0,c\n", "the index 0 twice"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ClassError, match=said) as caught:
        read_classes(path)
    assert name in str(caught.value)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ClassError, match=r"'tabby' is no file"):
        read_classes("tabby")
