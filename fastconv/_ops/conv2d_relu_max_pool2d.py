"""Convolution, ReLU and perhaps max-pooling in one operator: fake kernels and gradients.

Without a pool (``pool=None``) the operator is ``conv2d_relu``, else ``conv2d_relu_max_pool2d``. Both return the output
and ``argmax``, one byte per output element: the position of the maximum in its window, or ``BLOCKED`` where ReLU blocks
the gradient. One backward operator computes all gradients from ``argmax``, the input and the weight. If a gradient is
differentiated again, unfused operators compute it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from fastconv._ops import gpu
from fastconv._ops.checks import FLOATING, check, check_gradient, check_implemented, check_type
from fastconv._ops.conv2d import (
    Geometry,
    conv2d_tangent,
    empty_gradients,
    empty_output,
    input_gradient,
    weight_gradients,
)
from fastconv._ops.conv2d_checks import check_conv2d
from fastconv._ops.function import (
    differentiable,
    is_differentiated_again,
    is_transformed,
    needs_gradient,
    save,
    tie,
    vmap_batch,
    vmap_loop,
)
from fastconv._ops.max_pool2d import Pool, check_pool, gather, max_pool2d_backward, pooled_size
from fastconv._ops.memory_format import empty, is_channels_last
from fastconv._ops.sizes import Ints, conv2d_output

__all__ = [
    "BLOCKED", "MOST_POSITIONS", "check_pooled_gradient", "check_positions", "composed_unpool",
    "conv2d_relu_max_pool2d", "forward",
]  # fmt: skip

_conv2d_relu = torch.ops.fastconv.conv2d_relu.default
_conv2d_relu_backward = torch.ops.fastconv.conv2d_relu_backward.default
_conv2d_relu_max_pool2d = torch.ops.fastconv.conv2d_relu_max_pool2d.default
_conv2d_relu_max_pool2d_backward = torch.ops.fastconv.conv2d_relu_max_pool2d_backward.default

Pair = tuple[int, int]
#: The byte of ``argmax`` where ReLU blocks the gradient.
BLOCKED = 255
#: The largest number of pixels of a pool. Their positions are the bytes from 0 to 254.
MOST_POSITIONS = 255
#: The defaults of the operators.
_GEOMETRY: Geometry = ((1, 1), (0, 0), (1, 1), 1)
_POOL: Pool = ((2, 2), (2, 2), (0, 0), (1, 1), False)
_NO_POOL = ((1, 1), (1, 1), (0, 0), (1, 1))


def check_positions(kernel_size: Ints) -> None:
    """Check that a byte of ``argmax`` can hold every position in a window."""
    check(
        max(kernel_size) <= MOST_POSITIONS and math.prod(kernel_size) <= MOST_POSITIONS,
        f"expected a pool of at most {MOST_POSITIONS} pixels, but got kernel size {list(kernel_size)}",
    )


def check_pooled_gradient(grad_output: Tensor, argmax: Tensor, size: Ints, pool: tuple[Ints, Ints, Ints, Ints]) -> None:
    """Check the operands of a backward, from the size of the pool's input."""
    check(grad_output.dim() == 4, "expected a 4-dimensional input and grad_output")
    check_type(argmax, torch.uint8, "argmax")
    check_gradient(pooled_size(size, *pool, None, grad_output.shape[2:]), grad_output, argmax, "argmax")
    check_implemented(grad_output, "max_pool2d_backward", FLOATING)


def _empty_argmax(output: Tensor) -> Tensor:
    return torch.empty(output.shape, dtype=torch.uint8, device=output.device, memory_format=torch.channels_last)


def _empty_output(input: Tensor, weight: Tensor, conv_size: Ints, size: Ints) -> Tensor:
    """Return an empty tensor of the size. See ``fused_is_channels_last`` in csrc/tensor.h."""
    _, K, P, Q = conv_size
    return empty_output(input, weight, size) if K > 1 and P * Q > 1 else empty(input, size, False)


@torch.library.register_fake("fastconv::conv2d_relu")
def _fake_conv2d_relu(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Ints = (1, 1), padding: Ints = (0, 0),
    dilation: Ints = (1, 1), groups: int = 1,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    size = check_conv2d(input, weight, bias, stride, padding, dilation, groups)
    output = _empty_output(input, weight, size, size)
    return output, _empty_argmax(output)


@torch.library.register_fake("fastconv::conv2d_relu_max_pool2d")
def _fake_conv2d_relu_max_pool2d(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Ints = (1, 1), padding: Ints = (0, 0),
    dilation: Ints = (1, 1), groups: int = 1, pool_kernel_size: Ints = (2, 2), pool_stride: Ints = (2, 2),
    pool_padding: Ints = (0, 0), pool_dilation: Ints = (1, 1), pool_ceil_mode: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    conv_size = check_conv2d(input, weight, bias, stride, padding, dilation, groups)
    pool = (pool_kernel_size, pool_stride, pool_padding, pool_dilation)
    check_pool(*pool)
    check_positions(pool_kernel_size)
    output = _empty_output(input, weight, conv_size, pooled_size(conv_size, *pool, pool_ceil_mode))
    return output, _empty_argmax(output)


@torch.library.register_fake("fastconv::conv2d_relu_backward")
def _fake_conv2d_relu_backward(
    grad_output: Tensor, argmax: Tensor, input: Tensor, weight: Tensor, needs_input: bool, needs_weight: bool,
    stride: Ints = (1, 1), padding: Ints = (0, 0), dilation: Ints = (1, 1), groups: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return _fake_conv2d_relu_max_pool2d_backward(
        grad_output, argmax, input, weight, needs_input, needs_weight, stride, padding, dilation, groups, *_NO_POOL
    )


@torch.library.register_fake("fastconv::conv2d_relu_max_pool2d_backward")
def _fake_conv2d_relu_max_pool2d_backward(
    grad_output: Tensor, argmax: Tensor, input: Tensor, weight: Tensor, needs_input: bool, needs_weight: bool,
    stride: Ints = (1, 1), padding: Ints = (0, 0), dilation: Ints = (1, 1), groups: int = 1,
    pool_kernel_size: Ints = (2, 2), pool_stride: Ints = (2, 2), pool_padding: Ints = (0, 0),
    pool_dilation: Ints = (1, 1),
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    conv_size = check_conv2d(input, weight, None, stride, padding, dilation, groups)
    pool = (pool_kernel_size, pool_stride, pool_padding, pool_dilation)
    check_pool(*pool)
    check_positions(pool_kernel_size)
    check_pooled_gradient(grad_output, argmax, conv_size, pool)
    check_type(grad_output, input.dtype, "grad_output")
    return empty_gradients(input, weight, needs_input, needs_weight)


def _numbers(geometry: Geometry, pool: Pool | None) -> tuple[Any, ...]:
    """Return the arguments after the tensors. Omit them if all are defaults, because passing each list takes 1 us."""
    if geometry == _GEOMETRY and (pool is None or pool == _POOL):
        return ()
    return geometry if pool is None else (*geometry, *pool)


def forward(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, dilation: Pair, groups: int,
    pool: Pool | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Call the operator. Return the output and argmax."""
    operator = _conv2d_relu if pool is None else _conv2d_relu_max_pool2d
    return operator(input, weight, bias, *_numbers((stride, padding, dilation, groups), pool))


def _backward(ctx: Any, grad_output: Tensor | None, _: None = None) -> tuple[Tensor | None, ...]:
    if grad_output is None:
        return (None,) * 8
    saved = input, weight, argmax = ctx.saved_tensors  # read once, because hooks such as checkpoint's unpack only once
    needs_input, needs_weight = ctx.needs_input_grad[0], ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
    # is_final_gradient, without one more function in every backward call (tests/test_call_path.py)
    if torch.is_grad_enabled() or torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        gradients = _composed_backward(ctx, saved, grad_output, needs_input, needs_weight)
    elif input.is_cuda:
        gradients = _gpu_backward(ctx, saved, grad_output, needs_input, needs_weight)
    else:
        operator = _conv2d_relu_backward if ctx.pool is None else _conv2d_relu_max_pool2d_backward
        numbers = ctx.numbers[:8]  # without ceil_mode, which only forward takes
        gradients = operator(grad_output, argmax, input, weight, needs_input, needs_weight, *numbers)
    grad_input = gradients[0] if needs_input else None
    grad_weight = gradients[1] if needs_weight else None
    grad_bias = gradients[2] if needs_weight and ctx.has_bias else None
    return grad_input, grad_weight, grad_bias, None, None, None, None, None


def _gpu_backward(
    ctx: Any, saved: tuple[Tensor, ...], grad_output: Tensor, needs_input: bool, needs_weight: bool
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Compute each gradient by the fused operator or by PyTorch's convolution, as the plan says."""
    input, weight, argmax = saved
    operator = _conv2d_relu_backward if ctx.pool is None else _conv2d_relu_max_pool2d_backward
    by_torch = gpu.gradients_of_torch(input, weight, ctx.geometry, ctx.pool)
    torch_input, torch_weight = needs_input and by_torch[0], needs_weight and by_torch[1]
    gradients: Any = (None, None, None)
    if (needs_input, needs_weight) != (torch_input, torch_weight):
        ours = (needs_input and not torch_input, needs_weight and not torch_weight)
        gradients = operator(grad_output, argmax, input, weight, *ours, *ctx.numbers[:8])
    if not (torch_input or torch_weight):
        return gradients  # type: ignore[no-any-return]
    stride, padding, dilation, groups = ctx.geometry
    unpooled = _unpool(grad_output, argmax, input, weight, ctx.geometry, ctx.pool)
    theirs = torch.ops.aten.convolution_backward(
        unpooled, input, weight, [weight.shape[0]], stride, padding, dilation, False, (0, 0), groups,
        (torch_input, torch_weight, torch_weight and ctx.has_bias),
    )  # fmt: skip
    by = (torch_input, torch_weight, torch_weight)
    return tuple(t if torch_computed else o for t, o, torch_computed in zip(theirs, gradients, by, strict=True))  # type: ignore[return-value]


def _unpool(
    grad_output: Tensor, argmax: Tensor, input: Tensor, weight: Tensor, geometry: Geometry, pool: Pool | None
) -> Tensor:
    """Return the gradient of the convolution's result on a GPU.

    One kernel computes it: the fused operator's gradient of the input for a 1x1 depthwise convolution with ones.
    """
    P, Q = conv2d_output(input.shape[2:], weight.shape[2:], *geometry[:3])
    K = weight.shape[0]
    result = empty_output(input, weight, (input.shape[0], K, P, Q))
    ones = grad_output.new_ones((K, 1, 1, 1))
    operator = _conv2d_relu_backward if pool is None else _conv2d_relu_max_pool2d_backward
    numbers = ((1, 1), (0, 0), (1, 1), K, *(() if pool is None else pool[:4]))
    unpooled: Tensor = operator(grad_output, argmax, result, ones, True, False, *numbers)[0]
    return unpooled


def _composed_backward(
    ctx: Any, saved: tuple[Tensor, ...], grad_output: Tensor, needs_input: bool, needs_weight: bool
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Compute the gradients by operators that can be differentiated again."""
    input, weight, argmax = saved
    P, Q = conv2d_output(input.shape[2:], weight.shape[2:], *ctx.geometry[:3])
    size = (input.shape[0], weight.shape[0], P, Q)
    channels_last = is_channels_last(input) or is_channels_last(weight)
    unpooled = composed_unpool(grad_output, argmax, size, ctx.pool, channels_last)
    if is_differentiated_again():
        # In PyTorch, a second backward through ReLU or a pool gives zeros to the convolution's arguments.
        unpooled = tie(unpooled, input, weight, ctx.bias, zeros=True)
    grad_input = grad_weight = grad_bias = None
    if needs_input:
        grad_input = input_gradient(unpooled, weight, input, ctx.geometry)
    if needs_weight:
        grad_weight, grad_bias = weight_gradients(unpooled, input, weight, ctx.geometry)
    return grad_input, grad_weight, grad_bias


def composed_unpool(grad_output: Tensor, argmax: Tensor, size: Ints, pool: Pool | None, channels_last: bool) -> Tensor:
    """Return the gradient of the input of ReLU and a pool, by operators that can be differentiated again.

    Args:
        grad_output: the gradient of the result.
        argmax: of the same size.
        size: of the returned gradient.
        pool: None if only ReLU is applied.
        channels_last: the memory format of the returned gradient.
    """
    unpooled = torch.where(argmax == BLOCKED, 0, grad_output)
    if pool is None:
        return unpooled
    indices = _pool_indices(argmax, size[3], pool)
    return max_pool2d_backward(unpooled, indices, size, *pool[:4], channels_last)  # type: ignore[no-any-return]


def _pool_indices(argmax: Tensor, width: int, pool: Pool) -> Tensor:
    """Return the indices of PyTorch's max-pooling over images of ``width`` columns; 0 where ReLU blocks."""
    (_, S), (u_h, u_w), (z_h, z_w), (d_h, d_w), _ = pool
    rows = torch.arange(argmax.shape[2], device=argmax.device).view(-1, 1) * u_h - z_h
    columns = torch.arange(argmax.shape[3], device=argmax.device) * u_w - z_w
    position = argmax.long()
    flat = (rows + position // S * d_h) * width + columns + position % S * d_w
    return torch.where(argmax == BLOCKED, 0, flat)


class Conv2dReLUMaxPool2d(Function):
    """The operator for transforms and torch.compile."""

    forward = staticmethod(forward)
    backward = staticmethod(_backward)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        input, weight, bias, *geometry, ctx.pool = inputs
        ctx.geometry = tuple(geometry)
        ctx.numbers = _numbers(ctx.geometry, ctx.pool)
        argmax = output[1]
        ctx.mark_non_differentiable(argmax)
        save(ctx, input, weight, argmax)
        ctx.bias, ctx.has_bias = None, bias is not None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
        if in_dims[1] is not None or in_dims[2] is not None:
            return vmap_loop(_with_argmax, info, in_dims, *args)
        return vmap_batch(_with_argmax, in_dims[0], *args)


class Conv2dReLUMaxPool2dWithJvp(Conv2dReLUMaxPool2d):
    @staticmethod
    def jvp(
        ctx: Any, input_t: Tensor | None, weight_t: Tensor | None, bias_t: Tensor | None, *_: None
    ) -> tuple[Tensor, None]:
        input, weight, argmax = ctx.saved_tensors
        tangent = conv2d_tangent(input, weight, input_t, weight_t, bias_t, ctx.geometry)
        if ctx.pool is not None:
            tangent = gather(tangent, _pool_indices(argmax, tangent.shape[3], ctx.pool))
        return torch.where(argmax == BLOCKED, 0, tangent), None


class EagerConv2dReLUMaxPool2d(Function):
    """The operator for plain calls. One output instead of two saves 20 of the 110 us of a small call with backward."""

    backward = staticmethod(_backward)

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, dilation: Pair,
        groups: int, pool: Pool | None,
    ) -> Tensor:  # fmt: skip
        ctx.geometry, ctx.pool = (stride, padding, dilation, groups), pool
        ctx.numbers = _numbers(ctx.geometry, pool)
        operator = _conv2d_relu if pool is None else _conv2d_relu_max_pool2d
        output, argmax = operator(input, weight, bias, *ctx.numbers)
        ctx.save_for_backward(input, weight, argmax)
        # Backward does not need the bias's values. save_for_backward would raise an error if they changed.
        ctx.bias, ctx.has_bias = bias, bias is not None
        return output


_with_argmax = differentiable(forward, Conv2dReLUMaxPool2d, Conv2dReLUMaxPool2dWithJvp)


def conv2d_relu_max_pool2d(*args: Any) -> Tensor:
    """Return the output, and record its gradient. Arguments: those of :func:`forward`."""
    if is_transformed():
        return _with_argmax(*args)[0]
    if needs_gradient(args):
        return super(Function, EagerConv2dReLUMaxPool2d).apply(*args)
    return forward(*args)[0]
