"""UpConvNet (Dosovitskiy & Brox 2016): a decoder of upconvolutions, trained to bring features back to pixels by least squares.

A picture is what the decoder expects on average of an image with such features; what it knows of pictures is in its weights.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from pullback.encoders import Encoder
from pullback.errors import OptionError
from pullback.graph import plain_autograd
from pullback.images import write_whole
from pullback.inversion.kept import storable, tensors_digest
from pullback.studies.sessions import FeatureMethod, Sketch

WIDEST, NARROWEST = 256, 16  # channels
SLOPE = 0.2  # of their leaky rectifiers
BATCH, RATE = 8, 1e-3
_KEY = "pullback.upconvnet"


class Decoder(nn.Module):
    """From standardised features (B, C, h, w) to an image (B, colours, H, W): 3x3 convolutions, then upconvolutions that double the
    size as often as it fits between h and H. Draws its weights from the global generator: build it inside `fork_rng`.
    """

    def __init__(self, shape: tuple[int, int, int], colours: int, height: int) -> None:
        super().__init__()
        doublings = max(0, round(math.log2(height / shape[1])))
        width = min(WIDEST, shape[0])
        layers: list[nn.Module] = [nn.Conv2d(shape[0], width, 3, padding=1), nn.LeakyReLU(SLOPE)]
        layers += [nn.Conv2d(width, width, 3, padding=1), nn.LeakyReLU(SLOPE)]
        for _ in range(doublings):
            narrower = max(NARROWEST, width // 2)
            layers += [nn.ConvTranspose2d(width, narrower, 4, stride=2, padding=1), nn.LeakyReLU(SLOPE)]
            width = narrower
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, colours, 3, padding=1))
        self.register_buffer("scale", torch.ones(()))

    def forward(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        drawn = self.layers(features / self.get_buffer("scale"))
        return F.interpolate(drawn, size, mode="bilinear", align_corners=False) if drawn.shape[2:] != size else drawn


def train(
    encoder: Encoder,
    stage: int,
    images: Sequence[Tensor],
    *,
    steps: int | None = None,
    seconds: float | None = None,
    seed: int = 0,
) -> Decoder:
    """A decoder for one stage from preprocessed images (C, H, W) of one size, mirrored at random; Adam, falling to zero.

    steps or seconds: how long. With `steps` the same bits every time. Raises OptionError without images.
    """
    if not images:
        raise OptionError("an UpConvNet needs images to train on, and there are none")
    generator = torch.Generator().manual_seed(seed)
    colours, height, width = images[0].shape
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        decoder = Decoder(encoder.stage(stage).shape, colours, height)
    decoder = decoder.to(encoder.device, encoder.dtype)
    begun, step = time.perf_counter(), 0
    with plain_autograd(encoder.device):
        optimiser = torch.optim.Adam(decoder.parameters(), lr=RATE)
        while True:
            done = step / steps if steps is not None else (time.perf_counter() - begun) / (seconds or math.inf)
            if done >= 1:
                return decoder.requires_grad_(False)
            optimiser.param_groups[0]["lr"] = RATE * (1 + math.cos(math.pi * done)) / 2
            chosen = torch.randint(len(images), (BATCH,), generator=generator, device="cpu").tolist()
            mirrored = (torch.rand(BATCH, generator=generator, device="cpu") < 0.5).tolist()
            x = torch.stack([images[i].flip(-1) if m else images[i] for i, m in zip(chosen, mirrored, strict=True)])
            x = x.to(encoder.device, encoder.dtype)
            features = encoder.features(x, stage)
            if step == 0:
                decoder.get_buffer("scale").copy_(features.square().mean().sqrt().clamp_min(1e-12))
            optimiser.zero_grad()
            (decoder(features, (height, width)) - x).square().mean().backward()
            optimiser.step()
            step += 1


def upconvnet(encoder: Encoder, decoders: dict[int, Decoder], *, about: dict[str, object], seed: int) -> FeatureMethod:
    """The method, with a trained decoder for each stage that is drawn; about: how they were trained. Null: zero features."""

    def draw(features: Tensor, stage: int, size: tuple[int, int]) -> Sketch:
        with plain_autograd(encoder.device), torch.no_grad():
            own, null = decoders[stage](torch.stack([features, torch.zeros_like(features)]), size)
        return Sketch(own, null, {})

    return FeatureMethod(
        encoder,
        draw,
        mode="UpConvNet",
        caption="a trained decoder's expectation of an image with these features",
        settings={"method": "upconvnet", **about},
        seed=seed,
    )


def keep(path: Path, decoder: Decoder, run: str) -> None:
    """Write a trained decoder, marked with the fingerprint of what it was trained from."""
    tensors = storable(decoder.state_dict())
    write_whole(path, save(tensors, {_KEY: json.dumps({"run": run, "numbers": tensors_digest(tensors)})}))


def kept(path: Path, encoder: Encoder, stage: int, run: str) -> Decoder | None:
    """The decoder that `keep` wrote for the same fingerprint, if its numbers are whole, or None."""
    try:
        with safe_open(path, framework="pt") as file:
            told = json.loads((file.metadata() or {})[_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
            if told["run"] != run or told["numbers"] != tensors_digest(tensors):
                return None
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None
    colours, height, _ = encoder.input_shape
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        decoder = Decoder(encoder.stage(stage).shape, colours, height)
    decoder = decoder.to(encoder.device, encoder.dtype)
    decoder.load_state_dict(tensors)
    return decoder.requires_grad_(False)
