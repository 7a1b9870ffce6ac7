"""Print the tables of docs/blind.md: how near the blind inverse comes to photographs that nothing was tuned on.

    python scripts/measure_blind.py torchvision:resnet18 PICTURE... --weights resnet18.safetensors --steps 150 --start taught

For each stage the mean over the pictures, with its 95 % bootstrap interval: correlation with the image over all preprocessed
values, SSIM of the de-normalised picture, that of the best floor (grey, each picture's mean colour, or its 8 x 8 thumbnail), and
the relative feature misfit; then the seconds a picture. Above the stages the floors themselves, by the same measures.
`--sheet FILE` draws the originals and every stage's pictures, as PNG. A picture that is given twice counts once.

`--at 2,3` measures these stages alone.

`--starts N` searches from N places around the start and prints instead how far the pictures lie apart, and how far that tells
the error: rank correlations of the spread with the true distance from the image, over the pixels of a picture (mean) and over
pictures.

The search is that of `Inverter(encoder, "blind")` without its null picture, each picture's alone.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from scipy.stats import spearmanr
from torch import Tensor

import pullback as pb
from pullback.encoders import Stage
from pullback.graph import plain_autograd
from pullback.images import load_image, write_whole
from pullback.inversion.blind import blind_inverse, recipe_for
from pullback.inversion.budget import check_budget
from pullback.inversion.iterative import BOLD, CAREFUL, scattered, spread
from pullback.inversion.leaky import search_rules
from pullback.inversion.taught import decoders
from pullback.measures import correlation
from pullback.pictures import Display
from pullback.pictures.display import png, to_image
from pullback.studies.bootstrap import bootstrap
from pullback.studies.floors import floors
from pullback.studies.metrics import ssim
from pullback.studies.tables import interval


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoder")
    parser.add_argument("pictures", nargs="+")
    parser.add_argument("--weights")
    parser.add_argument("--preprocessing")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--start", choices=("taught", "mean"), default="taught")
    parser.add_argument("--starts", type=int, default=1)
    parser.add_argument("--at", help="stages by number or name, with commas between; default: all")
    parser.add_argument("--sheet", help="a PNG file: a row for each picture, the original and then its stages")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    chosen = parser.parse_args()
    if chosen.starts < 1 or (chosen.starts > 1 and chosen.sheet):
        parser.error("--starts must be 1 or more, and 1 with --sheet")
    if chosen.threads < 1:
        parser.error("--threads must be 1 or more")
    torch.set_num_threads(chosen.threads)
    try:
        _measure(chosen)
    except pb.PullbackError as error:
        parser.exit(2, f"{parser.prog}: {' '.join(str(error).split())}\n")


def _measure(chosen: argparse.Namespace) -> None:
    check_budget(chosen.steps, None)  # a decoder would be taught before the search looks at it
    encoder = pb.load_encoder(chosen.encoder, weights=chosen.weights, preprocessing=chosen.preprocessing)
    loaded = {found.digest: found.image for found in map(load_image, chosen.pictures)}
    asked = [s.name for s in encoder.stages] if chosen.at is None else map(str.strip, chosen.at.split(","))
    stages = [encoder.stage(int(name) if name.isdecimal() else name) for name in asked]
    images = torch.stack([encoder.preprocess(image) for image in loaded.values()])
    display = Display(tuple(encoder.preprocessing.mean), tuple(encoder.preprocessing.std))
    rgb = display.colours(images).clamp(0, 1)
    columns = [rgb]
    if chosen.sheet:
        _draw(columns, chosen.sheet)  # a place that cannot be written is met before the work
    of_floors = [floors(image, display) for image in images]
    ground = {name: torch.stack([found[name] for found in of_floors]) for name in of_floors[0]}
    level = {name: _ssims(display.colours(pictures).clamp(0, 1), rgb) for name, pictures in ground.items()}
    floor = torch.stack(list(level.values())).amax(0)
    print(
        f"{encoder.name}, {len(images)} pictures of {tuple(images.shape[2:])}, {chosen.steps} steps, start: {chosen.start}\n"
    )
    if len(images) < len(chosen.pictures):
        print(f"Copies, left out: {len(chosen.pictures) - len(images)} of {len(chosen.pictures)} files.\n")
    if chosen.starts > 1:
        _spreads(encoder, stages, images, chosen)
        return
    print("| stage | correlation | SSIM | best floor | over the floor | misfit | s a picture |\n" + "| --- " * 7 + "|")
    for name, pictures in ground.items():
        print(_row(name, _correlations(pictures, images), level[name], floor), flush=True)
    known = torch.ones(len(images), dtype=torch.bool)
    for stage in stages:
        begun = time.perf_counter()
        found = [_inverse(encoder, image, stage.number, chosen) for image in images]
        seconds = (time.perf_counter() - begun) / len(images)
        pictures, misfits = (torch.cat(parts) for parts in zip(*found, strict=True))
        near = _correlations(pictures, images)
        known &= near.isfinite()
        columns.append(display.colours(pictures).clamp(0, 1))
        alike = _ssims(columns[-1], rgb)
        last = f"{float(misfits.mean()):.2f}", f"{seconds:.1f}"
        print(_row(f"{stage.number} {stage.name}", near, alike, floor, *last), flush=True)
        if chosen.sheet:
            _draw(columns, chosen.sheet)
    _tell_without(known, "Flat, or drawn flat, and so without correlation")


def _row(name: str, near: Tensor, alike: Tensor, floor: Tensor, misfit: str = "–", seconds: str = "–") -> str:
    """A line of the table: what is called `name`, its correlations, SSIMs and those of the best floors (pictures,)."""
    likeness = _interval(near, 3), _interval(alike, 2), f"{float(floor.mean()):.2f}", _interval(alike - floor, 2)
    return "| " + " | ".join((name, *likeness, misfit, seconds)) + " |"


def _draw(columns: list[Tensor], sheet: str) -> None:
    rows = torch.cat([torch.cat(list(column), 1) for column in columns], 2)  # (3, N * H, columns * W)
    write_whole(Path(sheet), png(to_image(rows)))


def _spreads(encoder: pb.Encoder, stages: Sequence[Stage], images: Tensor, chosen: argparse.Namespace) -> None:
    """A table of how far the pictures of several starts lie apart, and what that tells of the error."""
    print("| stage | spread | error | over pixels | over pictures |\n" + "| --- " * 5 + "|")
    contrasts = (images - images.mean((2, 3), keepdim=True)).square().mean((1, 2, 3)).sqrt()
    known = contrasts > 0
    for stage in stages:
        apart, errors, over_pixels = [], [], []
        for image, contrast in zip(images, contrasts, strict=True):
            found, misfits = _inverse(encoder, image, stage.number, chosen)
            width = found.var(0).mean(0).sqrt()
            error = (found[int(misfits.argmin())] - image).square().mean(0).sqrt()
            apart.append(spread(found))
            errors.append(float(error.square().mean().sqrt() / contrast))
            over_pixels.append(float(spearmanr(width.flatten(), error.flatten()).statistic))
        over_pictures = float(spearmanr(torch.tensor(apart)[known], torch.tensor(errors)[known]).statistic)
        cells = (
            f"{stage.number} {stage.name}", _interval(torch.tensor(apart), 2), _interval(torch.tensor(errors), 2),
            _interval(torch.tensor(over_pixels), 2), _interval(torch.tensor([over_pictures]), 2),
        )  # fmt: skip
        print("| " + " | ".join(cells) + " |", flush=True)
    _tell_without(known, "Flat, and so without error and rank among pictures")


def _inverse(encoder: pb.Encoder, image: Tensor, level: int, chosen: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """The pictures of all starts (starts, C, H, W) and their misfits.

    One image at a time: the first item of a batch decides for all of it whether the search retreats.
    """
    preprocessing, size = encoder.preprocessing, (image.shape[-2], image.shape[-1])
    prior = pb.Prior.natural(preprocessing.mean, preprocessing.std, size)
    features, taught = encoder.features(image, level), chosen.start == "taught"
    target = features.expand(chosen.starts, *features.shape)
    bold, careful = (encoder.stretch(level, rules=partial(search_rules, slope=s)) for s in (BOLD, CAREFUL))
    with plain_autograd(encoder.device):
        found = blind_inverse(
            bold,
            target,
            prior,
            recipe_for(size[0] / target.shape[-2], taught=taught),
            steps=chosen.steps,
            start=decoders(encoder, prior)[level](target, size) if taught else None,
            origin=scattered(prior, 0, chosen.starts).to(target),
            retreat=careful,
        )
    return found.x, found.misfit


def _correlations(a: Tensor, b: Tensor) -> Tensor:
    return torch.tensor([correlation(x, y) for x, y in zip(a, b, strict=True)])


def _ssims(a: Tensor, b: Tensor) -> Tensor:
    return torch.tensor([ssim(x, y) for x, y in zip(a, b, strict=True)])


def _interval(values: Tensor, digits: int) -> str:
    return interval(bootstrap(values.tolist()), digits=digits)


def _tell_without(known: Tensor, why: str) -> None:
    if not known.all():
        print(f"\n{why}: {int((~known).sum())} of {len(known)} pictures, which count in the other columns.")


if __name__ == "__main__":
    main()
