"""Frozen networks: loading, splitting into stages, features, and the Jacobian at an image."""

from pullback.encoders.checking import Check, check
from pullback.encoders.encoder import Encoder
from pullback.encoders.preprocessing import Preprocessing
from pullback.encoders.sources import available, load_encoder
from pullback.encoders.stages import Head, Stage

__all__ = ["Check", "Encoder", "Head", "Preprocessing", "Stage", "available", "check", "load_encoder"]
