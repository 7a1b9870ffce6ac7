"""pullback: what a frozen CNN keeps of an image, pulled back to the pixels through the network's own adjoint.

Public names load on first use, so that `import pullback` and `pullback --help` stay quick and do not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_ROOMS = {
    "load_image": "images",
    "load_mask": "images",
    "scene": "images",
    "Jacobian": "operator",
    "adjoint_test": "operator",
    "Encoder": "encoders",
    "load_encoder": "encoders",
    "check": "encoders",
    "Picture": "pictures",
    "ClassPicture": "pictures",
    "Certificate": "pictures",
    "Inverter": "inversion",
    "Inversion": "inversion",
    "Correctors": "inversion",
    "Prior": "inversion",
    "fit_correctors": "fitting",
    "foreground_energy": "measures",
    "channel_energies": "measures",
    "leading_share": "measures",
    "select_channels": "interference",
    "StudyOptions": "studies",
    "study_reconstruction": "studies",
    "PullbackError": "errors",
}

__all__ = ["__version__", *_ROOMS]


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module 'pullback' has no attribute {name!r}; public names: {', '.join(__all__)}")
    return getattr(import_module(f"pullback.{_ROOMS[name]}"), name)


def __dir__() -> list[str]:
    return __all__
