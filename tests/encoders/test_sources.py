from __future__ import annotations

import csv
import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from pullback.encoders import libraries
from pullback.encoders.scenes_net import scenes_net
from pullback.encoders.sources import TESTED, available, build, load_encoder
from pullback.encoders.torchvision_ops import import_timm, import_torchvision
from pullback.encoders.weights import digest
from pullback.errors import ClassError, EncoderError, OptionError, WeightsError

FACTORIES = """
from load import CERTIFIED, CifarResNet, _certified, _convnext

def cifar10_resnet20(): return CifarResNet(3)
def cifar10_resnet56(): return CifarResNet(9)
def cifar10_convnext(): return _convnext()
def cifar10_certified_linf(): return _certified()
def cifar10_certified_l2(): return _certified()
for factory in (cifar10_resnet20, cifar10_resnet56, cifar10_convnext, cifar10_certified_linf, cifar10_certified_l2):
    factory.input_size = 32
"""

LIBRARY_SPECS = {
    "resnet18_finetuned": "torchvision:resnet18",
    "squeezenet1_0": "torchvision:squeezenet1_0",
    "squeezenet1_1": "torchvision:squeezenet1_1",
    "mobilenet_v2": "torchvision:mobilenet_v2",
    "mobilenetv2_100_same": "timm:mobilenetv2_100?pad_type=same",
}
SMALL = ("cifar10_resnet20", "cifar10_resnet56", "cifar10_convnext", "cifar10_certified_linf", "cifar10_certified_l2")
HALF = "mean=0.5;std=0.5"


@pytest.fixture
def user_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, where a user's modules can be written; they are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in ("user_nets", "factories", "load"):
        sys.modules.pop(name, None)


# ---- trained networks ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LIBRARY_SPECS)
def test_library_networks_with_a_users_weights(
    name: str, data: Path, load: ModuleType, real_net: Callable[[str], nn.Module]
) -> None:
    built = build(
        LIBRARY_SPECS[name],
        weights=data / "weights" / f"{name}.safetensors",
        preprocessing=f"{HALF};interpolation=bilinear" if name == "mobilenetv2_100_same" else None,
    )
    net = real_net(name)
    assert digest(built.module) == built.weights_digest == digest(net)
    assert not built.module.training
    assert built.input_shape == (3, 224, 224)
    theirs = load.preprocess(name)
    assert built.classes is not None
    right = 0
    for path, expected in expected_names(name, data):
        with Image.open(path) as image:
            x = built.preprocessing(image)
            assert torch.equal(x, theirs(image))
        with torch.no_grad():
            right += built.classes[int(built.module(x[None]).argmax())] == expected
    assert right >= 3


def expected_names(network: str, data: Path) -> list[tuple[Path, str]]:
    """Four photographs that the network has not been trained on, or that anyone recognises, and the names it should give."""
    if network == "resnet18_finetuned":
        held_out = set((data / "weights" / "resnet18_finetuned.heldout.txt").read_text().splitlines())
        rows = list(csv.DictReader((data / "masked" / "butterflies" / "labels.csv").read_text().splitlines()))
        found = [(f"masked/butterflies/{row['image']}", f"butterflies/{row['name']}") for row in rows]
        return [(data / file, name) for file, name in found if file in held_out][:40:10]
    rows = [line.split(" ", 2) for line in (data / "imagenet" / "showcase.txt").read_text().splitlines()]
    return [
        (data / "imagenet" / file, name)
        for file, _, name in rows
        if name in ("zebra", "giant panda", "pizza", "teapot")
    ]


@pytest.mark.parametrize("name", SMALL)
def test_networks_of_a_users_module(
    name: str,
    data: Path,
    load: ModuleType,
    user_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    real_net: Callable[[str], nn.Module],
) -> None:
    (user_folder / "factories.py").write_text(FACTORIES)
    monkeypatch.syspath_prepend(str(data))
    built = build(f"module:factories:{name}", weights=data / "weights" / f"{name}.safetensors")
    assert digest(built.module) == digest(real_net(name))
    assert (built.input_shape, built.classes) == ((3, 32, 32), None)
    x, y, _ = load.cifar10()
    inputs = torch.stack([built.preprocessing(Image.fromarray(p.permute(1, 2, 0).numpy())) for p in x[:50]])
    with torch.no_grad():
        accuracy = (built.module(inputs).argmax(1) == y[:50]).float().mean()
    assert accuracy > (0.2 if name == "cifar10_certified_linf" else 0.4)  # by chance: 0.1
    assert any("ImageNet" in sentence for sentence in built.preprocessing.assumed)


def test_what_was_taken_for_granted_about_a_file_is_said(data: Path) -> None:
    built = build("torchvision:resnet18", weights=data / "weights" / "resnet18_finetuned.safetensors")
    assert "num_classes=44 taken from the checkpoint" in built.notes
    assert "class names from resnet18_finetuned.classes.txt beside the weights" in built.notes
    assert built.classes is not None
    assert built.classes[0] == "butterflies/Danaus plexippus"
    assert "IMAGENET1K_V1" in built.preprocessing.assumed[0]


def test_own_class_names_come_first_and_must_fit(data: Path) -> None:
    weights = data / "weights" / "squeezenet1_1.safetensors"
    assert build("torchvision:squeezenet1_1", weights=weights, classes=["a", "b"]).classes == ("a", "b")
    with pytest.raises(ClassError, match="2 class names for a network with 1000 outputs"):
        load_encoder("torchvision:squeezenet1_1", weights=weights, classes=["a", "b"])
    own = load_encoder("torchvision:squeezenet1_1", weights=weights, classes=data / "imagenet" / "classes.csv")
    assert own.classes[134] == "crane"
    assert build("torchvision:squeezenet1_1", weights=weights).classes[340] == "zebra"


def test_weights_of_another_network_are_refused(data: Path) -> None:
    with pytest.raises(WeightsError, match=r"squeezenet1_0.safetensors do not fit torchvision:squeezenet1_1"):
        build("torchvision:squeezenet1_1", weights=data / "weights" / "squeezenet1_0.safetensors")
    with pytest.raises(WeightsError, match=r"fc.weight is \(44, 512\) where the network has \(10, 512\)"):
        build("torchvision:resnet18?num_classes=10", weights=data / "weights" / "resnet18_finetuned.safetensors")


def test_cards_beside_the_weights(tmp_path: Path) -> None:
    net = import_timm().create_model("resnet18", num_classes=2, in_chans=1)
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    card = {"classes": ["cat", "dog"], "preprocessing": {"size": 64, "mean": 0.4, "std": 0.2}}
    (tmp_path / "net.json").write_text(json.dumps(card))
    built = build("timm:resnet18?in_chans=1", weights=tmp_path / "net.safetensors")
    assert built.classes == ("cat", "dog")
    assert built.input_shape == (1, 64, 64)
    assert (built.preprocessing.mean, built.preprocessing.std) == ((0.4,), (0.2,))
    assert "net.json" in built.preprocessing.source
    (tmp_path / "net.classes.txt").write_text("Katze\nHund\n")
    assert build("timm:resnet18?in_chans=1", weights=tmp_path / "net.safetensors").classes == ("Katze", "Hund")


@pytest.mark.parametrize("helpers", [True, False])
def test_googlenet_with_and_without_its_auxiliary_classifiers(tmp_path: Path, helpers: bool) -> None:
    net = import_torchvision().models.googlenet(num_classes=3, aux_logits=helpers, init_weights=False)
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    built = build("torchvision:googlenet?init_weights=false", weights=tmp_path / "net.safetensors")
    assert digest(built.module) == digest(net)
    assert built.module.transform_input  # as torchvision's own weights want
    assert any("transform_input=True" in note for note in built.notes)
    plain = build(
        "torchvision:googlenet?init_weights=false&transform_input=false", weights=tmp_path / "net.safetensors"
    )
    assert not plain.module.transform_input


# ---- random and downloaded weights --------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["torchvision:squeezenet1_1", "timm:resnet18?num_classes=7", "module:user_nets:small"])
def test_random_weights_are_the_same_ever_and_leave_the_generators_alone(spec: str, user_folder: Path) -> None:
    (user_folder / "user_nets.py").write_text(
        "import random, numpy, torch\ntorch.rand(3), random.random(), numpy.random.rand()\n"
        "def small():\n    random.random(), numpy.random.rand()\n    return torch.nn.Conv2d(3, 8, 3)\n"
    )
    digests = set()
    for seed in (1, 2):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        expected = torch.rand(1).item(), random.random(), np.random.rand()  # noqa: NPY002
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        built = build(spec)
        assert (torch.rand(1).item(), random.random(), np.random.rand()) == expected  # noqa: NPY002
        digests.add(built.weights_digest)
    assert len(digests) == 1
    assert "random" in built.notes[0]


def test_a_failure_leaves_the_generators_and_the_path_alone(user_folder: Path) -> None:
    (user_folder / "user_nets.py").write_text(
        "import torch\ndef small():\n    torch.rand(3)\n    raise KeyError('no')\n"
    )
    state, path = torch.get_rng_state(), list(sys.path)
    with pytest.raises(EncoderError, match="KeyError"):
        build("module:user_nets:small")
    assert torch.equal(torch.get_rng_state(), state)
    assert sys.path == path


def test_downloads_use_the_librarys_default_weights_and_their_own_card(monkeypatch: pytest.MonkeyPatch) -> None:
    torchvision = import_torchvision()
    state = torchvision.models.mobilenet_v2().state_dict()
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", lambda url, **options: state)
    built = build("torchvision:mobilenet_v2", weights="pretrained")
    assert torch.equal(built.module.state_dict()["features.0.0.weight"], state["features.0.0.weight"])
    assert built.preprocessing.resize == 232  # the second recipe's, where the original one has 256
    assert built.preprocessing.assumed == ()
    assert any("download" in note for note in built.notes)


@pytest.mark.parametrize("spec", ["torchvision:resnet18", "timm:resnet18"])
def test_a_download_that_fails_says_what_to_do(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise URLError("Temporary failure in name resolution")

    monkeypatch.setattr(import_torchvision().models._api, "load_state_dict_from_url", unreachable)
    monkeypatch.setattr(import_timm().models._builder, "load_state_dict_from_hf", unreachable)
    with pytest.raises(WeightsError, match=f"{spec} cannot be had .*name resolution.*give weights=PATH"):
        build(spec, weights="pretrained")


def test_nothing_to_download(user_folder: Path) -> None:
    (user_folder / "user_nets.py").write_text("import torch\ndef small(): return torch.nn.Conv2d(3, 8, 3)\n")
    with pytest.raises(WeightsError, match="no pretrained weights to download"):
        build("module:user_nets:small", weights="pretrained")


# ---- names --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("torchvision:renset18", "nearest: resnet18"),
        ("torchvision:fasterrcnn_resnet50_fpn", "no classification network"),
        ("timm:mobilnetv2_100", "nearest: mobilenetv2_100"),
        ("builtin:scene", "there is builtin:scenes"),
        ("resnet18", "did you mean torchvision:resnet18 or timm:resnet18"),
        ("keras:resnet18", "expected builtin:scenes, timm:NAME"),
        ("timm:resnet18?depth=3", "unexpected keyword argument 'depth'"),
        ("torchvision:resnet18?depth", "option 'depth' is not understood"),
        ("torchvision:resnet18?a=1&a=2", "each name once"),
        ("timm:resnet18?pretrained=true", "chosen with weights="),
        ("timm:resnet18?checkpoint_path=x.pth", "chosen with weights="),
        ("timm:resnet18.nonsense", "nonsense"),
        ("timm:resnet18?in_chans=4", "takes 4 channels"),
        ("module:no_such_package.nets:small", "no module 'no_such_package'"),
        ("module:json:laod", "nearest: load"),
        ("module:json:load", "missing 1 required positional argument"),
        ("module:json:decoder", "of type module"),
        ("module:json", "expected module:package.module:factory"),
        ("module:nets.py:small", "no .py"),
        ("module:collections:OrderedDict", "returned OrderedDict"),
    ],
)
def test_unknown_names(spec: str, said: str) -> None:
    with pytest.raises(EncoderError) as caught:
        build(spec)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "text", ["raise ValueError('half done')", "import sys; sys.exit('half done')", "import half_done_module"]
)
def test_a_module_that_cannot_be_imported(text: str, user_folder: Path) -> None:
    (user_folder / "user_nets.py").write_text(text)
    with pytest.raises(EncoderError, match=r"importing user_nets stopped with .*half.done"):
        build("module:user_nets:small")


def test_a_network_in_place_of_its_factory(user_folder: Path) -> None:
    (user_folder / "user_nets.py").write_text("import torch\nnet = torch.nn.Conv2d(3, 8, 3)\n")
    with pytest.raises(EncoderError, match=r"Encoder.from_module"):
        build("module:user_nets:net")


def test_a_module_that_needs_a_mended_torchvision(user_folder: Path) -> None:
    (user_folder / "user_nets.py").write_text(
        "import torchvision\nsmall = lambda: torchvision.models.squeezenet1_1(num_classes=3)\nsmall.input_size = (3, 64, 96)\n"
    )
    program = "from pullback.encoders.sources import build; print(build('module:user_nets:small').input_shape)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=user_folder)
    assert run.stdout.strip() == "(3, 64, 96)", run.stderr


def test_a_network_in_place_of_a_name() -> None:
    with pytest.raises(EncoderError, match=r"expected a name.*Encoder.from_module"):
        build(nn.Conv2d(3, 8, 3))  # type: ignore[arg-type]


def test_constructor_options_are_literals_or_words() -> None:
    assert build("timm:mobilenetv2_100?pad_type=same&num_classes=3").module.num_classes == 3
    assert libraries._options("x", "a=3&b=true&c=None&d=same&e=(1,2)&f='3'&g=0.5") == {
        "a": 3,
        "b": True,
        "c": None,
        "d": "same",
        "e": (1, 2),
        "f": "3",
        "g": 0.5,
    }


# ---- the builtin encoder, and encoders as such --------------------------------------------------------------------


def test_the_builtin_encoder_is_its_weights_and_their_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = scenes_net()
    save_file(
        {name: t.half() if t.is_floating_point() else t for name, t in net.state_dict().items()},
        tmp_path / "scenes.safetensors",
    )
    card = {
        "classes": [f"class {k}" for k in range(16)],
        "preprocessing": {"size": 96, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.2, 0.2]},
    }
    (tmp_path / "scenes.json").write_text(json.dumps(card))
    monkeypatch.setattr(libraries, "_WEIGHTS_FOLDER", tmp_path)
    for weights in (None, "pretrained"):
        built = build("builtin:scenes", weights=weights)
        assert built.classes == tuple(card["classes"])
        assert built.input_shape == (3, 96, 96)
        assert (built.preprocessing.resize, built.preprocessing.mean) == (96, (0.4, 0.5, 0.6))
        assert built.preprocessing.assumed == ()
        assert digest(built.module) == digest(net.half().float())


def test_load_encoder_gives_all_of_it_to_the_encoder(data: Path) -> None:
    weights = data / "weights" / "squeezenet1_1.safetensors"
    encoder = load_encoder("torchvision:squeezenet1_1", weights=weights, preprocessing="size=64", dtype=torch.float64)
    built = build("torchvision:squeezenet1_1", weights=weights, preprocessing="size=64")
    assert (encoder.name, encoder.dtype, encoder.input_shape) == (
        "torchvision:squeezenet1_1",
        torch.float64,
        (3, 64, 64),
    )
    assert (encoder.classes, encoder.preprocessing, encoder.weights_digest) == (
        built.classes,
        built.preprocessing,
        built.weights_digest,
    )
    assert set(built.notes) <= set(encoder.notes)


@pytest.mark.parametrize("device", ["abacus", "cuda:99"])
def test_a_device_that_is_not_there(device: str) -> None:
    with pytest.raises(OptionError, match=f"device='{device}'"):
        load_encoder("torchvision:squeezenet1_1", device=device)


def test_the_list_is_quick_and_a_search_goes_through_the_libraries() -> None:
    specs = [entry.spec for entry in available()]
    assert specs[0] == "builtin:scenes"
    assert set(TESTED) < set(specs)
    assert {spec.partition(":")[0] for spec in specs} == {"builtin", "torchvision", "timm", "module"}
    found = [entry.spec for entry in available("RegNetY_0")]
    assert "timm:regnety_002" in found
    assert all("regnety_0" in spec for spec in found)
    both = [entry.spec for entry in available("mobilenetv2_100")]
    assert both.count("timm:mobilenetv2_100?pad_type=same") == 1
    assert "timm:mobilenetv2_100" not in both
    with pytest.raises(EncoderError, match=r"nearest: .*resnet18"):
        available("renset18")


def test_the_list_imports_neither_library() -> None:
    program = "import sys; from pullback.encoders import available; available(); print({'timm', 'torchvision'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "set()", run.stderr
