"""A whole fit: what it lowers, what its card says, how it carries on, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from oracles.small_nets import image, small_encoder
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import pullback as pb
from pullback.errors import EncoderError, ImageError, NumericsError, OptionError, OutputError, StageError
from pullback.fitting import PRESETS, Recipe, Standing, checkpoint_of, fit_correctors
from pullback.fitting.checkpoint import State
from pullback.fitting.examples import Examples, examples_of
from pullback.fitting.steps import Fit

ENCODER = small_encoder()
IMAGES = [image(seed) for seed in range(9)]
SMALL = Recipe(steps=6, batch=2, channels=3, held_back=3)
QUICK = Recipe(mode="fused", steps=5, batch=1, held_back=0)


class Stopped(Exception):
    """The run was ended from outside."""


def stopping_at(step: int) -> Callable[[Standing], None]:
    def told(standing: Standing) -> None:
        if standing.step == step:
            raise Stopped

    return told


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of the uninterrupted fit."""
    path = tmp_path_factory.mktemp("whole") / "fitted.safetensors"
    fit_correctors(ENCODER, IMAGES, SMALL, out=path)
    return path


def test_it_is_public_and_paper_is_the_published_recipe() -> None:
    assert pb.fit_correctors is fit_correctors
    paper = PRESETS["paper"]
    assert (paper.mode, paper.loss) == ("additive", "l1")
    assert [round(replace(paper, steps=4).rate_at(s) / paper.rate, 3) for s in range(4)] == [1, 0.854, 0.5, 0.146]


@pytest.mark.parametrize("loss", ["l1", "l2"])
@pytest.mark.parametrize("mode", ["additive", "fused", "frozen"])
def test_a_fit_lowers_the_loss_of_what_was_held_back(mode: str, loss: str) -> None:
    source = torch.Generator().manual_seed(0)
    same = torch.randn(3, 16, 16, generator=source, dtype=torch.float64)
    alike = [same + 0.1 * torch.randn(3, 16, 16, generator=source, dtype=torch.float64) + 0.5 for _ in range(6)]
    card = fit_correctors(ENCODER, alike, SMALL, mode=mode, loss=loss, steps=20, batch=1, rate=0.1).card
    first, last = card["history"][0]["held back"], card["history"][-1]["held back"]
    assert last["loss"] < 0.9 * first["loss"]
    assert first["floor"] == last["floor"]
    assert ("gap" in card) == (mode == "additive")


def test_steps_are_those_of_torchs_adam() -> None:
    gradients = torch.randn(6, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    class Given:
        """Stands for the workers: the gradient of each step, and no losses."""

        def __init__(self) -> None:
            self.rest = iter(gradients)

        def rows(self, count: int, *_: Any) -> Tensor:
            return torch.cat([torch.zeros(3, dtype=torch.float64), next(self.rest)]).expand(count, -1)

    start = torch.linspace(-1, 1, 20, dtype=torch.float64)
    leaf = start.clone().requires_grad_()
    adam = torch.optim.Adam([leaf], lr=SMALL.rate)
    fit, state = Fit(ENCODER, [], SMALL, Examples((), (), 0, ()), Given()), State.begin(start)  # type: ignore[arg-type]
    for step, gradient in enumerate(gradients):
        adam.param_groups[0]["lr"] = SMALL.rate_at(step)
        leaf.grad = gradient.clone()
        adam.step()
        state = fit.stepped(state)
        assert torch.allclose(state.parameters, leaf.detach(), rtol=1e-12, atol=1e-14)


def test_the_card_says_what_was_done(whole: Path) -> None:
    card = pb.Correctors.load(whole).card
    assert (card["encoder"], card["weights"]) == ("small", ENCODER.weights_digest)
    assert (card["pictures"]["count"], card["pictures held back"]["count"]) == (6, 3)
    assert card["preset"] == "a recipe of its own"
    assert [row["step"] for row in card["history"]] == list(range(7))
    for row in card["history"]:
        held = row["held back"]
        assert held["lift"] == pytest.approx(held["floor"] - held["loss"], abs=2e-6)
        assert ("fitted" in row) == (row["step"] > 0)
    assert card["gap"] == pytest.approx(
        card["history"][-1]["held back"]["loss"] - card["held back, whole"]["loss"], abs=2e-6
    )
    assert pb.Correctors.load(whole).label == "fitted on 6 pictures"
    told = fit_correctors(ENCODER, IMAGES, "paper", steps=1, batch=2, held_back=3).card["preset"]
    assert told == "paper with other steps, batch, held_back"


def test_the_result_serves_its_encoder_and_leaves_nothing_else(whole: Path) -> None:
    assert names(whole.parent) == ["fitted.safetensors"]
    found = pb.Correctors.load(whole)
    assert {c.gamma.dtype for c in found.levels} == {torch.float64}  # as the encoder's
    with pb.Inverter(ENCODER, mode="additive", correctors=found)(IMAGES[0]) as session:
        assert session.stage(3).tensor.shape == (3, 16, 16)


@pytest.mark.parametrize("step", [0, 1, 4, 6])
def test_stopped_and_called_again_it_ends_in_the_same_bytes(step: int, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "fitted.safetensors"
    with pytest.raises(Stopped):
        fit_correctors(ENCODER, IMAGES, SMALL, out=out, told=stopping_at(step))
    assert names(tmp_path) == ["fitted.safetensors.checkpoint"]
    seen: list[int] = []
    fit_correctors(ENCODER, IMAGES, SMALL, out=out, told=lambda standing: seen.append(standing.step))
    assert seen == list(range(step, 7))
    assert out.read_bytes() == whole.read_bytes()
    assert names(tmp_path) == ["fitted.safetensors"]


@pytest.mark.parametrize("part", ["parameters", "first", "second", "running"])
def test_every_part_of_the_state_counts(part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "fitted.safetensors"
    monkeypatch.setattr(Recipe, "interval", 2)
    full = fit_correctors(ENCODER, IMAGES[:3], QUICK).card["history"]
    with pytest.raises(Stopped):
        fit_correctors(ENCODER, IMAGES[:3], QUICK, out=out, told=stopping_at(3))
    true = State.load

    def forgetful(path: Path, settings: Any) -> State | None:
        found = true(path, settings)
        assert found is not None
        return replace(found, **{part: torch.zeros_like(getattr(found, part))})

    monkeypatch.setattr(State, "load", forgetful)
    assert fit_correctors(ENCODER, IMAGES[:3], QUICK, out=out).card["history"] != full


def test_the_callers_threads_decide_nothing_and_are_given_back(whole: Path, tmp_path: Path) -> None:
    """Of a result that one thread has made, and of one that is carried on with another number of them."""
    out, before = tmp_path / "fitted.safetensors", torch.get_num_threads()
    seen: set[int] = set()
    try:
        torch.set_num_threads(3)
        with pytest.raises(Stopped):
            fit_correctors(ENCODER, IMAGES, SMALL, out=out, told=stopping_at(2))
        torch.set_num_threads(2)
        fit_correctors(ENCODER, IMAGES, SMALL, out=out, told=lambda _: seen.add(torch.get_num_threads()))
        assert (seen, torch.get_num_threads()) == ({1}, 2)
    finally:
        torch.set_num_threads(before)
    assert out.read_bytes() == whole.read_bytes()


def test_done_before_it_is_read_and_not_made_again(whole: Path) -> None:
    stamp = whole.stat().st_mtime_ns
    seen: list[Standing] = []
    found = fit_correctors(ENCODER, IMAGES, SMALL, out=whole, told=seen.append)
    assert (seen, whole.stat().st_mtime_ns) == ([], stamp)
    assert found.digest == pb.Correctors.load(whole).digest


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"rate": 0.03}, {"steps": 7}, {"mode": "fused"}, {"batch": 3}, {"channels": 2}, {"loss": "l2"}],
    ids=str,
)
def test_other_settings_are_refused_by_name_or_begun_anew(change: dict[str, Any], whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "fitted.safetensors"
    with pytest.raises(Stopped):
        fit_correctors(ENCODER, IMAGES, SMALL, out=out, told=stopping_at(2))
    kept = checkpoint_of(out).read_bytes()
    (name,) = change
    with pytest.raises(OptionError, match=f"another fit: {name} is .* there and .* here.*overwrite"):
        fit_correctors(ENCODER, IMAGES, SMALL, **change, out=out)
    with pytest.raises(OptionError, match=f"correctors of another fit: {name} is"):
        fit_correctors(ENCODER, IMAGES, SMALL, **change, out=whole)
    assert checkpoint_of(out).read_bytes() == kept
    found = fit_correctors(ENCODER, IMAGES, SMALL, **change, out=out, overwrite=True)
    assert found.card[name] == change[name]
    assert names(tmp_path) == ["fitted.safetensors"]


def test_other_pictures_or_weights_are_another_fit(tmp_path: Path) -> None:
    out = tmp_path / "fitted.safetensors"
    with pytest.raises(Stopped):
        fit_correctors(ENCODER, IMAGES, SMALL, out=out, told=stopping_at(2))
    with pytest.raises(OptionError, match="another fit: pictures is"):
        fit_correctors(ENCODER, [*IMAGES[:-1], image(99)], SMALL, out=out)
    with pytest.raises(OptionError, match="another fit: weights is"):
        fit_correctors(small_encoder(1), IMAGES, SMALL, out=out)


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"\x08\0\0\0\0\0\0\0{}      "])
def test_what_is_no_checkpoint_is_refused(content: bytes, tmp_path: Path) -> None:
    out = tmp_path / "fitted.safetensors"
    checkpoint_of(out).write_bytes(content)
    with pytest.raises(OptionError, match=r"is damaged or no checkpoint of a fit .*begin anew with overwrite"):
        fit_correctors(ENCODER, IMAGES, SMALL, out=out)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The checkpoint of a fit of IMAGES[:1] that was stopped after two steps."""
    out = tmp_path_factory.mktemp("stopped") / "fitted.safetensors"
    with pytest.raises(Stopped):
        fit_correctors(ENCODER, IMAGES[:1], QUICK, out=out, told=stopping_at(2))
    return checkpoint_of(out).read_bytes()


def test_a_checkpoint_with_any_bit_flipped_is_refused(stopped: bytes, tmp_path: Path) -> None:
    out = tmp_path / "fitted.safetensors"
    head = 8 + int.from_bytes(stopped[:8], "little")
    numbers = range(head, len(stopped), (len(stopped) - head) // 40)
    for place in (*range(0, head, 7), *numbers, len(stopped) - 1):
        flipped = bytearray(stopped)
        flipped[place] ^= 1 << place % 8
        checkpoint_of(out).write_bytes(flipped)
        with pytest.raises(OptionError, match=r"damaged.*begin anew with overwrite"):
            fit_correctors(ENCODER, IMAGES[:1], QUICK, out=out)
    assert fit_correctors(ENCODER, IMAGES[:1], QUICK, out=out, overwrite=True).card["steps"] == 5
    assert names(tmp_path) == [out.name]


@pytest.mark.parametrize(
    "change",
    [
        {"step": "2"},
        {"step": 99},
        {"step": -2},
        {"settings": {}},
        {"history": [1]},
        {"history": [{}]},
        {"digest": None},
    ],
    ids=str,
)
def test_a_checkpoint_that_was_altered_is_refused(change: dict[str, Any], stopped: bytes, tmp_path: Path) -> None:
    out = tmp_path / "fitted.safetensors"
    checkpoint_of(out).write_bytes(stopped)
    with safe_open(checkpoint_of(out), framework="pt") as file:
        tensors, said = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    if "digest" in change:  # as an older version wrote it
        del said["digest"]
    else:
        said["pullback.fit"] = json.dumps({**json.loads(said["pullback.fit"]), **change}, sort_keys=True)
    save_file(tensors, checkpoint_of(out), said)
    with pytest.raises(OptionError, match=r"the checkpoint .* is damaged; .*begin anew with overwrite"):
        fit_correctors(ENCODER, IMAGES[:1], QUICK, out=out)


def test_a_result_that_is_not_finite_is_told_and_not_written(tmp_path: Path) -> None:
    encoder = ENCODER.to(dtype=torch.float32)
    recipe = replace(QUICK, steps=1, rate=1e39)  # the loss is that of before the step
    for overwrite in (False, True):
        with pytest.raises(
            NumericsError, match=r"not finite in torch.float32 after step 1 at rate=1e\+39; .*lower rate"
        ):
            fit_correctors(encoder, [IMAGES[0].float()], recipe, out=tmp_path / "new" / "inf", overwrite=overwrite)
        assert names(tmp_path) == []


def test_the_card_names_pictures_that_are_no_tensors(tmp_path: Path) -> None:
    folder, out = tmp_path / "pictures", tmp_path / "fitted.safetensors"
    folder.mkdir()
    for i in range(5):
        Image.new("RGB", (20, 20), (i * 20, 100, 7)).save(folder / f"{i}.png")
    fit_correctors(ENCODER, folder, QUICK, steps=1, held_back=2, out=out)
    assert pb.Correctors.load(out).pictures == {pb.load_image(p).digest[:16] for p in folder.iterdir()}
    opened = [Image.open(p).copy() for p in folder.iterdir()]
    assert fit_correctors(ENCODER, opened, QUICK, steps=1).pictures == pb.Correctors.load(out).pictures
    assert fit_correctors(ENCODER, [folder, IMAGES[0]], QUICK, steps=1).pictures is None


def test_a_result_stands_although_a_fit_that_overwrites_it_was_stopped(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "fitted.safetensors"
    out.write_bytes(whole.read_bytes())
    with pytest.raises(Stopped):
        fit_correctors(ENCODER, IMAGES, SMALL, seed=1, out=out, overwrite=True, told=stopping_at(2))
    there = {p: p.read_bytes() for p in tmp_path.iterdir()}
    assert len(there) == 2
    assert fit_correctors(ENCODER, IMAGES, SMALL, out=out).digest == pb.Correctors.load(whole).digest
    with pytest.raises(OptionError, match="checkpoint of another fit: seed is 1 there and 2 here"):
        fit_correctors(ENCODER, IMAGES, SMALL, seed=2, out=out)
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == there
    seen: list[int] = []
    fit_correctors(ENCODER, IMAGES, SMALL, seed=1, out=out, told=lambda standing: seen.append(standing.step))
    assert seen == list(range(2, 7))


def test_begun_anew_and_stopped_it_carries_on_without_overwrite(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "fitted.safetensors"
    out.write_bytes(whole.read_bytes())
    with pytest.raises(Stopped):
        fit_correctors(ENCODER, IMAGES, SMALL, out=out, overwrite=True, told=stopping_at(4))
    seen: list[int] = []
    fit_correctors(ENCODER, IMAGES, SMALL, out=out, told=lambda standing: seen.append(standing.step))
    assert (seen, out.read_bytes()) == ([4, 5, 6], whole.read_bytes())


@pytest.mark.parametrize("kind", ["Pillow image", "tensor", "file"])
def test_one_picture_alone_is_one_picture(kind: str, tmp_path: Path) -> None:
    shown = Image.new("RGB", (20, 20), (20, 100, 7))
    shown.save(tmp_path / "one.png")
    one = {"Pillow image": shown, "tensor": IMAGES[0], "file": tmp_path / "one.png"}[kind]
    alone, listed = (fit_correctors(ENCODER, given, QUICK, steps=1) for given in (one, [one]))
    assert alone.card["pictures"]["count"] == 1
    assert alone.digest == listed.digest


def test_a_batch_is_its_pictures() -> None:
    found = examples_of(ENCODER, torch.stack(IMAGES), SMALL)
    assert found.repeated == 0
    assert [e.digest for e in found.fitted] == [e.digest for e in examples_of(ENCODER, IMAGES, SMALL).fitted]


def test_what_is_held_back_depends_on_pixels_and_seed_alone() -> None:
    def examples(images: list[Tensor], seed: int = 0) -> set[str]:
        return {e.digest for e in examples_of(ENCODER, images, replace(SMALL, seed=seed)).held}

    assert examples(IMAGES) == examples(IMAGES[::-1]) == examples(IMAGES + IMAGES[:4])
    assert any(examples(IMAGES) != examples(IMAGES, seed) for seed in (1, 2, 3))
    found = examples_of(ENCODER, IMAGES + IMAGES[:4], SMALL)
    assert (len(found.fitted), len(found.held), found.repeated) == (6, 3, 4)


def test_the_callers_modes_change_nothing(whole: Path, elsewhere: None) -> None:
    state = torch.random.get_rng_state()
    with torch.inference_mode():
        found = fit_correctors(ENCODER, IMAGES, SMALL)
    assert found.digest == pb.Correctors.load(whole).digest
    assert torch.equal(torch.random.get_rng_state(), state)


@dataclass
class Case:
    images: Any
    changed: dict[str, Any]
    error: type[Exception]
    words: str


@pytest.mark.parametrize(
    "case",
    [
        Case([], {}, ImageError, "no picture"),
        Case(IMAGES[:3], {}, OptionError, "3 held back of 3 pictures leaves none"),
        Case(IMAGES[:4], {}, OptionError, "a batch of 2 needs .* leaves 1"),
        Case(IMAGES[:1] * 9, {}, OptionError, r"1 picture \(8 more repeat them\)"),
        Case(IMAGES, {"steps": 0}, OptionError, "steps=0"),
        Case(IMAGES, {"steps": 2.5}, OptionError, "steps=2.5"),
        Case(IMAGES, {"batch": -1}, OptionError, "batch=-1"),
        Case(IMAGES, {"held_back": -1}, OptionError, "held_back=-1"),
        Case(IMAGES, {"rate": float("nan")}, OptionError, "rate=nan"),
        Case(IMAGES, {"mode": "blind"}, OptionError, "additive, fused, frozen"),
        Case(IMAGES, {"loss": "l3"}, OptionError, "l1, l2"),
        Case(IMAGES, {"preset": "papers"}, OptionError, "papers.*paper"),
        Case([*IMAGES, torch.randn(2, 3, 16, 16)], {}, ImageError, "picture 10|where one image"),
        Case(torch.randn(16, 16), {}, ImageError, r"picture 1 .*got shape \(16, 16\)"),
        Case([*IMAGES, "missing.png"], {}, ImageError, "missing.png"),
        Case([*IMAGES, Image.new("F", (20, 20))], {}, ImageError, "picture 10"),
        Case([torch.zeros_like(i) + n for n, i in enumerate(IMAGES)], {"rate": 1.7e308}, NumericsError, "rate"),
    ],
    ids=lambda case: case.words,
)
def test_mistakes_are_told_before_anything_is_written(case: Case, tmp_path: Path) -> None:
    changed = {"preset": SMALL, **case.changed}
    with pytest.raises(case.error, match=case.words):
        fit_correctors(ENCODER, case.images, out=tmp_path / "new" / "fitted.safetensors", **changed)
    if case.error is not NumericsError:
        assert names(tmp_path) == []


def test_where_nothing_can_be_written_it_is_told_before_the_pictures_are_read(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out in (tmp_path, tmp_path / "file" / "fitted.safetensors"):
        with pytest.raises(OutputError):
            fit_correctors(ENCODER, ["missing.png"], SMALL, out=out)


def test_a_network_without_stages_is_refused() -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 3))
    encoder = pb.Encoder.from_module(flat, input_shape=(3, 8, 8))
    with pytest.raises(EncoderError):
        fit_correctors(encoder, [torch.zeros(3, 8, 8)], SMALL)


def test_a_picture_without_features_is_named() -> None:
    dark = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 5, 3, 2, 1), nn.ReLU())
    for module in dark:
        if isinstance(module, nn.Conv2d):
            module.weight.data.abs_()
            module.bias.data.zero_()  # type: ignore[union-attr]
    net = nn.Sequential(*dark, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 2))
    encoder = pb.Encoder.from_module(net, stages=["1", "3"], input_shape=(3, 16, 16))
    pictures = [torch.full((3, 16, 16), v) for v in (1.0, 2.0, 3.0, 4.0, -1.0)]
    with pytest.raises(
        StageError, match=r"^picture 5 cannot be fitted on, leave it out: every feature of stage 2 \(3\) is zero"
    ):
        fit_correctors(encoder, pictures, SMALL, held_back=0, steps=5)


def test_a_picture_that_changes_meanwhile_is_named(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    for i, path in enumerate(paths):
        Image.new("RGB", (20, 20), (i * 20, 100, 7)).save(path)

    def told(standing: Standing) -> None:
        for path in paths:
            Image.new("L", (20, 20), 9).save(path)

    with pytest.raises(ImageError, match=r"\d.png has changed"):
        fit_correctors(ENCODER, tmp_path, SMALL, held_back=0, told=told)
