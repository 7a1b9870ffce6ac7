"""The verdict on a method at a stage: does its picture show the image, and is it the stage's features that make it do so?

Claim: SSIM with the image lies above every floor, above what the method draws without features and with another image's, above
the raw VJP; with another image's features the picture is rather that image's; and what is pasted into the features appears where
it was pasted. Nulls are tried in the order of their numbers. Without the last two controls nothing is replicated: SSIM alone
does not tell whose picture it is.
"""

from __future__ import annotations

from dataclasses import dataclass

from pullback.studies.bootstrap import FEW, Interval
from pullback.studies.results import LOST_WITH_FEATURES, Results

REPLICATED, NOT_REPLICATED, INCONCLUSIVE = "replicated", "not replicated", "inconclusive"


@dataclass(frozen=True)
class Null:
    """Another explanation of the score: the quantity that must lie above the margin, and how little of it is nothing.

    control: of the study's options, without which nobody knows; None where every row tells.
    """

    words: str
    quantity: str
    margin: float
    control: str | None = None


FLOOR = Null("the best floor", "SSIM over the best floor", 0.0)
VANILLA = Null("null 3, the raw VJP", "SSIM over the raw VJP", 0.02)
NULLS = (
    Null("null 1, no features at all", "SSIM over its null", 0.02),
    Null("null 2a, another image's features under its gates", LOST_WITH_FEATURES, 0.02, "swap"),
    Null(
        "null 2b, the image's own gates: another image's features under them do not draw that image",
        "swap: donor over image",
        0.1,
        "swap",
    ),
    Null("null 2c, a picture that no pasted patch appears in", "transplant: correlation", 0.1, "transplant"),
    Null(
        "null 2d, a picture that a pasted patch changes everywhere alike",
        "transplant: energy inside over the area",
        0.02,
        "transplant",
    ),
    VANILLA,
)


@dataclass(frozen=True)
class Verdict:
    """finding: replicated, explained by null k, not replicated, inconclusive. quantity: what decided, and its interval."""

    finding: str
    quantity: str
    interval: Interval


def verdict(results: Results, method: str, stage: int) -> Verdict:
    """The intervals decide, each on its whole length.

    Of fewer than `FEW` images nothing is concluded: their intervals are too narrow. One below 0 for the floor says not
    replicated; else the first null whose interval lies below its margin explains the score; else the first interval that
    does not lie above its margin leaves it inconclusive, and so do a control of ownership (transplant, swap) that was not
    tried and an image that the method could not draw; else the claim is replicated, and the interval over the best floor is
    told. The raw VJP is passed over where it was not drawn.
    """
    floor = results.interval(method, stage, FLOOR.quantity)
    failed = results.failed(method, stage)
    lost = [f"{failed} of {len(results.images)} images failed"] if failed else []
    if floor.count < FEW:
        return Verdict(f"{INCONCLUSIVE} ({(lost or [f'fewer than {FEW} images'])[0]})", FLOOR.quantity, floor)
    if floor.high < 0:
        return Verdict(NOT_REPLICATED, FLOOR.quantity, floor)
    undecided = [] if floor.low > 0 else [Verdict(INCONCLUSIVE, FLOOR.quantity, floor)]
    untried: list[str] = []
    for null in NULLS:
        found = results.interval(method, stage, null.quantity)
        if found.count == 0 or (null is VANILLA and method == "vjp"):
            untried += [null.control] if null.control is not None else []
            continue
        known = found.count >= FEW
        if known and found.high < null.margin:
            return Verdict(f"explained by {null.words}", null.quantity, found)
        if not (known and found.low > null.margin):
            undecided.append(Verdict(INCONCLUSIVE, null.quantity, found))
    if undecided:
        return undecided[0]
    missing = [*([f"not tried: {', '.join(dict.fromkeys(untried))}"] if untried else []), *lost]
    return Verdict(f"{INCONCLUSIVE} ({'; '.join(missing)})" if missing else REPLICATED, FLOOR.quantity, floor)
