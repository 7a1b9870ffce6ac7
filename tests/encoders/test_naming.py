from __future__ import annotations

import numpy as np
import pytest

from pullback.encoders.naming import checked_classes, class_index
from pullback.errors import ClassError

CLASSES = ["tabby, tabby cat", "tiger cat", "pets/Abyssinian", "Egyptian cat", "tiger", "crane", "crane"]


@pytest.mark.parametrize(
    ("target", "index"),
    [
        (0, 0), ("6", 6), (" 3 ", 3), ("tiger", 4), ("Tiger Cat", 1), ("tabby", 0), ("tabby cat", 0), ("abyssinian", 2),
        ("pets/Abyssinian", 2), ("egypt", 3),
    ],
)  # fmt: skip
def test_a_class_by_index_name_synonym_or_unambiguous_part(target: int | str, index: int) -> None:
    assert class_index(target, CLASSES, len(CLASSES)) == index


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (7, r"class 7 is out of range: the network has classes 0 to 6"),
        ("-1", "class -1 is out of range"),
        ("cat", "could be 0 tabby, tabby cat, 1 tiger cat, 3 Egyptian cat; give the index"),
        ("crane", "could be 5 crane, 6 crane; give the index"),
        ("tigre", r"unknown class 'tigre'; nearest: tiger \(4\)"),
        ("submarine", r"unknown class 'submarine'; nearest: "),
        ("<b>", "unknown class '<b>'"),
    ],
)
def test_an_unknown_or_ambiguous_class_is_an_error_that_helps(target: int | str, words: str) -> None:
    with pytest.raises(ClassError, match=words):
        class_index(target, CLASSES, len(CLASSES))


def test_a_network_without_names_or_without_classes() -> None:
    assert class_index("2", None, 5) == 2
    with pytest.raises(ClassError, match="class names are not known; give an index 0 to 4"):
        class_index("tabby", None, 5)
    with pytest.raises(ClassError, match="has no classes"):
        class_index(0, None, None)


def test_a_name_that_is_a_number_comes_before_the_index_and_a_number_is_an_index() -> None:
    classes = ["1", "2", "3"]
    assert [class_index(target, classes, 3) for target in ("1", "2", "3", "0", 1, np.int64(2))] == [0, 1, 2, 0, 1, 2]
    with pytest.raises(ClassError, match="class 3 is out of range"):
        class_index(3, classes, 3)


@pytest.mark.parametrize(
    "target", ["\N{SUPERSCRIPT TWO}", "\N{ARABIC-INDIC DIGIT TWO}", "--5", "-", "", "9" * 5000, True, 2.0]
)
def test_what_is_no_whole_number_is_no_index(target: object) -> None:
    for classes in (None, ["tabby", "tiger", "crane"]):
        with pytest.raises(ClassError, match=r"class '.*'"):
            class_index(target, classes, 3)  # type: ignore[arg-type]


@pytest.mark.parametrize("classes", ["abc", [0, 1, 2]])
def test_class_names_are_a_list_of_text(classes: list[str]) -> None:
    assert checked_classes(["a", "b", "c"], 3) == ("a", "b", "c")
    with pytest.raises(ClassError, match="expected a list of class names"):
        checked_classes(classes, 3)
