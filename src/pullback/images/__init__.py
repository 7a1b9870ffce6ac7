"""Pictures and masks from the outside world, checked and upright; scenes drawn by rule; files written whole."""

from pullback.images.files import cache_folder, check_inputs_stay, output_folder, write_together, write_whole
from pullback.images.listing import find_masks, image_files
from pullback.images.loading import Loaded, load_image
from pullback.images.masks import Mask, load_mask
from pullback.images.scenes import CLASSES, Scene, scene

__all__ = [
    "Loaded",
    "load_image",
    "Mask",
    "load_mask",
    "image_files",
    "find_masks",
    "cache_folder",
    "output_folder",
    "check_inputs_stay",
    "write_whole",
    "write_together",
    "CLASSES",
    "Scene",
    "scene",
]
