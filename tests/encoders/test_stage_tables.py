"""Every listed network is split as a person who knows it would draw it: names, shapes, gates, what a unit sees, the head."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from oracles.awkward_nets import AWKWARD, SPATIAL, Awkward
from oracles.families import library_net
from torch import nn

from pullback.encoders.encoder import Encoder
from pullback.errors import EncoderError

EXACT = "linear after global average pooling: exact class weights"
NORMED = "linear after global average pooling and a norm: the norm is linearised at the image"
OTHER = "not linear"

# One line for each stage: name, channels, side, whether its boundary is a ReLU's output, and the windows on the widest
# path since the stage before: kernel/stride, padded to the middle unless "p" says otherwise, "^" for ceil mode, "x" for
# repetition. "global" and a module instead: that module lets a unit see the whole image.
RESNET18 = """
    layer1  64   56  rectified  7/2 3/2 3x4
    layer2  128  28  rectified  3/2 3x3
    layer3  256  14  rectified  3/2 3x3
    layer4  512  7   rectified  3/2 3x3
"""
RESNET50 = """
    layer1  256   56  rectified  7/2 3/2 3x3
    layer2  512   28  rectified  3/2 3x3
    layer3  1024  14  rectified  3/2 3x5
    layer4  2048  7   rectified  3/2 3x2
"""
MOBILENET_V2 = """
    features.1   16    112  signed     3/2 3
    features.3   24    56   signed     3/2 3
    features.6   32    28   signed     3/2 3x2
    features.13  96    14   signed     3/2 3x6
    features.18  1280  7    rectified  3/2 3x3
"""
MOBILENETV2_100_SAME = """
    blocks.0  16    112  signed     3/2p0^ 3
    blocks.1  24    56   signed     3/2p0^ 3
    blocks.2  32    28   signed     3/2p0^ 3x2
    blocks.4  96    14   signed     3/2p0^ 3x6
    bn2       1280  7    rectified  3/2p0^ 3x3
"""
CONVNEXT_TINY = """
    features.1  96   56  signed  4/4p0 7x3
    features.3  192  28  signed  2/2 7x3
    features.5  384  14  signed  2/2 7x9
    features.7  768  7   signed  2/2 7x3
"""
SQUEEZENET1_1 = """
    features.4   128  55  rectified  3/2p0 3/2p0^ 3x2
    features.7   256  27  rectified  3/2p0^ 3x2
    features.12  512  13  rectified  3/2p0^ 3x4
"""
CIFAR_RESNET = """
    layer1  16  32  rectified  3 3x{}
    layer2  32  16  rectified  3/2 3x{}
    layer3  64  8   rectified  3/2 3x{}
"""
CERTIFIED = """
    1  16  16  rectified  4/2p1
    3  32  8   rectified  4/2p1
"""

LIBRARY = {
    "torchvision:resnet18": (RESNET18, EXACT),
    "torchvision:resnet50": (RESNET50, EXACT),
    # A dense block ends in a concatenation of raw convolutions; the transition that follows belongs to the next stage.
    "torchvision:densenet121": ("""
        features.denseblock1  256   56  signed     7/2 3/2 3x6
        features.denseblock2  512   28  signed     2/2 3x12
        features.denseblock3  1024  14  signed     2/2 3x24
        relu after features   1024  7   rectified  2/2 3x16
    """, EXACT),
    "torchvision:vgg16_bn": ("""
        features.5   64   224  rectified  3x2
        features.12  128  112  rectified  2/2 3x2
        features.22  256  56   rectified  2/2 3x3
        features.32  512  28   rectified  2/2 3x3
        features.42  512  14   rectified  2/2 3x3
    """, OTHER),
    # Its last convolution is its classifier, so the deepest features are those of the last fire module.
    "torchvision:squeezenet1_1": (SQUEEZENET1_1, OTHER),
    "torchvision:mobilenet_v2": (MOBILENET_V2, EXACT),
    "torchvision:mobilenet_v3_small": ("""
        features.1   16   56  signed  global features.1.block.1.avgpool
        features.3   24   28  signed  global features.1.block.1.avgpool
        features.8   48   14  signed  global features.1.block.1.avgpool
        features.12  576  7   signed  global features.1.block.1.avgpool
    """, OTHER),
    "torchvision:efficientnet_b0": ("""
        features.1  16    112  signed  global features.1.0.block.1.avgpool
        features.2  24    56   signed  global features.1.0.block.1.avgpool
        features.3  40    28   signed  global features.1.0.block.1.avgpool
        features.5  112   14   signed  global features.1.0.block.1.avgpool
        features.8  1280  7    signed  global features.1.0.block.1.avgpool
    """, EXACT),
    "torchvision:convnext_tiny": (CONVNEXT_TINY, NORMED),
    "torchvision:regnet_y_400mf": ("""
        trunk_output.block1  48   56  rectified  global trunk_output.block1.block1-0.f.se.avgpool
        trunk_output.block2  104  28  rectified  global trunk_output.block1.block1-0.f.se.avgpool
        trunk_output.block3  208  14  rectified  global trunk_output.block1.block1-0.f.se.avgpool
        trunk_output.block4  440  7   rectified  global trunk_output.block1.block1-0.f.se.avgpool
    """, EXACT),
    # Channels that a unit passes on come out of an earlier ReLU, and a shuffle keeps their sign.
    "torchvision:shufflenet_v2_x1_0": ("""
        stage2  116   28  rectified  3/2 3/2 3/2 3x3
        stage3  232   14  rectified  3/2 3x7
        conv5   1024  7   rectified  3/2 3x3
    """, EXACT),
    "torchvision:googlenet": ("""
        conv3        192   56  rectified  7/2 3/2p0^ 3
        inception3b  480   28  rectified  3/2p0^ 3x2
        inception4e  832   14  rectified  3/2p0^ 3x5
        inception5b  1024  7   rectified  2/2 3x2
    """, EXACT),
    "timm:resnet50": (RESNET50, EXACT),
    "timm:convnext_tiny": (re.sub(r"features\.([1357])", lambda m: f"stages.{int(m[1]) // 2}", CONVNEXT_TINY), NORMED),
    "timm:mobilenetv2_100?pad_type=same": (MOBILENETV2_100_SAME, EXACT),
    "timm:efficientnet_lite0": ("""
        blocks.0  16    112  signed     3/2 3
        blocks.1  24    56   signed     3/2 3
        blocks.2  40    28   signed     5/2 5
        blocks.4  112   14   signed     3/2 3x2 5x3
        bn2       1280  7    rectified  5/2 5x3 3
    """, EXACT),
    # LeakyReLU, and a sum after it.
    "timm:darknet53": ("""
        stages.0  64    112  signed  3 3/2 3
        stages.1  128   56   signed  3/2 3x2
        stages.2  256   28   signed  3/2 3x8
        stages.3  512   14   signed  3/2 3x8
        stages.4  1024  7    signed  3/2 3x4
    """, EXACT),
    "timm:repvgg_a0": ("""
        stages.0  48    56  rectified  3/2 3/2 3
        stages.1  96    28  rectified  3/2 3x3
        stages.2  192   14  rectified  3/2 3x13
        stages.3  1280  7   rectified  3/2
    """, EXACT),
}  # fmt: skip

DATA = {
    "resnet18_finetuned": (RESNET18, EXACT),
    "squeezenet1_0": ("""
        features.5   256  54  rectified  7/2p0 3/2p0^ 3x3
        features.10  512  27  rectified  3/2p0^ 3x4
        features.12  512  13  rectified  3/2p0^ 3
    """, OTHER),
    "squeezenet1_1": (SQUEEZENET1_1, OTHER),
    "mobilenet_v2": (MOBILENET_V2, EXACT),
    "mobilenetv2_100_same": (MOBILENETV2_100_SAME, EXACT),
    "cifar10_resnet20": (CIFAR_RESNET.format(6, 5, 5), EXACT),
    "cifar10_resnet56": (CIFAR_RESNET.format(18, 17, 17), EXACT),
    "cifar10_convnext": ("""
        features.1  40   8  signed  4/4p0 7x2
        features.3  80   4  signed  2/2 7x2
        features.5  160  2  signed  2/2 7x2
    """, NORMED),
    "cifar10_certified_linf": (CERTIFIED, OTHER),
    "cifar10_certified_l2": (CERTIFIED, OTHER),
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    name: str
    channels: int
    side: int
    rectified: bool
    windows: str

    @property
    def looks_everywhere(self) -> str:
        """The module that sees everything, or nothing."""
        return self.windows.removeprefix("global ") if self.windows.startswith("global ") else ""


def rows(table: str) -> list[Row]:
    found = []
    for line in table.strip().splitlines():
        name, channels, side, gate, windows = re.split(r"\s{2,}", line.strip(), maxsplit=4)
        found.append(Row(name, int(channels), int(side), gate == "rectified", windows))
    return found


def layers(windows: str) -> list[tuple[int, int, int, bool]]:
    """(kernel, stride, padding, ceil mode) of each window, in order."""
    found = []
    for token in windows.split():
        kernel, stride, padding, ceil, times = re.fullmatch(
            r"(\d+)(?:/(\d+))?(?:p(\d+))?(\^)?(?:x(\d+))?", token
        ).groups()
        k = int(kernel)
        found += [(k, int(stride or 1), (k - 1) // 2 if padding is None else int(padding), bool(ceil))] * int(
            times or 1
        )
    return found


def central_field(chain: list[tuple[int, int, int, bool]], side: int) -> tuple[int, int]:
    """Side of the last map, and how many pixels of a line of `side` its central unit sees: interval arithmetic."""
    sides = [side]
    for k, s, p, ceil in chain:
        span = sides[-1] + 2 * p - k
        sides.append((-(-span // s) if ceil else span // s) + 1)
    low = high = sides[-1] // 2
    for (k, s, p, _), n in zip(reversed(chain), reversed(sides[:-1]), strict=True):
        low, high = max(low * s - p, 0), min(high * s - p + k - 1, n - 1)
    return sides[-1], high - low + 1


def compare(encoder: Encoder, table: str, head: str) -> None:
    expected = rows(table)
    shapes = [(s.name, s.shape) for s in encoder.stages]
    assert shapes == [(row.name, (row.channels, row.side, row.side)) for row in expected]
    image = encoder.input_shape[-1]
    chain: list[tuple[int, int, int, bool]] = []
    for stage, row in zip(encoder.stages, expected, strict=True):
        assert stage.number == expected.index(row) + 1
        assert stage.stride == pytest.approx(image / row.side, abs=0.05)
        assert stage.rectified is row.rectified, stage
        assert ("rectified" in stage.gate) is row.rectified
        if row.looks_everywhere:
            assert stage.field == (image, image)
            assert stage.global_reason.endswith(f" in {row.looks_everywhere}"), stage
        else:
            chain += layers(row.windows)
            side, field = central_field(chain, image)
            assert side == row.side, "the windows of the table do not lead to its shapes"
            assert stage.field == (field, field), stage
            assert stage.global_reason is None
    assert encoder.head.kind.startswith(head)


@pytest.mark.parametrize("spec", LIBRARY)
def test_networks_of_the_libraries(spec: str) -> None:
    encoder = Encoder.from_module(library_net(spec))
    compare(encoder, *LIBRARY[spec])
    assert (encoder.head.weight is not None) is (LIBRARY[spec][1] == EXACT)


@pytest.mark.parametrize("name", DATA)
def test_networks_of_the_data_folder(name: str, real_net: Callable[[str], nn.Module], load: object) -> None:
    side = load.MODELS[name][2]  # type: ignore[attr-defined]
    net = real_net(name)
    encoder = Encoder.from_module(net, input_shape=(3, side, side))
    compare(encoder, *DATA[name])
    if DATA[name][1] == EXACT:
        last = [m for m in net.modules() if isinstance(m, nn.Linear)][-1]
        assert torch.equal(encoder.head.weight, last.weight)


def test_every_network_of_the_data_folder_is_in_the_table(load: object) -> None:
    assert set(DATA) == set(load.MODELS)  # type: ignore[attr-defined]


def test_known_fields_of_well_known_networks() -> None:
    """The interval arithmetic of these tests gives the numbers that the literature gives."""
    for table, known in ((RESNET18, [43, 99, 211, 435]), (LIBRARY["torchvision:vgg16_bn"][0], [5, 14, 40, 92, 196])):
        chain: list[tuple[int, int, int, bool]] = []
        for row, field in zip(rows(table), known, strict=True):
            chain += layers(row.windows)
            assert central_field(chain, 2048)[1] == field


@pytest.mark.parametrize("awkward", SPATIAL.values(), ids=SPATIAL)
def test_awkward_networks(awkward: Awkward) -> None:
    encoder = Encoder.from_module(awkward(), input_shape=awkward.input_shape)
    assert tuple((s.name, s.shape) for s in encoder.stages) == awkward.stages
    assert tuple(s.field for s in encoder.stages) == awkward.fields
    assert tuple(s.number for s in encoder.stages if not s.rectified) == awkward.signed
    assert (encoder.head.weight is not None) is awkward.exact_head
    assert len({s.name for s in encoder.stages}) == encoder.depth
    resolutions = [s.shape[1] * s.shape[2] for s in encoder.stages]
    assert all(finer > coarser for finer, coarser in pairwise(resolutions))


@pytest.mark.parametrize("name", [name for name in AWKWARD if name not in SPATIAL])
def test_networks_without_spatial_stages(name: str) -> None:
    encoder = Encoder.from_module(AWKWARD[name](), input_shape=AWKWARD[name].input_shape)
    with pytest.raises(EncoderError, match=r"no spatial stages.*Jacobian works"):
        _ = encoder.stages
    assert "no spatial stages" in repr(encoder)
