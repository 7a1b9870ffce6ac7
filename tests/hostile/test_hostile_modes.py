"""A call under `torch.no_grad`, `torch.inference_mode` or autocast gives the bits of a call outside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from oracles.command import picture
from oracles.small_nets import image, small_encoder

from pullback.explain import explain
from pullback.inversion import Inverter


def everything() -> Iterator[torch.Tensor]:
    """All that a caller can ask for, from the network to the report, in a fixed order."""
    encoder = small_encoder().to(dtype=torch.float32)
    x = image().float()
    yield from (encoder.features(x, 2), encoder.logits(x), encoder.features(torch.stack([x, -x])))
    with encoder.jacobian(x, 2) as j:
        yield from (j.mv(x), j.vm(j.mv(x)), j.vm(torch.stack([j.value, -j.value])), j.bias())
    for method, mode in (
        ("cascade", "additive"), ("cascade", "fused"), ("cascade", "frozen"), ("vjp", "frozen"), ("wiener", "frozen"),
        ("blind", "frozen"),
    ):  # fmt: skip
        with Inverter(encoder, method, mode, **({"steps": 4} if method in ("wiener", "blind") else {}))(x) as inv:
            for shown in (inv.stage(2), inv.from_features(2 * inv.features(2), 2)):
                yield from (shown.tensor, shown.null)
            yield from (inv.logits, inv.alpha(1), inv.image)
            if method == "blind":
                continue
            whole = inv.cls(1)
            yield from (inv.channel(2, 3).tensor, whole.full.tensor, whole.positive.tensor, whole.saliency())
            yield from (pictures for _, pictures in inv.channels(3))
            yield inv.certificate(1, unit=(0, 2, 2)).field
            if method != "wiener":
                yield inv.scalar(lambda f: f.square().sum()).tensor
    told = explain(
        encoder, x, picture=picture((16, 16)), file_name="x", origin="a test", digest="0", quality="draft",
        mask=torch.ones(16, 16),
    )  # fmt: skip
    for stage in told.spectrum:
        for shown in (stage.blind, stage.wiener, stage.cascade):
            assert shown is not None
            yield shown.tensor
    assert told.class_picture is not None and told.saliency is not None
    yield from (told.class_picture.full.tensor, told.saliency, *(c.picture.tensor for c in told.channels))


def autocast() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad, autocast])
def test_the_callers_mode_changes_no_bit(mode: Callable[[], Any]) -> None:
    expected = list(everything())
    with mode():
        found = list(everything())
    assert len(found) == len(expected) > 80
    for n, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert torch.equal(a, b), n
        assert not a.requires_grad and not b.requires_grad
