from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from pullback.errors import OptionError, OutputError, WeightsError
from pullback.inversion.correctors import Corrector, Correctors, correct, correct_with, rms, skipped

SHAPE = (4, 5, 6)
SEEDS = st.integers(0, 2**32 - 1)


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def parameters(channels: int = 4, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return numbers(channels, seed=11, dtype=dtype), numbers(channels, seed=12, dtype=dtype)


def zero_mean(v: Tensor) -> Tensor:
    return v - v.mean((-2, -1), keepdim=True)


class TestFormula:
    @given(seed=SEEDS, height=st.integers(1, 7), width=st.integers(2, 7), log_scale=st.integers(-12, 12))
    def test_norm_mean_and_direction_at_eps_zero(self, seed: int, height: int, width: int, log_scale: int) -> None:
        """P1, P2, P3."""
        v = 10.0**log_scale * numbers(4, height, width, seed=seed)
        gamma, beta = parameters()
        out = correct(v, gamma, beta, eps=0)
        part, before = zero_mean(out), zero_mean(v)
        norm = part.flatten(1).norm(dim=1)
        assert torch.allclose(norm, gamma.abs() * (height * width) ** 0.5, rtol=1e-12)
        assert torch.allclose(out.mean((-2, -1)), beta, atol=1e-13)
        cosine = (part * before).flatten(1).sum(1) / (norm * before.flatten(1).norm(dim=1))
        assert torch.allclose(cosine, gamma.sign(), rtol=0, atol=1e-13)

    @pytest.mark.parametrize("eps", [1e-5, 0.3])
    def test_with_absolute_eps_it_is_group_norm(self, eps: float) -> None:
        v, (gamma, beta) = 1e-2 * numbers(3, *SHAPE), parameters()
        expected = F.group_norm(v, 4, gamma, beta, eps)
        assert torch.allclose(correct(v, gamma, beta, eps, absolute=True), expected, rtol=1e-12, atol=1e-14)

    def test_relative_eps_counts_in_mean_squares_of_the_whole_cotangent(self) -> None:
        v, (gamma, beta) = numbers(*SHAPE), parameters()
        eps = 0.1 * float(zero_mean(v).square().mean())
        expected = F.group_norm(v[None], 4, gamma, beta, eps)[0]
        assert torch.allclose(correct(v, gamma, beta, 0.1), expected, rtol=1e-12, atol=1e-14)

    def test_by_hand(self) -> None:
        # Channel (1, 3): P v = (-1, 1), rms 1. gamma 2, beta 5: (3, 7).
        v = torch.tensor([[[1.0, 3.0]]], dtype=torch.float64)
        two, five = torch.tensor([2.0]).double(), torch.tensor([5.0]).double()
        assert correct(v, two, five, eps=0).tolist() == [[[3, 7]]]
        # Absolute eps 3: rms 2. Relative eps 3: the same, since the mean square is 1.
        assert correct(v, two, five, eps=3, absolute=True).tolist() == [[[4, 6]]]
        assert correct(v, two, five, eps=3).tolist() == [[[4, 6]]]
        # Without mean removal: rms sqrt(5).
        assert torch.allclose(correct(v, two, 0 * five, eps=0, centred=False), 2 * v / 5**0.5)


class TestScale:
    @given(seed=SEEDS, power=st.integers(-60, 60), eps=st.sampled_from([0, 1e-6, 0.2]))
    def test_powers_of_two_change_no_bit(self, seed: int, power: int, eps: float) -> None:
        v, (gamma, beta) = numbers(*SHAPE, seed=seed), parameters()
        assert torch.equal(correct(v * 2.0**power, gamma, beta, eps), correct(v, gamma, beta, eps))

    @given(seed=SEEDS, log_scale=st.floats(-30, 30), eps=st.sampled_from([1e-6, 0.2]))
    def test_any_factor_in_float32(self, seed: int, log_scale: float, eps: float) -> None:
        v, (gamma, beta) = numbers(*SHAPE, seed=seed, dtype=torch.float32), parameters(dtype=torch.float32)
        out = correct(v * 10.0**log_scale, gamma, beta, eps)
        assert torch.allclose(out, correct(v, gamma, beta, eps), rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("scale", [1e-30, 1e30])
    @pytest.mark.parametrize("absolute", [False, True])
    def test_extremes_in_float32(self, scale: float, absolute: bool) -> None:
        v, (gamma, beta) = scale * numbers(*SHAPE, dtype=torch.float32), parameters(dtype=torch.float32)
        exact = correct(v.double(), gamma.double(), beta.double(), absolute=absolute)
        assert torch.allclose(correct(v, gamma, beta, absolute=absolute).double(), exact, rtol=1e-5, atol=1e-5)
        exact = rms(v.double(), absolute=absolute)
        assert torch.allclose(rms(v, absolute=absolute).double(), exact, rtol=1e-5, atol=0)

    def test_absolute_eps_does_depend_on_the_scale(self) -> None:
        v, (gamma, beta) = numbers(*SHAPE), parameters()
        assert (correct(1e-6 * v, gamma, beta, 1e-5, absolute=True) - beta[:, None, None]).abs().max() < 1e-2


class TestDeadChannels:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("eps", [0, 1e-6])
    @pytest.mark.parametrize("absolute", [False, True])
    def test_zero_gives_beta_alone(self, dtype: torch.dtype, eps: float, absolute: bool) -> None:
        gamma, beta = parameters(dtype=dtype)
        v = numbers(2, *SHAPE, dtype=dtype)
        v[0, 1] = 0
        v[1] = 0
        out = correct(v, gamma, beta, eps, absolute=absolute)
        assert torch.equal(out[0, 1], beta[1].expand(5, 6))
        assert torch.equal(out[1], beta[:, None, None].expand(SHAPE))
        assert bool(out.isfinite().all())

    @given(value=st.floats(-1e6, 1e6, width=32), height=st.integers(1, 60), width=st.integers(1, 60))
    def test_a_constant_channel_has_no_contrast_to_blow_up(self, value: float, height: int, width: int) -> None:
        assume(abs(value) > 1e-30)
        gamma, beta = parameters(2, torch.float32)
        out = correct(torch.full((2, height, width), value), gamma, beta, eps=0)
        assert torch.equal(out, beta[:, None, None].expand(out.shape))

    def test_a_small_contrast_on_a_large_mean_is_no_constant(self) -> None:
        v, (gamma, beta) = numbers(*SHAPE), parameters()
        assert torch.allclose(correct(1e9 + v, gamma, beta), correct(v, gamma, beta), atol=1e-5)

    def test_what_is_not_a_number_stays_visible(self) -> None:
        v, (gamma, beta) = numbers(*SHAPE), parameters()
        v[2, 0, 0] = torch.nan
        assert correct(v, gamma, beta)[2].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("centred", [False, True])
def test_neighbours_in_the_batch_change_no_bit(dtype: torch.dtype, absolute: bool, centred: bool) -> None:
    v, (gamma, beta) = numbers(5, *SHAPE, dtype=dtype), parameters(dtype=dtype)
    changed = v * torch.tensor([1e8, 1, 0, -1, 1e-8], dtype=dtype)[:, None, None, None]
    one, other = (correct(t, gamma, beta, absolute=absolute, centred=centred) for t in (v, changed))
    assert torch.equal(one[1], other[1])
    assert not torch.equal(one[3], other[3])
    alone = correct(v[1], gamma, beta, absolute=absolute, centred=centred)
    assert torch.allclose(one[1], alone, rtol=1e-5 if dtype == torch.float32 else 1e-12, atol=1e-7)


class TestFrozen:
    @pytest.mark.parametrize("options", [{}, {"absolute": True}, {"centred": False}])
    def test_with_its_own_normaliser_it_is_the_corrector(self, options: dict[str, bool]) -> None:
        v, (gamma, beta) = numbers(3, *SHAPE), parameters()
        kept = rms(v, 1e-3, **options)
        assert kept.shape == (3, 4, 1, 1)
        out = correct_with(v, gamma, beta, kept, centred=options.get("centred", True))
        assert torch.equal(out, correct(v, gamma, beta, 1e-3, **options))

    @given(a=st.floats(-5, 5), b=st.floats(-5, 5))
    def test_affine_in_the_cotangent(self, a: float, b: float) -> None:
        v, w, (gamma, beta) = numbers(*SHAPE, seed=1), numbers(*SHAPE, seed=2), parameters()
        kept = rms(numbers(*SHAPE, seed=3))

        def linear(t: Tensor) -> Tensor:
            return correct_with(t, gamma, 0 * beta, kept)

        assert torch.allclose(linear(a * v + b * w), a * linear(v) + b * linear(w), rtol=0, atol=1e-13)
        assert torch.allclose(correct_with(v, gamma, beta, kept), linear(v) + beta[:, None, None], rtol=0, atol=1e-14)
        assert torch.equal(correct_with(0 * v, gamma, beta, kept), beta[:, None, None].expand(SHAPE))

    def test_a_normaliser_of_zero_gives_beta_alone(self) -> None:
        v, (gamma, beta) = numbers(*SHAPE), parameters()
        kept = rms(v)
        kept[1] = 0
        out = correct_with(v, gamma, beta, kept)
        assert torch.equal(out[1], beta[1].expand(5, 6))
        assert torch.equal(out[0], correct(v, gamma, beta)[0])

    def test_rms_is_the_root_of_the_mean_square(self) -> None:
        v = numbers(*SHAPE)
        assert torch.allclose(rms(v, 0).flatten(), zero_mean(v).square().mean((-2, -1)).sqrt(), rtol=1e-14)
        assert torch.allclose(rms(v, 0, centred=False).flatten(), v.square().mean((-2, -1)).sqrt(), rtol=1e-14)
        assert rms(0 * v).abs().max() == 0


class TestDerivatives:
    @pytest.mark.parametrize("options", [{}, {"absolute": True}, {"centred": False}])
    def test_gradcheck(self, options: dict[str, bool]) -> None:
        inputs = (numbers(2, 3, 2, 3), *parameters(3))
        for tensor in inputs:
            tensor.requires_grad_()
        assert torch.autograd.gradcheck(lambda v, g, b: correct(v, g, b, 0.1, **options), inputs)
        assert torch.autograd.gradcheck(lambda v: rms(v, 0.1, **options), inputs[:1])

    def test_dead_channels_have_finite_gradients(self) -> None:
        v, (gamma, beta) = numbers(2, *SHAPE), parameters()
        v[0], v[1, 2] = 0, 3
        inputs = [tensor.requires_grad_() for tensor in (v, gamma, beta)]
        for eps in (0, 1e-6):
            grads = torch.autograd.grad(correct(v, gamma, beta, eps).square().sum(), inputs)
            assert all(bool(grad.isfinite().all()) for grad in grads)


def test_without_mean_removal_the_support_stays() -> None:
    v, (gamma, beta) = numbers(*SHAPE), parameters()
    v[:, :, 3:] = 0
    inside = correct(v, gamma, 0 * beta, centred=False)
    assert not inside[:, :, 3:].any()
    assert correct(v, gamma, 0 * beta)[:, :, 3:].any()


@pytest.mark.parametrize(("shape", "expected"), [((8, 1, 1), True), ((8, 1, 2), False), ((8, 7, 7), False)])
def test_a_level_with_one_position_is_skipped(shape: tuple[int, ...], expected: bool) -> None:
    assert skipped(shape) is expected


def fitted() -> Correctors:
    levels = tuple(Corrector(*parameters(c, torch.float32)) for c in (3, 4))
    return Correctors(levels, 1e-4, "fitted (paper)", {"encoder": "small", "weights": "ab" * 32, "steps": 12})


class TestCorrectors:
    def test_unfitted(self) -> None:
        plain = Correctors.unfitted([3, 4])
        assert plain.label == "unfitted"
        assert [len(c.gamma) for c in plain.levels] == [3, 4]
        v = numbers(4, 5, 6, dtype=torch.float32)
        assert torch.allclose(plain.correct(1, v), F.group_norm(v[None], 4, eps=0)[0], atol=1e-5)

    @pytest.mark.parametrize("options", [{}, {"absolute": True}, {"centred": False}])
    def test_methods_are_the_functions_with_its_settings(self, options: dict[str, bool]) -> None:
        levels = fitted().levels
        correctors = Correctors(levels, 1e-2, **options)
        v, (gamma, beta) = numbers(4, 5, 6, dtype=torch.float32), parameters(dtype=torch.float32)
        assert torch.equal(correctors.rms(v), rms(v, 1e-2, **options))
        assert torch.equal(correctors.correct(1, v), correct(v, gamma, beta, 1e-2, **options))
        kept, centred = 2 * correctors.rms(v), options.get("centred", True)
        expected = correct_with(v, gamma, beta, kept, centred=centred)
        assert torch.equal(correctors.correct_with(1, v, kept), expected)

    def test_doses_and_variants_say_what_they_are(self) -> None:
        correctors = fitted()
        half, free, only = correctors.scaled_bias(0.5), correctors.bias_free(), correctors.rms_only()
        assert [c.label.removeprefix("fitted (paper)") for c in (half, free, only, correctors.scaled_bias(1))] == [
            ", beta x 0.5", ", bias-free", ", rms only", "",
        ]  # fmt: skip
        assert Correctors.unfitted([3]).bias_free().label == "unfitted"
        for made, factor in ((half, 0.5), (free, 0), (only, 0)):
            for level, before in zip(made.levels, correctors.levels, strict=True):
                assert torch.equal(level.beta, factor * before.beta)
                assert torch.equal(level.gamma, before.gamma)
        assert not free.correct(1, torch.zeros(SHAPE)).any()
        assert (half.centred, free.centred, only.centred) == (True, True, False)
        assert len({c.digest for c in (correctors, half, free, only, Correctors(correctors.levels, 0.1))}) == 5

    def test_to_another_type(self) -> None:
        moved = fitted().to(torch.zeros((), dtype=torch.float64))
        assert all(p.dtype == torch.float64 for c in moved.levels for p in (c.gamma, c.beta))
        assert moved.card == fitted().card

    @pytest.mark.parametrize("eps", [-1e-6, float("nan"), float("inf")])
    def test_eps(self, eps: float) -> None:
        with pytest.raises(OptionError, match="eps="):
            Correctors.unfitted([3], eps)

    def test_another_encoder(self) -> None:
        fitted().check("small", [3, 4])
        with pytest.raises(WeightsError, match=r"levels with \[3, 4\] channels \(small\), but other has \[3, 8\]"):
            fitted().check("other", [3, 8])


SETTINGS: dict[str, object] = {"eps": 1e-6, "label": "", "absolute": False, "centred": True}


class TestFiles:
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
    def test_a_round_trip_changes_no_bit(self, tmp_path: Path, dtype: torch.dtype) -> None:
        before = fitted().to(torch.zeros((), dtype=dtype)).rms_only()
        before.save(tmp_path / "c.safetensors")
        after = Correctors.load(tmp_path / "c.safetensors")
        for a, b in zip(after.levels, before.levels, strict=True):
            assert torch.equal(a.gamma, b.gamma)
            assert torch.equal(a.beta, b.beta)
            assert a.gamma.dtype == dtype
        settings = ("eps", "label", "card", "absolute", "centred", "digest")
        assert [getattr(after, name) for name in settings] == [getattr(before, name) for name in settings]

    def test_the_pictures_of_the_fit(self, tmp_path: Path) -> None:
        cards: list[dict[str, str]] = [{}, {"picture digests": "0123456789abcdef fedcba9876543210"}]
        found = []
        for card in cards:
            replace(Correctors.unfitted([3]), card=card).save(tmp_path / "c")
            found.append(Correctors.load(tmp_path / "c").pictures)
        assert found == [None, {"0123456789abcdef", "fedcba9876543210"}]

    def test_more_than_ten_levels_keep_their_order(self, tmp_path: Path) -> None:
        Correctors.unfitted(range(1, 13)).save(tmp_path / "c")
        assert [len(c.gamma) for c in Correctors.load(tmp_path / "c").levels] == list(range(1, 13))

    def test_parameters_under_fitting_can_be_saved(self, tmp_path: Path) -> None:
        levels = (Corrector(torch.ones(3, requires_grad=True), torch.zeros(6, requires_grad=True)[::2]),)
        Correctors(levels).save(tmp_path / "c")
        assert not Correctors.load(tmp_path / "c").levels[0].gamma.requires_grad

    def test_a_folder_that_does_not_exist(self, tmp_path: Path) -> None:
        with pytest.raises(OutputError):
            fitted().save(tmp_path / "nowhere" / "c")
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("data", [b"", b"no safetensors", b"\x08\0\0\0\0\0\0\0{}      "])
    def test_other_files(self, tmp_path: Path, data: bytes) -> None:
        (tmp_path / "c").write_bytes(data)
        with pytest.raises(WeightsError, match="holds no correctors of pullback"):
            Correctors.load(tmp_path / "c")

    def test_no_file(self, tmp_path: Path) -> None:
        for path, words in ((tmp_path / "c", "does not exist"), (tmp_path, "is a folder")):
            with pytest.raises(WeightsError, match=words):
                Correctors.load(path)

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"schema": 2}, "has schema 2, this version reads 1"),
            ({"settings": {"eps": 1e-6}}, "holds no correctors"),
            ({"settings": {"eps": -1.0, "label": "", "absolute": False, "centred": True}}, "holds no correctors"),
            ({"settings": {"eps": "small", "label": "", "absolute": False, "centred": True}}, "holds no correctors"),
            ({"0.beta": torch.zeros(4)}, "holds no correctors"),
            ({"0.beta": torch.zeros(3, 1)}, "holds no correctors"),
            ({"0.extra": torch.zeros(3)}, "holds no correctors"),
            ({"0.gamma": torch.full((3,), torch.nan)}, "not finite"),
            ({"0.gamma": torch.ones(3, dtype=torch.int64)}, "holds no correctors"),
            ({"0.beta": torch.zeros(3, dtype=torch.complex64)}, "holds no correctors"),
            ({"0.beta": torch.zeros(3).to(torch.float8_e4m3fn)}, "holds no correctors"),
            ({"schema": None}, "has schema None"),
            ({"schema": [1]}, r"has schema \[1\]"),
            ({"settings": None}, "holds no correctors"),
            ({"settings": []}, "holds no correctors"),
            ({"settings": "eps"}, "holds no correctors"),
            ({"settings": SETTINGS | {"eps": True}}, "holds no correctors"),
            ({"settings": SETTINGS | {"eps": None}}, "holds no correctors"),
            ({"settings": SETTINGS | {"eps": [1e-6]}}, "holds no correctors"),
            ({"settings": SETTINGS | {"eps": float("nan")}}, "holds no correctors"),
            ({"settings": SETTINGS | {"absolute": "no"}}, "holds no correctors"),
            ({"settings": SETTINGS | {"centred": 1.0}}, "holds no correctors"),
            ({"settings": SETTINGS | {"label": 3}}, "holds no correctors"),
            ({"settings": SETTINGS | {"label": None}}, "holds no correctors"),
            ({"card": None}, "holds no correctors"),
            ({"card": "small"}, "holds no correctors"),
            ({"card": [["encoder", "small"]]}, "holds no correctors"),
            ({"card": 1.5}, "holds no correctors"),
            ({"card": {"picture digests": ["0123456789abcdef"]}}, "holds no correctors"),
        ],
    )
    def test_damaged_files(self, tmp_path: Path, change: dict[str, object], words: str) -> None:
        about: dict[str, object] = {"schema": 1, "settings": SETTINGS, "card": {}}
        tensors = {"0.gamma": torch.ones(3), "0.beta": torch.zeros(3)}
        for key, value in change.items():
            (tensors if isinstance(value, Tensor) else about)[key] = value  # type: ignore[index]
        save_file(tensors, tmp_path / "c", {"pullback.correctors": json.dumps(about)})
        with pytest.raises(WeightsError, match=words):
            Correctors.load(tmp_path / "c")

    @pytest.mark.parametrize(
        "text", ["", "no JSON", "null", "3", '"text"', "[]", "[1, 2]", "{}", '{"schema": 1}', "[" * 100_000]
    )
    def test_a_card_that_is_none(self, tmp_path: Path, text: str) -> None:
        tensors = {"0.gamma": torch.ones(3), "0.beta": torch.zeros(3)}
        save_file(tensors, tmp_path / "c", {"pullback.correctors": text})
        with pytest.raises(WeightsError, match="holds no correctors of pullback"):
            Correctors.load(tmp_path / "c")

    @pytest.mark.parametrize("key", ["settings", "card", "eps", "label", "absolute", "centred"])
    def test_a_missing_entry(self, tmp_path: Path, key: str) -> None:
        about = {"schema": 1, "settings": {k: v for k, v in SETTINGS.items() if k != key}, "card": {}}
        about.pop(key, None)
        tensors = {"0.gamma": torch.ones(3), "0.beta": torch.zeros(3)}
        save_file(tensors, tmp_path / "c", {"pullback.correctors": json.dumps(about)})
        with pytest.raises(WeightsError, match="holds no correctors of pullback"):
            Correctors.load(tmp_path / "c")
