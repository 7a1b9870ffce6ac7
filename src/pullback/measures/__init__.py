"""Measures that every method above needs."""

from pullback.measures.foreground import ForegroundEnergy, foreground_energy
from pullback.measures.likeness import correlation

__all__ = ["ForegroundEnergy", "correlation", "foreground_energy"]
