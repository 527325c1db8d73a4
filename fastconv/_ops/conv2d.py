"""Convolution: fake kernels and gradients.

Convolution is linear in its input, its weight and its bias. So the other two passes compute the gradient of each of the
three passes, to any order:

    y            = conv2d(x, w, b)
    dx           = conv2d_backward_data(dy, w)
    dw, db       = conv2d_backward_weight(dy, x)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from fastconv._ops import library  # noqa: F401  defines the operators
from fastconv._ops.checks import FLOATING, check, check_gradient, check_implemented, check_type
from fastconv._ops.conv2d_checks import check_conv2d, check_geometry, output_size
from fastconv._ops.function import (
    differentiable,
    is_differentiated_again,
    is_final_gradient,
    save,
    tie,
    vmap_batch,
    vmap_loop,
)
from fastconv._ops.memory_format import empty, is_channels_last, suggests_channels_last
from fastconv._ops.sizes import Ints

operator = torch.ops.fastconv.conv2d.default
_conv2d_backward = torch.ops.fastconv.conv2d_backward.default
_conv2d_backward_data = torch.ops.fastconv.conv2d_backward_data.default
_conv2d_backward_weight = torch.ops.fastconv.conv2d_backward_weight.default

Pair = tuple[int, int]
#: Stride, padding, dilation, groups.
Geometry = tuple[Pair, Pair, Pair, int]


def empty_output(input: Tensor, weight: Tensor, size: Ints) -> Tensor:
    """Return an empty tensor for a convolution's output. It is channels_last if the input or the weight is."""
    channels_last = suggests_channels_last(input) or suggests_channels_last(weight)
    return empty(input, size, channels_last and input.numel() > 0)


def empty_gradients(
    input: Tensor, weight: Tensor, needs_input: bool, needs_weight: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return empty tensors for the gradients of input, weight and bias. Those that are not needed have no elements."""
    grad_input = empty(input, input.shape, is_channels_last(input)) if needs_input else input.new_empty((0,))
    grad_weight = empty(input, weight.shape, is_channels_last(weight)) if needs_weight else input.new_empty((0,))
    return grad_input, grad_weight, input.new_empty((weight.shape[0] if needs_weight else 0,))


@torch.library.register_fake("fastconv::conv2d")
def _fake_conv2d(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Ints, padding: Ints, dilation: Ints, groups: int
) -> Tensor:
    return empty_output(input, weight, check_conv2d(input, weight, bias, stride, padding, dilation, groups))


@torch.library.register_fake("fastconv::conv2d_backward")
def _fake_conv2d_backward(
    grad_output: Tensor, input: Tensor, weight: Tensor, needs_input: bool, needs_weight: bool, stride: Ints,
    padding: Ints, dilation: Ints, groups: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    check_gradient(check_conv2d(input, weight, None, stride, padding, dilation, groups), grad_output)
    check_type(grad_output, input.dtype, "grad_output")
    return empty_gradients(input, weight, needs_input, needs_weight)


@torch.library.register_fake("fastconv::conv2d_backward_data")
def _fake_conv2d_backward_data(
    grad_output: Tensor, weight: Tensor, input_size: Ints, stride: Ints, padding: Ints, dilation: Ints, groups: int,
    channels_last: bool,
) -> Tensor:  # fmt: skip
    check_geometry(stride, padding, dilation, groups)
    check(len(input_size) == 4 and weight.dim() == 4, "expected a 4-dimensional input and weight")
    check_gradient(output_size(input_size, weight.shape, None, stride, padding, dilation, groups), grad_output)
    check_type(weight, grad_output.dtype, "weight")
    check_implemented(grad_output, "conv2d_backward_data", FLOATING)
    return empty(grad_output, input_size, channels_last)


@torch.library.register_fake("fastconv::conv2d_backward_weight")
def _fake_conv2d_backward_weight(
    grad_output: Tensor, input: Tensor, kernel_size: Ints, stride: Ints, padding: Ints, dilation: Ints, groups: int,
    channels_last: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    check_geometry(stride, padding, dilation, groups, kernel_size)
    check(input.dim() == 4 and grad_output.dim() == 4, "expected a 4-dimensional input and grad_output")
    K, C = grad_output.shape[1], input.shape[1]
    if C % groups != 0:
        raise RuntimeError(f"expected the {C} channels of input to be divisible by groups={groups}")
    weight_size = (K, C // groups, *kernel_size)
    check_gradient(output_size(input.shape, weight_size, None, stride, padding, dilation, groups), grad_output)
    check_type(grad_output, input.dtype, "grad_output")
    check_implemented(input, "conv2d_backward_weight", FLOATING)
    return empty(input, weight_size, channels_last), input.new_empty((K,))


class Conv2d(Function):
    @staticmethod
    def forward(*args: Any) -> Tensor:
        return operator(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, weight, _, *ctx.geometry = inputs
        save(ctx, input, weight)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad_output is None:
            return (None,) * 7
        input, weight = ctx.saved_tensors
        needs_input, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        needs_weight = needs_weight or needs_bias
        grad_input = grad_weight = grad_bias = None
        if is_final_gradient():
            arguments = grad_output, input, weight, needs_input, needs_weight
            grad_input, grad_weight, grad_bias = _conv2d_backward(*arguments, *ctx.geometry)
        else:
            if needs_input:
                grad_input = input_gradient(grad_output, weight, input, ctx.geometry)
            if needs_weight:
                grad_weight, grad_bias = weight_gradients(grad_output, input, weight, ctx.geometry)
            if is_differentiated_again():
                grad_input = tie(grad_input, input)
                grad_weight, grad_bias = tie(grad_weight, weight), tie(grad_bias, weight)
        return (
            grad_input if needs_input else None, grad_weight if needs_weight else None,
            grad_bias if needs_bias else None, None, None, None, None,
        )  # fmt: skip

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
        if in_dims[1] is not None or in_dims[2] is not None:
            return vmap_loop(conv2d, info, in_dims, *args)
        return vmap_batch(conv2d, in_dims[0], *args)


class Conv2dWithJvp(Conv2d):
    @staticmethod
    def jvp(ctx: Any, input_t: Tensor | None, weight_t: Tensor | None, bias_t: Tensor | None, *_: None) -> Tensor:
        input, weight = ctx.saved_tensors
        return conv2d_tangent(input, weight, input_t, weight_t, bias_t, ctx.geometry)


class Conv2dBackwardData(Function):
    @staticmethod
    def forward(*args: Any) -> Tensor:
        return _conv2d_backward_data(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        grad_output, weight, ctx.input_size, *ctx.geometry, ctx.channels_last = inputs
        save(ctx, grad_output, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 8
        grad_output, weight = ctx.saved_tensors
        grad_grad_output = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_grad_output = conv2d(grad, weight, None, *ctx.geometry)
        if ctx.needs_input_grad[1]:
            grad_weight, _ = weight_gradients(grad_output, grad, weight, ctx.geometry)
        return grad_grad_output, grad_weight, None, None, None, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
        if in_dims[1] is not None:
            return vmap_loop(conv2d_backward_data, info, in_dims, *args)
        grad_output, weight, input_size, *rest = args
        size = (info.batch_size * input_size[0], *input_size[1:])
        return vmap_batch(conv2d_backward_data, in_dims[0], grad_output, weight, size, *rest)


class Conv2dBackwardDataWithJvp(Conv2dBackwardData):
    @staticmethod
    def jvp(ctx: Any, grad_output_t: Tensor | None, weight_t: Tensor | None, *_: None) -> Tensor:
        grad_output, weight = ctx.saved_tensors
        rest = (ctx.input_size, *ctx.geometry, ctx.channels_last)
        terms = []
        if grad_output_t is not None:
            terms.append(conv2d_backward_data(grad_output_t, weight, *rest))
        if weight_t is not None:
            terms.append(conv2d_backward_data(grad_output, weight_t, *rest))
        return terms[0] if len(terms) == 1 else terms[0] + terms[1]


class Conv2dBackwardWeight(Function):
    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, Tensor]:
        return _conv2d_backward_weight(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        grad_output, input, ctx.kernel_size, *ctx.geometry, ctx.channels_last = inputs
        save(ctx, grad_output, input)

    @staticmethod
    def backward(ctx: Any, grad_weight: Tensor | None, grad_bias: Tensor | None) -> tuple[Tensor | None, ...]:
        grad_output, input = ctx.saved_tensors
        grad_grad_output = grad_input = None
        if ctx.needs_input_grad[0]:
            if grad_weight is not None:
                grad_grad_output = conv2d(input, grad_weight, grad_bias, *ctx.geometry)
            elif grad_bias is not None:
                grad_grad_output = grad_bias.view(-1, 1, 1).expand_as(grad_output)
        if ctx.needs_input_grad[1] and grad_weight is not None:
            grad_input = input_gradient(grad_output, grad_weight, input, ctx.geometry)
        return grad_grad_output, grad_input, None, None, None, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
        return vmap_loop(conv2d_backward_weight, info, in_dims, *args)


class Conv2dBackwardWeightWithJvp(Conv2dBackwardWeight):
    @staticmethod
    def jvp(ctx: Any, grad_output_t: Tensor | None, input_t: Tensor | None, *_: None) -> tuple[Tensor, Tensor]:
        grad_output, input = ctx.saved_tensors
        rest = (ctx.kernel_size, *ctx.geometry, ctx.channels_last)
        weight: Tensor | None = None
        bias = grad_output.new_zeros(grad_output.shape[1])
        if grad_output_t is not None:
            weight, bias = conv2d_backward_weight(grad_output_t, input, *rest)
        if input_t is not None:
            term = conv2d_backward_weight(grad_output, input_t, *rest)[0]
            weight = term if weight is None else weight + term
        assert weight is not None
        return weight, bias


def input_gradient(grad_output: Tensor, weight: Tensor, input: Tensor, geometry: Sequence[Any]) -> Tensor:
    """Return the gradient of a convolution's input, in the input's size and memory format."""
    return conv2d_backward_data(grad_output, weight, tuple(input.shape), *geometry, is_channels_last(input))


def weight_gradients(
    grad_output: Tensor, input: Tensor, weight: Tensor, geometry: Sequence[Any]
) -> tuple[Tensor, Tensor]:
    """Return the gradients of a convolution's weight and bias, in the weight's size and memory format."""
    return conv2d_backward_weight(grad_output, input, tuple(weight.shape[2:]), *geometry, is_channels_last(weight))


def conv2d_tangent(
    input: Tensor, weight: Tensor, input_t: Tensor | None, weight_t: Tensor | None, bias_t: Tensor | None,
    geometry: Sequence[Any],
) -> Tensor:  # fmt: skip
    """Return the tangent of a convolution's output, from the tangents of its arguments."""
    result = None
    if input_t is not None:
        result = conv2d(input_t, weight, None, *geometry)
    if weight_t is not None:
        term = conv2d(input, weight_t, bias_t, *geometry)
        return term if result is None else result + term
    if bias_t is not None:
        if result is None:
            return conv2d(input, torch.zeros_like(weight), bias_t, *geometry)
        return result + bias_t.view(-1, 1, 1)
    assert result is not None
    return result


conv2d = differentiable(operator, Conv2d, Conv2dWithJvp)
conv2d_backward_data = differentiable(_conv2d_backward_data, Conv2dBackwardData, Conv2dBackwardDataWithJvp)
conv2d_backward_weight = differentiable(_conv2d_backward_weight, Conv2dBackwardWeight, Conv2dBackwardWeightWithJvp)
