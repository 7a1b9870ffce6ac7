"""A whole explanation without any network: smooth pictures and noise stand in for inversions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from pullback.pictures import Certificate, ClassPicture, Display, Picture, Provenance
from pullback.report import ChannelEntry, Explanation, Foreground, Guess, StageRow, StageSpectrum


@pytest.fixture
def explain() -> Callable[..., Explanation]:
    """explain(height, width, stages=2, name=..., **fields): an explanation in which every part is filled."""

    def explanation(
        height: int = 48, width: int = 40, *, stages: int = 2, name: str = "tench", **fields: Any
    ) -> Explanation:
        noise = torch.Generator().manual_seed(0)
        provenance = Provenance("net", "aa" * 32, "bb" * 32, {"eps": 1e-6}, "0.0", 7)

        def picture(called: str, mode: str, scale: float, *, natural: bool, **figures: float) -> Picture:
            own, null = (scale * torch.randn(3, height, width, generator=noise) for _ in range(2))
            caption = f"Caption of {mode}."
            return Picture(
                own, null, mode, called, caption, natural, Display((0.5,) * 3, (0.25,) * 3), figures, (), provenance
            )

        def stage(number: int) -> StageSpectrum:
            return StageSpectrum(
                number,
                f"layer{number}",
                picture("drawn from the features alone", f"blind {number}", 1.5, natural=True, misfit=0.0831),
                picture("signal space", f"wiener {number}", 1.0, natural=True, residual=0.5),
                picture("adjoint picture", f"cascade {number}", 0.01, natural=False),
            )

        def certificate(field: Tensor, words: str, *, vacuous: bool) -> Certificate:
            area = field.double().mean().item()
            return Certificate(1, "a seed", field, True, True, True, 0.0, area, vacuous, {"median": area}, (), words)

        class_picture = ClassPicture(
            picture("adjoint picture", "class full", 0.1, natural=False),
            picture("adjoint picture", "class positive", 0.2, natural=False),
            picture("adjoint picture", "class negative", 0.3, natural=False),
            0,
            name,
            "w times alpha",
            {"cosine": 0.231},
        )
        field = torch.zeros(height, width, dtype=torch.bool)
        field[: height // 2, : width // 2] = True
        mask = field.float()
        mask[-1] = float("nan")
        parts: dict[str, Any] = {
            "picture": Image.linear_gradient("L").resize((width, height)).convert("RGB"),
            "file_name": "photo.jpg",
            "origin": "Your own file.",
            "digest": "bb" * 32,
            "encoder": "net",
            "stages": tuple(
                StageRow(i, f"layer{i}", (8 * i, 9 - i, 9 - i), 2**i, f"{7 * i} x {7 * i}", 8 * i, "relu")
                for i in range(1, stages + 1)
            ),
            "assumptions": ("ImageNet mean and std.",),
            "guesses": (Guess(0, name, 0.93), Guess(1, "goldfish", 0.0004)),
            "target": (0, name),
            "spectrum": tuple(stage(number) for number in range(1, stages + 1)),
            "class_picture": class_picture,
            "channels": tuple(
                ChannelEntry(i, 0.1 / i, 0.01, 0.3, picture("adjoint picture", f"channel {i}", 0.1, natural=False))
                for i in (1, 2)
            ),
            "saliency": class_picture.saliency(),
            "certificates": (
                certificate(field, "Inside a quarter.", vacuous=False),
                certificate(torch.ones_like(field), "The whole image: it says nothing.", vacuous=True),
            ),
            "foreground": Foreground(0.412, 0.39, 0.405, 0.33, 0.25),
            "mask": mask,
            "dead": {1: 3},
            "notes": ("One note.",),
            "provenance": provenance.to_dict(),
            "seconds": {"blind": 12.3, "class_inversion": 0.5},
        }
        return Explanation(**{**parts, **fields})

    return explanation
