"""What pictures say of themselves is true of them, whatever the features and however near the search came."""

from __future__ import annotations

import pytest
import torch
from oracles.small_nets import Deaf, image, randomised, small_encoder

from pullback.encoders import Encoder
from pullback.errors import NumericsError, StageError
from pullback.inversion import Correctors, Inverter
from pullback.inversion.seeds import measure
from pullback.pictures import Picture

BUDGET = {"wiener": {"steps": 2}, "blind": {"steps": 2, "start": "mean"}}
WITHOUT_GATES = ("blind", "decoder")
METHODS = ("cascade", "vjp", "wiener", *WITHOUT_GATES)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return small_encoder()


def inverter(encoder: Encoder, method: str) -> Inverter:
    return Inverter(encoder, method, **BUDGET.get(method, {}))  # type: ignore[arg-type]


def biased(encoder: Encoder) -> Correctors:
    made = Correctors.unfitted([encoder.input_shape[0], *(s.channels for s in encoder.stages[:-1])])
    for level in made.levels:
        level.beta.fill_(0.1)
    return made


def test_a_cascade_says_whether_biases_draw(encoder: Encoder) -> None:
    for correctors, draws in ((biased(encoder), True), (biased(encoder).bias_free(), False)):
        with Inverter(encoder, correctors=correctors)(image()) as inv:
            picture = inv.stage(2)
        assert bool(picture.null.any()) is draws  # type: ignore[union-attr]
        assert ("biases draw too" in picture.caption) is draws
        assert ("the zero seed draws nothing" in picture.caption) is not draws


@pytest.mark.parametrize("method", METHODS)
def test_a_picture_of_foreign_features_names_gates_where_they_draw(encoder: Encoder, method: str) -> None:
    """Two images, the same features: whose picture depends on the image has the gates in its caption, and no other."""
    features = encoder.features(image(2), 2)
    pictures: list[Picture] = []
    for x in (image(0), image(1)):
        with inverter(encoder, method)(x) as inv:
            pictures.append(inv.from_features(features, 2))
    one, other = pictures
    assert torch.equal(one.tensor, other.tensor) is (method in WITHOUT_GATES)
    assert ("gates" in one.caption) is (method not in WITHOUT_GATES)
    assert one.caption.startswith("foreign features at stage 2: ")


def test_the_signal_space_is_that_of_this_image_whatever_is_drawn(encoder: Encoder) -> None:
    with inverter(encoder, "wiener")(image()) as inv:
        drawn = [inv.stage(2), inv.channel(2, 1), inv.from_features(inv.features(2) + 1, 2), inv.cls(1).full]
    for picture in drawn:
        assert ": signal space at this image: " in picture.caption
        assert "part of the image" not in picture.caption


def test_a_blind_caption_claims_no_match(encoder: Encoder) -> None:
    with inverter(encoder, "blind")(image()) as inv:
        picture = inv.stage(3)
    assert picture.figures["feature misfit"] > 0.1
    assert "match" not in picture.caption and "as near as possible" in picture.caption
    assert "the feature misfit says how near" in picture.caption


# ---- features that are zero, or no numbers --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def deaf() -> Encoder:
    return Encoder.from_module(randomised(Deaf(), 0), stages=["gate"], input_shape=(3, 16, 16))


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("method", ["blind", "vjp"])
def test_given_features_do_without_those_of_the_image(deaf: Encoder, method: str) -> None:
    features = deaf.features(image() + 100, 1)
    with inverter(deaf, method)(image()) as silent, inverter(deaf, method)(image() + 100) as loud:
        assert not silent.features(1).any() and features.any()
        found, expected = silent.from_features(features, 1), loud.from_features(features, 1)
        with pytest.raises(StageError, match="every feature of stage 1"):
            silent.stage(1)
    assert bool(torch.isfinite(found.tensor).all())
    if method == "blind":
        assert torch.equal(found.tensor, expected.tensor) and found.figures == expected.figures


@pytest.mark.usefixtures("own_cache")
def test_zero_features_are_told(encoder: Encoder, deaf: Encoder) -> None:
    for method, told in (
        ("cascade", "so this is the null picture"),
        ("decoder", "so this is the null picture"),
        ("blind", "a search for none"),
    ):
        with inverter(encoder, method)(image()) as inv:
            zero = inv.from_features(torch.zeros_like(inv.features(1)), 1)
            some = inv.stage(1)
        assert any(told in note for note in zero.notes) and not any("features are zero" in note for note in some.notes)
    with inverter(deaf, "blind")(image()) as inv:  # nor has the image any to count a misfit in
        picture = inv.from_features(torch.zeros(3, 8, 8), 1)
    assert bool(torch.isfinite(picture.tensor).all())


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_features_that_are_not_finite_are_no_zeros(value: float) -> None:
    features = torch.ones(4, 2, 2)
    features[1, 0] = value
    with pytest.raises(NumericsError, match=r"2 of 16 features of stage 2 \(block\) are NaN or infinite"):
        measure(features, "2 (block)")
    broken = small_encoder()
    broken.module.layer2.bn2.bias.data.fill_(abs(value))  # which no gate shuts
    said = r"features of stage 2 \(layer2\) are NaN or infinite"
    with inverter(broken, "cascade")(image()) as inv, pytest.raises(NumericsError, match=said):
        inv.stage(2)
