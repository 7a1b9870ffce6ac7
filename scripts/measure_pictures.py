"""Print the table of docs/pictures.md: how much the pictures of each stage resemble the image, beside their null pictures.

    python scripts/measure_pictures.py torchvision:resnet18 PICTURE... --weights resnet18.safetensors --steps 150

Correlation is over all values of the preprocessed picture (1: the same up to brightness and contrast). The null picture of the
blind inverse comes from zero features, that of the Wiener inverse from F = 0, that of the cascade from the zero seed.
Means over the pictures given, with the smallest and the largest; no picture is left out.
"""

from __future__ import annotations

import argparse

import torch

import pullback as pb
from pullback.inversion import shipped_correctors
from pullback.inversion.budget import check_budget
from pullback.measures import correlation

METHODS = ("blind", "wiener", "cascade")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoder")
    parser.add_argument("pictures", nargs="*", help="none: eight scenes that the embedded encoder was not trained on")
    parser.add_argument("--weights")
    parser.add_argument("--preprocessing")
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS, help="columns to fill")
    parser.add_argument(
        "--steps", type=int, default=150, help="of the blind inverse; the Wiener inverse takes a fifth, at least one"
    )
    chosen = parser.parse_args()
    try:
        _measure(chosen)
    except pb.PullbackError as error:
        parser.exit(2, f"{parser.prog}: {' '.join(str(error).split())}\n")


def _measure(chosen: argparse.Namespace) -> None:
    check_budget(chosen.steps, None)  # before the first line of a table
    fifth = max(1, chosen.steps // 5)
    encoder = pb.load_encoder(chosen.encoder, weights=chosen.weights, preprocessing=chosen.preprocessing)
    images = [encoder.preprocess(p) for p in chosen.pictures] or _scenes(encoder)
    print(f"{encoder.name}, {len(images)} pictures, blind {chosen.steps} steps, Wiener {fifth} steps\n")
    print(
        "| stage | blind | its null | misfit | Wiener | its null | misfit | cascade | its null |\n" + "| --- " * 9 + "|"
    )
    for stage in encoder.stages:
        cells = [f"{stage.number} {stage.name}"]
        for method in METHODS:
            if method not in chosen.methods:
                cells += ["-"] * (2 if method == "cascade" else 3)
                continue
            inverter = _inverter(encoder, method, chosen.steps if method == "blind" else fifth)
            own, null, figure = [], [], []
            for image in images:
                with inverter(image) as inv:
                    picture = inv.stage(stage.number)
                own.append(correlation(picture.tensor, image))
                null.append(correlation(picture.null, image))
                figure.append(picture.figures.get("feature misfit", picture.figures.get("data misfit")))
            cells += [_spread(own), _spread(null)]
            if method != "cascade":
                cells.append(f"{sum(figure) / len(figure):.2f}")
        print("| " + " | ".join(cells) + " |", flush=True)


def _inverter(encoder: pb.Encoder, method: str, steps: int) -> pb.Inverter:
    if method == "cascade":
        return pb.Inverter(encoder, correctors=shipped_correctors(encoder))
    return pb.Inverter(encoder, method, steps=steps)


def _scenes(encoder: pb.Encoder) -> list[torch.Tensor]:
    from PIL import Image

    return [encoder.preprocess(Image.fromarray(pb.scene(20_000_000 + i).image)) for i in range(8)]


def _spread(values: list[float]) -> str:
    known = [v for v in values if v == v]
    if not known:
        return "flat"
    return f"{sum(known) / len(known):.2f} ({min(known):.2f} to {max(known):.2f})"


if __name__ == "__main__":
    main()
