from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from oracles.awkward_modules import Plain, level, settled
from oracles.awkward_nets import AWKWARD
from oracles.families import FAMILIES
from torch import Tensor, nn
from torch.nn import functional as F

from pullback.encoders import Encoder
from pullback.encoders.splitting import find, name_of, split
from pullback.encoders.twin import read_logits, twin
from pullback.errors import EncoderError, StageError
from pullback.graph import Tape, record


class Apply(nn.Module):
    """A function as a network, with the modules that it uses under their names."""

    def __init__(self, function: Callable[..., Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def taped(net: nn.Module, shape: tuple[int, int, int] = (3, 32, 32), images: int = 1) -> Tape:
    x = torch.randn(images, *shape, generator=torch.Generator().manual_seed(0))
    copied = twin(net)
    return record(copied, x.to(next(copied.parameters()).dtype), read_logits)[0]


def drawn(net: nn.Module, shape: tuple[int, int, int] = (3, 32, 32), names: list[str] | None = None) -> list[tuple]:
    return [(b.name, *b.shape) for b in split(taped(net, shape), names)]


def conv(inputs: int, outputs: int, stride: int = 1, kernel: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2), nn.ReLU())


HEAD = {"pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten(), "fc": nn.Linear(8, 4)}


def _named(modules: dict[str, nn.Module]) -> nn.Module:
    net = nn.Sequential()
    for name, module in modules.items():
        net.add_module(name, module)
    return net


# ---- where the ends of levels lie ---------------------------------------------------------------------------------


class Inverted(nn.Module):
    """MobileNetV2's block: widen, stride, narrow. Its widened map is a single tensor of the finer level too."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.widen = conv(inputs, 12, kernel=1)
        self.filter = nn.Sequential(nn.Conv2d(12, 12, 3, stride, 1, groups=12), nn.ReLU())
        self.narrow = nn.Conv2d(12, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.narrow(self.filter(self.widen(x)))


def test_a_level_ends_before_the_block_in_which_the_resolution_drops() -> None:
    net = _named({"a": Inverted(3, 4, 1), "b": Inverted(4, 6, 2), "c": Inverted(6, 8, 2), **HEAD})
    assert drawn(net) == [("a", 4, 32, 32), ("b", 6, 16, 16), ("c", 8, 8, 8)]


def test_a_stage_module_that_holds_one_drop_keeps_its_blocks_together() -> None:
    stages = nn.ModuleList([_named({"down": Inverted(4, 4, 2), "more": Inverted(4, 4, 1)}) for _ in range(2)])

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return self.fc(x.mean((2, 3)))

    net = Apply(forward, stem=level(3, 4, 1), stages=stages, fc=nn.Linear(4, 3))
    assert drawn(net) == [("stem", 4, 32, 32), ("stages.0", 4, 16, 16), ("stages.1", 4, 8, 8)]


def test_a_transition_belongs_to_the_next_level() -> None:
    transition = nn.Sequential(conv(8, 6, kernel=1), nn.AvgPool2d(2))
    net = _named({"dense": level(3, 8, 1), "transition": transition, "deep": conv(6, 8), **HEAD})
    assert drawn(net) == [("dense", 8, 32, 32), ("deep", 8, 16, 16)]


def test_a_lone_stem_convolution_joins_the_next_level() -> None:
    net = _named(
        {"stem": conv(3, 4, 2), "shrink": nn.MaxPool2d(2), "body": level(4, 6, 1), "deep": level(6, 8, 2), **HEAD}
    )
    assert drawn(net) == [("body", 6, 8, 8), ("deep", 8, 4, 4)]


def test_two_lone_convolutions_stay_two_stages() -> None:
    net = _named({"a": conv(3, 4, 2), "b": conv(4, 8, 2), **HEAD})
    assert drawn(net) == [("a", 4, 16, 16), ("b", 8, 8, 8)]


def test_a_classifier_that_is_a_convolution_is_no_stage() -> None:
    net = _named(
        {
            "a": level(3, 4, 1),
            "b": level(4, 8, 2),
            "classifier": nn.Conv2d(8, 5, 1),
            "pool": HEAD["pool"],
            "flat": nn.Flatten(),
        }
    )
    assert drawn(net) == [("a", 4, 32, 32), ("b", 8, 16, 16)]


def test_a_network_that_ends_in_a_map_ends_before_its_last_convolution() -> None:
    net = _named({"a": level(3, 4, 1), "b": level(4, 8, 2), "score": nn.Conv2d(8, 5, 1)})
    assert drawn(net) == [("a", 4, 32, 32), ("b", 8, 16, 16)]


def test_convolutions_after_global_pooling_are_head() -> None:
    net = _named(
        {
            "a": level(3, 4, 1),
            "b": level(4, 8, 2),
            "pool": HEAD["pool"],
            "c": conv(8, 6, kernel=1),
            "d": nn.Conv2d(6, 5, 1),
        }
    )
    assert drawn(net) == [("a", 4, 32, 32), ("b", 8, 16, 16)]


@pytest.mark.parametrize("side", [32, 2])
def test_a_head_module_stays_whole_at_any_size(side: int) -> None:
    head = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), HEAD["pool"], nn.Flatten(), HEAD["fc"])
    net = _named({"a": level(3, 4, 1), "b": level(4, 8, 2), "head": head})
    assert [name for name, *_ in drawn(net, (3, side, side))] == ["a", "b"]


def test_a_level_without_parameters_is_no_stage() -> None:
    net = _named({"a": level(3, 4, 1), "p": nn.MaxPool2d(2), "q": nn.MaxPool2d(2), "b": level(4, 8, 1), **HEAD})
    assert drawn(net) == [("a", 4, 32, 32), ("b", 8, 8, 8)]


def test_pooling_of_a_single_position_is_no_stage() -> None:
    """Of a small image the last level has one position, and global pooling does not shrink it."""
    net = _named({"a": level(3, 4, 1), "b": level(4, 8, 2), **HEAD})
    assert drawn(net, (3, 2, 2)) == [("a", 4, 2, 2), ("b", 8, 1, 1)]


def test_one_resolution_throughout_is_one_stage() -> None:
    assert drawn(_named({"a": level(3, 8, 1), **HEAD})) == [("a", 8, 32, 32)]


def test_unpadded_convolutions_do_not_drop_the_resolution() -> None:
    net = _named({"a": nn.Sequential(nn.Conv2d(3, 4, 5), nn.ReLU(), nn.Conv2d(4, 8, 5), nn.ReLU()), **HEAD})
    assert drawn(net) == [("a", 8, 24, 24)]


def test_one_sided_drops_count() -> None:
    net = _named({"a": level(3, 4, 1), "b": nn.Sequential(nn.Conv2d(4, 8, 3, (1, 2), 1), nn.ReLU()), **HEAD})
    assert drawn(net) == [("a", 4, 32, 32), ("b", 8, 32, 16)]


def test_parallel_branches_are_joined_in_a_stage() -> None:
    """HRNet's kind: two resolutions side by side; only what joins them is a boundary."""

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        fine = self.stem(x)
        coarse = self.down(fine)
        fine = self.fine(fine) + F.interpolate(self.fuse(coarse), scale_factor=2)
        return self.fc(self.deep(fine).mean((2, 3)))

    net = Apply(
        forward, stem=level(3, 4, 1), down=conv(4, 6, 2), fine=conv(4, 4), fuse=nn.Conv2d(6, 4, 1), deep=level(4, 8, 2),
        fc=nn.Linear(8, 3),
    )  # fmt: skip
    assert drawn(net) == [("add after fuse", 4, 32, 32), ("deep", 8, 16, 16)]


def test_a_way_around_everything_leaves_no_stage() -> None:
    net = Apply(
        lambda self, x: self.fc(self.a(x).mean((2, 3))) + self.short(x.mean((2, 3))),
        a=level(3, 8, 1), fc=nn.Linear(8, 4), short=nn.Linear(3, 4),
    )  # fmt: skip
    with pytest.raises(EncoderError, match="no spatial stages"):
        drawn(net)


def test_a_hybrid_has_the_stages_of_its_cnn() -> None:
    net = FAMILIES["hybrid"]()
    assert drawn(net) == [("stem", 8, 16, 16), ("body", 12, 8, 8)]


def test_a_patch_embedding_alone_is_no_stage() -> None:
    with pytest.raises(EncoderError, match=r"no spatial stages.*encoder\.jacobian\(image, 'logits'\)"):
        drawn(AWKWARD["transformer"]())


def test_patches_followed_by_convolutions_are_stages() -> None:
    net = _named({"patches": nn.Conv2d(3, 4, 4, 4), "mix": level(4, 8, 1), **HEAD})
    assert drawn(net) == [("mix", 8, 8, 8)]


@pytest.mark.parametrize("images", [2, 3])
@pytest.mark.parametrize("name", [*AWKWARD, *FAMILIES])
def test_the_split_of_a_batch_is_that_of_an_image(name: str, images: int) -> None:
    made = {**AWKWARD, **FAMILIES}[name]
    found = []
    for n in (1, images):
        try:
            found.append([(b.name, b.shape) for b in split(taped(made(), made.input_shape, n))])
        except EncoderError as error:
            found.append([("error", str(error))])
    if name != "branching":
        assert found[0] == found[1]
    assert [shape for _, shape in found[0]] == [shape for _, shape in found[1]]


# ---- names --------------------------------------------------------------------------------------------------------


def test_functional_code_is_named_after_the_module_before_it_and_names_are_unique() -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        x = F.relu(F.conv2d(x, self.b.weight, padding=1))
        x = F.relu(F.conv2d(x, self.b.weight, padding=1, stride=2))
        return self.fc(x.mean((2, 3)))

    net = Apply(forward, a=nn.Conv2d(3, 8, 3, 1, 1), b=nn.Conv2d(8, 8, 3), fc=nn.Linear(8, 3))
    assert drawn(net) == [("relu#2 after a", 8, 32, 32), ("relu#3 after a", 8, 16, 16)]


def test_a_value_rewritten_in_place_is_not_named_after_its_first_maker() -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return self.fc(self.b(self.a(x).mul_(2)).mean((2, 3)))

    net = Apply(forward, a=level(3, 4, 1), b=level(4, 8, 2), fc=nn.Linear(8, 3))
    assert drawn(net)[0] == ("mul after a", 4, 32, 32)


def test_a_value_that_its_module_goes_on_to_rewrite_is_not_named_after_it() -> None:
    net = nn.Sequential(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True)), *HEAD.values())
    names = [name_of(tape, p) for tape in [taped(net)] for p in tape.cuts[1:3]]
    assert names == ["0.0", "0"]


PLAIN = settled(Plain())


def test_modules_may_be_named_instead() -> None:
    assert drawn(PLAIN, names=["level1.2", "level3"]) == [("level1.2", 6, 32, 32), ("level3", 10, 8, 8)]
    assert drawn(AWKWARD["one_relu"](), names=["relu#1", "relu#5"]) == [("relu#1", 6, 32, 32), ("relu#5", 10, 8, 8)]
    with pytest.raises(StageError, match="names no module"):
        drawn(PLAIN, names=[])


def test_a_module_without_work_of_its_own_may_be_named() -> None:
    """Dropout in eval mode hands its input on."""
    assert drawn(AWKWARD["train_mode"](), names=["drop"]) == [("drop", 10, 8, 8)]
    assert drawn(AWKWARD["backward_hooks"](), names=["level2"]) == [("level2", 8, 16, 16)]


@pytest.mark.parametrize(
    ("net", "name", "words"),
    [
        (PLAIN, "level4", "no module 'level4'.*nearest: level3"),
        (PLAIN, "level3#2", "no module 'level3#2'"),
        (PLAIN, "level3#last", "no module 'level3#last'"),
        (PLAIN, "fc", r"'fc' returns shape \(1, 5\); a stage is a feature map"),
        (AWKWARD["one_relu"](), "relu", "'relu' was called 5 times; say which: relu#1 to relu#5"),
        (AWKWARD["inplace_relu"](), "layer1.conv1", "no stage boundary: some path"),
    ],
)
def test_a_wrong_name_is_an_error_that_helps(net: nn.Module, name: str, words: str) -> None:
    with pytest.raises(StageError, match=words):
        drawn(net, names=[name])


@pytest.mark.parametrize("names", [["level2", "level1"], ["level1", "level1"], ["level3", "level3.5"]])
def test_stages_are_named_from_shallow_to_deep(names: list[str]) -> None:
    with pytest.raises(StageError, match=f"{names[1]!r} does not come after {names[0]!r}"):
        drawn(PLAIN, names=names)


def test_find_gives_the_value_that_a_module_returned() -> None:
    tape = taped(PLAIN)
    assert tape.shapes[find(tape, "level2.3").tensor] == (1, 8, 16, 16)
    assert tape.shapes[find(tape, "fc").tensor] == (1, 5)


class Swapping(nn.Module):
    """Two blocks of equal shapes, in an order that the image decides."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU())
        self.one, self.two = (nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU()) for _ in range(2))
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        first, second = (self.one, self.two) if x.mean() > 0 else (self.two, self.one)
        return self.fc(second(first(self.stem(x))).mean((2, 3)))


def test_no_stage_is_the_output_of_another_module_than_its_name_says() -> None:
    net = Swapping()
    encoder = Encoder.from_module(net, input_shape=(3, 32, 32))
    names = [s.name for s in encoder.stages]
    assert set(names) == {"stem", "one", "two"}
    recorded, other = (torch.full((3, 32, 32), v) for v in ((1.0, -1.0) if names[1] == "one" else (-1.0, 1.0)))
    first = getattr(net, names[1])
    with torch.no_grad():
        assert torch.allclose(encoder.features(recorded, names[1]), first(net.stem(recorded[None]))[0], atol=1e-6)
    for ask in (encoder.features, encoder.jacobian):
        for stage in (1, 2, names[1], names[2]):
            with pytest.raises(StageError, match=r"another path through the network: stages stem .* name stages"):
                ask(other, stage)
    stem = Encoder.from_module(net, stages=["stem"], input_shape=(3, 32, 32))
    for image in (recorded, other):
        with torch.no_grad():
            assert torch.allclose(stem.features(image, 1), net.stem(image[None])[0], atol=1e-6)


class Looping(nn.Module):
    """A block that runs twice or three times, as the image decides."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
        self.block, self.down = (nn.Sequential(nn.Conv2d(8, 8, 3, s, 1), nn.ReLU()) for s in (1, 2))
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        times = 3 if x.mean() > 0 else 2
        x = self.stem(x)
        for _ in range(times):
            x = self.block(x)
        return self.fc(self.down(x).mean((2, 3)))


def test_a_stage_may_end_after_another_number_of_calls_of_its_module() -> None:
    net = Looping()
    encoder = Encoder.from_module(net, input_shape=(3, 32, 32))
    for value, times in ((1.0, 3), (-1.0, 2)):
        image = torch.full((3, 32, 32), value)
        with torch.no_grad():
            expected = net.stem(image[None])
            for _ in range(times):
                expected = net.block(expected)
        assert torch.allclose(encoder.features(image, 1), expected[0], atol=1e-6)
