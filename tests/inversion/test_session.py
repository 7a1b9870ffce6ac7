"""Sessions: the raw VJP and its identities, read-outs, foreign features, batches, chunks and errors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from oracles.small_nets import image, small_encoder

import pullback as pb
from pullback.adjoint import has_bfloat16
from pullback.encoders import Encoder
from pullback.errors import ClassError, OptionError, StageError
from pullback.inversion import Inversion, Inverter


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return small_encoder()


@pytest.mark.parametrize("level", [1, 2, 3])
def test_raw_channels_are_the_gradient_of_half_the_squared_norm_4(encoder: Encoder, level: int) -> None:
    x = image()
    leaf = x.clone().requires_grad_()
    stages = [encoder.module.layer1, encoder.module.layer2, encoder.module.layer3][:level]
    features = leaf[None]
    for stage in stages:
        features = stage(features)
    with Inverter(encoder, "vjp")(x) as inv:
        total = torch.zeros_like(x)
        for channels, pictures in inv.channels(level):
            for c, v in zip(channels, pictures, strict=True):
                (expected,) = torch.autograd.grad(0.5 * features[0, c].square().sum(), leaf, retain_graph=True)
                torch.testing.assert_close(v, expected, rtol=1e-10, atol=1e-12)
                total += v
        torch.testing.assert_close(inv.stage(level).tensor, total, rtol=1e-10, atol=1e-12)
        null = inv.stage(level).null
        assert null is not None and not null.any()


def test_raw_class_direction_is_the_pull_back_of_the_weighted_features(encoder: Encoder) -> None:
    with Inverter(encoder, "vjp")(image()) as inv:
        seed = inv.class_weights(1)[:, None, None] * inv.features(3)
        expected = encoder.jacobian(image(), 3).vm(seed)
        torch.testing.assert_close(inv.cls(1).full.tensor, expected, rtol=1e-10, atol=1e-12)


def test_a_read_out_is_pulled_back_through_its_gradient(encoder: Encoder) -> None:
    x = image()
    leaf = x.clone().requires_grad_()
    value = encoder.module.layer3(encoder.module.layer2(encoder.module.layer1(leaf[None])))[0].square().sum().sqrt()
    (expected,) = torch.autograd.grad(value, leaf)
    with Inverter(encoder, "vjp")(x) as inv:
        picture = inv.scalar(lambda f: f.square().sum().sqrt())
        torch.testing.assert_close(picture.tensor, expected, rtol=1e-10, atol=1e-12)
        assert picture.figures["read-out"] == pytest.approx(value.item())


def test_a_read_out_may_write_to_its_features(encoder: Encoder) -> None:
    with Inverter(encoder, "vjp")(image()) as inv:
        expected = inv.scalar(lambda f: (2 * f).square().sum()).tensor
        assert torch.equal(inv.scalar(lambda f: f.mul_(2).square().sum()).tensor, expected)


@pytest.mark.parametrize("seed", ["a", 1.5, None, True, -1, 2**63, torch.tensor(1.5)])
def test_a_seed_is_a_whole_number(encoder: Encoder, seed: object) -> None:
    with pytest.raises(OptionError, match=r"seed=.* must be a whole number from 0"):
        Inverter(encoder, seed=seed)  # type: ignore[arg-type]


def test_a_seed_of_any_library(encoder: Encoder) -> None:
    found, expected = (Inverter(encoder, "wiener", steps=2, seed=s)(image()).stage(1) for s in (np.int64(3), 3))
    assert torch.equal(found.tensor, expected.tensor)
    assert type(found.provenance.seed) is int


def test_a_picture_of_an_image_of_a_subclass_is_a_tensor(encoder: Encoder) -> None:
    class Photo(torch.Tensor):
        pass

    assert type(Inverter(encoder)(image().as_subclass(Photo)).stage(1).tensor) is torch.Tensor


def test_foreign_features_go_through_this_images_gates(encoder: Encoder) -> None:
    own, other = image(0), image(1)
    foreign = encoder.features(other, 2)
    with Inverter(encoder, "vjp")(own) as inv:
        expected = encoder.jacobian(own, 2).vm(foreign)
        torch.testing.assert_close(inv.from_features(foreign, 2).tensor, expected, rtol=1e-10, atol=1e-12)
    with Inverter(encoder, mode="frozen")(own) as inv:
        torch.testing.assert_close(inv.from_features(inv.features(2), 2).tensor, inv.stage(2).tensor)
        assert not torch.allclose(inv.from_features(foreign, 2).tensor, inv.stage(2).tensor)


@pytest.mark.parametrize(("method", "mode"), [("cascade", "additive"), ("cascade", "frozen"), ("vjp", "frozen")])
def test_a_batch_is_its_images_one_by_one_and_neighbours_do_not_matter(
    encoder: Encoder, method: str, mode: str
) -> None:
    batch = torch.stack([image(0), image(1), image(2)])
    changed = batch.clone()
    changed[1] += 0.5
    inverter = Inverter(encoder, method, mode)
    with inverter(batch) as together, inverter(changed) as disturbed, inverter(batch[2]) as alone:
        assert together.stage(2).tensor.shape == (3, 3, 16, 16)
        assert torch.equal(together.stage(2).tensor[0], disturbed.stage(2).tensor[0])
        assert torch.equal(together.stage(2).tensor[2], disturbed.stage(2).tensor[2])
        torch.testing.assert_close(together.stage(2).tensor[2], alone.stage(2).tensor, rtol=1e-12, atol=1e-12)
        assert torch.equal(together.cls(1).full.tensor[0], disturbed.cls(1).full.tensor[0])


def test_chunks_change_nothing(encoder: Encoder) -> None:
    pictures = []
    for chunk in (1, 3, 8):
        with Inverter(encoder, mode="additive", chunk=chunk)(image()) as inv:
            pictures.append(inv.stage(3).tensor)
    for other in pictures[1:]:
        torch.testing.assert_close(other, pictures[0], rtol=1e-12, atol=1e-12)


def test_tensors_come_back_in_the_callers_type(encoder: Encoder) -> None:
    with Inverter(encoder)(image().float()) as inv:
        assert inv.stage(1).tensor.dtype == torch.float32
        assert inv.cls().full.tensor.dtype == torch.float32


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_callers_gradient_mode_does_not_matter(encoder: Encoder, context: type) -> None:
    with Inverter(encoder, mode="additive")(image()) as inv:
        expected = inv.stage(2).tensor, inv.cls(0).full.tensor
    with context():
        x = image()
        with Inverter(encoder, mode="additive")(x) as inv:
            got = inv.stage(2).tensor, inv.cls(0).full.tensor
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)


def test_every_picture_says_what_it_is(encoder: Encoder) -> None:
    with Inverter(encoder, mode="additive")(image()) as inv:
        picture = inv.stage(2)
    assert picture.mode == "cascade, additive, unfitted"
    assert picture.called == "adjoint picture"
    assert picture.provenance.encoder == "small" and len(picture.provenance.weights) == 64
    assert picture.value_range[0] < picture.value_range[1]


def test_mistakes_get_one_clear_error(encoder: Encoder) -> None:
    with pytest.raises(OptionError, match="unknown method 'cascad'"):
        Inverter(encoder, "cascad")
    with pytest.raises(OptionError, match="unknown mode"):
        Inverter(encoder, mode="sum")
    inv = Inverter(encoder)(image())
    with pytest.raises(StageError, match="no stage 9"):
        inv.stage(9)
    with pytest.raises(StageError, match="channels 0 to 15"):
        inv.channel(3, 16)
    with pytest.raises(ClassError, match="0 to 4"):
        inv.cls(5)
    with pytest.raises(OptionError, match="unknown class weights"):
        inv.cls(1, weights="v")
    with pytest.raises(StageError, match="got \\(1, 2, 3\\)"):
        inv.from_features(torch.zeros(1, 2, 3), 2)
    with pytest.raises(OptionError, match="one element"):
        inv.scalar(lambda f: f)
    with pytest.raises(OptionError, match="differentiably"):
        inv.scalar(lambda f: torch.tensor(1.0))
    with pytest.raises(OptionError, match="differentiably"):
        inv.scalar(lambda f: 2 * torch.ones((), requires_grad=True))
    with pytest.raises(OptionError, match=r"a real number, got torch.complex128"):
        inv.scalar(lambda f: 1j * f.sum())
    for value in (torch.nan, torch.inf):
        with pytest.raises(StageError, match="features hold values that are not finite"):
            inv.from_features(value * torch.ones(8, 8, 8), 1)
    for wrong in (torch.ones(8, 8, 8) * 1j, torch.ones(8, 8, 8).to_sparse()):
        with pytest.raises(StageError, match="dense tensor of real numbers"):
            inv.from_features(wrong, 1)
    for unit in (3, 1.5):
        with pytest.raises(StageError, match=f"a unit \\(channel, row, column\\), got {unit}"):
            inv.certificate(1, unit=unit)  # type: ignore[arg-type]
    inv.close()
    with pytest.raises(OptionError, match="closed"):
        inv.stage(1)


CALLS: dict[str, Callable[[Inversion], object]] = {
    "stage": lambda inv: inv.stage(1),
    "channel": lambda inv: inv.channel(1, 0),
    "channels": lambda inv: next(inv.channels(1)),
    "cls": lambda inv: inv.cls(1),
    "scalar": lambda inv: inv.scalar(torch.sum),
    "from_features": lambda inv: inv.from_features(torch.zeros(8, 8, 8), 1),
    "certificate": lambda inv: inv.certificate(1),
    "image": lambda inv: inv.image,
    "logits": lambda inv: inv.logits,
    "features": lambda inv: inv.features(1),
    "alpha": lambda inv: inv.alpha(1),
    "dead": lambda inv: inv.dead(1),
    "class_weights": lambda inv: inv.class_weights(1),
    "importance": lambda inv: inv.importance(1),
    "through": lambda inv: inv.through(Inverter(inv.encoder, "vjp")),
}


def test_every_way_to_ask_a_session_is_listed_here() -> None:
    asked = {name for name in vars(Inversion) if not name.startswith("_")}
    assert asked == set(CALLS) | {"close"}


@pytest.mark.parametrize("call", CALLS)
def test_a_closed_session_answers_nothing(encoder: Encoder, call: str) -> None:
    with Inverter(encoder)(image()) as inv:
        CALLS[call](inv)
    with pytest.raises(OptionError, match="this inversion is closed"):
        CALLS[call](inv)
    assert "closed" in repr(inv)


@pytest.mark.parametrize(
    "second",
    [
        lambda encoder: Inverter(encoder, "vjp"),
        lambda encoder: Inverter(encoder, mode="additive"),
        lambda encoder: Inverter(encoder, "wiener", steps=5),
        lambda encoder: Inverter(encoder, "blind", start="mean", steps=12),
    ],
)
def test_another_inverter_draws_the_same_through_an_open_session(
    encoder: Encoder, second: Callable[[Encoder], Inverter], monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = torch.stack([image(0), image(1)])
    inverter = second(encoder)
    with inverter(batch) as alone:
        expected = alone.stage(3)
    opened = 0

    def counted(self: Encoder, x: torch.Tensor) -> list[torch.Tensor]:
        nonlocal opened
        opened += 1
        return levels(self, x)

    levels = Encoder.levels
    monkeypatch.setattr(Encoder, "levels", counted)
    with Inverter(encoder)(batch) as inv:
        before = inv.stage(3)
        beside = inv.through(inverter)
        found = beside.stage(3)
        assert opened == len(batch)  # one forward pass an image for both
        assert torch.equal(found.tensor, expected.tensor) and torch.equal(found.null, expected.null)
        assert (found.mode, found.called, found.provenance) == (expected.mode, expected.called, expected.provenance)
        beside.close()
        assert torch.equal(inv.stage(3).tensor, before.tensor)  # made anew
    with pytest.raises(OptionError, match="closed"):
        beside.stage(3)


@pytest.mark.parametrize("parent_first", [False, True])
def test_closing_both_sessions_gives_back_what_they_share(encoder: Encoder, parent_first: bool) -> None:
    inv = Inverter(encoder, mode="additive")(image())
    beside = inv.through(Inverter(encoder, "wiener", steps=2))
    sessions = [inv, beside] if parent_first else [beside, inv]
    inv.stage(3), beside.stage(3)
    opened = inv._opened[0]
    shared = [*opened.chain, opened.whole(3)]
    assert beside._opened[0] is opened and all(j._program is not None for j in shared)
    sessions[0].close()
    assert all(j._program is None for j in shared)
    sessions[1].stage(3)
    assert any(j._program is not None for j in shared)  # the same operators, made anew
    sessions[1].close()
    assert all(j._program is None for j in shared)


def test_one_jacobian_from_the_image_is_open_at_a_time(encoder: Encoder) -> None:
    with Inverter(encoder, "vjp")(image()) as inv:
        pictures = [inv.stage(n).tensor for n in (1, 2, 3, 2)]
        opened = inv._opened[0]
        assert [opened._whole[n]._program is not None for n in (1, 2, 3)] == [False, True, False]
        assert torch.equal(pictures[1], pictures[3])


@pytest.mark.skipif(not has_bfloat16("cpu"), reason="no bfloat16 here")
def test_the_rounding_error_is_known_after_a_neighbour_was_closed() -> None:
    encoder = small_encoder().to(dtype=torch.float32)
    inverter = Inverter(encoder, precision="bfloat16")
    with inverter(image()) as inv:
        alone = inv.stage(3).figures["error of a product"]
        beside = inv.through(Inverter(encoder, "vjp", precision="bfloat16"))
        beside.stage(3)
        beside.close()
        assert inv.stage(3).figures["error of a product"] >= alone > 0


def test_a_session_takes_inverters_of_its_encoder_as_it_was_opened(encoder: Encoder) -> None:
    with Inverter(encoder)(image()) as inv:
        with pytest.raises(OptionError, match=r"session\.encoder"):
            inv.through(Inverter(small_encoder(), "vjp"))
        other = Inverter(encoder, "vjp")
        other.precision = "bfloat16"
        with pytest.raises(OptionError, match="precision=None, the inverter with 'bfloat16'"):
            inv.through(other)
        with pytest.raises(OptionError, match="expected an Inverter, got str"):
            inv.through("vjp")  # type: ignore[arg-type]
    mine = small_encoder()
    with Inverter(mine)(image()) as inv:
        inv.features(2)
        with torch.no_grad():
            next(mine.module.parameters()).mul_(1.1)
        with pytest.raises(OptionError, match="parameters or buffers have changed"):
            inv.through(Inverter(mine, "vjp"))


def test_a_session_of_a_half_precision_network_goes_on_with_its_own_copy() -> None:
    half = small_encoder().to(dtype=torch.bfloat16)
    with Inverter(half)(image()) as inv:
        assert torch.equal(
            inv.through(Inverter(inv.encoder, "vjp")).stage(2).tensor, Inverter(half, "vjp")(image()).stage(2).tensor
        )


def test_a_stream_of_channels_ends_when_its_session_is_closed(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pullback.inversion.session.ROWS", 2)
    inv = Inverter(encoder)(image())
    stream = inv.channels(3)
    next(stream)
    inv.close()
    with pytest.raises(OptionError, match="this inversion is closed"):
        next(stream)


def test_arrays_serve_as_features_and_regions(encoder: Encoder) -> None:
    with Inverter(encoder)(image()) as inv:
        features, region = inv.features(2).numpy(), np.zeros((16, 16), dtype=bool)
        region[:5, 3:] = True
        assert torch.equal(inv.from_features(features, 2).tensor, inv.stage(2).tensor)
        expected = inv.certificate(2, region=torch.from_numpy(region))
        assert torch.equal(inv.certificate(2, region=region).field, expected.field)
        assert torch.equal(inv.certificate(2, region=region.tolist()).field, expected.field)
        with pytest.raises(StageError, match="features of type str cannot be read as real numbers"):
            inv.from_features("none", 2)
        with pytest.raises(OptionError, match="a region of type dict cannot be read as real numbers"):
            inv.certificate(2, region={})


def test_an_image_without_features_is_an_error_that_names_the_stage() -> None:
    dead = small_encoder()
    dead.module.layer2.bn2.bias.data.fill_(-1e3)
    with Inverter(dead)(image()) as inv, pytest.raises(StageError, match="stage 2 \\(layer2\\)"):
        inv.stage(2)


def test_public_names_resolve() -> None:
    assert pb.Inverter is Inverter
