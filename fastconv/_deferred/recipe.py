"""The recipe of a Deferred, which lists the operations that wait, and copies of its operands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastconv import functional as FF
from fastconv._ops import conv2d as _conv2d
from fastconv._ops import conv2d_relu_max_pool2d as _fused
from fastconv._ops.conv2d import Geometry
from fastconv._ops.max_pool2d import Pool

__all__ = ["TO_NCHW", "TO_NHWC", "Operands", "Recipe", "Step", "in_sequence", "snapshot"]

TO_NHWC, TO_NCHW = (0, 2, 3, 1), (0, 3, 1, 2)
#: Input, weight, bias; or a computed result, None, None.
Operands = tuple[Tensor, Tensor | None, Tensor | None]
#: One or more operations of a recipe, as a function of the value before them.
Step = Callable[[Tensor], Tensor]


def in_sequence(steps: Sequence[Step]) -> Step:
    def run(tensor: Tensor) -> Tensor:
        for step in steps:
            tensor = step(tensor)
        return tensor

    return run


def snapshot(tensor: Tensor) -> Tensor:
    """Return a differentiable copy of ``tensor``.

    A copy is the only safe snapshot. A version counter does not see writes by NumPy, by other processes and through raw
    pointers. PyTorch's copy-on-write tensors (``torch._lazy_clone``) move the original when it is written to. A NumPy
    array that shares its memory then points to freed memory.
    """
    return tensor.clone()


class Recipe(NamedTuple):
    """The operations that wait: a convolution, then ReLU and max-pool in either order, then the layout."""

    #: None if the operand is the result already, and only the layout waits.
    geometry: Geometry | None
    #: True if the operator's own result is channels_last.
    operator_channels_last: bool
    #: True if the channels of a pixel are adjacent in memory.
    channels_last: bool
    #: True if the axes are (N, P, Q, K), not (N, K, P, Q).
    axes_nhwc: bool = False
    relu: bool = False
    pool: Pool | None = None

    def compute(self, input: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        y = input if self.geometry is None else self._convolve(input, weight, bias)
        y = y.contiguous(memory_format=torch.channels_last if self.channels_last else torch.contiguous_format)
        return y.permute(TO_NHWC) if self.axes_nhwc else y

    def _convolve(self, input: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        assert self.geometry is not None
        assert weight is not None
        if self.relu:
            return _fused.conv2d_relu_max_pool2d(input, weight, bias, *self.geometry, self.pool)
        y = _conv2d.conv2d(input, weight, bias, *self.geometry)
        return y if self.pool is None else FF.max_pool2d(y, *self.pool)

    def strides(self, K: int, P: int, Q: int) -> tuple[int, int, int, int]:
        n, k, p, q = (K * P * Q, 1, Q * K, K) if self.channels_last else (K * P * Q, P * Q, Q, 1)
        return (n, p, q, k) if self.axes_nhwc else (n, k, p, q)
