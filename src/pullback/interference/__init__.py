"""How channels share the features of a stage: covariance and the selection of channels by the volume that they span."""

from pullback.interference.selection import Selection, covariance, select_channels

__all__ = ["Selection", "covariance", "select_channels"]
