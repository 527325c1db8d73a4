"""The checks of a convolution's arguments in the fake kernels, by the functions of csrc/checks.cpp."""

from __future__ import annotations

from torch import Tensor

from fastconv._ops.checks import FLOATING, check_implemented, check_type
from fastconv._ops.library import _C
from fastconv._ops.sizes import Ints, are_numbers, conv2d_output


def check_geometry(stride: Ints, padding: Ints, dilation: Ints, groups: int, kernel_size: Ints = (1, 1)) -> None:
    """Check a convolution's numbers."""
    _C.check_geometry(stride, padding, dilation, groups, kernel_size)


def output_size(
    input: Ints, weight: Ints, bias: Tensor | None, stride: Ints, padding: Ints, dilation: Ints, groups: int
) -> list[int]:
    """Check the sizes of conv2d's arguments, and return the size of its output.

    In torch.compile, sizes may be symbols. The operator checks them when it runs.
    """
    if not are_numbers(input, weight):
        return [input[0], weight[0], *conv2d_output(input[2:], weight[2:], stride, padding, dilation)]
    return _C.conv2d_size(input, weight, None if bias is None else bias.shape, stride, padding, dilation, groups)


def check_conv2d(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Ints, padding: Ints, dilation: Ints, groups: int
) -> list[int]:
    """Check conv2d's arguments, and return the size of its output."""
    if input.dim() != 4:
        raise RuntimeError(
            f"Expected 3D (unbatched) or 4D (batched) input to conv2d, but got input of size: {list(input.shape)}"
        )
    check_geometry(stride, padding, dilation, groups)
    if weight.dim() != 4:
        raise RuntimeError(
            f"Expected {weight.dim()}-dimensional input for {weight.dim()}-dimensional weight {list(weight.shape)}, "
            f"but got 4-dimensional input of size {list(input.shape)} instead"
        )
    size = output_size(input.shape, weight.shape, bias, stride, padding, dilation, groups)
    check_type(weight, input.dtype, "weight")
    if bias is not None:
        check_type(bias, input.dtype, "bias")
    check_implemented(input, "conv2d", FLOATING)
    return size
