"""The JSON record: a schema version, everything in it, and nothing that JSON cannot carry."""

from __future__ import annotations

import dataclasses
import json

from pullback.report import Foreground, is_record, record, record_json


def test_record_survives_the_round_trip(explain):
    e = explain()
    back = json.loads(record_json(e))
    assert back == record(e)
    assert back["schema"] == 1
    assert record_json(e).endswith("}\n")


def test_record_holds_every_number_of_the_page(explain):
    e = explain()
    back = json.loads(record_json(e))
    assert back["image"] == {"file": "photo.jpg", "origin": "Your own file.", "digest": "bb" * 32, "size": [48, 40]}
    assert [stage["shape"] for stage in back["encoder"]["stages"]] == [[8, 8, 8], [16, 7, 7]]
    assert back["classes"][0] == {"index": 0, "name": "tench", "probability": 0.93}
    assert back["target"] == {"index": 0, "name": "tench"}
    assert back["spectrum"][1]["wiener"] == e.spectrum[1].wiener.to_dict()
    assert back["class"]["positive"]["mode"] == "class positive"
    assert back["class"]["figures"] == {"cosine": 0.231}
    assert [c["omega"] for c in back["channels"]] == [0.1, 0.05]
    assert back["channels"][0]["mode"] == "channel 1"
    assert back["saliency"]["range"] == [e.saliency.min().item(), e.saliency.max().item()]
    assert back["foreground"]["area"] == 0.25
    assert back["dead_channels"] == {"1": 3}
    assert [c["vacuous"] for c in back["certificates"]] == [False, True]
    assert back["seconds"] == {"blind": 12.3, "class_inversion": 0.5}
    assert back["notes"] == ["One note."]


def test_what_is_missing_or_unknown_is_null(explain):
    nan = float("nan")
    e = explain(class_picture=None, saliency=None, target=None, foreground=Foreground(nan, 0.1, 0.1, float("inf"), 0.0))
    stage = dataclasses.replace(e.spectrum[0], blind=None, skipped={"blind": "no time"})
    back = json.loads(record_json(dataclasses.replace(e, spectrum=(stage,))))
    assert back["class"] is None
    assert back["saliency"] is None
    assert back["target"] is None
    assert back["foreground"]["full"] is None
    assert back["foreground"]["saliency"] is None
    assert back["spectrum"][0]["blind"] is None
    assert back["spectrum"][0]["skipped"] == {"blind": "no time"}


def test_names_that_no_file_can_hold_are_replaced(explain):
    back = json.loads(record_json(explain(file_name="a\udc80\x00漢.jpg")).encode())
    assert back["image"]["file"] == "a\ufffd\ufffd漢.jpg"


def test_records_are_known_again_and_nothing_else_is(explain):
    assert is_record(json.loads(record_json(explain(), "run")))
    assert is_record(json.loads(record_json(explain())))
    assert not any(is_record(other) for other in (None, [], {}, {"schema": 1}, {"run": "run", "schema": 1}, "schema"))
