"""The machine-readable record of one explained image: everything but the pixels, as JSON with a schema version."""

from __future__ import annotations

import json
from typing import Any, TypeGuard

import torch

from pullback.pictures.plain import plain
from pullback.report.explanation import Explanation
from pullback.report.words import METHODS

SCHEMA = 1


def record(explanation: Explanation, run: str | None = None) -> dict[str, Any]:
    """All names, numbers and words of `explanation`; what is unknown or not finite is null. No tensors, no pictures.

    run: a fingerprint of picture and settings, by which a later run knows that this one need not be repeated.
    """
    e = explanation
    return plain({
        "schema": SCHEMA,
        "run": run,
        "image": {"file": e.file_name, "origin": e.origin, "digest": e.digest, "size": e.picture.size[::-1]},
        "encoder": {"name": e.encoder, "stages": [vars(stage) for stage in e.stages], "assumptions": e.assumptions},
        "classes": [vars(guess) for guess in e.guesses],
        "target": None if e.target is None else {"index": e.target[0], "name": e.target[1]},
        "spectrum": [
            {
                "stage": stage.number, "name": stage.name, "skipped": stage.skipped,
                **{m.key: _described(getattr(stage, m.key)) for m in METHODS},
            }
            for stage in e.spectrum
        ],
        "class": _described(e.class_picture),
        "channels": [
            {"channel": c.channel, "omega": c.omega, "alpha": c.alpha, "weight": c.weight, **c.picture.to_dict()}
            for c in e.channels
        ],
        "saliency": None if e.saliency is None else {"range": [v.item() for v in torch.aminmax(e.saliency)]},
        "foreground": None if e.foreground is None else vars(e.foreground),
        "certificates": [certificate.to_dict() for certificate in e.certificates],
        "dead_channels": e.dead,
        "notes": e.notes,
        "provenance": e.provenance,
        "seconds": e.seconds,
    })  # fmt: skip


def is_record(found: object) -> TypeGuard[dict[str, Any]]:
    """Whether what was read from a JSON file is a record, of whatever schema."""
    return isinstance(found, dict) and {"schema", "run", "spectrum", "provenance"} <= found.keys()


def record_json(explanation: Explanation, run: str | None = None) -> str:
    """`record` as JSON text, ending in a newline."""
    return json.dumps(record(explanation, run), allow_nan=False, ensure_ascii=False, indent=1) + "\n"


def _described(result: Any) -> dict[str, Any] | None:
    return None if result is None else result.to_dict()
