"""Max-pooling: fake kernels and gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from fastconv._ops.checks import FLOATING, REAL, check, check_gradient, check_implemented, check_type
from fastconv._ops.function import differentiable, is_differentiated_again, save, tie, vmap_batch, vmap_loop
from fastconv._ops.library import _C
from fastconv._ops.memory_format import empty, is_channels_last, suggests_channels_last
from fastconv._ops.sizes import Ints, are_numbers, pool_output

__all__ = ["Pool", "check_pool", "gather", "max_pool2d", "max_pool2d_backward", "pooled_size"]

_max_pool2d = torch.ops.fastconv.max_pool2d.default
_max_pool2d_backward = torch.ops.fastconv.max_pool2d_backward.default

Pair = tuple[int, int]
#: Kernel size, stride, padding, dilation and ceil_mode.
Pool = tuple[Pair, Pair, Pair, Pair, bool]


def check_pool(kernel_size: Ints, stride: Ints, padding: Ints, dilation: Ints) -> None:
    _C.check_pool(kernel_size, stride, padding, dilation)


def pooled_size(
    input: Ints, kernel_size: Ints, stride: Ints, padding: Ints, dilation: Ints, ceil_mode: bool | None,
    given: Ints = (),
) -> list[int]:  # fmt: skip
    """Check the size of max_pool2d's input, if it is known, and return that of the output.

    Backward operators have no ceil_mode and pass None. Then ``given`` is the gradient's (P, Q), and the rounding that
    fits is used.
    """
    if are_numbers(input, given):
        return _C.pooled_size(input, kernel_size, stride, padding, dilation, ceil_mode, given)
    sides = []
    for side, size in enumerate(input[2:]):
        window = (size, kernel_size[side], stride[side], padding[side], dilation[side])
        down = pool_output(*window, ceil_mode=False)
        up = given[side] != down if ceil_mode is None else ceil_mode
        sides.append(pool_output(*window, ceil_mode=True) if up else down)
    return [input[0], input[1], *sides]


@torch.library.register_fake("fastconv::max_pool2d")
def _fake_max_pool2d(
    input: Tensor, kernel_size: Ints, stride: Ints, padding: Ints, dilation: Ints, ceil_mode: bool
) -> tuple[Tensor, Tensor]:
    check_pool(kernel_size, stride, padding, dilation)
    if input.dim() != 4:
        raise RuntimeError(
            "Expected 3D or 4D (batch mode) tensor with optional 0 dim batch size for input, but got:"
            f"{list(input.shape)}"
        )
    size = pooled_size(input.shape, kernel_size, stride, padding, dilation, ceil_mode)
    check_implemented(input, "max_pool2d", REAL)
    values = empty(input, size, suggests_channels_last(input))
    return values, torch.empty_like(values, dtype=torch.int64)


@torch.library.register_fake("fastconv::max_pool2d_backward")
def _fake_max_pool2d_backward(
    grad_output: Tensor, indices: Tensor, input_size: Ints, kernel_size: Ints, stride: Ints, padding: Ints,
    dilation: Ints, channels_last: bool,
) -> Tensor:  # fmt: skip
    check_pool(kernel_size, stride, padding, dilation)
    check(len(input_size) == 4 and grad_output.dim() == 4, "expected a 4-dimensional input and grad_output")
    check_type(indices, torch.int64, "indices")
    expected = pooled_size(input_size, kernel_size, stride, padding, dilation, None, grad_output.shape[2:])
    check_gradient(expected, grad_output, indices, "indices")
    check_implemented(grad_output, "max_pool2d_backward", FLOATING)
    return empty(grad_output, input_size, channels_last)


class MaxPool2d(Function):
    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, Tensor]:
        return _max_pool2d(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        input, *ctx.windows, _ = inputs
        indices = output[1]
        ctx.input_size = tuple(input.shape)
        ctx.channels_last = is_channels_last(input)
        ctx.mark_non_differentiable(indices)
        ctx.set_materialize_grads(False)  # A gradient of zeros for the indices takes 35 of the 90 us of a small call.
        ctx.save_for_backward(indices, input)  # the input is for a second backward, as in PyTorch
        ctx.save_for_forward(indices)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if grad_output is None:
            return (None,) * 6
        indices, input = ctx.saved_tensors
        grad_input = max_pool2d_backward(grad_output, indices, ctx.input_size, *ctx.windows, ctx.channels_last)
        if is_differentiated_again():
            grad_input = tie(grad_input, input, zeros=True)
        return grad_input, None, None, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
        return vmap_batch(max_pool2d, in_dims[0], *args)


class MaxPool2dWithJvp(MaxPool2d):
    @staticmethod
    def jvp(ctx: Any, input_t: Tensor, *_: None) -> tuple[Tensor, None]:
        return gather(input_t, ctx.saved_tensors[0]), None


class MaxPool2dBackward(Function):
    @staticmethod
    def forward(*args: Any) -> Tensor:
        return _max_pool2d_backward(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, indices, *ctx.rest = inputs
        save(ctx, indices)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 8
        (indices,) = ctx.saved_tensors
        return gather(grad, indices), None, None, None, None, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
        return vmap_loop(max_pool2d_backward, info, in_dims, *args)


class MaxPool2dBackwardWithJvp(MaxPool2dBackward):
    @staticmethod
    def jvp(ctx: Any, grad_output_t: Tensor, *_: None) -> Tensor:
        (indices,) = ctx.saved_tensors
        return max_pool2d_backward(grad_output_t, indices, *ctx.rest)


def gather(input: Tensor, indices: Tensor) -> Tensor:
    """Return the pixels that max-pooling chose: the transpose of its backward."""
    return input.flatten(2).gather(2, indices.flatten(2)).view(indices.shape)


max_pool2d = differentiable(_max_pool2d, MaxPool2d, MaxPool2dWithJvp)
max_pool2d_backward = differentiable(_max_pool2d_backward, MaxPool2dBackward, MaxPool2dBackwardWithJvp)
