"""The verdict on a method at a stage: does its picture show the image, and is it the stage's features that make it do so?

Claim: SSIM with the image lies above every floor, above what the method draws without features and with another image's, above
the raw VJP; with another image's features the picture is rather that image's; and what is pasted into the features appears where
it was pasted. Nulls are tried in the order of their numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

from pullback.studies.bootstrap import Interval
from pullback.studies.results import Results

REPLICATED, NOT_REPLICATED, INCONCLUSIVE = "replicated", "not replicated", "inconclusive"


@dataclass(frozen=True)
class Null:
    """Another explanation of the score: the quantity that must lie above 0, and how little of it is nothing."""

    words: str
    quantity: str
    margin: float


FLOOR = Null("the best floor", "SSIM over the best floor", 0.0)
VANILLA = Null("null 3, the raw VJP", "SSIM over the raw VJP", 0.02)
NULLS = (
    Null("null 1, no features at all", "SSIM over its null", 0.02),
    Null("null 2a, another image's features under its gates", "SSIM by the features", 0.02),
    Null("null 2b, the image's own gates: its picture whatever the features", "swap: donor over image", 0.0),
    Null("null 2c, a picture that no pasted patch appears in", "transplant: correlation", 0.1),
    VANILLA,
)


@dataclass(frozen=True)
class Verdict:
    """finding: one of replicated, explained by null k, not replicated, inconclusive. quantity: what decided, and its interval."""

    finding: str
    quantity: str
    interval: Interval


def verdict(results: Results, method: str, stage: int) -> Verdict:
    """Nulls of which the study knows nothing (a control that was not asked for) are passed over.

    The intervals decide: one below 0 for the floor says not replicated; else the first null whose interval lies below its
    margin explains the score; else the first interval that does not lie above 0 leaves it inconclusive; else the claim is
    replicated, and the interval over the best floor is told.
    """
    floor = results.interval(method, stage, FLOOR.quantity)
    if floor.high < 0:
        return Verdict(NOT_REPLICATED, FLOOR.quantity, floor)
    undecided = [] if floor.low > 0 else [Verdict(INCONCLUSIVE, FLOOR.quantity, floor)]
    for null in NULLS:
        found = results.interval(method, stage, null.quantity)
        if found.count == 0 or (null is VANILLA and method == "vjp"):
            continue
        if found.high < null.margin:
            return Verdict(f"explained by {null.words}", null.quantity, found)
        if not found.low > 0:
            undecided.append(Verdict(INCONCLUSIVE, null.quantity, found))
    return undecided[0] if undecided else Verdict(REPLICATED, FLOOR.quantity, floor)
