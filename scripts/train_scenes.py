"""Train the encoder of `builtin:scenes` on procedural scenes, and write its weights (float16) and its card.

    python scripts/train_scenes.py                       # about 25 minutes on 2 CPU cores with bfloat16 units
    python scripts/train_scenes.py --scenes 64 --epochs 2 --held-out 32 --out /tmp/trial      # a trial of seconds

The network learns to name the object and nothing else. To help it to a start, pictures are small at first, and the ground,
grey in the beginning, fades in during the first half. Training, validation and test scenes have disjoint seeds. Everything
random follows from `--seed` and the scenes' own seeds: the same command on the same machine with the same torch gives the
same weights. The card states accuracy on test scenes, which nothing was chosen by, measured with the rounded weights as
they are shipped.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # the scenes are drawn by one process a core
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what deterministic algorithms ask for on a GPU

import argparse
import hashlib
import json
import multiprocessing
import platform
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from math import sqrt
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional

from pullback.encoders.scenes_net import scenes_net
from pullback.images.files import write_together
from pullback.images.scenes import CLASSES, scene

FIRST_SEED = {"training": 0, "validation": 10_000_000, "test": 20_000_000}
SIZE = 128
MEAN, STD = 0.5, 0.5
RESOLUTIONS = ((64, 0.55), (96, 0.78), (SIZE, 1.0))  # pixels a side, and until which share of the training
FADE = 0.5  # the share of the training in which the ground fades in
WEIGHTS = Path(__file__).resolve().parents[1] / "src" / "pullback" / "encoders" / "weights"


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=20_000, help="training scenes")
    parser.add_argument("--held-out", type=int, default=4_000, help="test scenes; a quarter as many for validation")
    parser.add_argument("--epochs", type=int, default=22)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=3e-3, help="peak learning rate of AdamW")
    parser.add_argument("--decay", type=float, default=0.05, help="weight decay of AdamW")
    parser.add_argument("--smoothing", type=float, default=0.05, help="label smoothing")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of torch and of drawing")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="folder of scenes.safetensors and scenes.json")
    return parser.parse_args()


def main() -> None:
    chosen = options()
    start = time.monotonic()
    held_out = {"validation": chosen.held_out // 4, "test": chosen.held_out}
    sets = {name: drawn(name, count, chosen.threads) for name, count in {"training": chosen.scenes, **held_out}.items()}
    print(f"{time.monotonic() - start:6.0f} s  scenes drawn", flush=True)

    torch.set_num_threads(chosen.threads)
    torch.manual_seed(chosen.seed)
    torch.use_deterministic_algorithms(True)
    device = torch.device(chosen.device)
    net = scenes_net(len(CLASSES)).to(device, memory_format=torch.channels_last)
    images, labels = (part.to(device) for part in sets["training"])
    for epoch, (size, loss) in enumerate(train(net, images, labels, chosen), start=1):
        share = (predictions(net, sets["validation"][0], device, size) == sets["validation"][1]).float().mean()
        words = f"epoch {epoch}  {size} px  loss {loss:.4f}  validation top-1 {share:.4f}"
        print(f"{time.monotonic() - start:6.0f} s  {words}", flush=True)

    state = {key: value.half() if value.is_floating_point() else value for key, value in net.state_dict().items()}
    state = {key: value.cpu().contiguous() for key, value in state.items()}
    net.load_state_dict(state)  # the card is about the weights as shipped, rounded to float16
    data = save(state)
    accuracy = {name: measured(net, *sets[name], device) for name in ("validation", "test")}
    chosen.out.mkdir(parents=True, exist_ok=True)
    card = described(chosen, accuracy, data, seconds=time.monotonic() - start)
    text = json.dumps(card, indent=2) + "\n"
    write_together({chosen.out / "scenes.safetensors": data, chosen.out / "scenes.json": text.encode()})
    print(
        f"test top-1 {accuracy['test']['top1']:.4f}, 95 % interval {accuracy['test']['interval']}; wrote {chosen.out}"
    )


def drawn(name: str, count: int, workers: int) -> tuple[Tensor, Tensor]:
    """`count` scenes of a set: uint8 (count, 4, 128, 128), the mask as fourth channel, and labels (count,) int64."""
    seeds = range(FIRST_SEED[name], FIRST_SEED[name] + count)
    images, labels = np.empty((count, SIZE, SIZE, 4), np.uint8), np.empty(count, np.int64)
    with ProcessPoolExecutor(workers, multiprocessing.get_context("fork")) as pool:
        for index, (image, label) in enumerate(pool.map(_draw, seeds, chunksize=64)):
            images[index], labels[index] = image, label
    return torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(labels)  # channels last in memory


def _draw(seed: int) -> tuple[np.ndarray, int]:
    drawing = scene(seed, size=SIZE)
    return np.dstack((drawing.image, drawing.mask)), drawing.label


def train(net: nn.Module, images: Tensor, labels: Tensor, chosen: argparse.Namespace) -> Iterator[tuple[int, float]]:
    """AdamW with a one-cycle cosine rate; yields the size of the pictures and the mean loss of each epoch."""
    steps = max(len(images) // chosen.batch, 1)
    optimiser = torch.optim.AdamW(net.parameters(), lr=chosen.rate, weight_decay=chosen.decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, chosen.rate, total_steps=steps * chosen.epochs, pct_start=0.2, final_div_factor=1e3
    )
    generator = torch.Generator().manual_seed(chosen.seed)
    for epoch in range(chosen.epochs):
        net.train()
        size = next(size for size, until in RESOLUTIONS if epoch < until * chosen.epochs)
        total = torch.zeros((), device=images.device)
        order = torch.randperm(len(images), generator=generator)[: steps * chosen.batch].to(images.device)
        for step, indices in enumerate(order.split(chosen.batch)):
            faded = (epoch + step / steps) / (FADE * chosen.epochs)
            batch = resized(augmented(images[indices], generator, min(faded, 1.0)), size)
            with torch.autocast(images.device.type, torch.bfloat16):
                logits = net(batch.contiguous(memory_format=torch.channels_last))
            loss = functional.cross_entropy(logits.float(), labels[indices], label_smoothing=chosen.smoothing)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.detach()
        yield size, float(total) / steps


def augmented(images: Tensor, generator: torch.Generator, ground: float) -> Tensor:
    """Mirrored, transposed, shifted and recoloured: no class depends on any of it. The ground has the given strength, 0..1."""
    for change in (lambda x: x.flip(-1), lambda x: x.flip(-2), lambda x: x.transpose(-1, -2)):
        chosen = torch.rand(len(images), generator=generator).lt(0.5).to(images.device)
        images = torch.where(chosen[:, None, None, None], change(images), images)
    down, right = torch.randint(-6, 7, (2,), generator=generator).tolist()
    images = images.roll((down, right), (-2, -1))
    swap = torch.rand(len(images), 3, generator=generator).argsort(1).to(images.device)
    colours = preprocessed(images.gather(1, swap[:, :, None, None].expand_as(images[:, :3])))
    return colours if ground == 1 else colours * (ground + (1 - ground) * images[:, 3:])


def preprocessed(images: Tensor) -> Tensor:
    return (images[:, :3].float() / 255 - MEAN) / STD


def resized(values: Tensor, size: int) -> Tensor:
    return values if size == SIZE else functional.interpolate(values, (size, size), mode="area")


@torch.no_grad()
def predictions(net: nn.Module, images: Tensor, device: torch.device, size: int = SIZE) -> Tensor:
    """The top-1 classes of uint8 images, in float32."""
    net.eval()
    batches = (resized(preprocessed(batch.to(device)), size) for batch in images.split(200))
    return torch.cat([net(batch).argmax(1).cpu() for batch in batches])


def measured(net: nn.Module, images: Tensor, labels: Tensor, device: torch.device) -> dict[str, object]:
    """Top-1 on a set with its 95 % Wilson interval, and per class."""
    correct = (predictions(net, images, device) == labels).double()
    total, share, z = len(labels), float(correct.mean()), 1.959964
    middle, reach = share + z * z / (2 * total), z * sqrt(share * (1 - share) / total + (z / (2 * total)) ** 2)
    per_class = {name: correct[labels == number] for number, name in enumerate(CLASSES)}
    return {
        "scenes": total,
        "top1": share,
        "interval": [round((middle + side * reach) / (1 + z * z / total), 4) for side in (-1, 1)],
        "per_class": {name: round(float(part.mean()), 4) for name, part in per_class.items() if len(part)},
    }


def described(
    chosen: argparse.Namespace, accuracy: dict[str, dict[str, object]], data: bytes, seconds: float
) -> dict[str, object]:
    """The card: what the network expects, how good it is, and how it came to be."""
    generator = hashlib.sha256()
    for seed in range(16):
        generator.update(scene(seed).image.tobytes())
    cuda = chosen.device.startswith("cuda")
    return {
        "schema": 1,
        "name": "builtin:scenes",
        "classes": list(CLASSES),
        "preprocessing": {
            "size": [SIZE, SIZE], "resize": SIZE, "interpolation": "bilinear", "mean": [MEAN] * 3, "std": [STD] * 3,
        },
        "accuracy": {"interval": "95 % Wilson", "weights": "rounded to float16, computed in float32", **accuracy},
        "training": {
            "scenes": chosen.scenes,
            "first_seeds": FIRST_SEED,
            "epochs": chosen.epochs,
            "batch": chosen.batch,
            "optimiser": "AdamW, one-cycle cosine rate, bfloat16 autocast",
            "rate": chosen.rate,
            "decay": chosen.decay,
            "label_smoothing": chosen.smoothing,
            "resolutions": [list(stage) for stage in RESOLUTIONS],
            "augmentation": "mirrored, transposed, channels permuted, shifted by up to 6 pixels",
            "ground_fades_in_until": FADE,
            "seed": chosen.seed,
            "threads": chosen.threads,
            "seconds": round(seconds),
            "device": torch.cuda.get_device_name() if cuda else f"{platform.machine()} CPU",
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
        "generator_sha256": generator.hexdigest(),  # of the images of seeds 0 to 15
        "weights_sha256": hashlib.sha256(data).hexdigest(),
    }  # fmt: skip


if __name__ == "__main__":
    main()
