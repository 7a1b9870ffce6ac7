"""The ways of the benchmark against dense Jacobians, its verification against planted errors, its counts by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from oracles.small_nets import image, small_encoder
from torch import Tensor
from torch.nn import functional as F

from benchmarks.__main__ import main
from benchmarks.floor import BANDWIDTH, Cost, Counter, Rates, cost
from benchmarks.memory import Probe, peak
from benchmarks.peers import IDIOM, LOOP, OURS, STREAMED, WAYS, Setting, Way
from benchmarks.rows import Row, Table
from benchmarks.table import document, markdown
from benchmarks.timing import Effort, relative_error, table, verified
from benchmarks.work import CHANNELS_LAST, CONTIGUOUS, Work, chosen, work_on
from pullback.adjoint import has_bfloat16
from pullback.errors import OptionError

PULLBACK, ROUNDED = (way for way in WAYS if way.origin == OURS)


@pytest.fixture(scope="module")
def work() -> Work:
    """Five channels of the deepest stage of a tiny network, in float64."""
    return work_on(small_encoder(), image(), 5, name="small", weights="random")


@pytest.fixture(scope="module")
def expected(work: Work) -> Tensor:
    """J^T w by the dense Jacobian of the plain network."""
    dense = torch.autograd.functional.jacobian(lambda x: work.trunk(CONTIGUOUS)(x[None])[0], work.image)
    return torch.einsum("kchw,chwabd->kabd", work.seeds, dense)


def test_seeds_are_single_channels_of_the_features(work: Work) -> None:
    features = work.encoder.features(work.image)
    for seed in work.seeds:
        (channel,) = seed.flatten(1).any(1).nonzero()[:, 0].tolist()
        assert torch.equal(seed[channel], features[channel])


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_every_way_gives_the_dense_jacobian(work: Work, expected: Tensor, way: Way, chunk: int) -> None:
    if way.missing:
        pytest.skip(way.missing)
    if way.precision == "bfloat16" and not has_bfloat16("cpu"):
        pytest.skip("this processor has no bfloat16")
    for layout in way.layouts:
        pulled = way.pull(work, work.seeds, Setting(chunk, layout))
        assert pulled.shape == expected.shape
        error = relative_error(pulled, expected)
        assert error < 1e-12 if way.precision == "float32" else 1e-4 < error < 5e-2


def test_pictures_that_are_not_held_are_those_of_the_last_chunk(work: Work, expected: Tensor) -> None:
    last = STREAMED.pull(work, work.seeds, Setting(2, "own"))
    assert relative_error(last, expected[4:]) < 1e-12


def test_a_way_counts_its_runs_and_keeps_the_weights_frozen(work: Work) -> None:
    for way in (LOOP, PULLBACK):
        before = work.runs
        way.pull(work, work.seeds, next(way.settings(5)))
        assert work.runs > before
    assert not any(p.requires_grad for layout in (CONTIGUOUS, CHANNELS_LAST) for p in work.trunk(layout).parameters())


def _spoilt(spoil: Callable[[Tensor], Tensor]) -> Way:
    return Way("spoilt", lambda work, seeds, setting: spoil(LOOP.pull(work, seeds, setting)), chunks=(1,))


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (lambda pulled: pulled * 1.01, "wrong numbers"),
        (lambda pulled: pulled.flip(0), "wrong numbers"),
        (lambda pulled: pulled[:-1], "wrong numbers"),
        (lambda pulled: pulled * torch.nan, "wrong numbers"),
        (lambda pulled: pulled.no_such_thing, "AttributeError"),
    ],
)
def test_a_wrong_way_is_caught_and_named(work: Work, spoil: Callable[[Tensor], Tensor], word: str) -> None:
    good, bad = verified(work, [LOOP, _spoilt(spoil)])
    assert good.failure is None
    assert set(good.trials) == {Setting(1, CONTIGUOUS), Setting(1, CHANNELS_LAST)}
    assert bad.failure is not None
    assert word in bad.failure
    assert not bad.trials


def test_one_wrong_picture_among_many_is_caught(work: Work) -> None:
    def spoil(pulled: Tensor) -> Tensor:
        return torch.cat([pulled[:-1], -pulled[-1:]])

    (row,) = verified(work, [_spoilt(spoil)])
    assert row.failure is not None


def test_an_absent_package_is_a_reason_and_no_crash(work: Work) -> None:
    (row,) = verified(work, [replace(LOOP, package="no_such_package")])
    assert row.failure is not None
    assert "not installed" in row.failure


def test_operations_of_a_convolution_by_hand() -> None:
    x = torch.randn(1, 3, 16, 16, requires_grad=True)
    weight = torch.randn(8, 3, 3, 3)
    with Counter() as forward:
        out = F.conv2d(x, weight, stride=2, padding=1)
    with Counter() as backward:
        torch.autograd.grad(out, x, torch.ones_like(out))
    products = 8 * 8 * 8 * 3 * 9  # outputs times the kernel
    assert forward.flops == backward.flops == 2 * products
    assert forward.bytes == backward.bytes == 4 * (3 * 16 * 16 + 8 * 8 * 8)
    assert (forward.backward_convolutions, backward.backward_convolutions) == (0, 1)


def test_operations_of_a_depthwise_convolution_by_hand() -> None:
    x = torch.randn(1, 6, 8, 8, requires_grad=True)
    with Counter() as counter:
        out = F.conv2d(x, torch.randn(6, 1, 3, 3), padding=1, groups=6)
        torch.autograd.grad(out, x, torch.ones_like(out))
    assert counter.flops == 2 * (2 * 6 * 64 * 9)


def test_cost_of_the_small_network_by_hand(work: Work) -> None:
    macs = sum(s * s * cout * (9 * cin + 9 * cout + cin) for s, cin, cout in ((8, 3, 8), (4, 8, 12), (2, 12, 16)))
    found = cost(work)
    assert found.run_flops == found.vjp_flops == 2 * macs
    assert found.backward_convolutions == 9


def test_the_floor_is_the_larger_of_operations_and_bytes() -> None:
    rates = Rates("cpu", samples={"float32, 64 channels": [1e9, 2e9], "bfloat16, 64 channels": [4e9], BANDWIDTH: [1e9]})
    heavy = Cost(run_flops=8 * 10**9, run_bytes=0, vjp_flops=10**9, vjp_bytes=10**6, backward_convolutions=1)
    assert rates.floor(heavy, 8, "float32") == pytest.approx(1.0)  # (1 + 8 / 8) GFLOP at 2 GFLOP/s
    assert rates.floor(heavy, 8, "bfloat16") == pytest.approx(0.5)
    wide = replace(heavy, vjp_bytes=3 * 10**9)
    assert rates.floor(wide, 8, "float32") == pytest.approx(3.0)
    assert rates.floor(wide, 8, "bfloat16") == pytest.approx(1.5)


def test_the_table_names_failures_and_keeps_every_sample(work: Work) -> None:
    rates = Rates("cpu", seconds=0.001)
    ways = [LOOP, _spoilt(torch.neg), replace(LOOP, name="ours", origin=OURS)]
    found = table(work, ways, Effort(trials=1, rounds=3), rates, lambda text: None)
    options = {"rounds": 3, "trials": 1, "equal_chunk": 8}
    text = markdown({"cores": 2}, options, [found], rates)
    assert "spoilt | failed: chunk 1, contiguous: ArithmeticError: wrong numbers" in text
    plain = json.loads(json.dumps(document({"cores": 2}, options, [found], rates)))
    rows = {row["way"]: row for row in plain["networks"][0]["rows"]}
    assert [len(row["samples"]) for row in rows.values()] == [3, 0, 3]
    assert rows["ours"]["runs"] == 1
    assert rows["ours"]["passes"] == 5
    assert rows["ours"]["work"] == pytest.approx(1.0)


def test_headline_ratios_by_hand() -> None:
    least = Cost(run_flops=0, run_bytes=0, vjp_flops=10**9, vjp_bytes=0, backward_convolutions=1)
    eight = Setting(8, CONTIGUOUS)
    rows = [
        Row(LOOP, eight, samples=[9.0, 6.0, 7.0], memory={eight: 50}),
        Row(IDIOM, eight, samples=[3.0], memory={eight: 200}),
        Row(PULLBACK, eight, samples=[2.0], memory={eight: 100}),
        Row(ROUNDED, eight, samples=[1.0]),
    ]
    rates = Rates("cpu", samples={"float32, 64 channels": [1e9], "bfloat16, 64 channels": [4e9], BANDWIDTH: [1e9]})
    found = Table("net", "random", "layer4", (3, 8, 8), (4, 2, 2), 32, least, rows).headline(rates)
    assert found == {
        "pullback over the floor": 2.0,
        "pullback in bfloat16 over its floor": 4.0,
        f"fastest published way ({LOOP.name}) over pullback": 3.5,
        "by hand over pullback": 1.5,
        "peak memory of pullback over by hand, chunk 8": 0.5,
    }


def test_peak_memory_is_that_of_the_way_alone() -> None:
    ballast = torch.ones(2**26)  # 256 MB in this process must not hide what the other one needs
    probe = Probe("scenes", LOOP.name, 1, CONTIGUOUS, cotangents=4, size=256, device="cpu", threads=1)
    pictures = 4 * 3 * 256 * 256 * 4
    activations = 4 * 4 * 32 * 128 * 128  # four of the first stage
    assert pictures + activations < peak(probe) < len(ballast)


def test_memory_does_not_grow_with_pictures_that_are_not_held() -> None:
    few, many = (peak(Probe("scenes", STREAMED.name, 8, "own", n, 128, "cpu", 1)) for n in (16, 128))
    held = peak(Probe("scenes", PULLBACK.name, 8, "own", 128, 128, "cpu", 1))
    assert many < few + 2**23 < held  # 112 pictures are 22 MB


def test_an_unknown_network_is_named() -> None:
    with pytest.raises(OptionError, match=r"no network 'resnet19'.*resnet18"):
        chosen(["resnet19"])


def test_the_quick_run_writes_its_three_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--quick", "--out", str(tmp_path / "results")]) == 0
    assert sorted(p.name for p in (tmp_path / "results").iterdir()) == ["speed.json", "speed.md", "speed.png"]
    found = json.loads((tmp_path / "results" / "speed.json").read_text())
    assert {row["way"] for row in found["networks"][0]["rows"]} == {way.name for way in WAYS}
    assert "| pullback |" in capsys.readouterr().out


def test_some_ways_alone_beside_the_loop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--quick", "--ways", "vmap", "hand", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "speed.json").read_text())
    expected = {"autograd.grad in a loop", "torch.func.vjp + vmap", "kept graph of copies, by hand"}
    assert {row["way"] for row in found["networks"][0]["rows"]} == expected
    with pytest.raises(SystemExit):
        main(["--quick", "--ways", "vnap"])
    assert "--ways vnap: the ways are autograd.grad in a loop" in capsys.readouterr().err
