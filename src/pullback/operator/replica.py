"""One run of a function on several copies of a point, with its graph kept: products with its Jacobian and the adjoint.

Copies let one backward pass serve as many cotangents as there are copies; the kept graph lets one run serve any number
of passes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.autograd import forward_ad

from pullback.errors import EncoderError
from pullback.graph import plain_autograd
from pullback.operator.frozen import FrozenParameters

Function = Callable[[Tensor], Tensor]


class Replica:
    """`function` run once on `count` copies of the point `x` (*in_shape), at the cost of one forward pass.

    Attributes: count; output, the values (count, *out_shape), with their graph.
    Raises EncoderError when the function does not give one real tensor with a leading axis of `count` and a gradient.
    """

    def __init__(self, function: Function, x: Tensor, count: int) -> None:
        self._function = function
        self.count = count
        with plain_autograd(x.device), FrozenParameters():
            self._leaf = x.detach().expand(count, *x.shape).clone().requires_grad_()
            # A copy, because a network may begin with an in-place operation, which a leaf refuses.
            self.output = _checked(function(self._leaf.clone()), count)
        self._adjoint: tuple[Tensor, Tensor] | None = None

    def pull(self, cotangents: Tensor) -> Tensor:
        """J^T w for each of `count` cotangents (count, *out_shape): (count, *in_shape). One backward pass."""
        with plain_autograd(self._leaf.device):
            pulled = _gradient(self.output, self._leaf, cotangents, retain_graph=True)
        return pulled.detach()

    def push(self, tangents: Tensor) -> Tensor:
        """J v for each of `count` tangents (count, *in_shape): (count, *out_shape).

        The adjoint w -> J^T w is itself recorded, once, and then differentiated with respect to w: no further run of
        the function, and about the cost of `pull`. RuntimeError when an operation lacks a second derivative.
        """
        with plain_autograd(self._leaf.device):
            if self._adjoint is None:
                zero = torch.zeros_like(self.output).requires_grad_()
                pulled = _gradient(self.output, self._leaf, zero, create_graph=True)
                self._adjoint = zero, pulled
            zero, pulled = self._adjoint
            pushed = _gradient(pulled, zero, tangents, retain_graph=True)
        return pushed.detach()

    def push_forward(self, tangents: Tensor) -> Tensor:
        """The same by forward-mode differentiation: a run of the function per call, about three times the cost.

        RuntimeError when an operation lacks a forward derivative.
        """
        with warnings.catch_warnings():
            # Loading its formulas, torch warns of its own use of torch.jit.
            warnings.filterwarnings("ignore", r".*torch\.jit", DeprecationWarning)
            pushed = self._pushed_forward(tangents)
        if pushed is None:
            raise RuntimeError("the tangent was lost on the way")
        return pushed.clone()

    def _pushed_forward(self, tangents: Tensor) -> Tensor | None:
        with plain_autograd(self._leaf.device), torch.no_grad(), forward_ad.dual_level():
            dual = self._function(forward_ad.make_dual(self._leaf.detach().clone(), tangents))
            pushed: Tensor | None = forward_ad.unpack_dual(dual).tangent
            return pushed

    def saved_bytes(self) -> int:
        """Bytes that the graph keeps alive, each storage counted once; parameters, which outlive it, are left out."""
        storages: dict[int, int] = {}
        for tensor in _saved_tensors(self.output):
            made_by_the_run = not tensor.is_leaf or not tensor.is_floating_point()  # indices and masks are leaves too
            if made_by_the_run:
                storage = tensor.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
        return sum(storages.values())


def _gradient(output: Tensor, leaf: Tensor, w: Tensor, **keeping: bool) -> Tensor:
    """Raises EncoderError where a tensor that the graph keeps, such as a network's parameter, is no longer what it was."""
    try:
        (pulled,) = torch.autograd.grad(output, leaf, w, **keeping)
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        raise EncoderError(
            "a tensor that this Jacobian needs, such as a network's parameter, has changed since it was made: make a new one"
        ) from error
    return pulled


def _checked(output: object, count: int) -> Tensor:
    if not isinstance(output, Tensor):
        raise EncoderError(
            f"the function returned a {type(output).__name__}, where one tensor was expected: wrap it so that it does"
        )
    if output.dim() < 1 or output.shape[0] != count:
        raise EncoderError(
            f"the function made {tuple(output.shape)} of a batch of {count}, where ({count}, ...) was expected: "
            "it must treat the batch sample by sample"
        )
    if not output.is_floating_point():
        raise EncoderError(f"the function returned {output.dtype}, where real numbers were expected")
    if not output.requires_grad:
        raise EncoderError(
            "the function's output carries no gradient to its input: look for detach(), no_grad, numpy or rounding in it"
        )
    return output


def _saved_tensors(output: Tensor) -> Iterator[Tensor]:
    seen = set()
    ahead = [output.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        ahead.extend(following for following, _ in node.next_functions)
        for name in dir(node):
            if name.startswith("_saved_") or name == "saved_tensors":
                saved = getattr(node, name)
                for item in saved if isinstance(saved, (tuple, list)) else (saved,):
                    if isinstance(item, Tensor):
                        yield item
