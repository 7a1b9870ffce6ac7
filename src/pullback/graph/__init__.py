"""One recorded run of a network: the tape, the points where a single tensor crosses, structural receptive fields."""

from pullback.graph.fields import Support, pull_support
from pullback.graph.layout import channels_first
from pullback.graph.tape import INPUT, Call, Op, Point, Ref, Tape, plain_autograd, record

__all__ = [
    "INPUT",
    "Call",
    "Op",
    "Point",
    "Ref",
    "Support",
    "Tape",
    "channels_first",
    "plain_autograd",
    "pull_support",
    "record",
]
