"""The processes of one fit under torchrun: which part of a batch each of them does, and how their numbers come together."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed

from pullback.errors import OptionError, PullbackError


@dataclass(frozen=True)
class Workers:
    """This process is number `rank` of `count`; `device`: where tensors that are exchanged must lie."""

    rank: int
    count: int
    device: torch.device

    @classmethod
    def here(cls, device: torch.device) -> Workers:
        """The processes of the default process group; this one alone where there is none."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return cls(0, 1, device)
        exchanged = device if distributed.get_backend() == "nccl" else torch.device("cpu")
        return cls(distributed.get_rank(), distributed.get_world_size(), exchanged)

    def rows(self, count: int, width: int, row: Callable[[int], Tensor]) -> Tensor:
        """row(0) .. row(count - 1), each (width,), on every process: (count, width), float64 on the CPU.

        Process r makes the rows r, r + n, ... of n processes: what a row holds, and where it stands, does not depend on
        how many processes there are. Raises PullbackError where another process has ended.
        """
        share = -(-count // self.count)
        own = torch.zeros(share, width, dtype=torch.float64, device="cpu")
        for place, index in enumerate(range(self.rank, count, self.count)):
            own[place] = row(index)
        if self.count == 1:
            return own
        parts = [torch.empty_like(own, device=self.device) for _ in range(self.count)]
        with _together():
            distributed.all_gather(parts, own.to(self.device))
        return torch.stack([p.cpu() for p in parts], 1).flatten(0, 1)[:count]

    def wait(self) -> None:
        """Until every process has come here."""
        if self.count > 1:
            with _together():
                distributed.all_reduce(torch.zeros(1, device=self.device))


@contextmanager
def joined(device: str) -> Iterator[tuple[str, bool]]:
    """Under torchrun, join its other processes (nccl on CUDA, gloo elsewhere): this one's device, and whether it leads.

    "cuda" becomes each process's own GPU. Without torchrun this process leads, alone. Raises OptionError for a numbered GPU
    that several processes would share, and where the machine has fewer GPUs than processes.
    """
    if not (distributed.is_available() and distributed.is_torchelastic_launched()):
        yield device, True
        return
    cuda = device.startswith("cuda")
    if cuda:
        local, present = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if device != "cuda" and int(os.environ["LOCAL_WORLD_SIZE"]) > 1:
            raise OptionError(f"device {device!r} is one GPU for several processes; under torchrun give cuda")
        if local >= present:
            raise OptionError(f"{local + 1} processes or more for {present} GPUs: start no more processes than GPUs")
        device = f"cuda:{local}" if device == "cuda" else device
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if cuda else "gloo")
    try:
        yield device, distributed.get_rank() == 0
    finally:
        distributed.destroy_process_group()


@contextmanager
def _together() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise PullbackError(
            "another process of this fit has ended; the same command without overwrite carries on from the last step"
        ) from error
