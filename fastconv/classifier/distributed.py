"""Train one network in several processes: torchrun --nproc-per-node 2 -m fastconv train ...

DistributedDataParallel averages the gradients over the processes during backward.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastconv.classifier.errors import UserError


def world_size() -> int:
    """Return the number of processes that torchrun started, or 1 without torchrun."""
    text = os.environ.get("WORLD_SIZE", "1")
    if not (text.isascii() and text.isdigit() and 1 <= len(text) <= 9 and int(text) > 0):
        raise UserError(f"WORLD_SIZE must be a whole number of processes, as torchrun sets it, not {text!r}")
    return int(text)


def alone() -> bool:
    """Return whether this is the only process."""
    return world_size() == 1


@contextmanager
def process_group() -> Iterator[int]:
    """Connect the processes that torchrun started. Yield the rank of this process, 0 if it is the only one."""
    if alone():
        yield 0
        return
    try:
        dist.init_process_group("gloo")
    except ValueError as error:  # torchrun sets MASTER_ADDR, RANK and other variables
        raise UserError(f"cannot find the other processes: {error}; start them with torchrun") from error
    try:
        yield dist.get_rank()
        dist.barrier()  # gloo aborts if a process disconnects while another still communicates
    finally:
        dist.destroy_process_group()


class Distributed:
    """A model that all processes of the group train together. Without a group, this process trains it alone.

    Attributes:
        model: the module to call in training.
        rank: the rank of this process, from 0.
    """

    def __init__(self, model: nn.Module) -> None:
        together = dist.is_available() and dist.is_initialized()
        self.rank, self._count = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)
        self.model = model
        if self._count > 1:
            for parameter in model.parameters():
                # A channels_last weight with one channel or a 1 x 1 kernel is also contiguous, but has other strides.
                # DDP prints a long warning if a weight and its gradient have different strides.
                if parameter.is_contiguous():
                    parameter.data = parameter.data.view(-1).view(parameter.shape)
            self.model = nn.parallel.DistributedDataParallel(model)

    def share(self, count: int) -> tuple[slice, float, int]:
        """Return this process's part of ``count`` images, the weight of its mean loss, and how many images it counts.

        The mean over the processes of loss times weight equals the mean loss over the batch. The counts of all
        processes add up to the size of the batch.
        """
        if self._count == 1:
            return slice(None), 1.0, count
        if count < self._count:  # too small to be split: each process computes all of it
            return slice(None), 1.0, count if self.rank == 0 else 0
        each, larger = divmod(count, self._count)  # the first parts have one image more, as in Tensor.tensor_split
        start = self.rank * each + min(self.rank, larger)
        own = each + (self.rank < larger)
        return slice(start, start + own), own * self._count / count, own

    def sums(self, *values: Tensor) -> list[float]:
        """Return the sum of each value over all processes."""
        total = torch.stack([value.double() for value in values])
        if self._count > 1:
            dist.all_reduce(total)
        return total.tolist()
