"""Verdicts on planted scores, and what the tables make of them."""

from __future__ import annotations

import csv
import io

import pytest

from pullback.studies.results import LOST_WITH_FEATURES, Results
from pullback.studies.rows import Row
from pullback.studies.tables import page, table
from pullback.studies.verdict import verdict

COUNT = 12
HONEST = {
    "ssim": 0.6, "floor": 0.4, "null ssim": 0.3, "correlation": 0.9, "misfit": 0.1, "swap ssim to image": 0.2,
    "foreign ssim": 0.2, "swap correlation to image": 0.1, "swap correlation to donor": 0.9, "transplant correlation": 0.8,
    "transplant energy": 0.9, "transplant area": 0.09, "seconds": 2.0,
}  # fmt: skip


def results(spread: float = 0.01, method: str = "blind", **changed: float) -> Results:
    """A study of one method whose figures lie around `HONEST`, every image a little different."""

    def row(index: int) -> Row:
        places = enumerate({**HONEST, **changed}.items())
        shifted = {name: v + spread * ((index * 7 + place * 3) % COUNT / COUNT - 0.46) for place, (name, v) in places}
        return Row(method, 1, f"{index}.jpg", shifted)

    rows = [row(i) for i in range(COUNT)]
    floors = {"mean colour": [{"ssim": 0.4}] * COUNT}
    return Results([r.image for r in rows], {method: "the method"}, {1: "layer1"}, {(method, 1): rows}, floors, 0)


@pytest.mark.parametrize(
    ("changed", "finding", "quantity"),
    [
        ({}, "replicated", "SSIM over the best floor"),
        ({"ssim": 0.35}, "not replicated", "SSIM over the best floor"),
        ({"null ssim": 0.6}, "explained by null 1", "SSIM over its null"),
        ({"ssim": 0.4, "null ssim": 0.4}, "explained by null 1", "SSIM over its null"),
        ({"ssim": 0.4}, "inconclusive", "SSIM over the best floor"),
        ({"swap ssim to image": 0.6}, "explained by null 2a", LOST_WITH_FEATURES),
        ({"swap correlation to image": 0.95}, "explained by null 2b", "swap: donor over image"),
        (
            {"swap correlation to image": 0.02, "swap correlation to donor": 0.09},
            "explained by null 2b",
            "swap: donor over image",
        ),
        (
            {"swap correlation to image": 0.02, "swap correlation to donor": 0.12},
            "inconclusive",
            "swap: donor over image",
        ),
        ({"transplant correlation": 0.0}, "explained by null 2c", "transplant: correlation"),
        ({"transplant energy": 0.09}, "explained by null 2d", "transplant: energy inside over the area"),
    ],
)
def test_the_finding_names_the_null_that_explains_it(changed: dict[str, float], finding: str, quantity: str) -> None:
    found = verdict(results(**changed), "blind", 1)
    assert found.finding.startswith(finding)
    assert found.quantity == quantity
    assert found.interval.count == COUNT


def test_a_wide_interval_decides_nothing() -> None:
    assert verdict(results(spread=3), "blind", 1).finding == "inconclusive"
    assert verdict(results(spread=0.5, **{"null ssim": 0.58}), "blind", 1).finding == "inconclusive"


@pytest.mark.parametrize(
    ("changed", "quantity"),
    [
        ({"null ssim": 0.58}, "SSIM over its null"),
        ({"swap ssim to image": 0.58}, LOST_WITH_FEATURES),
        ({"transplant correlation": 0.1}, "transplant: correlation"),
    ],
)
def test_an_interval_across_the_margin_replicates_nothing_though_it_lies_above_0(
    changed: dict[str, float], quantity: str
) -> None:
    planted = results(spread=0.02, **changed)
    found = verdict(planted, "blind", 1)
    assert (found.finding, found.quantity) == ("inconclusive", quantity)
    assert 0 < found.interval.low < found.interval.high


def test_the_raw_vjp_is_a_null_for_others_and_not_for_itself() -> None:
    ours, vanilla = results(), results(method="vjp")
    both = Results(
        ours.images, {**ours.titles, **vanilla.titles}, ours.stages, {**ours.rows, **vanilla.rows}, ours.floors, 0
    )
    assert verdict(both, "blind", 1).finding == "explained by null 3, the raw VJP"
    assert verdict(both, "vjp", 1).finding == "replicated"


@pytest.mark.parametrize(
    ("known", "finding"),
    [
        ((), "inconclusive (not tried: swap, transplant)"),
        (("swap",), "inconclusive (not tried: transplant)"),
        (("transplant",), "inconclusive (not tried: swap)"),
        (("swap", "transplant"), "replicated"),
    ],
)
def test_nothing_is_replicated_without_the_controls_of_ownership(known: tuple[str, ...], finding: str) -> None:
    plain = {n: v for n, v in HONEST.items() if n in ("ssim", "floor", "null ssim") or n.startswith(known)}
    rows = [Row("blind", 1, f"{i}.jpg", {n: v + 0.001 * i for n, v in plain.items()}) for i in range(COUNT)]
    partly = Results([r.image for r in rows], {"blind": "blind"}, {1: "l"}, {("blind", 1): rows}, {}, 0)
    assert verdict(partly, "blind", 1).finding == finding


def test_what_is_known_decides_where_a_control_was_not_tried() -> None:
    plain = {"ssim": 0.6, "floor": 0.4, "null ssim": 0.6}
    rows = [Row("blind", 1, f"{i}.jpg", {n: v + 0.001 * i for n, v in plain.items()}) for i in range(COUNT)]
    partly = Results([r.image for r in rows], {"blind": "blind"}, {1: "l"}, {("blind", 1): rows}, {}, 0)
    assert verdict(partly, "blind", 1).finding == "explained by null 1, no features at all"


def _first(found: Results, count: int, failed: int) -> Results:
    """The same study of the first images alone, of which some failed."""
    rows = found.rows["blind", 1][:count]
    rows = [Row("blind", 1, row.image, {}, "no luck") if i < failed else row for i, row in enumerate(rows)]
    return Results([r.image for r in rows], found.titles, found.stages, {("blind", 1): rows}, found.floors, 0)


@pytest.mark.parametrize(
    ("count", "failed", "finding"),
    [
        (12, 0, "replicated"),
        (8, 0, "replicated"),
        (7, 0, "inconclusive (fewer than 8 images)"),
        (12, 2, "inconclusive (2 of 12 images failed)"),
        (12, 9, "inconclusive (9 of 12 images failed)"),
    ],
)
def test_few_images_and_failed_ones_replicate_nothing(count: int, failed: int, finding: str) -> None:
    assert verdict(_first(results(), count, failed), "blind", 1).finding == finding


@pytest.mark.parametrize("changed", [{"ssim": 0.1}, {"null ssim": 0.9}, {"transplant correlation": 0.0}])
def test_few_images_refute_and_explain_nothing(changed: dict[str, float]) -> None:
    found = _first(results(**changed), 7, 0)
    assert verdict(found, "blind", 1).finding == "inconclusive (fewer than 8 images)"


def test_a_null_that_few_images_tell_of_explains_nothing() -> None:
    planted = results(**{"transplant correlation": 0.0})
    for row in planted.rows["blind", 1][:5]:
        del row.values["transplant correlation"]  # of a patch that is no other than what was there
    found = verdict(planted, "blind", 1)
    assert (found.finding, found.quantity, found.interval.count) == ("inconclusive", "transplant: correlation", 7)
    assert "0.00 [" in page(planted, {}, [], []) and "(of 7)" in page(planted, {}, [], [])


def test_a_failed_method_is_inconclusive() -> None:
    failed = [Row("blind", 1, f"{i}.jpg", {}, "no luck") for i in range(5)]
    none = Results([r.image for r in failed], {"blind": "blind"}, {1: "l"}, {("blind", 1): failed}, {}, 0)
    assert verdict(none, "blind", 1).finding == "inconclusive (5 of 5 images failed)"
    assert "blind (5 failed)" in page(none, {}, [], [])


def test_tables_say_what_the_rows_hold() -> None:
    found = results(spread=0)
    text = page(found, {"encoder": "a | b"}, ["a note"], ["stage-1.png"])
    assert "| 1 | the method | 60.0 [60.0, 60.0] | +20.0 [+20.0, +20.0] | +30.0 [+30.0, +30.0] | 0.900" in text
    assert "| 1 | the method | 60.0 [60.0, 60.0] | +40.0 [+40.0, +40.0] | +0.0 [+0.0, +0.0] | 20.0" in text  # the split
    assert "| 1 | the method | **replicated** | SSIM over the best floor: +0.200 [+0.200, +0.200] |" in text
    assert "a \\| b" in text and "share of the area (0.09)" in text and "41.7" in text
    assert "| lost when only the features are exchanged | lost when the gates are exchanged after that | left |" in text
    widths = {line.count(" | ") for line in text.split("## Whose")[0].splitlines() if line.startswith("| 1 |")}
    assert widths == {12}


def test_csv_has_a_line_for_each_quantity_that_is_known() -> None:
    lines = list(csv.DictReader(io.StringIO(table(results(spread=0)))))
    by_name = {line["quantity"]: line for line in lines}
    assert float(by_name["SSIM over the best floor"]["mean"]) == pytest.approx(0.2)
    skewed = list(csv.DictReader(io.StringIO(table(results(spread=1)))))
    of_seconds = next(line for line in skewed if line["quantity"] == "seconds")
    seconds = sorted(row.values["seconds"] for row in results(spread=1).rows["blind", 1])
    assert float(of_seconds["median"]) == pytest.approx((seconds[5] + seconds[6]) / 2, rel=1e-5)
    assert by_name["SSIM"]["images"] == str(COUNT) and by_name["SSIM"]["failed"] == "0"
    assert "LPIPS" not in by_name
