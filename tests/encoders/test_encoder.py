from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracles.awkward_modules import Plain, must_not_compile, settled
from oracles.awkward_nets import AWKWARD
from oracles.encoded import SPATIAL, encoder, has_module, hooked, images, points, relative
from oracles.families import NETS
from PIL import Image
from torch import Tensor, nn

from pullback.encoders.encoder import Encoder
from pullback.encoders.preprocessing import Preprocessing
from pullback.encoders.splitting import find
from pullback.encoders.twin import twin
from pullback.errors import ClassError, EncoderError, ImageError, NumericsError, OptionError, StageError

X = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(0))


# ---- features -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETS)
def test_features_are_what_the_networks_own_hooks_see(name: str) -> None:
    x = images(name, 1)
    compared = [stage for stage in points(name) if has_module(name, stage)]
    assert compared
    for stage in compared:
        assert relative(encoder(name).features(x, stage), hooked(name, stage, x)) < 1e-12


@pytest.mark.parametrize("name", [name for name in NETS if name != "batch_mixing"])
def test_an_image_has_the_same_features_alone_and_in_a_batch(name: str) -> None:
    x = images(name, 3)
    changed = x.clone()
    changed[1] = images(name, 1, seed=1)[0]
    for stage in points(name):
        together = encoder(name).features(x, stage)
        for alone, one in zip(x, together, strict=True):
            assert relative(encoder(name).features(alone, stage), one) < 1e-12
        beside = encoder(name).features(changed, stage)
        assert torch.equal(beside[::2], together[::2]), "a neighbour in the batch changed an image's features"
        assert not torch.equal(beside[1], together[1])


@pytest.mark.parametrize("name", SPATIAL)
def test_levels_are_the_image_and_the_features_of_every_stage(name: str) -> None:
    [x] = images(name, 1)
    levels = encoder(name).levels(x)
    assert len(levels) == encoder(name).depth + 1
    assert torch.equal(levels[0], x)
    for number, level in enumerate(levels[1:], start=1):
        assert torch.equal(level, encoder(name).features(x, number))
        assert tuple(level.shape) == encoder(name).stage(number).shape
    assert torch.equal(encoder(name).features(x), levels[-1])


@pytest.mark.parametrize("name", SPATIAL)
def test_stretches_compose_to_the_whole(name: str) -> None:
    [x] = images(name, 1)
    at = points(name)
    values = {stage: encoder(name).features(x, stage)[None] for stage in at}
    for i, start in enumerate(at[:-1]):
        for stage in at[i + 1 :]:
            with torch.no_grad():
                value = encoder(name).stretch(stage, start, along=x)(values[start])
            assert relative(value, values[stage]) < 1e-12


def test_a_branching_network_takes_each_image_its_own_way() -> None:
    x = images("branching", 2)
    x[0] += 0.5 - x[0].mean()
    x[1] -= 0.5 + x[1].mean()
    net = twin(NETS["branching"]()).double()
    both = encoder("branching").logits(x)
    assert encoder("branching").data_dependent
    for one, image in zip(both, x, strict=True):
        assert relative(one, net(image[None])[0]) < 1e-12
        J = encoder("branching").jacobian(image, "logits")
        with torch.enable_grad():
            leaf = image[None].clone().requires_grad_()
            (expected,) = torch.autograd.grad(net(leaf)[0, 2], leaf)
        assert relative(J.vm(torch.eye(5, dtype=x.dtype)[2]), expected[0]) < 1e-12
        for stage in (1, 2, 3):
            assert encoder("branching").features(image, stage).shape == encoder("branching").stage(stage).shape
    assert not encoder("plain").data_dependent


def test_half_precision_stays_half() -> None:
    half = Encoder.from_module(AWKWARD["half"](), input_shape=(3, 32, 32))
    x = images("half", 1)[0]
    assert half.dtype == torch.float16
    assert half.features(x).dtype == torch.float16
    assert relative(half.features(x).double(), encoder("half").features(x)) < 1e-2


# ---- errors -------------------------------------------------------------------------------------------------------


def plain() -> Encoder:
    return encoder("plain")


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: plain().features(X[:2]), ImageError, r"\(3, H, W\).*got shape \(2, 32, 32\)"),
        (lambda: plain().features(X[0]), ImageError, r"got shape \(32, 32\)"),
        (lambda: plain().features((X * 255).byte()), ImageError, "floating-point.*uint8"),
        (lambda: plain().features(X / 0), ImageError, "not finite"),
        (lambda: plain().jacobian(X[None], 1), ImageError, "one image"),
        (
            lambda: plain().features(X, 4),
            StageError,
            r"no stage 4; stages are 1 \(level1\), 2 \(level2\), 3 \(level3\)",
        ),
        (lambda: plain().features(X, -1), StageError, "no stage -1"),
        (lambda: plain().features(X, True), StageError, "no stage True"),
        (lambda: plain().features(X, 1.0), StageError, "no stage 1.0"),
        (lambda: plain().features(X, 2.5), StageError, "no stage 2.5"),
        (lambda: plain().features(X, "levle2"), StageError, "no module 'levle2'.*nearest: level2"),
        (lambda: plain().jacobian(X, 1, 2), StageError, "stage 1 comes before stage 2"),
        (lambda: plain().stretch(2, 1), StageError, "needs the image"),
        (lambda: plain().features(X[:, :0]), EncoderError, r"failed on an input of shape \(1, 3, 0, 32\)"),
        (lambda: plain().class_index("tabby"), ClassError, "class names are not known"),
        (lambda: Encoder.from_module(AWKWARD["plain"](), input_shape=(1, 32, 32)), EncoderError, r"\(1, 1, 32, 32\)"),
        (
            lambda: Encoder.from_module(AWKWARD["plain"](), stages=["x"], input_shape=(3, 32, 32)),
            StageError,
            "no module 'x'",
        ),
        (
            lambda: Encoder.from_module(AWKWARD["plain"](), classes=["a"], input_shape=(3, 32, 32)),
            ClassError,
            "1 class names.*5 outputs",
        ),
        (lambda: Encoder.from_module(torch.relu), EncoderError, "expected a torch.nn.Module"),
        (
            lambda: Encoder.from_module(AWKWARD["plain"](), input_shape=(3,)),
            OptionError,
            r"input_shape=\(3,\): expected",
        ),
        (lambda: Encoder.from_module(AWKWARD["plain"](), input_shape=(1, 3, 32, 32)), OptionError, r"\(1, 3, 32, 32\)"),
        (lambda: Encoder.from_module(AWKWARD["plain"](), input_shape="3,32,32"), OptionError, "input_shape='3,32,32'"),
        (lambda: Encoder.from_module(AWKWARD["plain"](), input_shape=(3, 0, 32)), OptionError, r"\(3, 0, 32\)"),
        (
            lambda: Encoder.from_module(AWKWARD["plain"](), preprocessing="size=32"),
            OptionError,
            "expected a Preprocessing",
        ),
        (lambda: Encoder.from_module(AWKWARD["plain"](), stages=[5]), StageError, r"stages=\[5\]: expected a list"),
        (
            lambda: Encoder.from_module(AWKWARD["plain"](), stages="level1"),
            StageError,
            "stages='level1': expected a list",
        ),
        (lambda: plain().to(device="nonsense"), OptionError, "device='nonsense'.*cannot be had here"),
        (lambda: plain().to(device="cuda:99"), OptionError, "device='cuda:99'.*cannot be had here"),
        (lambda: plain().to(device="meta"), OptionError, "device='meta'.*cannot be had here"),
        (lambda: plain().to(device="hpu"), OptionError, "device='hpu'.*cannot be had here"),
        (lambda: plain().to(dtype=torch.int32), OptionError, "dtype=torch.int32 cannot be had here"),
        (lambda: plain().to(dtype=torch.complex64), OptionError, "dtype=torch.complex64 cannot be had here"),
        (lambda: plain().features(X.to_sparse()), ImageError, "got a sparse_coo tensor"),
        (lambda: plain().features(X.to("meta")), ImageError, "got a meta tensor"),
        (lambda: plain().features(X.to(torch.float8_e4m3fn)), ImageError, "float8"),
    ],
)
def test_errors_name_the_value_and_what_to_do(call: Callable[[], Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_named(value: float) -> None:
    net = AWKWARD["plain"]()
    with torch.no_grad():
        net.level2[3].weight[0, 0, 0, 0] = value
    with pytest.raises(NumericsError, match=re.escape("level2.3.weight")):
        Encoder.from_module(net, input_shape=(3, 32, 32))


class Without(Plain):
    """Its forward pass carries no gradient."""

    def __init__(self, spoil: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.spoil = spoil

    def forward(self, x: Tensor) -> Tensor:
        return self.spoil(super().forward(x))


@pytest.mark.parametrize(
    "spoil",
    [
        torch.no_grad()(lambda x: x * 2),
        lambda x: x.argmax(1, keepdim=True) * 1.0,
        lambda x: torch.from_numpy(x.detach().numpy()),
    ],
    ids=["no_grad", "argmax", "numpy"],
)
def test_a_network_without_a_gradient_is_refused(spoil: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(EncoderError, match=r"no gradient.*no_grad|does not come from a tensor operation"):
        Encoder.from_module(settled(Without(spoil)), input_shape=(3, 32, 32))


# ---- what an encoder says -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", AWKWARD)
def test_the_self_check_and_its_notes(name: str) -> None:
    made = Encoder.from_module(AWKWARD[name](), input_shape=AWKWARD[name].input_shape)
    if AWKWARD[name].own_backward:
        assert not made.vjp_discrepancy < 1e-3
    else:
        assert made.vjp_discrepancy < {torch.float16: 5e-2}.get(made.dtype, 1e-5)
    assert bool(made.notes) is bool(AWKWARD[name].note)
    assert AWKWARD[name].note in " ".join(made.notes)
    assert all(note in repr(made) for note in made.notes)
    assert made.double().notes == made.notes or name in ("straight_through",)


def test_a_backward_pass_that_differs_is_noted() -> None:
    """Guided backpropagation changes gradients by hooks: the derivative stays that of the forward pass."""
    net = AWKWARD["plain"]()
    net.level1[2].register_full_backward_hook(lambda module, into, out: (2 * into[0],))
    made = Encoder.from_module(net, input_shape=(3, 32, 32))
    assert "the VJP differs from the network's own autograd by 5.0e-01" in " ".join(made.notes)
    w = torch.ones(10, 8, 8)
    plain = Encoder.from_module(AWKWARD["plain"](), input_shape=(3, 32, 32))
    assert torch.equal(made.jacobian(X, 3).vm(w), plain.jacobian(X, 3).vm(w))


def test_what_an_encoder_prints() -> None:
    made = Encoder.from_module(
        AWKWARD["plain"](), name="mine", classes=list("abcde"), input_shape=(3, 32, 32), notes=["random weights"]
    )
    lines = repr(made).splitlines()
    assert lines[0] == "Encoder mine: input 3x32x32, 5 classes, float32 on cpu"
    assert "note: random weights" in lines
    assert [line.split()[1] for line in lines[2:5]] == ["level1", "level2", "level3"]
    assert made.class_index("c") == 2
    assert made.class_name(2) == "c"
    assert encoder("plain").class_name(2) == "class 2"


def test_an_encoder_in_another_type_is_a_copy() -> None:
    single = Encoder.from_module(AWKWARD["plain"](), name="mine", classes=list("abcde"), input_shape=(3, 32, 32))
    double = single.double()
    assert (single.dtype, double.dtype) == (torch.float32, torch.float64)
    assert (double.name, double.classes, double.preprocessing) == (single.name, single.classes, single.preprocessing)
    assert single.features(X.double()).dtype == torch.float32
    assert double.features(X).dtype == torch.float64
    assert relative(single.features(X).double(), double.features(X)) < 1e-6


def test_the_digest_tells_weights_apart() -> None:
    net = AWKWARD["plain"]()
    digest = Encoder.from_module(net, input_shape=(3, 32, 32)).weights_digest
    assert digest == Encoder.from_module(AWKWARD["plain"](), input_shape=(3, 32, 32)).weights_digest
    assert re.fullmatch("[0-9a-f]{64}", digest)
    with torch.no_grad():
        net.level1[1].running_mean[0] += 1e-3
    assert digest != Encoder.from_module(net, input_shape=(3, 32, 32)).weights_digest
    assert Encoder.from_module(net, input_shape=(3, 32, 32), weights_digest="given").weights_digest == "given"


def test_a_network_without_a_card_gets_an_assumed_preprocessing() -> None:
    made = Encoder.from_module(AWKWARD["one_channel"](), input_shape=(1, 28, 28))
    assert made.preprocessing.channels == 1
    assert made.preprocessing.size == (28, 28)
    assert made.preprocessing.assumed
    x = made.preprocess(Image.new("RGB", (50, 40), "red"))
    assert x.shape == (1, 28, 28)
    assert made.features(x).shape == (10, 7, 7)
    given = Preprocessing((16, 24), None)
    assert Encoder.from_module(AWKWARD["plain"](), preprocessing=given).input_shape == (3, 16, 24)


def test_a_compiled_network_is_recorded_without_compiling() -> None:
    made = Encoder.from_module(torch.compile(Plain(), backend=must_not_compile), input_shape=(3, 32, 32))
    made.jacobian(X, 2).vm(torch.ones(8, 16, 16))
    assert find(made.tape(X[None]), "level2").op > 0


def test_a_network_that_does_nothing_has_no_stages_and_the_identity_for_a_jacobian() -> None:
    made = Encoder.from_module(nn.Identity(), input_shape=(3, 4, 5))
    x = X[:, :4, :5]
    assert torch.equal(made.jacobian(x, "logits").vm(2 * x), 2 * x)
    with pytest.raises(EncoderError, match="no spatial stages"):
        _ = made.stages


def test_images_of_a_tensor_subclass_are_tensors() -> None:
    class Photo(Tensor):
        pass

    single = Encoder.from_module(AWKWARD["plain"](), input_shape=(3, 32, 32))
    found = single.features(X.as_subclass(Photo), 2)
    assert type(found) is Tensor
    assert torch.equal(found, single.features(X, 2))
