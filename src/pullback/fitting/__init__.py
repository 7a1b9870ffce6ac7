"""Fitting correctors to pictures, equation (9): the objective, recipes, checkpoints and the run itself."""

from pullback.fitting.recipe import LOSSES, MODES, PRESETS, Recipe
from pullback.fitting.run import checkpoint_of, fit_correctors
from pullback.fitting.standing import Losses, Standing
from pullback.fitting.workers import joined

__all__ = ["LOSSES", "MODES", "PRESETS", "Losses", "Recipe", "Standing", "checkpoint_of", "fit_correctors", "joined"]
