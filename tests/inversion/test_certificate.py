"""The support guarantee: fields known by hand, the promise as a property, and pictures that break it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.small_nets import SmallNet, image, randomised, small_encoder
from torch import Tensor, nn
from torch.nn import functional as F

from pullback.encoders import Encoder, Preprocessing
from pullback.errors import OptionError, StageError
from pullback.inversion import Correctors, Inverter
from pullback.inversion.certificate import certify, dilate, gradient_energy
from pullback.inversion.opened import Opened

SIZE = 48
# Pixels that a unit of SmallNet sees to each side: 3 more positions for each stage, 2^(l-1) pixels apart.
REACH = {1: 3, 2: 9, 3: 21}


def silent(net: nn.Module, seed: int, stages: list[str], size: int = SIZE) -> Encoder:
    """The network with every shift zero: where the image is zero, so are all features, and fields become local."""
    randomised(net, seed)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.zero_()
            module.bias.data.zero_()
    preprocessing = Preprocessing(size=(size, size), resize=None, mean=(0.5,) * 3, std=(0.25,) * 3)
    return Encoder.from_module(net, stages=stages, preprocessing=preprocessing)


def silent_net(seed: int = 0, size: int = SIZE) -> Encoder:
    return silent(SmallNet(), seed, ["layer1", "layer2", "layer3"], size)


def spots(*corners: tuple[int, int], size: int = SIZE, seed: int = 0) -> Tensor:
    """An image that is zero but for patches of 6 x 6."""
    x = torch.zeros(3, size, size, dtype=torch.float64)
    for n, (i, j) in enumerate(corners):
        x[:, i : i + 6, j : j + 6] = image(seed + n, 6)[:, : size - i, : size - j]
    return x


def biased(encoder: Encoder, seed: int) -> Correctors:
    """Correctors with random gamma and beta, as if they had been fitted."""
    plain = Correctors.unfitted([3, *(s.channels for s in encoder.stages[:-1])])
    generator = torch.Generator().manual_seed(seed)
    for corrector in plain.levels:
        corrector.gamma.add_(torch.rand(corrector.gamma.shape, generator=generator))
        corrector.beta.add_(torch.randn(corrector.beta.shape, generator=generator))
    return replace(plain, label="biased")


def strongest(features: Tensor, inside: Tensor | None = None) -> tuple[int, int, int]:
    """The unit with the largest feature, among the positions `inside` (H, W)."""
    chosen = features.abs() if inside is None else features.abs() * inside
    c, i, j = (int(n) for n in torch.unravel_index(chosen.argmax(), chosen.shape))
    return c, i, j


# ---- what a certificate says --------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [1, 2, 3])
@pytest.mark.parametrize("at", ["corner", "middle"])
def test_the_field_of_a_unit_is_the_one_known_by_hand(level: int, at: str) -> None:
    x = image(size=SIZE)
    with Inverter(small_encoder(size=SIZE), "vjp")(x) as inv:
        features = inv.features(level)
        positions = torch.zeros(features.shape[1:])
        middle = features.shape[1] // 2
        positions[0, 0] = at == "corner"
        positions[middle, middle] = at == "middle"
        c, i, j = strongest(features, positions)
        certificate = inv.certificate(level, unit=(c, i, j))
    expected = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    rows, columns = (slice(max(0, n * 2**level - REACH[level]), n * 2**level + REACH[level] + 1) for n in (i, j))
    expected[rows, columns] = True
    assert torch.equal(certificate.field, expected)
    assert certificate.area == pytest.approx(float(expected.double().mean()))
    assert not certificate.vacuous and certificate.holds and certificate.exact
    assert f"{100 * certificate.area:.1f} %" in certificate.words


def test_the_field_of_a_channel_a_region_and_the_whole_stage_are_unions_of_units() -> None:
    encoder, x = silent_net(), spots((4, 4), (36, 30))
    with Inverter(encoder, "vjp")(x) as inv:
        features = inv.features(2)

        def union(keep: Tensor) -> Tensor:
            found = torch.zeros(SIZE, SIZE, dtype=torch.bool)
            for _, i, j in ((features != 0) & keep).nonzero().tolist():
                rows, columns = (slice(max(0, 4 * n - REACH[2]), 4 * n + REACH[2] + 1) for n in (i, j))
                found[rows, columns] = True
            return found

        region = torch.zeros(SIZE, SIZE, dtype=torch.bool)
        region[34:40, 29:33] = True  # rows 8 and 9, columns 7 and 8 of the stage's 12 x 12 cells of 4 x 4 pixels
        cells = torch.zeros(12, 12, dtype=torch.bool)
        cells[8:10, 7:9] = True
        channel = torch.zeros(12, dtype=torch.bool)
        channel[5] = True
        everything = torch.ones_like(features, dtype=torch.bool)
        assert torch.equal(inv.certificate(2).field, union(everything))
        assert torch.equal(inv.certificate(2, channel=5).field, union(channel[:, None, None].expand_as(everything)))
        assert torch.equal(inv.certificate(2, region=region).field, union(cells.expand_as(everything)))
        assert union(everything).sum() > union(cells.expand_as(everything)).sum() > 0


def test_a_certificate_is_vacuous_where_the_field_is_the_whole_image() -> None:
    with Inverter(small_encoder(), "vjp")(image()) as inv:
        whole = inv.certificate(3)
        assert whole.vacuous and whole.area == 1 and bool(whole.field.all())
        assert whole.words.startswith("vacuous")
        assert whole.areas["largest"] == 1 and whole.areas["channels"] == 8
    with Inverter(small_encoder(size=SIZE), "vjp")(image(size=SIZE)) as inv:
        areas = inv.certificate(1).areas
        assert 0 < areas["smallest"] <= areas["median"] <= areas["largest"] <= 1


def test_a_rim_of_one_pixel_around_the_field_still_says_nothing() -> None:
    """Gradients are looked for in the dilated field: where that is everything, every picture would pass."""
    encoder = small_encoder()
    with Opened(encoder, image()) as opened:
        noise = torch.randn(3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        seed = torch.zeros_like(opened.levels[1])
        seed[:, 2:, 2:] = 1  # rows and columns 1 to 15
        rim = certify(opened, 1, seed, noise, named="all but the first units")
        assert rim.vacuous and rim.holds and rim.field.sum() == 15 * 15
        assert "rim of one pixel" in rim.words
        seed[:, 2] = 0  # rows 3 to 15
        further = certify(opened, 1, seed, noise, named="fewer units")
        assert not further.vacuous and not further.holds and further.field.sum() == 13 * 15


def test_an_operation_over_all_positions_makes_every_field_vacuous() -> None:
    class Squeezed(SmallNet):
        def forward(self, x: Tensor) -> Tensor:
            x = self.layer1(x)
            x = self.layer2(x * x.mean((2, 3), keepdim=True))
            return self.fc(self.pool(self.layer3(x)).flatten(1))

    encoder = silent(Squeezed(), 0, ["layer1", "layer2", "layer3"])
    with Inverter(encoder, "vjp")(image(size=SIZE)) as inv:
        assert not inv.certificate(1, unit=strongest(inv.features(1))).vacuous
        assert inv.certificate(2, unit=strongest(inv.features(2))).vacuous


def test_the_wiener_inverse_is_certified_before_its_prior() -> None:
    encoder = silent_net()
    with Inverter(encoder, "wiener", steps=1)(spots((4, 4))) as inv:
        unit = inv.certificate(1, unit=strongest(inv.features(1)))
    assert unit.vacuous  # the solve gives every position a share
    assert "mixes all positions" in unit.words and unit.seed.startswith("unit")


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        ({"channel": 16}, StageError),
        ({"channel": -1}, StageError),
        ({"unit": (0, 6, 0)}, StageError),
        ({"unit": (0, 1)}, StageError),
        ({"region": torch.ones(5, 5)}, OptionError),
        ({"channel": 1, "unit": (0, 0, 0)}, OptionError),
    ],
)
def test_a_seed_that_is_not_there_is_one_error(asked: dict[str, object], error: type[Exception]) -> None:
    with Inverter(silent_net(), "vjp")(spots((4, 4))) as inv, pytest.raises(error):
        inv.certificate(3, **asked)


def test_the_blind_inverse_has_no_certificate() -> None:
    with Inverter(small_encoder(), "blind", steps=1)(image()) as inv, pytest.raises(OptionError, match="blind"):
        inv.certificate(1)


# ---- the guarantee ------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(
    net=st.integers(0, 3),
    where=st.lists(st.tuples(st.integers(0, 44), st.integers(0, 44)), min_size=1, max_size=3),
    level=st.integers(1, 3),
    kind=st.sampled_from(["whole", "channel", "unit", "region"]),
    fitted=st.integers(0, 3),
)
def test_nested_and_exact_implies_holds(
    net: int, where: list[tuple[int, int]], level: int, kind: str, fitted: int
) -> None:
    """With biases, over networks, images and seeds: equation (11) as it is stated in section 4."""
    encoder = ENCODERS[net]
    with Inverter(encoder, correctors=biased(encoder, fitted) if fitted else None)(spots(*where, seed=net)) as inv:
        features = inv.features(level)
        region = torch.zeros(SIZE, SIZE)
        region[where[0][0] :, where[0][1] :] = 1
        asked = {
            "whole": {},
            "channel": {"channel": fitted},
            "unit": {"unit": strongest(features)},
            "region": {"region": region},
        }[kind]
        certificate = inv.certificate(level, **asked)
    assert certificate.exact
    assert certificate.holds or not certificate.nested_condition
    assert certificate.holds == (certificate.outside < 1e-12)


ENCODERS = [silent_net(seed) for seed in range(4)]


def test_the_promise_is_not_an_empty_one() -> None:
    """A nested seed whose field is a small part of the image, with biases that draw everywhere inside it."""
    encoder, x = ENCODERS[0], spots((20, 20))
    with Inverter(encoder, correctors=biased(encoder, 1))(x) as inv:
        certificate = inv.certificate(2)
        null = inv.stage(2).null
    assert certificate.nested_condition and certificate.exact and certificate.holds
    assert certificate.area < 0.7 and certificate.words.endswith("so this was guaranteed)")
    assert null is not None and bool((gradient_energy(null) > 0).any())  # what the biases draw has edges to be held


def test_mean_removal_alone_leaves_the_field_of_a_channel_that_is_not_nested() -> None:
    """Section 4: without any bias. The raw VJP and the rms-only corrector stay inside, exactly."""
    encoder, x = ENCODERS[0], spots((2, 2), (38, 38))
    half = torch.zeros(12, 12)
    half[:5, :5] = 1
    outside = {}
    for name, inverter in {
        "centred": Inverter(encoder),
        "rms only": Inverter(encoder, correctors=Correctors.unfitted([3, 8, 12]).rms_only()),
        "raw": Inverter(encoder, "vjp"),
    }.items():
        with inverter(x) as inv:
            certificate = inv.certificate(2, unit=strongest(inv.features(2), half))
        assert not certificate.nested_condition and certificate.exact and not certificate.vacuous
        outside[name] = certificate.outside
        assert certificate.holds is (name != "centred")
        promise = "nothing" if name == "centred" else "this"
        assert certificate.words.endswith(f"so {promise} was guaranteed)")
    assert outside["centred"] > 1e-9
    assert outside["rms only"] == outside["raw"] == 0


def test_pictures_of_rms_only_channels_lie_in_the_channels_own_fields() -> None:
    """Not only what the certificate draws for itself, in additive and in frozen mode."""
    encoder, x = ENCODERS[2], spots((2, 2))
    x[0, 40, 40] = 1  # to which only some channels answer
    centred = Correctors.unfitted([3, 8, 12])
    for mode in ("additive", "frozen"):
        for correctors, stays in ((centred.rms_only(), True), (centred, False)):
            with Inverter(encoder, mode=mode, correctors=correctors)(x) as inv:
                outside = []
                for channels, pictures in inv.channels(2):
                    for c, picture in zip(channels.tolist(), pictures, strict=True):
                        field = dilate(inv.certificate(2, channel=c).field)
                        outside.append(float(gradient_energy(picture)[~field].sum()))
            assert (max(outside) == 0) is stays


def test_a_decoder_with_spatial_kernels_fails() -> None:
    """The pull-back of one unit, smoothed with a 5 x 5 kernel: two pixels beyond the field."""
    encoder, x = ENCODERS[0], spots((20, 20))
    with Opened(encoder, x) as opened:
        features = opened.levels[1]
        seed = torch.zeros_like(features)
        seed[strongest(features)] = 1
        picture = opened.whole(1).vm(seed)
        assert certify(opened, 1, seed, picture, named="unit").holds
        kernel = torch.ones(3, 1, 5, 5, dtype=torch.float64) / 25
        decoded = F.conv2d(picture[None], kernel, padding=2, groups=3)[0]
        certificate = certify(opened, 1, seed, decoded, named="unit")
    assert not certificate.holds
    assert certificate.outside > 0.01
    assert "outside" in certificate.words


class Bottleneck(nn.Module):
    """MobileNetV2's: expanded, filtered, projected, and no gate after the projection."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.expand, self.bn1 = nn.Conv2d(cin, 12, 1, bias=False), nn.BatchNorm2d(12)
        self.depthwise, self.bn2 = nn.Conv2d(12, 12, 3, 2, 1, groups=12, bias=False), nn.BatchNorm2d(12)
        self.project, self.bn3 = nn.Conv2d(12, cout, 1, bias=False), nn.BatchNorm2d(cout)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.bn2(self.depthwise(F.relu6(self.bn1(self.expand(x))))))
        return self.bn3(self.project(x))


class LinearBottlenecks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block1, self.block2 = Bottleneck(3, 4), Bottleneck(4, 6)
        self.gate, self.fc = nn.ReLU(), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.gate(self.block2(self.block1(x))).mean((2, 3)))


def test_signed_boundaries_promise_nothing() -> None:
    """A gate after the last boundary does not help those below it."""
    encoder = silent(LinearBottlenecks(), 0, ["block1", "gate"])
    assert [s.rectified for s in encoder.stages] == [False, True]
    with Inverter(encoder, correctors=biased(encoder, 1))(spots((20, 20))) as inv:
        first, second = inv.certificate(1), inv.certificate(2)
    assert first.exact  # no boundary below the first
    assert not second.exact and second.nested_condition
    assert "not every boundary below is rectified" in second.words


def test_without_gates_at_the_boundary_a_nested_seed_does_leave_its_field() -> None:
    """Why `exact` is asked for: a constant added to a linear boundary draws where the features are zero."""

    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 3, 2, 1, bias=False), nn.Conv2d(4, 6, 3, 2, 1, bias=False)
            self.fc = nn.Linear(6, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(F.relu(self.second(self.first(x))).mean((2, 3)))

    encoder = silent(Linear(), 0, ["first", "second"])
    with Inverter(encoder, correctors=biased(encoder, 1))(spots((20, 20))) as inv:
        certificate = inv.certificate(2)
    assert certificate.nested_condition and not certificate.exact and not certificate.holds


def test_one_pixel_of_dilation_and_forward_differences() -> None:
    field = torch.zeros(5, 6, dtype=torch.bool)
    field[0, 0] = field[3, 4] = True
    grown = dilate(field)
    assert grown.nonzero().tolist() == [
        [0, 0], [0, 1], [1, 0], [1, 1], [2, 3], [2, 4], [2, 5], [3, 3], [3, 4], [3, 5], [4, 3], [4, 4], [4, 5],
    ]  # fmt: skip
    picture = torch.zeros(2, 3, 3)
    picture[0, 1, 1], picture[1, 2, 2] = 2, 3
    expected = [[0.0, 4.0, 0.0], [4.0, 8.0, 9.0], [0.0, 9.0, 0.0]]
    assert gradient_energy(picture).tolist() == expected


# ---- trained networks ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "exact", "areas"),
    [
        # Areas of fields from the networks' strides and kernels, at 224 pixels: (field / 224)^2, less where clipped.
        ("squeezenet1_1", True, [23, 63, 207]),
        ("resnet18_finetuned", True, [43, 99, 211, 435]),
        ("mobilenetv2_100_same", False, [7, 19, 59, 315, 1000]),
    ],
)
def test_on_photographs_whole_stages_are_vacuous_and_units_are_not(
    real_net: Callable[[str], nn.Module],
    real_input: Callable[[str, str], Tensor],
    name: str,
    exact: bool,
    areas: list[int],
) -> None:
    encoder = Encoder.from_module(real_net(name))
    with Inverter(encoder, "vjp")(real_input(name, "zebra")) as inv:
        for level, side in enumerate(areas, start=1):
            whole = inv.certificate(level)
            assert whole.vacuous and whole.holds and whole.area > 0.99
            assert whole.exact is (exact or level == 1)
            assert whole.areas["smallest"] > 0.5  # of the strongest channels each is nearly everywhere
            unit = inv.certificate(level, unit=strongest(inv.features(level)))
            assert unit.holds and unit.outside == 0
            bound = min(1.0, (side / 224) ** 2)
            assert 0.2 * bound <= unit.area <= bound + 1e-9
            assert unit.vacuous is (unit.area > 0.99)
            if side < 100:
                assert unit.area < 0.2
