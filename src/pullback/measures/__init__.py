"""Measures that every method above needs."""

from pullback.measures.foreground import ForegroundEnergy, foreground_energy

__all__ = ["ForegroundEnergy", "foreground_energy"]
