"""The main job: from photographs to explained pictures."""

from pullback.explain.options import Options
from pullback.explain.recipe import explain
from pullback.explain.run import explain_all

__all__ = ["Options", "explain", "explain_all"]
