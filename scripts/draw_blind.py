"""Draw the figure of docs/blind.md: a picture, and what the blind inverse makes of each stage's features of it, as WebP.

    python scripts/draw_blind.py torchvision:resnet18 PICTURE --out blind.webp --weights resnet18.safetensors --steps 350

First the picture beside its 8 x 8 thumbnail; then, stage by stage, the start that a decoder draws from the features, the
blind inverse, and its null picture, which is searched for features of zero and knows nothing of the picture. Above each
one stand its correlation with the picture (all preprocessed values) and its SSIM.
"""

from __future__ import annotations

import argparse
from io import BytesIO
from pathlib import Path

from PIL.Image import Image
from torch import Tensor

import pullback as pb
from pullback.images import load_image, write_whole
from pullback.inversion.budget import check_budget
from pullback.measures import correlation
from pullback.pictures import Display
from pullback.pictures.display import to_image
from pullback.pictures.shown import Row, sheet
from pullback.studies.floors import floors
from pullback.studies.metrics import ssim

QUALITY = 85  # of WebP


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoder")
    parser.add_argument("picture")
    parser.add_argument("--out", type=Path, default=Path("blind.webp"))
    parser.add_argument("--weights")
    parser.add_argument("--preprocessing")
    parser.add_argument("--steps", type=int, default=350)
    chosen = parser.parse_args()
    try:
        check_budget(chosen.steps, None)
        encoder = pb.load_encoder(chosen.encoder, weights=chosen.weights, preprocessing=chosen.preprocessing)
        image = encoder.preprocess(load_image(chosen.picture).image)
        kept = BytesIO()
        figure(encoder, image, chosen.steps).save(kept, "WEBP", quality=QUALITY)
        write_whole(chosen.out, kept.getvalue())
    except pb.PullbackError as error:
        parser.exit(2, f"{parser.prog}: {' '.join(str(error).split())}\n")


def figure(encoder: pb.Encoder, image: Tensor, steps: int) -> Image:
    """The sheet of one preprocessed image (C, H, W)."""
    display = Display(tuple(encoder.preprocessing.mean), tuple(encoder.preprocessing.std))
    rgb = display.colours(image).clamp(0, 1)

    def cell(name: str, picture: Tensor) -> tuple[str, Image]:
        colours = display.colours(picture).clamp(0, 1)
        return f"{name} {correlation(picture, image):.2f} / {ssim(colours, rgb):.2f}", to_image(colours)

    start, blind, null = [], [], []
    with pb.Inverter(encoder, "blind", steps=steps)(image) as session:
        drafts = session.through(pb.Inverter(session.encoder, "decoder"))
        for stage in encoder.stages:
            found = session.stage(stage.number)
            assert found.null is not None
            for cells, picture in (
                (start, drafts.stage(stage.number).tensor),
                (blind, found.tensor),
                (null, found.null),
            ):
                cells.append(cell(f"stage {stage.number}:", picture))
    thumbnail = cell("thumbnail:", floors(image, display)["8x8 thumbnail"])
    return sheet((
        Row(
            (("picture", to_image(rgb)), thumbnail),
            ("The picture, and its 8 x 8 thumbnail, enlarged. Above each one: correlation / SSIM with the picture.",),
        ),
        Row(tuple(start), ("Start: what a decoder, taught on synthetic pictures, draws from the features of a stage.",)),
        Row(tuple(blind), (f"Blind inverse: searched from that start for the same features, {steps} steps.",)),
        Row(tuple(null), ("Its null: the same search for features of zero. It knows nothing of the picture.",)),
    ))  # fmt: skip


if __name__ == "__main__":
    main()
