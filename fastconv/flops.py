"""The number of floating-point operations of each operator, for :class:`torch.utils.flop_counter.FlopCounterMode`.

The counts come from PyTorch's own formulas, so a model has the same number with fastconv's operators as with PyTorch's.
PyTorch counts no operations for max-pooling, ReLU and batch norm. A fused operator therefore counts as its convolution.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import conv_backward_flop, conv_flop_count, register_flop_formula

from fastconv._ops.conv2d_chain import STEP_NUMBERS
from fastconv._ops.sizes import conv2d_output

__all__: list[str] = []

_ops = torch.ops.fastconv
Shape = Sequence[int]


# A formula receives shapes instead of tensors. ``out_shape`` is the shape of the result, or a tuple of shapes.


@register_flop_formula([_ops.conv2d, _ops.conv2d_inference])
def _conv2d(input: Shape, weight: Shape, *_: Any, out_shape: Any, **__: Any) -> int:
    return conv_flop_count(input, weight, out_shape)  # type: ignore[arg-type]


@register_flop_formula(_ops.conv2d_chain)
def _chain(
    inputs: Sequence[Shape], weights: Sequence[Shape], _: Any, steps: Sequence[int], *__: Any, **___: Any
) -> int:
    values, count = list(inputs), 0
    for i, weight in enumerate(weights):
        read, _, *n = steps[i * STEP_NUMBERS : (i + 1) * STEP_NUMBERS]
        if len(weight) == 1:  # a batch norm
            values.append(values[read])
            continue
        values.append(_conv_shape(values[read], weight, n[0:2], n[2:4], n[4:6]))
        count += conv_flop_count(values[read], weight, values[-1])  # type: ignore[arg-type]
    return count


@register_flop_formula([_ops.conv2d_relu, _ops.conv2d_relu_max_pool2d])
def _fused(
    input: Shape, weight: Shape, bias: Any = None, stride: Shape = (1, 1), padding: Shape = (0, 0),
    dilation: Shape = (1, 1), *_: Any, **__: Any,
) -> int:  # fmt: skip
    return conv_flop_count(input, weight, _conv_shape(input, weight, stride, padding, dilation))  # type: ignore[arg-type]


@register_flop_formula(_ops.conv2d_backward)
def _both(
    grad_output: Shape, input: Shape, weight: Shape, needs_input: bool, needs_weight: bool, *_: Any, **__: Any
) -> int:
    return _backward(grad_output, input, weight, needs_input, needs_weight)


@register_flop_formula(_ops.conv2d_backward_data)
def _backward_data(grad_output: Shape, weight: Shape, input_size: Shape, *_: Any, **__: Any) -> int:
    return _backward(grad_output, input_size, weight, True, False)


@register_flop_formula(_ops.conv2d_backward_weight)
def _backward_weight(grad_output: Shape, input: Shape, *_: Any, out_shape: Any, **__: Any) -> int:
    return _backward(grad_output, input, out_shape[0], False, True)


@register_flop_formula([_ops.conv2d_relu_backward, _ops.conv2d_relu_max_pool2d_backward])
def _fused_backward(
    grad_output: Shape, argmax: Shape, input: Shape, weight: Shape, needs_input: bool, needs_weight: bool,
    stride: Shape = (1, 1), padding: Shape = (0, 0), dilation: Shape = (1, 1), *_: Any, **__: Any,
) -> int:  # fmt: skip
    conv = _conv_shape(input, weight, stride, padding, dilation)
    return _backward(conv, input, weight, needs_input, needs_weight)


@register_flop_formula(_ops.linear)
def _linear(input: Shape, weight: Shape, *_: Any, **__: Any) -> int:
    return 2 * prod(input) * weight[0]


@register_flop_formula(_ops.linear_backward)
def _linear_backward(grad_output: Shape, input: Shape | None, weight: Shape | None, **_: Any) -> int:
    of_weight = 0 if input is None else 2 * prod(grad_output) * input[-1]
    return of_weight + (0 if weight is None else 2 * prod(grad_output) * weight[1])


def _backward(grad_output: Shape, input: Shape, weight: Shape, needs_input: bool, needs_weight: bool) -> int:
    unused = (None, None, None, None, False, None, None)  # bias, geometry, transposed, output_padding, groups
    output_mask, gradients = (needs_input, needs_weight, True), (input, weight, None)
    formula: Any = conv_backward_flop  # its decorator takes the shapes of the results as out_val
    return int(formula(grad_output, input, weight, *unused, output_mask, out_val=gradients))


def _conv_shape(input: Shape, weight: Shape, stride: Shape, padding: Shape, dilation: Shape) -> Shape:
    """Return the shape of the convolution's result, which a fused operator does not return."""
    return input[0], weight[0], *conv2d_output(input[2:], weight[2:], stride, padding, dilation)
