"""The plain words of a report: how to read it, what each method's picture may be called, and what none of them shows.

The findings behind them are those of sections 3 to 5 of the specification.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """A way to turn a stage's features into a picture: what it is, and what its null picture leaves out."""

    key: str
    title: str
    lead: str
    null: str


METHODS = (
    Method(
        "blind",
        "Blind inverse",
        "Drawn from the features alone: a search for any image that has these features. No gate of this image is used. "
        "A prior, and the start of the search, which stands below each picture, fill in what the features leave open; the "
        "misfit says how well they are met.",
        "the same search for features of zero",
    ),
    Method(
        "wiener",
        "Wiener inverse",
        "The signal space: the part of this image that the stage responds to. It uses the image's own gates, so it is "
        "not drawn from the features alone.",
        "features of zero, the image's own gates kept",
    ),
    Method(
        "cascade",
        "Cascade",
        "The adjoint picture: features sent back through the image's own gates and normalised at every stage. Fitted "
        "correctors may draw most of it themselves.",
        "no features, through the same gates and correctors",
    ),
)

HOW_TO_READ = (
    (
        "Compare first",
        "Every picture stands beside its null: the same method, mapping and scale, but without the image's features. "
        "What both show comes from the method, its prior or the image's own gates. What the null lacks need not come "
        "from the features either: an unfitted cascade's null is empty, though the gates still shape its picture.",
    ),
    (
        "Three questions",
        "Blind: what do the features alone still pin down? A low misfit means that the features agree, not that the "
        "picture looks like the original. Wiener: which part of this image does the stage respond to? It is computed "
        "with the image's own gates, so its likeness to the photograph does not show that the features hold it. "
        "Cascade: what does the network's adjoint send back to the pixels? With fitted correctors most of that may be "
        "the correctors' own offsets (beta), nearly the same whatever the features are; the null shows how much.",
    ),
    (
        "What it does not show",
        "Why the network decided as it did. A class picture and its saliency add up weighted channels; they are not "
        "faithful evidence that these pixels caused the decision, and nothing was removed here to test it. Energy on "
        "the object means something only against the object's share of the area, and shuffled class weights can score "
        "as high. A certificate says where a pull-back can be; for a whole stage that is usually the entire image, and "
        "then it is vacuous: it says nothing.",
    ),
)
