"""The library's exceptions: one class per kind of mistake, each naming the value, what was expected and what to do."""

from __future__ import annotations


class PullbackError(Exception):
    """Base of every error that pullback raises on purpose; the command line prints it in one line, exit status 2."""


class ImageError(PullbackError, ValueError):
    """A picture cannot be read, or does not fit the network."""


class MaskError(PullbackError, ValueError):
    """A mask cannot be read, or does not belong to its picture."""


class EncoderError(PullbackError, ValueError):
    """A network cannot be named, built, copied, recorded or split."""


class WeightsError(PullbackError, ValueError):
    """A checkpoint cannot be read, does not match the network, or holds numbers that are not finite."""


class StageError(PullbackError, ValueError):
    """A stage, module or channel does not exist, or has nothing to pull back."""


class ClassError(PullbackError, ValueError):
    """A class is unknown, or the network has none."""


class OptionError(PullbackError, ValueError):
    """An option has a value that is not offered, or two options contradict each other."""


class NumericsError(PullbackError, ArithmeticError):
    """A computation left the finite numbers, or a self-check of the engine failed."""


class OutputError(PullbackError, OSError):
    """A result cannot be written where it was asked for."""
