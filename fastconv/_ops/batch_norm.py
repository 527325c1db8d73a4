"""Batch normalisation, alone or with a residual and an activation: fake kernels and gradients.

``torch.func``, forward-mode AD and ``torch.compile`` use PyTorch's own batch norm (:mod:`fastconv.normalization`). If a
gradient is differentiated again, it is computed by PyTorch's elementwise operators.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from fastconv._ops import library  # noqa: F401  defines the operators
from fastconv._ops.checks import FLOATING, check, check_implemented
from fastconv._ops.conv2d_inference import Activation, check_activation, check_channel_vectors, check_like
from fastconv._ops.function import is_differentiated_again, is_final_gradient, needs_gradient, tie
from fastconv._ops.memory_format import empty, suggests_channels_last

__all__ = [
    "Activation", "batch_norm", "check_batch_norm", "composed_gradients", "copies_for_backward",
    "result_is_channels_last", "statistics",
]  # fmt: skip

# `_op` leaves out a Python function, which takes 1 us. Dynamo needs that function, but it never traces these two.
_statistics = torch.ops.fastconv.batch_norm_statistics.default._op
_batch_norm = torch.ops.fastconv.batch_norm.default._op
_batch_norm_backward = torch.ops.fastconv.batch_norm_backward.default


def check_batch_norm(input: Tensor, **vectors: Tensor | None) -> None:
    """Check the input, and that each vector has one value for each channel."""
    check(input.dim() >= 2 and input.numel() > 0, "expected an input with at least 2 dimensions and no size of 0")
    check_implemented(input, "batch_norm", FLOATING)
    check_channel_vectors(input.shape[1], **vectors)


def _check_running(input: Tensor, **running: Tensor | None) -> None:
    check_batch_norm(input)
    for name, vector in running.items():
        check_channel_vectors(input.shape[1], **{name: vector})
        check(vector is None or vector.is_contiguous(), f"expected a contiguous {name}")


def result_is_channels_last(input: Tensor) -> bool:
    return input.dim() == 4 and not input.is_contiguous() and suggests_channels_last(input)


def _empty_like(input: Tensor) -> Tensor:
    return empty(input, input.shape, result_is_channels_last(input))


@torch.library.register_fake("fastconv::batch_norm_statistics")
def _fake_statistics(
    input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, momentum: float, eps: float
) -> tuple[Tensor, Tensor]:
    _check_running(input, running_mean=running_mean, running_var=running_var)
    empty = input.new_empty(input.shape[1], dtype=torch.float64)
    return empty, torch.empty_like(empty)


@torch.library.register_fake("fastconv::batch_norm")
def _fake_batch_norm(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, spread: Tensor, residual: Tensor | None,
    training: bool, eps: float, activation: int,
) -> Tensor:  # fmt: skip
    check_batch_norm(input, mean=mean, spread=spread, weight=weight, bias=bias)
    check_like(residual, input.shape, input, "residual")
    check_activation(activation)
    return _empty_like(input)


@torch.library.register_fake("fastconv::batch_norm_backward")
def _fake_batch_norm_backward(
    grad_output: Tensor, input: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, spread: Tensor,
    output: Tensor | None, training: bool, eps: float, activation: int, needs_input: bool, needs_residual: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    check_batch_norm(input, mean=mean, spread=spread, weight=weight, bias=bias)
    check_like(grad_output, input.shape, input, "grad_output")
    check_like(output, input.shape, input, "output")
    check_activation(activation)
    check(activation <= Activation.RELU6, f"batch_norm_backward has no gradient of activation {activation}")
    none = input.new_empty(0)
    return (
        _empty_like(input) if needs_input else none,
        torch.empty_like(mean if weight is None else weight),
        torch.empty_like(mean if bias is None else bias),
        _empty_like(input) if needs_residual else none,
    )


def statistics(
    input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, momentum: float, eps: float
) -> tuple[Tensor, Tensor]:
    """Return the mean and 1 / sqrt(variance + eps) of each channel, in float64. Update the running statistics.

    As in PyTorch, the update does not count as a change in place. So a program may compute one result in evaluation
    mode and another in training mode, and then the gradients of both.
    """
    return _statistics(input.detach(), running_mean, running_var, momentum, eps)  # type: ignore[no-any-return]


def copies_for_backward(
    bias: Tensor | None, mean: Tensor, spread: Tensor, training: bool
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Return the bias, the mean and the spread for backward, copied if the program may change them before backward.

    The bias decides which results an activation blocks. PyTorch reads that from the result, so it does not save the
    bias. Without ``training``, a later batch may update the running statistics.
    """
    bias = None if bias is None else bias.detach().clone()
    return (bias, mean, spread) if training else (bias, mean.clone(), spread.clone())


class BatchNorm(Function):
    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, mean: Tensor,
        spread: Tensor, training: bool, eps: float, activation: int,
    ) -> Tensor:  # fmt: skip
        output: Tensor = _batch_norm(input, weight, bias, mean, spread, residual, training, eps, activation)
        # Without a residual, backward computes the activation's mask from the input, which it reads in any case.
        kept = output if residual is not None and activation != Activation.NONE else None
        ctx.bias = bias
        bias, mean, spread = copies_for_backward(bias, mean, spread, training)
        ctx.save_for_backward(input, weight, bias, mean, spread, kept)
        ctx.numbers = training, eps, int(activation)
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad_output is None:
            return (None,) * 9
        needs_input, needs_weight, needs_bias, needs_residual = ctx.needs_input_grad[:4]
        if is_final_gradient():
            input, weight, bias, mean, spread, output = ctx.saved_tensors
            is_masked = ctx.numbers[2] != Activation.NONE
            dx, dw, db, dr = _batch_norm_backward(
                grad_output, input, weight, bias, mean, spread, output, *ctx.numbers, needs_input,
                needs_residual and is_masked,
            )  # fmt: skip
            dr = dr if is_masked else grad_output
        else:
            saved = ctx.saved_tensors  # read once, because hooks such as those of checkpoint unpack only once
            input, weight, *_, output = saved
            tied = (input, weight, ctx.bias) if output is None else (output,)
            dx, dw, db, dr = composed_gradients(saved, ctx.numbers, grad_output, tied)
        return (
            dx if needs_input else None,
            dw if needs_weight else None,
            db if needs_bias else None,
            dr if needs_residual else None,
            *(None,) * 5,
        )


def composed_gradients(
    saved: tuple[Any, ...], numbers: tuple[bool, float, int], grad_output: Tensor, tied: tuple[Tensor | None, ...] = ()
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute the gradients of input, weight, bias and residual by operators that can be differentiated again.

    Args:
        saved: input, weight, bias, mean, spread and the output or None.
        numbers: training, eps and the activation.
        grad_output: the gradient of the result.
        tied: tensors that get zeros from a second backward through an activation, as in PyTorch.
    """
    input, weight, bias, mean, spread, output = saved
    training, eps, activation = numbers
    if input.dtype in (torch.bfloat16, torch.float16):
        input, grad_output = input.float(), grad_output.float()
    dims = [0, *range(2, input.dim())]
    shape = [1, -1, *[1] * (input.dim() - 2)]
    if training:
        mean, var = input.mean(dims, keepdim=True), input.var(dims, unbiased=False, keepdim=True)
    else:
        mean, var = mean.view(shape), spread.view(shape)
    inverse = torch.rsqrt(var + eps)
    normalised = (input - mean) * inverse
    factor = 1 if weight is None else weight.view(shape)
    if activation != Activation.NONE:
        with torch.no_grad():
            y = normalised * factor + (0 if bias is None else bias.view(shape)) if output is None else output
            blocked = (y <= 0) | (y >= 6) if activation == Activation.RELU6 else y <= 0
        grad_output = torch.where(blocked, 0, grad_output)
        if is_differentiated_again():
            grad_output = tie(grad_output, *tied, zeros=True)
    of_normalised = grad_output * factor
    if training:
        dx = of_normalised - of_normalised.mean(dims, keepdim=True)
        dx = (dx - normalised * (of_normalised * normalised).mean(dims, keepdim=True)) * inverse
    else:
        dx = of_normalised * inverse
    return dx, (grad_output * normalised).sum(dims), grad_output.sum(dims), grad_output


def batch_norm(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, mean: Tensor, spread: Tensor,
    training: bool, eps: float, activation: int,
) -> Tensor:  # fmt: skip
    """Call the operator, and record its gradient where one is needed. The schema is in csrc/ops.cpp."""
    if needs_gradient((input, weight, bias, residual)):
        return super(Function, BatchNorm).apply(  # type: ignore[misc, no-any-return]
            input, weight, bias, residual, mean, spread, training, eps, activation
        )
    return _batch_norm(input, weight, bias, mean, spread, residual, training, eps, activation)  # type: ignore[no-any-return]
