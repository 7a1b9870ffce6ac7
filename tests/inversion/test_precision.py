"""Products in bfloat16 under the cascade and the raw VJP: near the exact pictures, told beside them, refused elsewhere."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

import pullback as pb
from pullback.adjoint import has_bfloat16
from pullback.errors import OptionError

needs_bfloat16 = pytest.mark.skipif(not has_bfloat16("cpu"), reason="needs a processor with instructions for bfloat16")


@pytest.fixture(scope="module")
def encoder() -> pb.Encoder:
    return pb.load_encoder("builtin:scenes")


@pytest.fixture(scope="module")
def x(encoder: pb.Encoder) -> torch.Tensor:
    return encoder.preprocess(Image.fromarray(pb.scene(20_000_100).image))


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).double().norm() / b.double().norm())


@needs_bfloat16
@pytest.mark.parametrize(
    ("method", "mode"), [("cascade", "frozen"), ("cascade", "fused"), ("cascade", "additive"), ("vjp", "frozen")]
)
def test_pictures_are_near_the_exact_ones_and_say_the_error(
    encoder: pb.Encoder, x: torch.Tensor, method: str, mode: str
) -> None:
    exact, rounded = (pb.Inverter(encoder, method, mode, precision=p) for p in (None, "bfloat16"))
    with exact(x) as session, rounded(x) as quick:
        for draw in (lambda s: s.channel(4, 7), lambda s: s.stage(1)):
            there, here = draw(session), draw(quick)
            assert 1e-4 < distance(here.tensor, there.tensor) < 0.05
            assert 1e-4 < here.figures["error of a product"] < 0.05
            assert here.figures["precision"] == here.provenance.settings["precision"] == "bfloat16"
            assert here.tensor.dtype == torch.float32
            assert not {"precision", "error of a product"} & set(there.figures)


@needs_bfloat16
def test_streamed_channels_are_those_of_the_pictures(encoder: pb.Encoder, x: torch.Tensor) -> None:
    with pb.Inverter(encoder, "cascade", "additive", precision="bfloat16")(x) as session:
        indices, pictures = next(iter(session.channels(3)))
        assert distance(pictures[0], session.channel(3, int(indices[0])).tensor) < 0.02


@pytest.mark.parametrize("method", ["wiener", "blind", "decoder"])
def test_what_needs_exact_products_refuses(encoder: pb.Encoder, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    monkeypatch.setattr("pullback.adjoint.precision.has_bfloat16", lambda device: True)
    with pytest.raises(OptionError, match=f"'bfloat16' is for cascade and vjp: '{method}' needs exact"):
        pb.Inverter(encoder, method, precision="bfloat16")


def test_unknown_and_missing_precisions_are_refused_before_an_image_is_opened(
    encoder: pb.Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OptionError, match="'int8' is not offered: choose bfloat16"):
        pb.Inverter(encoder, precision="int8")
    monkeypatch.setattr("pullback.adjoint.precision.has_bfloat16", lambda device: False)
    with pytest.raises(OptionError, match="no instructions for it"):
        pb.Inverter(encoder, precision="bfloat16")
