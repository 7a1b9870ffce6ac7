"""Networks made of any sequence of steps, most of them writes through views: what is hard to follow on a tape."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Steps(nn.Module):
    """A network that does the given steps to a tensor (N, 4, 5, 5): functions, writes through views, sums with the past."""

    def __init__(self, steps: list[str]) -> None:
        super().__init__()
        self.steps = steps
        self.conv = nn.Conv2d(4, 4, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        past = x.clone()
        for step in self.steps:
            x, past = getattr(self, step)(x, past), x.clone()
        return x

    def convolve(self, x: Tensor, past: Tensor) -> Tensor:
        return self.conv(x)

    def swish(self, x: Tensor, past: Tensor) -> Tensor:
        return F.silu(x)

    def scale_in_place(self, x: Tensor, past: Tensor) -> Tensor:
        return x.mul_(1.25)

    def add_past(self, x: Tensor, past: Tensor) -> Tensor:
        return x + past

    def add_past_in_place(self, x: Tensor, past: Tensor) -> Tensor:
        x += past.roll(1, 3)
        return x

    def write_channels(self, x: Tensor, past: Tensor) -> Tensor:
        x[:, 1:3] += 1
        return x

    def write_transposed(self, x: Tensor, past: Tensor) -> Tensor:
        x.transpose(2, 3)[:, :, 1].mul_(past[:, :, 2])
        return x

    def write_from_past(self, x: Tensor, past: Tensor) -> Tensor:
        x[:, :, 2:] = past[:, :, :3]
        return x

    def write_both_halves(self, x: Tensor, past: Tensor) -> Tensor:
        a, b = x[:, :2], x[:, 2:]
        a.sub_(b)
        b.add_(a, alpha=0.5)
        return x

    def return_a_view(self, x: Tensor, past: Tensor) -> Tensor:
        return x.transpose(2, 3)

    def fill_empty(self, x: Tensor, past: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        y[:, ::2] = x[:, ::2]
        y[:, 1::2] = past[:, ::2].tanh()
        return y

    def concatenate(self, x: Tensor, past: Tensor) -> Tensor:
        return torch.cat([x[:, 2:], past[:, :2]], 1)


STEPS = [name for name in vars(Steps) if not name.startswith("_") and name != "forward"]
