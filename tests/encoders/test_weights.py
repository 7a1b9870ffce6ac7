from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pullback.encoders.weights import Checkpoint, class_count, classifier, digest, fill, read_checkpoint, renamed
from pullback.errors import WeightsError


def net(seed: int = 0, classes: int = 5, depth: int = 1) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        blocks = [nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)) for _ in range(depth)]
        return nn.Sequential(
            OrderedDict(
                stem=nn.Conv2d(3, 4, 3),
                body=nn.Sequential(*blocks),
                pool=nn.AdaptiveAvgPool2d(1),
                flat=nn.Flatten(),
                fc=nn.Linear(4, classes),
            )
        )


def load(path: Path, module: nn.Module) -> Checkpoint:
    """What load_encoder does with a file."""
    checkpoint = renamed(read_checkpoint(path), module.state_dict().keys())
    fill(module, checkpoint, "the net")
    return checkpoint


def same(a: nn.Module, b: nn.Module) -> bool:
    return digest(a) == digest(b)


# ---- every form in which weights come -----------------------------------------------------------------------------


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


FORMS = {
    "plain": lambda s: s,
    "state_dict": lambda s: {"state_dict": s, "epoch": 3},
    "model": lambda s: {"model": s, "optimizer": {"lr": 0.1}},
    "nested": lambda s: {"model": {"state_dict": s}},
    "data parallel": lambda s: prefixed(s, "module."),
    "compiled": lambda s: prefixed(s, "_orig_mod."),
    "lightning": lambda s: {"state_dict": prefixed(s, "model.") | {"loss.weight": torch.ones(5)}, "epoch": 1},
    "several at once": lambda s: {"state_dict": prefixed(s, "module._orig_mod.model.")},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt"])
def test_torch_files(tmp_path: Path, form: str, suffix: str) -> None:
    source, target = net(1), net(2)
    torch.save(FORMS[form](source.state_dict()), tmp_path / f"weights{suffix}")
    notes = load(tmp_path / f"weights{suffix}", target).notes
    assert same(source, target)
    assert bool(notes) == (form != "plain")


def test_safetensors_and_what_was_said_about_them(tmp_path: Path) -> None:
    source, target = net(1), net(2)
    save_file(
        prefixed(source.state_dict(), "model.") | {"loss.weight": torch.ones(5)}, tmp_path / "weights.safetensors"
    )
    notes = " ".join(load(tmp_path / "weights.safetensors", target).notes)
    assert same(source, target)
    assert "'model.'" in notes
    assert "loss.weight" in notes


def test_a_network_inside_data_parallel_takes_plain_names(tmp_path: Path) -> None:
    source, target = net(1), nn.DataParallel(net(2))
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    load(tmp_path / "weights.safetensors", target)
    assert same(source, target.module)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_stored_types_are_cast_to_the_networks(tmp_path: Path, dtype: torch.dtype) -> None:
    source, target = net(1).to(dtype), net(2)
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    load(tmp_path / "weights.safetensors", target)
    assert {p.dtype for p in target.parameters()} == {torch.float32}
    assert same(source.float(), target)


def test_old_files_without_batch_counters(tmp_path: Path) -> None:
    source, target = net(1), net(2)
    state = {name: tensor for name, tensor in source.state_dict().items() if not name.endswith("num_batches_tracked")}
    save_file(prefixed(state, "module."), tmp_path / "weights.safetensors")
    load(tmp_path / "weights.safetensors", target)
    assert same(source, target)


# ---- and in which they must not -----------------------------------------------------------------------------------


class Anything:
    """A class of the user's own, which only unpickling could bring back."""


@pytest.mark.parametrize(
    "content", [net(), {"state_dict": net().state_dict(), "args": Anything()}, {"best": np.float64(0.3), "model": {}}]
)
def test_nothing_is_unpickled(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(WeightsError, match="without unpickling") as caught:
        read_checkpoint(tmp_path / "weights.pt")
    assert "network.state_dict()" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"state_dict": {}}, "holds nothing"),
        ([torch.ones(3)], "holds list"),
        ({"epoch": 3, "weight": torch.ones(3)}, "entry 'epoch' is of type int"),
        ({"weight": torch.eye(3).to_sparse()}, "weight is sparse or quantised"),
        ({"a": torch.ones(3), "body.weight": torch.tensor([1.0, torch.nan])}, "body.weight holds 1 NaN or infinite"),
        ({"body.weight": torch.tensor([torch.inf, torch.nan], dtype=torch.float16)}, "body.weight holds 2 NaN"),
    ],
)
def test_unfit_content_is_named(tmp_path: Path, content: Any, said: str) -> None:
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(WeightsError, match=said):
        read_checkpoint(tmp_path / "weights.pt")


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.9])
def test_damaged_files(tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"weights{suffix}"
    save_file(net().state_dict(), path) if suffix == ".safetensors" else torch.save(net().state_dict(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(WeightsError, match=path.name):
        read_checkpoint(path)


def test_text_is_no_checkpoint(tmp_path: Path) -> None:
    for name in ("weights.pt", "weights.safetensors"):
        (tmp_path / name).write_text("These are not the weights you are looking for.")
        with pytest.raises(WeightsError, match=name):
            read_checkpoint(tmp_path / name)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="is no file here"):
        read_checkpoint(tmp_path / "none.pt")
    with pytest.raises(WeightsError, match="is a folder"):
        read_checkpoint(tmp_path)


# ---- weights of another network -----------------------------------------------------------------------------------


def test_wrong_shapes_are_named(tmp_path: Path) -> None:
    save_file(net(classes=7).state_dict(), tmp_path / "weights.safetensors")
    with pytest.raises(WeightsError, match=r"do not fit the net.*fc.weight is \(7, 4\) where the network has \(5, 4\)"):
        load(tmp_path / "weights.safetensors", net())


@pytest.mark.parametrize(("stored", "own", "said"), [(2, 1, "unexpected body.1"), (1, 2, "missing body.1")])
@pytest.mark.parametrize("prefix", ["", "model."])
def test_a_deeper_or_shallower_network_is_refused(
    tmp_path: Path, stored: int, own: int, said: str, prefix: str
) -> None:
    # Every name of the shallow net is in the deep one: half a network must never pass for a whole one.
    save_file(prefixed(net(depth=stored).state_dict(), prefix), tmp_path / "weights.safetensors")
    with pytest.raises(WeightsError, match=said if own < stored or not prefix else "unexpected model"):
        load(tmp_path / "weights.safetensors", net(depth=own))


def test_quantised_numbers_do_not_pass_for_weights(tmp_path: Path) -> None:
    state = net().state_dict()
    state["stem.weight"] = (state["stem.weight"] * 100).to(torch.int8)
    save_file(state, tmp_path / "weights.safetensors")
    with pytest.raises(WeightsError, match=r"stem.weight holds torch.int8"):
        load(tmp_path / "weights.safetensors", net())


def test_long_lists_are_cut(tmp_path: Path) -> None:
    save_file({f"layer{i}": torch.ones(1) for i in range(50)}, tmp_path / "weights.safetensors")
    with pytest.raises(WeightsError, match="and 47 more") as caught:
        load(tmp_path / "weights.safetensors", net())
    assert len(str(caught.value)) < 500 + len(str(tmp_path))


# ---- what a checkpoint tells --------------------------------------------------------------------------------------


def test_the_number_of_classes_is_the_checkpoints() -> None:
    def count(stored: nn.Module) -> int | None:
        return class_count(Checkpoint(Path("x"), stored.state_dict()), net())

    assert count(net(classes=7)) == 7
    assert count(net(classes=5)) is None
    assert count(nn.Sequential(OrderedDict(fc=nn.Linear(9, 7)))) is None  # another network altogether
    assert classifier(net()) == "fc"
    assert classifier(nn.ReLU()) is None
    assert class_count(Checkpoint(Path("x"), {}), nn.ReLU()) is None


def test_digest_tells_weights_apart() -> None:
    assert same(net(1), net(1))
    assert not same(net(1), net(2))
    changed = net(1)
    changed.body[0][1].running_mean[0] += 1e-7
    assert not same(net(1), changed)
