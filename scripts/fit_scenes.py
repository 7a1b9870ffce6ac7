"""Fit the correctors of `builtin:scenes`, equation (9), and write them beside its weights.

    python scripts/fit_scenes.py --overwrite                      # the shipped file anew: some minutes on one CPU core
    python scripts/fit_scenes.py --steps 2 --out trial.safetensors

The preset "paper" on scenes that the encoder never saw, each met once: seeds from 30,000,000 on, which neither its training
nor its test use. Stopped and started again without --overwrite, it carries on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

import pullback as pb
from pullback.cli.fit import Telling
from pullback.cli.progress import Progress
from pullback.fitting import PRESETS, fit_correctors

FIRST_SEED = 30_000_000
OUT = (
    Path(__file__).resolve().parents[1] / "src" / "pullback" / "encoders" / "weights" / "scenes.correctors.safetensors"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=PRESETS["paper"].steps)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--overwrite", action="store_true", help="begin anew, whatever stands at --out")
    chosen = parser.parse_args()

    paper = PRESETS["paper"]
    seeds = range(FIRST_SEED, FIRST_SEED + chosen.steps * paper.batch + paper.held_back)
    scenes = (Image.fromarray(pb.scene(seed).image) for seed in seeds)
    encoder = pb.load_encoder("builtin:scenes")
    with Progress() as progress:
        fit_correctors(
            encoder,
            scenes,
            "paper",
            steps=chosen.steps,
            out=chosen.out,
            overwrite=chosen.overwrite,
            told=Telling(progress),
        )
    print(f"wrote {chosen.out}")


if __name__ == "__main__":
    main()
