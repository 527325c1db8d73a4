"""Which layers fastconv serves slower than PyTorch: every such choice of :func:`fastconv.convert` stands here."""

from __future__ import annotations

import torch

__all__ = ["slower_than_torch"]


def slower_than_torch(module: torch.nn.Module, fused_with: str = "") -> str | None:
    """Why a layer is left to PyTorch, or None where fastconv is to serve it.

    Args:
        module: a convolution, max-pool or ReLU of :mod:`torch.nn`.
        fused_with: 'ReLU' or 'pool' (ReLU and a max-pool): what a convolution would be fused with.
    """
    return None
