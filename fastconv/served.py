"""Which layers fastconv serves slower than PyTorch: every such choice of :func:`fastconv.convert` stands here."""

from __future__ import annotations

import torch

__all__ = ["slower_than_torch"]


def slower_than_torch(module: torch.nn.Module, fused: bool = False) -> str | None:
    """Why a layer is left to PyTorch, or None where fastconv is to serve it.

    Args:
        module: a convolution, max-pool or ReLU of :mod:`torch.nn`.
        fused: whether it would run as one with its neighbours.
    """
    return None
