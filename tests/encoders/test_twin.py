from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from oracles.awkward_modules import Plain, must_not_compile, settled
from oracles.awkward_nets import AWKWARD
from oracles.untouched import untouched
from torch import Tensor, nn

from pullback.encoders.twin import read_logits, twin, unwrap
from pullback.errors import EncoderError


@pytest.mark.parametrize("name", AWKWARD)
def test_a_twin_computes_what_the_network_computes_and_leaves_it_alone(name: str) -> None:
    net = AWKWARD[name]()
    with untouched(net):
        copied = twin(net)
    assert not any(m.training for m in copied.modules())
    assert not any(p.requires_grad or p.is_inference() or p.grad is not None for p in copied.parameters())
    assert not any(b.is_inference() for b in copied.buffers())
    reference = unwrap(net).eval()
    x = torch.randn(2, *AWKWARD[name].input_shape, generator=torch.Generator().manual_seed(0))
    dtype = next(net.parameters()).dtype
    with torch.inference_mode(), torch.compiler.set_stance("force_eager"):
        expected, found = (read_logits(n(x.to(dtype, copy=True))) for n in (reference, copied))
    if name == "transformer":  # fused attention rounds by where the weights lie, on some processors
        assert torch.allclose(found, expected, rtol=0, atol=4 * torch.finfo(dtype).eps)
    else:
        assert torch.equal(found, expected)


@pytest.mark.parametrize("name", [name for name in AWKWARD if name not in ("inference_mode", "weight_norm")])
def test_parameters_share_their_storage_and_buffers_do_not(name: str) -> None:
    net = AWKWARD[name]()
    copied = twin(net)
    for mine, yours in zip(copied.parameters(), net.parameters(), strict=True):
        assert mine is not yours
        assert mine.data_ptr() == yours.data_ptr()
    for mine, yours in zip(copied.buffers(), net.buffers(), strict=True):
        assert mine.data_ptr() != yours.data_ptr()


def test_gradients_and_flags_stay_with_the_original() -> None:
    net = settled(Plain()).train()
    net(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))).sum().backward()
    net.level1[0].weight.requires_grad_(False)
    with untouched(net):
        copied = twin(net)
        copied.level1[1].running_mean.add_(1)
        copied.train()


def test_tied_parameters_stay_tied() -> None:
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1))
    net[1].weight = net[0].weight
    copied = twin(net)
    assert copied[1].weight is copied[0].weight


class Holder(nn.Module):
    """One compiled module under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.compile(nn.Sequential(nn.Conv2d(3, 3, 1)), backend=must_not_compile)
        self.second = self.first
        self.none: nn.Module | None
        self.register_module("none", None)


def test_compiled_parts_are_unwrapped_wherever_they_hang() -> None:
    copied = twin(Holder())
    assert type(copied.first) is nn.Sequential
    assert copied.first is copied.second
    assert copied.none is None
    assert [name for name, _ in copied.named_parameters()] == ["first.0.weight", "first.0.bias"]


def test_wrappers_are_removed_however_they_are_nested() -> None:
    net = Plain()
    wrapped = nn.DataParallel(torch.compile(nn.DataParallel(net), backend=must_not_compile))
    assert unwrap(wrapped) is net
    assert unwrap(net) is net
    assert type(twin(wrapped)) is Plain


class Spied(nn.Module):
    """A copy of it would hold something that cannot be copied."""

    def __init__(self, held: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1)
        self.held = held


@pytest.mark.parametrize(
    "held", [threading.Lock(), (i for i in range(3)), torch.ones(1, requires_grad=True).sum().grad_fn]
)
def test_what_cannot_be_copied_is_said_with_what_to_do(held: Any) -> None:
    net = Spied(held)
    with untouched(net), pytest.raises(EncoderError, match=r"Spied.*cannot be copied.*remove"):
        twin(net)


def test_tensors_with_a_graph_in_attributes_are_copied_without_it() -> None:
    net = Spied(torch.ones(3, requires_grad=True) * 2)
    copied = twin(net)
    assert torch.equal(copied.held, net.held)
    assert copied.held.is_leaf


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (torch.relu, "expected a torch.nn.Module, got builtin"),
        (None, "got NoneType"),
        (nn.Sequential(nn.LazyConv2d(3, 1)), "lazy modules.*run it once"),
    ],
)
def test_what_is_no_ready_module_is_refused(module: Any, words: str) -> None:
    with pytest.raises(EncoderError, match=words):
        twin(module)


@dataclass
class WithLogits:
    logits: Any
    hidden: Any = None


LOGITS, HIDDEN = torch.ones(1, 5), torch.zeros(1, 9)


@pytest.mark.parametrize(
    "output",
    [
        LOGITS, WithLogits(LOGITS, HIDDEN), {"hidden": HIDDEN, "logits": LOGITS}, OrderedDict(out=LOGITS, aux=HIDDEN),
        (LOGITS, HIDDEN), [LOGITS], (None, LOGITS, HIDDEN), {"hidden": LOGITS},
    ],
)  # fmt: skip
def test_the_logits_are_found_in_any_output(output: Any) -> None:
    assert read_logits(output) is LOGITS


@pytest.mark.parametrize("output", [None, "logits", 3.0, [], {}, WithLogits(None), WithLogits([LOGITS]), ({"a": 1},)])
def test_an_output_without_a_tensor_is_an_error_that_says_what_to_return(output: Any) -> None:
    with pytest.raises(EncoderError, match=f"returned {type(output).__name__}.*return a tensor"):
        read_logits(output)


def test_lists_of_tensors_keep_their_order() -> None:
    first: Tensor = torch.zeros(1, 2)
    assert read_logits([first, LOGITS]) is first


def test_awkward_networks_are_built_the_same_each_time() -> None:
    a, b = AWKWARD["plain"]().state_dict(), AWKWARD["plain"]().state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)
