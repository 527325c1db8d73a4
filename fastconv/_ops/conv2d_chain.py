"""The fake kernel of conv2d_chain, which runs several convolutions in one call. The operator has no gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastconv._ops import library  # noqa: F401  defines the operators
from fastconv._ops.checks import check
from fastconv._ops.conv2d_checks import check_conv2d
from fastconv._ops.conv2d_inference import check_activation, check_channel_vectors, check_like, empty_result
from fastconv._ops.memory_format import suggests_channels_last
from fastconv._ops.sizes import Ints

__all__ = ["STEP_NUMBERS", "conv2d_chain"]

conv2d_chain = torch.ops.fastconv.conv2d_chain.default

#: The integers of a step: csrc/cpu/ops.h describes them.
STEP_NUMBERS = 11


@torch.library.register_fake("fastconv::conv2d_chain")
def _fake_conv2d_chain(
    inputs: Sequence[Tensor], weights: Sequence[Tensor], biases: Sequence[Tensor], steps: Ints,
    slopes: Sequence[float], results: Ints,
) -> list[Tensor]:  # fmt: skip
    count = len(weights)
    expected = f"expected {count} biases and slopes, and {STEP_NUMBERS} numbers for each step"
    check(len(biases) == len(slopes) == count and len(steps) == count * STEP_NUMBERS, expected)
    values = list(inputs)
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        read, add, *geometry, groups, activation, prefers_contiguous = steps[i * STEP_NUMBERS : (i + 1) * STEP_NUMBERS]
        residual = None if add < 0 else _value(values, add, f"step {i} reads")
        input = _value(values, read, f"step {i} reads")
        if weight.dim() == 1:
            _check_norm(input, weight, bias, residual)
            values.append(torch.empty_like(input))
        else:
            _check_format(input, weight, residual)
            size = check_conv2d(input, weight, bias, geometry[0:2], geometry[2:4], geometry[4:6], groups)
            check_like(residual, size, input, "residual")
            values.append(empty_result(input, weight, size, bool(prefers_contiguous)))
        check_activation(activation)
    returned = []
    for number in results:
        check(number >= len(inputs), f"the chain returns value {number}, which is an input")
        returned.append(_value(values, number, "the chain returns"))
    return returned


def _check_norm(input: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None) -> None:
    check(input.dim() == 4, "expected an input with 4 dimensions")
    check_channel_vectors(input.shape[1], weight=weight, bias=bias)
    for vector in (weight, bias):
        check_like(vector, vector.shape, input, "a vector")
    check_like(residual, input.shape, input, "residual")
    if residual is not None and input.numel() > 0:
        strides = zip(input.shape, input.stride(), residual.stride(), strict=True)
        check(all(size == 1 or a == b for size, a, b in strides), _OTHER_FORMAT)


def _check_format(input: Tensor, weight: Tensor, residual: Tensor | None) -> None:
    """Check that a residual has the memory format of the result. Otherwise the sum depends on the order."""
    if residual is None or residual.numel() == 0 or not (residual.dim() == input.dim() == weight.dim() == 4):
        return
    channels_last = input.numel() > 0 and (suggests_channels_last(input) or suggests_channels_last(weight))
    ordered = residual.permute(0, 2, 3, 1) if channels_last else residual
    check(ordered.is_contiguous(), _OTHER_FORMAT)


_OTHER_FORMAT = "expected a residual in the memory format of the result"


def _value(values: list[Tensor], number: int, reads: str) -> Tensor:
    check(0 <= number < len(values), f"{reads} value {number}, but there are {len(values)}")
    return values[number]
