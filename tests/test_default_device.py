"""A default device that the user has set, here one without numbers, is no business of the library's own tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from oracles.small_nets import SmallNet, image, small_encoder
from PIL import Image
from torch import Tensor

import pullback as pb
from pullback.errors import EncoderError
from pullback.inversion import shipped_correctors
from pullback.pictures import Picture
from pullback.report.overlay import saliency_view

ENCODER, X = small_encoder(), image()
PHOTOGRAPH = Image.fromarray(pb.scene(5).image)
REGION = np.zeros((16, 16), dtype=bool)
REGION[:6] = True


def products() -> list[Any]:
    with ENCODER.jacobian(X, 2) as j:
        return [j.value, j.vm(j.value), j.mv(X), j.bias(), j.dense(), (j.as_scipy() @ X.numpy().ravel()).tolist()]


def cascade(mode: str) -> Callable[[], list[Any]]:
    def draw() -> list[Any]:
        with pb.Inverter(ENCODER, mode=mode)(X) as inv:
            parts = [inv.stage(2), inv.channel(2, 3), *next(inv.channels(1)), inv.cls(1).full]
            return [*parts, inv.alpha(), inv.importance(1), inv.scalar(lambda f: f.square().sum())]

    return draw


def certificates() -> list[Any]:
    with pb.Inverter(ENCODER, "vjp")(X) as inv:
        found = [inv.certificate(2), inv.certificate(2, unit=(1, 2, 2)), inv.certificate(2, region=REGION)]
    return [part for c in found for part in (c.field, c.words)]


def by_name() -> list[Any]:
    encoder = pb.load_encoder("builtin:scenes")
    correctors = shipped_correctors(encoder)
    assert correctors is not None
    return [str(encoder), encoder.preprocess(PHOTOGRAPH), correctors.digest]


def shown() -> list[Any]:
    with pb.Inverter(ENCODER, "vjp")(X) as inv:
        picture = inv.stage(1)
    legend = saliency_view(picture.rgb(), picture.tensor.norm(dim=0)).legend
    return [picture, picture._repr_html_(), legend.tobytes(), pb.foreground_energy(picture, REGION)]


CALLS: dict[str, Callable[[], list[Any]]] = {
    "an encoder by name": by_name,
    "check": lambda: [str(pb.check(ENCODER.module, None))],
    "features": lambda: [ENCODER.features(X, 2), ENCODER.logits(X), *ENCODER.levels(X)],
    "Jacobian": products,
    "cascade, additive": cascade("additive"),
    "cascade, fused": cascade("fused"),
    "cascade, frozen": cascade("frozen"),
    "certificates": certificates,
    "what is shown": shown,
}


def plain(part: Any) -> Any:
    if isinstance(part, Picture):
        return [part.tensor.tolist(), part.null.tolist() if part.null is not None else None, part.rgb().tobytes()]
    return part.tolist() if isinstance(part, Tensor) else part


@pytest.fixture
def expected(call: str) -> list[Any]:
    return [plain(part) for part in CALLS[call]()]


@pytest.mark.parametrize("call", CALLS)
def test_results_are_the_same(call: str, expected: list[Any], elsewhere: None) -> None:
    assert [plain(part) for part in CALLS[call]()] == expected


def test_an_encoder_is_made_on_its_networks_device(elsewhere: None) -> None:
    made = pb.Encoder.from_module(ENCODER.module, stages=["layer1", "layer2", "layer3"], input_shape=(3, 16, 16))
    assert made.device.type == "cpu"
    assert torch.equal(made.logits(X), ENCODER.logits(X))


def test_a_network_without_numbers_is_one_clear_error(elsewhere: None) -> None:
    with pytest.raises(EncoderError, match="device 'meta', where tensors have no numbers"):
        pb.Encoder.from_module(SmallNet())
