"""The devices that tests of the CUDA operators run on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastconv._ops.library import has_cuda

FLOATING = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


@dataclass(frozen=True)
class Device:
    name: str
    #: torch.ops.fastconv, or torch.ops.fastconv_emulated.
    ops: Any

    def put(self, tensor: Tensor) -> Tensor:
        """Return the tensor on this device, in the same memory format."""
        return tensor.to(self.name)


def no_gpu() -> str | None:
    """Return the reason why nothing can run on a GPU, or None if it can."""
    if not has_cuda():
        return "the extension was built without CUDA"
    return None if torch.cuda.is_available() else "no GPU"
