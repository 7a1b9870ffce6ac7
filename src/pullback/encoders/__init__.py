"""Frozen networks: loading, splitting into stages, features, and the Jacobian at an image."""

from pullback.encoders.encoder import Encoder
from pullback.encoders.preprocessing import Preprocessing
from pullback.encoders.sources import available, load_encoder
from pullback.encoders.stages import Head, Stage

__all__ = ["Encoder", "Head", "Preprocessing", "Stage", "available", "load_encoder"]
