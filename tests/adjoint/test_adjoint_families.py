"""Every encoder family and every awkward network: what the engine takes, and that its products are autograd's.

In double, the encoders' own tests hold all of them to 1e-12; here they run in single precision, gates included.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from oracles.encoded import SPATIAL, encoder, images, relative
from oracles.families import LIBRARY, NETS, library_net
from oracles.lowered import a_point
from torch import Tensor, nn

from pullback.encoders import Encoder
from pullback.encoders.twin import read_logits, twin
from pullback.graph import plain_autograd

WRITES_THROUGH_VIEWS = {"views"}  # the only ones that are left to autograd


def kept(out: object) -> object:
    """What a hook sees, before an operation in place changes it."""
    return out.clone() if isinstance(out, Tensor) else out


def own_vjp(net: nn.Module, module: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """A cotangent of the value that the network's own forward pass has at a module ("": the logits), and its VJP."""
    name, _, call = module.partition("#")
    seen: list[object] = []
    with plain_autograd(x.device):
        leaf = x.clone()[None].requires_grad_()
        handle = net.get_submodule(name).register_forward_hook(lambda m, args, out: seen.append(kept(out)))
        out = net(leaf.clone())
        handle.remove()
        value = seen[int(call or 1) - 1] if name else read_logits(out)
        w = a_point(*value.shape[1:], seed=5, dtype=x.dtype)
        return w, torch.autograd.grad(value, leaf, w[None])[0][0]


def assert_adjoint(mv: Callable[[Tensor], Tensor], vm: Callable[[Tensor], Tensor], w: Tensor, v: Tensor) -> None:
    pushed, pulled = mv(v), vm(w)
    scale = float(pushed.norm() * w.norm() + v.norm() * pulled.norm())
    assert abs(float((pushed * w).sum() - (v * pulled).sum())) <= 1e-5 * scale


@pytest.mark.parametrize("name", list(NETS))
def test_small_networks(name: str) -> None:
    net = twin(NETS[name]()).float()
    modules = dict(net.named_modules())
    found = Encoder.from_module(net, input_shape=NETS[name].input_shape)
    x = images(name, 1)[0].float()
    v = a_point(*x.shape, seed=6, dtype=x.dtype)
    for stage in [*(range(1, found.depth + 1) if name in SPATIAL else ()), "logits"]:
        J = found.jacobian(x, stage)
        module = "" if stage == "logits" else found.stage(stage).name
        assert (J.program is None) is (name in WRITES_THROUGH_VIEWS)
        if getattr(NETS[name], "own_backward", False) or module.partition("#")[0] not in modules:
            w = a_point(*J.out_shape, seed=5, dtype=x.dtype)
        else:
            w, expected = own_vjp(net, module, x)
            assert relative(J.vm(w), expected) < 1e-5
        assert_adjoint(J.mv, J.vm, w, v)


@pytest.mark.parametrize(
    "name", ["resnet bottleneck", "densenet", "mobilenet v3", "convnext", "inplace_relu", "hybrid"]
)
def test_stages_to_logits(name: str) -> None:
    """From features to class scores, with the engine and by autograd through the replay, in double."""
    found, [x] = encoder(name), images(name, 1)
    for start in range(1, found.depth + 1):
        at = found.features(x, start)
        J = found.jacobian(x, "logits", start)
        assert J.program is not None
        with plain_autograd(x.device):
            leaf = at.clone()[None].requires_grad_()
            out = found.stretch("logits", start, along=x)(leaf)
            w = a_point(*out.shape[1:], seed=7)
            (expected,) = torch.autograd.grad(out, leaf, w[None])
        assert relative(J.vm(w), expected[0]) < 1e-12
        assert_adjoint(J.mv, J.vm, w, a_point(*at.shape, seed=8))


@pytest.mark.parametrize("spec", LIBRARY)
def test_networks_of_the_libraries(spec: str) -> None:
    net, side = twin(library_net(spec, num_classes=10)), LIBRARY[spec]
    J = Encoder.from_module(net, input_shape=(3, side, side)).jacobian(
        x := a_point(3, side, side, seed=1, dtype=torch.float32), "logits"
    )
    assert J.program is not None
    w, expected = own_vjp(net, "", x)
    assert relative(J.vm(w), expected) < 1e-5
    assert_adjoint(J.mv, J.vm, w, a_point(*x.shape, seed=6, dtype=x.dtype))
