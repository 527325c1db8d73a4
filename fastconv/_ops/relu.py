"""ReLU: fake kernels and gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from fastconv._ops import library  # noqa: F401  defines the operators
from fastconv._ops.checks import FLOATING, REAL, check, check_gradient, check_implemented, check_type
from fastconv._ops.function import differentiable, save

__all__ = ["relu", "relu_", "relu_backward"]

_relu = torch.ops.fastconv.relu.default
_relu_ = torch.ops.fastconv.relu_.default
_relu_backward = torch.ops.fastconv.relu_backward.default


@torch.library.register_fake("fastconv::relu")
def _fake_relu(input: Tensor) -> Tensor:
    check_implemented(input, "relu", REAL)
    return torch.ops.aten.relu(input)


@torch.library.register_fake("fastconv::relu_")
def _fake_relu_(input: Tensor) -> None:
    check(
        input.numel() == 0
        or not any(stride == 0 and size > 1 for size, stride in zip(input.shape, input.stride(), strict=True)),
        "unsupported operation: more than one element of the written-to tensor refers to a single memory location. "
        "Please clone() the tensor before performing the operation.",
    )
    check_implemented(input, "relu", REAL)


@torch.library.register_fake("fastconv::relu_backward")
def _fake_relu_backward(grad_output: Tensor, output: Tensor) -> Tensor:
    check_gradient(output.shape, grad_output)
    check_type(output, grad_output.dtype, "output")
    check_implemented(grad_output, "relu_backward", FLOATING)
    return torch.ops.aten.relu(output)


class ReLU(Function):
    @staticmethod
    def forward(input: Tensor) -> Tensor:
        return _relu(input)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        save(ctx, output)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None) -> Tensor | None:
        (output,) = ctx.saved_tensors
        return None if grad_output is None else relu_backward(grad_output, output)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], input: Tensor) -> tuple[Tensor, int | None]:
        return relu(input), in_dims[0]


class ReLUWithJvp(ReLU):
    @staticmethod
    def jvp(ctx: Any, input_t: Tensor) -> Tensor:
        (output,) = ctx.saved_tensors
        return relu_backward(input_t, output)


class ReLUInPlace(Function):
    @staticmethod
    def forward(input: Tensor) -> Tensor:
        _relu_(input)
        return input

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.mark_dirty(inputs[0])
        save(ctx, output)

    backward = ReLU.backward

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], input: Tensor) -> tuple[Tensor, int | None]:
        return relu_(input), in_dims[0]


class ReLUInPlaceWithJvp(ReLUInPlace):
    @staticmethod
    def jvp(ctx: Any, input_t: Tensor) -> Tensor:
        # PyTorch requires that an in-place operator changes its tangent in place, too.
        (output,) = ctx.saved_tensors
        return input_t.copy_(relu_backward(input_t, output))


class ReLUBackward(Function):
    @staticmethod
    def forward(grad_output: Tensor, output: Tensor) -> Tensor:
        return _relu_backward(grad_output, output)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        save(ctx, inputs[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        if grad is None:
            return None, None
        (output,) = ctx.saved_tensors
        return relu_backward(grad, output), torch.zeros_like(output) if ctx.needs_input_grad[1] else None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], grad_output: Tensor, output: Tensor) -> tuple[Tensor, int]:
        both = [
            t.unsqueeze(0).expand(info.batch_size, *t.shape) if d is None else t.movedim(d, 0)
            for t, d in zip((grad_output, output), in_dims, strict=True)
        ]
        return relu_backward(*both), 0


class ReLUBackwardWithJvp(ReLUBackward):
    @staticmethod
    def jvp(ctx: Any, grad_output_t: Tensor | None, _: Tensor | None) -> Tensor:
        (output,) = ctx.saved_tensors
        return torch.zeros_like(output) if grad_output_t is None else relu_backward(grad_output_t, output)


def _relu_in_place(input: Tensor) -> Tensor:
    _relu_(input)
    # mark_dirty does the same in the Function. A graph that saved the input then raises an error in backward.
    torch.autograd.graph.increment_version(input)
    return input


relu = differentiable(_relu, ReLU, ReLUWithJvp)
relu_ = differentiable(_relu_in_place, ReLUInPlace, ReLUInPlaceWithJvp)
relu_backward = differentiable(_relu_backward, ReLUBackward, ReLUBackwardWithJvp)
