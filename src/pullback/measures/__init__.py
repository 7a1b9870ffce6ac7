"""Measures that every method above needs."""

from pullback.measures.foreground import ForegroundEnergy, foreground_energy
from pullback.measures.likeness import correlation
from pullback.measures.sketch import ChannelEnergies, Estimate, LeadingShare, channel_energies, leading_share

__all__ = [
    "ChannelEnergies",
    "Estimate",
    "ForegroundEnergy",
    "LeadingShare",
    "channel_energies",
    "correlation",
    "foreground_energy",
    "leading_share",
]
