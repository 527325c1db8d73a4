"""Several processes that train one network: torchrun --nproc-per-node 2 -m fastconv train ...

torch.distributed's own: the gradients are averaged over the processes by DistributedDataParallel while backward runs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastconv.classifier.errors import UserError


def world_size() -> int:
    """How many processes torchrun started; 1 where it had no part in it.

    Raises:
        UserError: if the variable that says so holds something else.
    """
    text = os.environ.get("WORLD_SIZE", "1")
    if not (text.isascii() and text.isdigit() and 1 <= len(text) <= 9 and int(text) > 0):
        raise UserError(f"WORLD_SIZE must be a whole number of processes, as torchrun sets it, not {text!r}")
    return int(text)


def alone() -> bool:
    """Whether torchrun started this process only, or had no part in it."""
    return world_size() == 1


@contextmanager
def process_group() -> Iterator[int]:
    """Within it, the processes that torchrun started know of each other. Gives this one's rank, 0 if it is alone."""
    if alone():
        yield 0
        return
    try:
        dist.init_process_group("gloo")
    except ValueError as error:  # MASTER_ADDR, RANK and others are torchrun's
        raise UserError(f"cannot find the other processes: {error}; start them with torchrun") from error
    try:
        yield dist.get_rank()
        dist.barrier()  # gloo aborts where one takes its connections apart while another is not done with them
    finally:
        dist.destroy_process_group()


class Distributed:
    """``model`` in all processes of the group, or in this one alone if there is none.

    Attributes:
        model: what to call in training.
        rank: of this process, from 0.
    """

    def __init__(self, model: nn.Module) -> None:
        together = dist.is_available() and dist.is_initialized()
        self.rank, self._count = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)
        self.model = model
        if self._count > 1:
            for parameter in model.parameters():
                # With one channel, or a kernel of 1 x 1, the layouts differ in their strides only. Gradients have the
                # contiguous one's, and of others DDP warns over several lines.
                if parameter.is_contiguous():
                    parameter.data = parameter.data.view(-1).view(parameter.shape)
            self.model = nn.parallel.DistributedDataParallel(model)

    def share(self, batch: Tensor) -> tuple[Tensor, float, int]:
        """This process's part of a batch; what to weigh its mean loss with, so that the mean over the processes is the
        mean over the batch; and how many of its images it is to count, so that over the processes each counts once."""
        if self._count == 1:
            return batch, 1.0, len(batch)
        if len(batch) < self._count:  # too small to be shared: each process does the whole
            return batch, 1.0, len(batch) if self.rank == 0 else 0
        part = batch.tensor_split(self._count)[self.rank]
        return part, len(part) * self._count / len(batch), len(part)

    def sums(self, *values: Tensor) -> list[float]:
        """The sums over all processes."""
        total = torch.stack([value.double() for value in values])
        if self._count > 1:
            dist.all_reduce(total)
        return total.tolist()
