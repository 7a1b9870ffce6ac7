"""Trained decoders for the study: read the training pictures, train one for each stage, keep them for the next run."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from pullback.encoders import Encoder
from pullback.errors import OptionError
from pullback.explain.options import Progress
from pullback.images import image_files, load_image
from pullback.inversion.kept import storable, tensors_digest
from pullback.studies.upconvnet import Decoder, keep, kept, train


def trained(
    encoder: Encoder,
    sources: Sequence[str],
    stages: Sequence[int],
    folder: Path,
    progress: Progress,
    *,
    seconds: float,
    seed: int,
    without: Mapping[str, str],
) -> tuple[dict[int, Decoder], dict[str, object]]:
    """A decoder for each stage, and how they were trained, with the digests of their numbers: training by the clock never ends
    in the same. without: names of the studied pictures by digest.

    Raises OptionError where a picture to train on is one of those.
    """
    images, total = [], hashlib.sha256()
    for file in image_files(sources):
        loaded = load_image(file)
        if loaded.digest in without:
            raise OptionError(
                f"{file} is to be trained on, but is {without[loaded.digest]} of the study: take it out of one"
            )
        total.update(loaded.digest.encode())
        images.append(
            encoder.preprocess(loaded.image).cpu().to(torch.float16)
        )  # half the memory, far finer than 8 bits
    about = {"training pictures": len(images), "seconds": seconds, "pictures": total.hexdigest()}
    folder.mkdir(exist_ok=True)
    decoders = {}
    for stage in stages:
        said = (
            encoder.name,
            encoder.weights_digest,
            repr(encoder.preprocessing),
            encoder.stage(stage).name,
            about,
            seed,
        )
        run = hashlib.sha256(repr(said).encode()).hexdigest()
        path = folder / f"stage-{stage}.safetensors"
        decoder = kept(path, encoder, stage, run)
        if decoder is None:
            progress.note(f"training an UpConvNet for stage {stage} on {len(images)} pictures ({seconds:g} s)")
            decoder = train(encoder, stage, images, seconds=seconds, seed=seed)
            keep(path, decoder, run)
        decoders[stage] = decoder
    numbers = {stage: tensors_digest(storable(decoder.state_dict())) for stage, decoder in decoders.items()}
    return decoders, {**about, "decoders": numbers}
