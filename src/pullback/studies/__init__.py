"""Studies: a claim, the methods it is about, the null models that could explain it away, and a verdict with its interval."""

from pullback.studies.options import StudyOptions
from pullback.studies.reconstruction import study_reconstruction

__all__ = ["StudyOptions", "study_reconstruction"]
