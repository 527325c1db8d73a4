"""A convolution with a batch norm, a residual and an activation, for inference: the fake kernel. It has no gradient."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import torch
from torch import Tensor

from fastconv._ops import library  # noqa: F401  defines the operators
from fastconv._ops.checks import FLOATING, check, check_implemented, type_name
from fastconv._ops.conv2d import empty_output
from fastconv._ops.conv2d_checks import check_conv2d
from fastconv._ops.memory_format import empty
from fastconv._ops.sizes import Ints

__all__ = ["Activation", "check_activation", "check_channel_vectors", "check_like", "conv2d_inference", "empty_result"]

conv2d_inference = torch.ops.fastconv.conv2d_inference.default


class Activation(IntEnum):
    """The activation after a batch norm or a convolution: the numbers of ``csrc/cpu/kernels/operands.h``."""

    NONE = 0
    RELU = 1
    RELU6 = 2
    LEAKY_RELU = 3
    HARDSWISH = 4
    SILU = 5


def check_activation(number: int) -> None:
    check(0 <= number <= max(Activation), f"unknown activation {number}")


def check_channel_vectors(channels: int, **vectors: Tensor | None) -> None:
    """Check that each vector has one value for each channel."""
    for name, vector in vectors.items():
        if vector is not None:
            if vector.dim() != 1 or vector.shape[0] != channels:
                raise RuntimeError(f"{name} should contain {channels} elements not {vector.numel()}")
            check_implemented(vector, "batch_norm", FLOATING)


def check_like(tensor: Tensor | None, sizes: Sequence[int], like: Tensor, name: str) -> None:
    """Check the size of a tensor, and that it has the dtype of ``like``."""
    if tensor is not None and (list(tensor.shape) != list(sizes) or tensor.dtype != like.dtype):
        raise RuntimeError(
            f"expected {name} of size {list(sizes)} and type {type_name(like.dtype)}, "
            f"but got size {list(tensor.shape)} and type {type_name(tensor.dtype)}"
        )


def empty_result(input: Tensor, weight: Tensor, size: Sequence[int], prefers_contiguous: bool) -> Tensor:
    """Return an empty tensor for the result of a convolution. See ``conv2d_folded`` in csrc/cpu/ops.h."""
    N, K, P, Q = size
    if prefers_contiguous and (N == 0 or K == 1 or P * Q == 1):
        return empty(input, size, False)
    return empty_output(input, weight, size)


@torch.library.register_fake("fastconv::conv2d_inference")
def _fake_conv2d_inference(
    input: Tensor, weight: Tensor, bias: Tensor | None, running_mean: Tensor | None, running_var: Tensor | None,
    norm_weight: Tensor | None, norm_bias: Tensor | None, residual: Tensor | None, stride: Ints, padding: Ints,
    dilation: Ints, groups: int, eps: float, activation: int, slope: float,
) -> Tensor:  # fmt: skip
    size = check_conv2d(input, weight, bias, stride, padding, dilation, groups)
    check_channel_vectors(
        size[1], running_mean=running_mean, running_var=running_var, weight=norm_weight, bias=norm_bias
    )
    check((running_mean is None) == (running_var is None), "expected running_mean and running_var, or neither")
    check_like(residual, size, input, "residual")
    check_activation(activation)
    return empty_result(input, weight, size, running_mean is not None or residual is not None)
