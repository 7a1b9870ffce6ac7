"""Result types and how they are shown."""

from pullback.pictures.display import Display
from pullback.pictures.results import Certificate, ClassPicture, Picture, Provenance

__all__ = ["Certificate", "ClassPicture", "Display", "Picture", "Provenance"]
