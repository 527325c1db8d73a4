"""The checks of a convolution's arguments in the fake kernels. csrc/checks.cpp has the same checks and messages."""

from __future__ import annotations

from torch import Tensor

from fastconv._ops.checks import FLOATING, check, check_implemented, check_sizes, check_type
from fastconv._ops.sizes import Ints, conv2d_output


def check_geometry(stride: Ints, padding: Ints, dilation: Ints, groups: int, kernel_size: Ints = (1, 1)) -> None:
    """Check a convolution's numbers."""
    pairs = (("stride", stride), ("padding", padding), ("dilation", dilation), ("kernel_size", kernel_size))
    for name, values in pairs:
        if len(values) != 2:
            raise RuntimeError(
                f"expected {name} to be a single integer value or a list of 2 values to match the convolution "
                f"dimensions, but got {name}={list(values)}"
            )
    check(groups > 0, "non-positive groups is not supported")
    check(min(padding) >= 0, "negative padding is not supported")
    check(min(stride) > 0, "non-positive stride is not supported")
    check(min(dilation) > 0, "non-positive dilation is not supported")
    check(max(*stride, *padding, *dilation) <= 2**40, "expected stride, padding and dilation to be at most 2^40")


def output_size(
    input: Ints, weight: Ints, bias: Tensor | None, stride: Ints, padding: Ints, dilation: Ints, groups: int
) -> list[int]:
    """Check the sizes of conv2d's arguments, and return the size of its output."""
    check_sizes(input)
    check_sizes(weight)
    N, C, *image = input
    K, group_C, *kernel = weight
    given = f"Given groups={groups},"
    if groups > K:
        raise RuntimeError(
            f"{given} expected weight to be at least {groups} at dimension 0, but got weight of size {list(weight)} "
            "instead"
        )
    if K % groups != 0:
        raise RuntimeError(
            f"{given} expected weight to be divisible by {groups} at dimension 0, but got weight of size "
            f"[{list(weight)}] instead"
        )
    if group_C * groups != C:
        raise RuntimeError(
            f"{given} weight of size {list(weight)}, expected input{list(input)} to have {group_C * groups} channels, "
            f"but got {C} channels instead"
        )
    if bias is not None and (bias.dim() != 1 or bias.shape[0] != K):
        raise RuntimeError(
            f"Given weight of size {list(weight)}, expected bias to be 1-dimensional with {K} elements, but got bias "
            f"of size {list(bias.shape)} instead"
        )
    if kernel[0] <= 0 or kernel[1] <= 0:
        raise RuntimeError(
            f"kernel size should be greater than zero, but got kernel_height: {kernel[0]} kernel_width: {kernel[1]}"
        )
    padded = [size + 2 * pad for size, pad in zip(image, padding, strict=True)]
    extent = [step * (taps - 1) + 1 for step, taps in zip(dilation, kernel, strict=True)]
    if padded[0] < extent[0] or padded[1] < extent[1]:
        raise RuntimeError(
            f"Calculated padded input size per channel: ({padded[0]} x {padded[1]}). Kernel size: ({extent[0]} x "
            f"{extent[1]}). Kernel size can't be greater than actual input size"
        )
    if (image[0] == 0 or image[1] == 0) and N != 0 and C != 0:
        raise RuntimeError(f"Only zero batch or zero channel inputs are supported, but got input shape: {list(input)}")
    return [N, K, *conv2d_output(image, kernel, stride, padding, dilation)]


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
