"""Linear layers: fake kernels and gradients. The operators compute 1x1 convolutions (``csrc/cpu/linear.cpp``)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from fastconv._ops.checks import FLOATING, check, check_implemented
from fastconv._ops.conv2d_inference import check_like
from fastconv._ops.function import is_final_gradient, is_transformed, needs_gradient
from fastconv._ops.library import _C

__all__ = ["MAY_BE_FASTER", "is_supported", "linear"]

_linear = torch.ops.fastconv.linear.default._op
_linear_backward = torch.ops.fastconv.linear_backward.default._op
#: Whether fastconv computes any call. PyTorch was measured with MKL only.
MAY_BE_FASTER = torch.backends.mkl.is_available() and _C.linear_is_faster(4096, 1024, 1024)
#: Quantised and distributed weights have types of their own, which know PyTorch's linear layer only.
_PLAIN = {Tensor, torch.nn.Parameter}


def _check_rows(rows: Tensor, name: str) -> None:
    check(rows.dim() > 0, f"expected {name} of at least one dimension")
    check_implemented(rows, "linear", FLOATING)


@torch.library.register_fake("fastconv::linear")
def _fake_linear(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    _check_rows(input, "input")
    C, K = input.shape[-1], weight.shape[0] if weight.dim() > 0 else 0
    check_like(weight, (K, C), input, "weight")
    check_like(bias, (K,), input, "bias")
    check(C > 0 and K > 0, "expected a weight with elements")
    return input.new_empty((*input.shape[:-1], K))


@torch.library.register_fake("fastconv::linear_backward")
def _fake_linear_backward(
    grad_output: Tensor, input: Tensor | None, weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    _check_rows(grad_output, "grad_output")
    if input is not None:
        _check_rows(input, "input")
    other = weight if input is None else input
    if other is None:
        raise RuntimeError("expected an input or a weight")
    C, K = other.shape[-1] if other.dim() > 0 else 0, grad_output.shape[-1]
    input_size = (*grad_output.shape[:-1], C)
    check_like(input, input_size, grad_output, "input")
    check_like(weight, (K, C), grad_output, "weight")
    check(C > 0 and K > 0, "expected a weight with elements")
    sizes = (None if weight is None else input_size), *((None, None) if input is None else ((K, C), (K,)))
    grad_input, grad_weight, grad_bias = (grad_output.new_empty(0 if size is None else size) for size in sizes)
    return grad_input, grad_weight, grad_bias


class Linear(Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.set_materialize_grads(False)
        # As in PyTorch, an operand is saved only if a gradient needs it.
        needs_input, needs_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(input if needs_weight else None, weight if needs_input else None)
        return _linear(input, weight, bias)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad_output is None:
            return None, None, None
        input, weight = ctx.saved_tensors
        needs_input, needs_weight, needs_bias = ctx.needs_input_grad
        dx = dw = db = None
        if is_final_gradient() and (needs_input or needs_weight):
            dx, dw, db = _linear_backward(grad_output, input, weight)
        else:  # by operators that can be differentiated again
            if needs_input:
                dx = grad_output @ weight
            if needs_weight:
                dw = grad_output.flatten(0, -2).t() @ input.flatten(0, -2)
        if needs_bias and (db is None or not needs_weight):
            db = grad_output.flatten(0, -2).sum(0)
        return dx if needs_input else None, dw if needs_weight else None, db if needs_bias else None


def is_supported(input: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Return whether the operator computes a call. PyTorch computes the others, which include all invalid ones."""
    if (
        not MAY_BE_FASTER
        or is_transformed()
        or torch._C._get_tracing_state() is not None  # then sizes are tensors
        or torch.is_autocast_enabled("cpu")
    ):
        return False
    for tensor in (input, weight) if bias is None else (input, weight, bias):
        if type(tensor) not in _PLAIN or tensor.dtype is not torch.float32 or not tensor.is_cpu:
            return False
        if tensor.layout is not torch.strided or tensor.is_nested or not tensor.is_contiguous():
            return False
    if weight.dim() != 2 or input.dim() < 2 or input.shape[-1] != weight.shape[1]:
        return False
    K, C = weight.shape
    return (bias is None or bias.shape == (K,)) and C > 0 and K > 0 and _C.linear_is_faster(input.numel() // C, C, K)


def linear(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Call the operator, and record its gradient where one is needed."""
    if needs_gradient((input, weight, bias)):
        return super(Function, Linear).apply(input, weight, bias)  # type: ignore[misc, no-any-return]
    return _linear(input, weight, bias)  # type: ignore[no-any-return]
