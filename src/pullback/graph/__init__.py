"""One recorded run of a network: the tape, the points where a single tensor crosses, structural receptive fields."""

from pullback.graph.fields import Support, pull_support
from pullback.graph.layout import channels_first
from pullback.graph.recording import plain_autograd, record, vjp
from pullback.graph.tape import INPUT, Call, Op, Point, Ref, Rule, Tape

__all__ = [
    "INPUT",
    "Call",
    "Op",
    "Point",
    "Ref",
    "Rule",
    "Support",
    "Tape",
    "channels_first",
    "plain_autograd",
    "pull_support",
    "record",
    "vjp",
]
