"""An encoder follows the user's module through later training, and never writes to it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pullback import Encoder, Inverter
from pullback.errors import EncoderError, OptionError


class Net(nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.first = nn.Sequential(
                nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, 1, 1), nn.ReLU()
            )
            self.second = nn.Sequential(nn.Conv2d(6, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
            self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x)).mean((2, 3)))


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def train(net: Net) -> None:
    net.train()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for seed in range(3):
        net(3 + draw(8, 3, 16, 16, seed=seed)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    net.eval()


def load(net: Net) -> None:
    other = Net(seed=5)
    train(other)
    net.load_state_dict(other.state_dict())


def only_statistics(net: Net) -> None:
    net.train()
    with torch.no_grad():
        net(3 + draw(8, 3, 16, 16))
    net.eval()


def encoder_of(net: Net) -> Encoder:
    return Encoder.from_module(net, input_shape=(3, 16, 16))


@pytest.mark.parametrize("change", [train, load, only_statistics])
def test_after_a_change_it_is_what_a_new_encoder_would_be(change: Callable[[Net], None]) -> None:
    net, image, w = Net().eval(), draw(3, 16, 16), draw(2, 8, 4, 4)
    encoder = encoder_of(net)
    before = encoder.features(image), encoder.jacobian(image, 2).vm(w), encoder.weights_digest
    change(net)
    new = encoder_of(net)
    assert torch.equal(encoder.features(image), new.features(image))
    assert torch.equal(encoder.jacobian(image, 2).vm(w), new.jacobian(image, 2).vm(w))
    assert torch.allclose(encoder.logits(image), net(image[None])[0], atol=1e-6)
    assert encoder.weights_digest == new.weights_digest != before[2]
    assert not torch.allclose(encoder.features(image), before[0], rtol=0.01)
    with Inverter(encoder, "vjp")(image) as session, Inverter(new, "vjp")(image) as expected:
        assert torch.equal(session.stage(1).tensor, expected.stage(1).tensor)


@pytest.mark.parametrize("change", [train, load, only_statistics])
def test_what_was_made_before_refuses(change: Callable[[Net], None]) -> None:
    net, image, w = Net().eval(), draw(3, 16, 16), draw(1, 8, 4, 4)
    encoder = encoder_of(net)
    jacobian, stretch = encoder.jacobian(image, 2), encoder.stretch(2, 1, along=image)
    features = encoder.features(image, 1)[None]
    stretch(features)
    with Inverter(encoder, "vjp")(image) as session:
        session.stage(1)
        change(net)
        encoder.features(image)
        with pytest.raises(OptionError, match="parameters or buffers have changed since this session was opened"):
            session.stage(2)
    with pytest.raises(EncoderError, match="parameters or buffers have changed since this Jacobian was made"):
        jacobian.vm(w)
    assert torch.equal(stretch(features), encoder_of(net).stretch(2, 1, along=image)(features))


def test_a_copy_in_another_type_stays_as_it_was() -> None:
    net, image = Net().eval(), draw(3, 16, 16)
    encoder = encoder_of(net)
    copies = encoder.to(), encoder.to(dtype=torch.float32), encoder.double()
    before = [(c.features(image), c.weights_digest) for c in copies]
    train(net)
    for copied, (features, digest) in zip(copies, before, strict=True):
        assert torch.equal(copied.features(image), features)
        assert copied.weights_digest == digest
    assert torch.allclose(encoder.double().features(image), encoder.features(image).double(), atol=1e-5)


class Counting(Net):
    """Writes into a buffer when it runs, and holds another one in three places."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("runs", torch.zeros(()))
        self.register_buffer("shift", torch.zeros(1, 6, 1, 1))
        self.second.register_buffer("same", self.shift)
        self.kept = [self.shift]

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        return self.head(self.second(self.first(x) + self.shift + self.second.same).mean((2, 3)))


def test_buffers_that_a_run_writes_or_that_have_several_names() -> None:
    net, image = Counting().eval(), draw(3, 16, 16)
    encoder = encoder_of(net)
    for shift in (1.0, 2.0):
        net.shift.fill_(shift)
        encoder.features(image)
        encoder.jacobian(image, 2).vm(draw(1, 8, 4, 4))
        assert net.runs == 0
        assert encoder.module.shift is encoder.module.second.same is encoder.module.kept[0]
        assert torch.allclose(encoder.logits(image), Counting.forward(copied(net), image[None])[0], atol=1e-6)


def copied(net: Counting) -> Counting:
    other = Counting().eval()
    other.load_state_dict(net.state_dict())
    return other
