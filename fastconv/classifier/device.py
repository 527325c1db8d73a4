"""The device that a network is trained or timed on: the CPU or a GPU."""

from __future__ import annotations

import torch

from fastconv._ops.library import has_cuda
from fastconv.classifier.distributed import alone
from fastconv.classifier.errors import UserError


def find(name: str, backend: str = "fastconv", instead: str = "use the backend torch") -> torch.device:
    """Return the device ``name``, one of :data:`~fastconv.classifier.config.DEVICES`.

    Args:
        instead: what the error advises if fastconv cannot be built with CUDA.

    Raises:
        UserError: if the device does not exist, or ``backend`` does not support it.
    """
    if name != "cuda":
        return torch.device(name)
    if torch.version.cuda is None:
        raise UserError(f"cannot use a GPU: torch {torch.__version__} is built without CUDA")
    if not torch.cuda.is_available():
        raise UserError("cannot use a GPU: torch finds no GPU, or no driver for it")
    if backend == "fastconv" and not has_cuda():
        raise UserError(f"fastconv is built without CUDA: build it with FASTCONV_CUDA=1, or {instead}")
    if not alone():
        raise UserError("a GPU is used by one process only: start it without torchrun, or use the CPU")
    return torch.device("cuda", torch.cuda.current_device())
