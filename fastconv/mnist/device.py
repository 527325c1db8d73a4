"""Where a network trains: on the CPU, or on a GPU."""

from __future__ import annotations

import torch

from fastconv._ops.library import has_cuda
from fastconv.mnist import UserError
from fastconv.mnist.distributed import alone


def find(name: str, backend: str = "fastconv") -> torch.device:
    """The device ``name``, one of :data:`~fastconv.mnist.config.DEVICES`, for the operators of ``backend``.

    Raises:
        UserError: if it is not there, or not for these operators.
    """
    if name != "cuda":
        return torch.device(name)
    if torch.version.cuda is None:
        raise UserError(f"no GPU to train on: torch {torch.__version__} is built without CUDA")
    if not torch.cuda.is_available():
        raise UserError("no GPU to train on: torch finds none, or no driver for it")
    if backend == "fastconv" and not has_cuda():
        raise UserError("fastconv is built without CUDA: build it with FASTCONV_CUDA=1, or take --backend torch")
    if not alone():
        raise UserError("a GPU trains in one process: take torchrun for the CPU")
    return torch.device("cuda", torch.cuda.current_device())
