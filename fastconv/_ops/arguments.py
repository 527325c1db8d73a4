"""Convert the arguments of PyTorch's functions to those of the operators. None means that PyTorch handles the call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastconv._ops import gpu
from fastconv._ops.conv2d_relu_max_pool2d import MOST_POSITIONS
from fastconv._ops.library import FLOATING_DTYPES, REAL_DTYPES
from fastconv._ops.max_pool2d import Pool

__all__ = ["accepts", "accepts_in_place", "fused_pool_arguments", "pad_same", "pair", "pool_arguments"]

Pair = tuple[int, int]


def pair(value: Any) -> Pair | None:
    """Return one int or two as a pair. None for everything else."""
    # These two usual cases are a shortcut. Without it, this function takes a tenth of the time of a small call.
    if type(value) is int:
        return value, value
    if type(value) is tuple and len(value) == 2 and type(value[0]) is type(value[1]) is int:
        return value
    values = tuple(value) if isinstance(value, tuple | list) else (value,)
    # A bool is an int in Python, but PyTorch refuses it.
    if len(values) not in (1, 2) or not all(isinstance(v, int | torch.SymInt) and type(v) is not bool for v in values):
        return None
    return values[0], values[-1]


def pad_same(input: Tensor, weight: Tensor, dilation: Pair) -> tuple[Tensor, Pair]:
    """Replace padding='same' by numbers. For an odd total padding, pad the input by a row below or a column right."""
    total_h, total_w = (d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True))
    if total_h % 2 or total_w % 2:
        input = F.pad(input, (0, total_w % 2, 0, total_h % 2))
    return input, (total_h // 2, total_w // 2)


def pool_arguments(kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: Any) -> Pool | None:
    """Return the pool's arguments as pairs of ints."""
    kernel, paddings, dilations = pair(kernel_size), pair(padding), pair(dilation)
    strides = kernel if stride is None else pair(stride)
    if kernel is None or strides is None or paddings is None or dilations is None or type(ceil_mode) is not bool:
        return None
    return kernel, strides, paddings, dilations, ceil_mode


def fused_pool_arguments(kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: Any) -> Pool | None:
    """As :func:`pool_arguments`, but also None for a pool of more pixels than the fused operator accepts."""
    pool = pool_arguments(kernel_size, stride, padding, dilation, ceil_mode)
    return pool if pool is not None and 0 < pool[0][0] * pool[0][1] <= MOST_POSITIONS else None


def accepts(tensor: Any) -> bool:
    """Return whether the operators of max-pooling and ReLU accept the tensor.

    False while torch.jit.trace records. A traced model contains PyTorch's operators, so it runs without fastconv.
    """
    return (
        isinstance(tensor, Tensor)
        and (
            tensor.dtype in REAL_DTYPES
            if tensor.is_cpu or tensor.is_meta  # meta: the fake kernels
            else tensor.is_cuda and tensor.dtype in FLOATING_DTYPES and gpu.computes_all()  # none was measured
        )
        and tensor.layout is torch.strided
        and not tensor.is_nested
        and torch._C._get_tracing_state() is None
    )


def accepts_in_place(tensor: Tensor) -> bool:
    """Return whether the in-place ReLU accepts the tensor. PyTorch handles other tensors, mostly with an error."""
    if tensor.is_leaf and tensor.requires_grad and torch.is_grad_enabled():
        return False
    if torch.compiler.is_compiling():  # Dynamo does not trace is_inference.
        return True
    is_frozen = tensor.is_inference() and not torch.is_inference_mode_enabled()
    return not (is_frozen or tensor.is_neg())
