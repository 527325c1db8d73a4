"""Batch norm, ReLU and max-pooling in one operator on the CPU: fake kernels and gradients.

A layer that looks ahead calls the operator (:mod:`fastconv._ahead.fusion`), outside of transforms and compiled code. A
gradient that is differentiated again is computed as in :mod:`fastconv._ops.batch_norm`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from fastconv._ops.batch_norm import check_batch_norm, composed_gradients, copies_for_backward, result_is_channels_last
from fastconv._ops.checks import check, check_implemented, check_type
from fastconv._ops.conv2d_inference import Activation
from fastconv._ops.conv2d_relu_max_pool2d import check_pooled_gradient, check_positions, composed_unpool
from fastconv._ops.function import is_differentiated_again, is_final_gradient, needs_gradient, tie
from fastconv._ops.max_pool2d import Pool, check_pool, pooled_size
from fastconv._ops.memory_format import empty
from fastconv._ops.sizes import Ints

__all__ = ["DTYPES", "batch_norm_relu_max_pool2d"]

_forward = torch.ops.fastconv.batch_norm_relu_max_pool2d.default._op
_backward = torch.ops.fastconv.batch_norm_relu_max_pool2d_backward.default
#: The dtypes that the operator supports. With 16 bits, PyTorch rounds before it pools.
DTYPES = {torch.float32: "Float", torch.float64: "Double"}


def _check(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, spread: Tensor, *windows: Ints
) -> None:
    check_batch_norm(input, mean=mean, spread=spread, weight=weight, bias=bias)
    check(input.dim() == 4, "expected a 4-dimensional input")
    check_pool(*windows)
    check_positions(windows[0])


@torch.library.register_fake("fastconv::batch_norm_relu_max_pool2d")
def _fake_forward(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, spread: Tensor, training: bool, eps: float,
    kernel_size: Ints, stride: Ints, padding: Ints, dilation: Ints, ceil_mode: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    windows = kernel_size, stride, padding, dilation
    _check(input, weight, bias, mean, spread, *windows)
    size = pooled_size(input.shape, *windows, ceil_mode)
    check_implemented(input, "batch_norm_relu_max_pool2d", DTYPES)
    output = empty(input, size, result_is_channels_last(input))
    return output, torch.empty_like(output, dtype=torch.uint8)


@torch.library.register_fake("fastconv::batch_norm_relu_max_pool2d_backward")
def _fake_backward(
    grad_output: Tensor, argmax: Tensor, input: Tensor, weight: Tensor | None, mean: Tensor, spread: Tensor,
    training: bool, eps: float, needs_input: bool, kernel_size: Ints, stride: Ints, padding: Ints, dilation: Ints,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    windows = kernel_size, stride, padding, dilation
    _check(input, weight, None, mean, spread, *windows)
    check_pooled_gradient(grad_output, argmax, input.shape, windows)
    check_type(grad_output, input.dtype, "grad_output")
    check_implemented(input, "batch_norm_relu_max_pool2d_backward", DTYPES)
    grad_input = empty(input, input.shape, result_is_channels_last(input)) if needs_input else input.new_empty(0)
    return grad_input, input.new_empty(input.shape[1]), input.new_empty(input.shape[1])


class BatchNormReLUMaxPool2d(Function):
    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, spread: Tensor,
        training: bool, eps: float, pool: Pool,
    ) -> Tensor:  # fmt: skip
        output, argmax = _forward(input, weight, bias, mean, spread, training, eps, *pool)
        _, mean, spread = copies_for_backward(None, mean, spread, training)
        ctx.save_for_backward(input, weight, mean, spread, argmax)
        ctx.numbers, ctx.pool, ctx.bias = (training, eps), pool, bias
        return output  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad_output is None:
            return (None,) * 8
        needs_input, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        input, weight, mean, spread, argmax = ctx.saved_tensors
        if is_final_gradient():
            tensors = grad_output, argmax, input, weight, mean, spread
            dx, dw, db = _backward(*tensors, *ctx.numbers, needs_input, *ctx.pool[:4])
        else:
            unpooled = composed_unpool(grad_output, argmax, input.shape, ctx.pool, result_is_channels_last(input))
            if is_differentiated_again():
                unpooled = tie(unpooled, input, weight, ctx.bias, zeros=True)
            kept = input, weight, None, mean, spread, None
            dx, dw, db, _ = composed_gradients(kept, (*ctx.numbers, Activation.NONE), unpooled)
        gradients = dx if needs_input else None, dw if needs_weight else None, db if needs_bias else None
        return *gradients, *(None,) * 5


def batch_norm_relu_max_pool2d(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, spread: Tensor, training: bool, eps: float,
    pool: Pool,
) -> Tensor:  # fmt: skip
    """Call the operator, and record its gradient where one is needed. The schema is in csrc/ops.cpp."""
    if needs_gradient((input, weight, bias)):
        return super(Function, BatchNormReLUMaxPool2d).apply(  # type: ignore[misc, no-any-return]
            input, weight, bias, mean, spread, training, eps, pool
        )
    return _forward(input, weight, bias, mean, spread, training, eps, *pool)[0]  # type: ignore[no-any-return]
