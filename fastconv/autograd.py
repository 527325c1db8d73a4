"""The gradients of the operators, as autograd Functions.

Convolution is linear in its input, its weight and its bias, so its three passes are closed under differentiation: the
gradient of each is made of the other two, to any order.

    y            = conv2d(x, w, b)
    dx           = backward_data(dy, w)
    dw, db       = backward_weight(dy, x)

The fused convolution has fused backward operators; where its gradient is to be differentiated again, it is composed of
the unfused ones.

Every Function that transforms meet has ``setup_context``, ``jvp`` and ``vmap``, so ``torch.func`` and ``torch.compile``
work with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from fastconv.ops import is_channels_last

_conv2d = torch.ops.fastconv.conv2d.default
_conv2d_backward_data = torch.ops.fastconv.conv2d_backward_data.default
_conv2d_backward_weight = torch.ops.fastconv.conv2d_backward_weight.default
_max_pool2d = torch.ops.fastconv.max_pool2d.default
_max_pool2d_backward = torch.ops.fastconv.max_pool2d_backward.default
_relu = torch.ops.fastconv.relu.default
_relu_ = torch.ops.fastconv.relu_.default
_relu_backward = torch.ops.fastconv.relu_backward.default
_conv2d_relu = torch.ops.fastconv.conv2d_relu.default
_conv2d_relu_max_pool2d = torch.ops.fastconv.conv2d_relu_max_pool2d.default
_conv2d_relu_backward = torch.ops.fastconv.conv2d_relu_backward.default
_conv2d_relu_max_pool2d_backward = torch.ops.fastconv.conv2d_relu_max_pool2d_backward.default

Pair = tuple[int, int]
#: Stride, padding, dilation, groups.
Geometry = tuple[Pair, Pair, Pair, int]
#: Kernel size, stride, padding, dilation and ceil_mode.
Pool = tuple[Pair, Pair, Pair, Pair, bool]


def with_jvp(function: type[Function]) -> type[Function]:
    """Gives the class a subclass whose ``jvp`` is its ``tangent``.

    Forward-mode AD needs a ``jvp``; Dynamo traces no Function that has one. So each is given the class that it likes.
    """
    jvp = {"jvp": staticmethod(function.tangent)}  # type: ignore[attr-defined]
    function.with_jvp = type(function.__name__, (function,), jvp)  # type: ignore[attr-defined]
    return function


def apply(function: Any, operator: Callable[..., Any], *args: Any) -> Any:
    """``function.apply(*args)``, or by a shorter way to the same.

    ``Function.apply`` binds the arguments to the signature of ``forward`` on every call, which costs more than a small
    convolution. Only transforms need that. And where nothing is differentiated, the operator alone will do.
    """
    # Transforms first: within torch.compile, Dynamo would trace through the Function and lose the gradient. One that
    # has a jvp it leaves alone.
    if torch._C._are_functorch_transforms_active():
        return function.with_jvp.apply(*args)
    if torch.compiler.is_compiling():
        return function.apply(*args)
    if forward_ad._current_level >= 0:
        return function.with_jvp.apply(*args)
    if needs_gradient(args):
        return super(Function, function).apply(*args)
    return operator(*args)


def needs_gradient(args: Sequence[Any]) -> bool:
    if torch.is_grad_enabled():
        for argument in args:  # any() takes twice as long
            if isinstance(argument, Tensor) and argument.requires_grad:
                return True
    return False


def vmap_one_by_one(function: Callable[..., Any], info: Any, in_dims: Sequence[int | None], *args: Any) -> Any:
    """The rule of last resort: every example by itself."""
    results = [
        function(*(a.select(d, i) if isinstance(d, int) else a for a, d in zip(args, in_dims, strict=True)))
        for i in range(info.batch_size)
    ]
    if isinstance(results[0], tuple):
        return tuple(torch.stack(column) for column in zip(*results, strict=True)), (0,) * len(results[0])
    return torch.stack(results), 0


class Tie(Function):
    """Makes a gradient depend on tensors that do not change it, as PyTorch's backward operators do.

    A second backward then gives those tensors what PyTorch gives them: zeros if ``zeros``, else nothing at all.
    """

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, zeros: bool, *tensors: Tensor | None) -> Tensor:
        ctx.zeros = zeros
        ctx.like = [t if zeros and t is not None and t.requires_grad else None for t in tensors]
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad, None, *(None if t is None else torch.zeros_like(t) for t in ctx.like)


def tie(gradient: Any, *tensors: Tensor | None, zeros: bool = False) -> Any:
    """The gradient, dependent on the tensors: see :class:`Tie`."""
    return None if gradient is None else Tie.apply(gradient, zeros, *tensors)


def is_differentiated_again() -> bool:
    """Whether a running backward has ``create_graph=True``. Transforms give zeros wherever nothing depends."""
    return (
        torch.is_grad_enabled()
        and not torch._C._are_functorch_transforms_active()
        and not torch.compiler.is_compiling()
        and forward_ad._current_level < 0
    )


@with_jvp
class Conv2d(Function):
    @staticmethod
    def forward(
        input: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, dilation: Pair, groups: int
    ) -> Tensor:
        return _conv2d(input, weight, bias, stride, padding, dilation, groups)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, weight, bias, *geometry = inputs
        ctx.save_for_backward(input, weight)
        ctx.save_for_forward(input, weight)
        ctx.set_materialize_grads(False)
        ctx.has_bias = bias is not None
        ctx.geometry = geometry

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad_output is None:
            return (None,) * 7
        input, weight = ctx.saved_tensors
        grad_input = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_input = conv2d_backward_data(
                grad_output, weight, tuple(input.shape), *ctx.geometry, is_channels_last(input)
            )
        if ctx.needs_input_grad[1] or (ctx.has_bias and ctx.needs_input_grad[2]):
            grad_weight, grad_bias = conv2d_backward_weight(
                grad_output, input, tuple(weight.shape[2:]), *ctx.geometry, is_channels_last(weight)
            )
        if is_differentiated_again():
            grad_input = tie(grad_input, input)
            grad_weight, grad_bias = tie(grad_weight, weight), tie(grad_bias, weight)
        return grad_input, grad_weight, grad_bias if ctx.has_bias else None, None, None, None, None

    @staticmethod
    def tangent(ctx: Any, input_t: Tensor | None, weight_t: Tensor | None, bias_t: Tensor | None, *_: None) -> Tensor:
        input, weight = ctx.saved_tensors
        return conv2d_tangent(input, weight, input_t, weight_t, bias_t, ctx.geometry)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
        input, *others = args
        if in_dims[1] is not None or in_dims[2] is not None:
            return vmap_one_by_one(conv2d, info, in_dims, *args)
        examples = input.movedim(in_dims[0], 0)
        output = conv2d(examples.flatten(0, 1), *others)
        return output.unflatten(0, examples.shape[:2]), 0


def conv2d_tangent(
    input: Tensor, weight: Tensor, input_t: Tensor | None, weight_t: Tensor | None, bias_t: Tensor | None,
    geometry: Sequence[Any],
) -> Tensor:  # fmt: skip
    """The tangent of a convolution's results, from those of its arguments."""
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


@with_jvp
class Conv2dBackwardData(Function):
    @staticmethod
    def forward(
        grad_output: Tensor, weight: Tensor, input_size: tuple[int, ...], stride: Pair, padding: Pair, dilation: Pair,
        groups: int, channels_last: bool,
    ) -> Tensor:  # fmt: skip
        return _conv2d_backward_data(grad_output, weight, input_size, stride, padding, dilation, groups, channels_last)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        grad_output, weight, ctx.input_size, *ctx.geometry, ctx.channels_last = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(grad_output, weight)
        ctx.save_for_forward(grad_output, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 8
        grad_output, weight = ctx.saved_tensors
        grad_grad_output = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_grad_output = conv2d(grad, weight, None, *ctx.geometry)
        if ctx.needs_input_grad[1]:
            grad_weight, _ = conv2d_backward_weight(
                grad_output, grad, tuple(weight.shape[2:]), *ctx.geometry, is_channels_last(weight)
            )
        return grad_grad_output, grad_weight, None, None, None, None, None, None

    @staticmethod
    def tangent(ctx: Any, grad_output_t: Tensor | None, weight_t: Tensor | None, *_: None) -> Tensor:
        grad_output, weight = ctx.saved_tensors
        rest = (ctx.input_size, *ctx.geometry, ctx.channels_last)
        terms = []
        if grad_output_t is not None:
            terms.append(conv2d_backward_data(grad_output_t, weight, *rest))
        if weight_t is not None:
            terms.append(conv2d_backward_data(grad_output, weight_t, *rest))
        return terms[0] if len(terms) == 1 else terms[0] + terms[1]

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
        grad_output, weight, input_size, *rest = args
        if in_dims[1] is not None:
            return vmap_one_by_one(conv2d_backward_data, info, in_dims, *args)
        examples = grad_output.movedim(in_dims[0], 0)
        size = (info.batch_size * input_size[0], *input_size[1:])
        grad_input = conv2d_backward_data(examples.flatten(0, 1), weight, size, *rest)
        return grad_input.unflatten(0, examples.shape[:2]), 0


@with_jvp
class Conv2dBackwardWeight(Function):
    @staticmethod
    def forward(
        grad_output: Tensor, input: Tensor, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair,
        groups: int, channels_last: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        return _conv2d_backward_weight(
            grad_output, input, kernel_size, stride, padding, dilation, groups, channels_last
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        grad_output, input, ctx.kernel_size, *ctx.geometry, ctx.channels_last = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(grad_output, input)
        ctx.save_for_forward(grad_output, input)
        # A zero in place of a gradient that is not there would make NaN of infinite factors.
        ctx.set_materialize_grads(False)

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
            grad_input = conv2d_backward_data(
                grad_output, grad_weight, tuple(input.shape), *ctx.geometry, is_channels_last(input)
            )
        return grad_grad_output, grad_input, None, None, None, None, None, None

    @staticmethod
    def tangent(ctx: Any, grad_output_t: Tensor | None, input_t: Tensor | None, *_: None) -> tuple[Tensor, Tensor]:
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

    vmap = staticmethod(lambda info, in_dims, *args: vmap_one_by_one(conv2d_backward_weight, info, in_dims, *args))


@with_jvp
class MaxPool2d(Function):
    @staticmethod
    def forward(
        input: Tensor, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair, ceil_mode: bool
    ) -> tuple[Tensor, Tensor]:
        return _max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        input, *ctx.windows, _ = inputs
        indices = output[1]
        ctx.input_size = tuple(input.shape)
        ctx.channels_last = is_channels_last(input)
        ctx.mark_non_differentiable(indices)
        ctx.set_materialize_grads(False)  # no zeros for the indices: 35 us of a small call's 90
        ctx.save_for_backward(indices, input)  # the input for a second backward, as PyTorch does
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
    def tangent(ctx: Any, input_t: Tensor, *_: None) -> tuple[Tensor, None]:
        indices = ctx.saved_tensors[0]
        return take(input_t, indices), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        input, *rest = args
        examples = input.movedim(in_dims[0], 0)
        values, indices = max_pool2d(examples.flatten(0, 1), *rest)
        return (values.unflatten(0, examples.shape[:2]), indices.unflatten(0, examples.shape[:2])), (0, 0)


def take(input: Tensor, indices: Tensor) -> Tensor:
    """The pixels that max-pooling chose: the transpose of its backward."""
    return input.flatten(2).gather(2, indices.flatten(2)).view(indices.shape)


@with_jvp
class MaxPool2dBackward(Function):
    @staticmethod
    def forward(
        grad_output: Tensor, indices: Tensor, input_size: tuple[int, ...], kernel_size: Pair, stride: Pair,
        padding: Pair, dilation: Pair, channels_last: bool,
    ) -> Tensor:  # fmt: skip
        return _max_pool2d_backward(
            grad_output, indices, input_size, kernel_size, stride, padding, dilation, channels_last
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, indices, *ctx.rest = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(indices)
        ctx.save_for_forward(indices)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 8
        (indices,) = ctx.saved_tensors
        return take(grad, indices), None, None, None, None, None, None, None

    @staticmethod
    def tangent(ctx: Any, grad_output_t: Tensor, *_: None) -> Tensor:
        (indices,) = ctx.saved_tensors
        return max_pool2d_backward(grad_output_t, indices, *ctx.rest)

    vmap = staticmethod(lambda info, in_dims, *args: vmap_one_by_one(max_pool2d_backward, info, in_dims, *args))


@with_jvp
class ReLU(Function):
    @staticmethod
    def forward(input: Tensor) -> Tensor:
        return _relu(input)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None) -> Tensor | None:
        (output,) = ctx.saved_tensors
        return None if grad_output is None else relu_backward(grad_output, output)

    @staticmethod
    def tangent(ctx: Any, input_t: Tensor) -> Tensor:
        (output,) = ctx.saved_tensors
        return relu_backward(input_t, output)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], input: Tensor) -> tuple[Tensor, int | None]:
        return relu(input), in_dims[0]


@with_jvp
class ReLUInPlace(Function):
    @staticmethod
    def forward(input: Tensor) -> Tensor:
        _relu_(input)
        return input

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.mark_dirty(inputs[0])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    backward = ReLU.backward

    @staticmethod
    def tangent(ctx: Any, input_t: Tensor) -> Tensor:
        # PyTorch asks that the tangent of an in-place operator be changed in place too.
        (output,) = ctx.saved_tensors
        return input_t.copy_(relu_backward(input_t, output))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], input: Tensor) -> tuple[Tensor, int | None]:
        return relu_(input), in_dims[0]


@with_jvp
class ReLUBackward(Function):
    @staticmethod
    def forward(grad_output: Tensor, output: Tensor) -> Tensor:
        return _relu_backward(grad_output, output)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(inputs[1])
        ctx.save_for_forward(inputs[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        if grad is None:
            return None, None
        (output,) = ctx.saved_tensors
        return relu_backward(grad, output), torch.zeros_like(output) if ctx.needs_input_grad[1] else None

    @staticmethod
    def tangent(ctx: Any, grad_output_t: Tensor | None, _: Tensor | None) -> Tensor:
        (output,) = ctx.saved_tensors
        return torch.zeros_like(output) if grad_output_t is None else relu_backward(grad_output_t, output)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], grad_output: Tensor, output: Tensor) -> tuple[Tensor, int]:
        both = [
            t.unsqueeze(0).expand(info.batch_size, *t.shape) if d is None else t.movedim(d, 0)
            for t, d in zip((grad_output, output), in_dims, strict=True)
        ]
        return relu_backward(*both), 0


#: In the place of a position in its window: ReLU lets no gradient pass.
DEAD = 255
#: The defaults of the fused operators.
_USUAL: Geometry = ((1, 1), (0, 0), (1, 1), 1)
_USUAL_POOL: Pool = ((2, 2), (2, 2), (0, 0), (1, 1), False)


def _fused(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, dilation: Pair, groups: int,
    pool: Pool | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    operator = _conv2d_relu if pool is None else _conv2d_relu_max_pool2d
    return operator(input, weight, bias, *_unusual((stride, padding, dilation, groups), pool))


def _fused_backward(geometry: Geometry, pool: Pool | None, *args: Any) -> tuple[Tensor, ...]:
    operator = _conv2d_relu_backward if pool is None else _conv2d_relu_max_pool2d_backward
    return operator(*args, *_unusual(geometry, pool)[:8])  # ceil_mode is forward's alone


def _unusual(geometry: Geometry, pool: Pool | None) -> tuple[Any, ...]:
    """The numbers of a call, unless they are the operator's defaults: each list handed to it costs 1 us."""
    if geometry == _USUAL and (pool is None or pool == _USUAL_POOL):
        return ()
    return geometry if pool is None else (*geometry, *pool)


@with_jvp
class Conv2dReLUMaxPool2d(Function):
    """Convolution, ReLU and, unless ``pool`` is None, max-pooling. Saves input, weight and a byte for each output."""

    @staticmethod
    def forward(
        input: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, dilation: Pair, groups: int,
        pool: Pool | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        return _fused(input, weight, bias, stride, padding, dilation, groups, pool)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        input, weight, bias, *geometry, ctx.pool = inputs
        ctx.geometry = tuple(geometry)
        argmax = output[1]
        ctx.mark_non_differentiable(argmax)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(input, weight, argmax)
        ctx.save_for_forward(input, weight, argmax)
        ctx.bias, ctx.has_bias = None, bias is not None

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if grad_output is None:
            return (None,) * 8
        input, weight, argmax = ctx.saved_tensors
        needs_input, needs_weight = ctx.needs_input_grad[0], ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        grad_input = grad_weight = grad_bias = None
        if torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
            unpooled = Windows(input, weight, ctx.geometry, ctx.pool).unpool(grad_output, argmax)
            # PyTorch's ReLU and pool give zeros to all that their operand was computed from.
            if is_differentiated_again():
                unpooled = tie(unpooled, input, weight, ctx.bias, zeros=True)
            if needs_input:
                grad_input = conv2d_backward_data(
                    unpooled, weight, tuple(input.shape), *ctx.geometry, is_channels_last(input)
                )
            if needs_weight:
                grad_weight, grad_bias = conv2d_backward_weight(
                    unpooled, input, tuple(weight.shape[2:]), *ctx.geometry, is_channels_last(weight)
                )
        else:
            gradients = _fused_backward(
                ctx.geometry, ctx.pool, grad_output, argmax, input, weight, needs_input, needs_weight
            )
            if needs_input:
                grad_input = gradients[0]
            if needs_weight:
                grad_weight, grad_bias = gradients[1:]
        return grad_input, grad_weight, grad_bias if ctx.has_bias else None, None, None, None, None, None

    @staticmethod
    def tangent(
        ctx: Any, input_t: Tensor | None, weight_t: Tensor | None, bias_t: Tensor | None, *_: None
    ) -> tuple[Tensor, None]:
        input, weight, argmax = ctx.saved_tensors
        tangent = conv2d_tangent(input, weight, input_t, weight_t, bias_t, ctx.geometry)
        return Windows(input, weight, ctx.geometry, ctx.pool).take(tangent, argmax), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        input, *others = args
        if in_dims[1] is not None or in_dims[2] is not None:
            return vmap_one_by_one(_conv2d_relu_max_pool2d_and_argmax, info, in_dims, *args)
        examples = input.movedim(in_dims[0], 0)
        results = _conv2d_relu_max_pool2d_and_argmax(examples.flatten(0, 1), *others)
        output, argmax = (result.unflatten(0, examples.shape[:2]) for result in results)
        return (output, argmax), (0, 0)


class EagerConv2dReLUMaxPool2d(Function):
    """The same for all but transforms. One output instead of two spares a small call and its backward 20 of 110 us."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, dilation: Pair,
        groups: int, pool: Pool | None,
    ) -> Tensor:  # fmt: skip
        output, argmax = _fused(input, weight, bias, stride, padding, dilation, groups, pool)
        ctx.save_for_backward(input, weight, argmax)
        ctx.geometry, ctx.pool = (stride, padding, dilation, groups), pool
        ctx.bias, ctx.has_bias = bias, bias is not None  # its values are not needed: so not saved, which watches them
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        return Conv2dReLUMaxPool2d.backward(ctx, grad_output, None)


class Windows:
    """Where the windows of a fused convolution lie: from bytes to the indices of PyTorch's max-pooling, and back."""

    def __init__(self, input: Tensor, weight: Tensor, geometry: Sequence[Any], pool: Pool | None) -> None:
        stride, padding, dilation, _ = geometry
        P, Q = (
            (size + 2 * z - d * (kernel - 1) - 1) // u + 1
            for size, kernel, u, z, d in zip(input.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
        )
        self.size = (input.shape[0], weight.shape[0], P, Q)
        self.pool = pool
        self.channels_last = is_channels_last(input) or is_channels_last(weight)

    def indices(self, argmax: Tensor) -> Tensor:
        """int64, flat over P * Q; 0 for what is dead."""
        assert self.pool is not None
        (_, S), (u_h, u_w), (z_h, z_w), (d_h, d_w), _ = self.pool
        rows = torch.arange(argmax.shape[2], device=argmax.device).view(-1, 1) * u_h - z_h
        columns = torch.arange(argmax.shape[3], device=argmax.device) * u_w - z_w
        position = argmax.long()
        flat = (rows + position // S * d_h) * self.size[3] + columns + position % S * d_w
        return torch.where(argmax == DEAD, 0, flat)

    def unpool(self, grad_output: Tensor, argmax: Tensor) -> Tensor:
        """The gradient of the convolution's results."""
        live = torch.where(argmax == DEAD, 0, grad_output)
        if self.pool is None:
            return live
        return max_pool2d_backward(live, self.indices(argmax), self.size, *self.pool[:4], self.channels_last)

    def take(self, conv: Tensor, argmax: Tensor) -> Tensor:
        """The transpose of :meth:`unpool`."""
        chosen = conv if self.pool is None else take(conv, self.indices(argmax))
        return torch.where(argmax == DEAD, 0, chosen)


def _relu_in_place(input: Tensor) -> Tensor:
    _relu_(input)
    # As mark_dirty does: who saved the input for a gradient must learn that it is gone.
    torch.autograd.graph.increment_version(input)
    return input


# What the rest of the package calls.


def conv2d(*args: Any) -> Tensor:
    return apply(Conv2d, _conv2d, *args)


def conv2d_backward_data(*args: Any) -> Tensor:
    return apply(Conv2dBackwardData, _conv2d_backward_data, *args)


def conv2d_backward_weight(*args: Any) -> tuple[Tensor, Tensor]:
    return apply(Conv2dBackwardWeight, _conv2d_backward_weight, *args)


def max_pool2d(*args: Any) -> tuple[Tensor, Tensor]:
    return apply(MaxPool2d, _max_pool2d, *args)


def max_pool2d_backward(*args: Any) -> Tensor:
    return apply(MaxPool2dBackward, _max_pool2d_backward, *args)


def relu(input: Tensor) -> Tensor:
    return apply(ReLU, _relu, input)


def relu_(input: Tensor) -> Tensor:
    return apply(ReLUInPlace, _relu_in_place, input)


def relu_backward(grad_output: Tensor, output: Tensor) -> Tensor:
    return apply(ReLUBackward, _relu_backward, grad_output, output)


def conv2d_relu_max_pool2d(*args: Any) -> Tensor:
    if torch._C._are_functorch_transforms_active() or torch.compiler.is_compiling() or forward_ad._current_level >= 0:
        return _conv2d_relu_max_pool2d_and_argmax(*args)[0]
    if needs_gradient(args):
        return super(Function, EagerConv2dReLUMaxPool2d).apply(*args)
    return _fused(*args)[0]


def _conv2d_relu_max_pool2d_and_argmax(*args: Any) -> tuple[Tensor, Tensor]:
    return apply(Conv2dReLUMaxPool2d, _fused, *args)
