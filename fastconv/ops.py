"""The operators, ``torch.ops.fastconv``: loads the extension that has them, and tells the compiler their shapes.

Schemas and kernels stand in ``csrc/ops.cpp``; gradients in :mod:`fastconv.autograd`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

#: The oldest torch whose stable ABI serves the extension.
OLDEST_TORCH = (2, 10)


def _check_torch() -> None:
    major, minor = (int(part) for part in torch.__version__.split(".")[:2])
    if (major, minor) < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        raise ImportError(
            f"fastconv needs torch >= {oldest}, but found torch {torch.__version__}: pip install 'torch>={oldest}'"
        )


_check_torch()

try:
    from fastconv import _C  # type: ignore[attr-defined]
except ImportError as error:
    if getattr(error, "name", None) == "fastconv._C" or "cannot import name '_C'" in str(error):
        raise ImportError(
            "fastconv's extension is not built: pip install --no-build-isolation . (in its source folder)"
        ) from error
    raise ImportError(
        f"fastconv's extension does not load beside torch {torch.__version__}: {error}\n"
        "Build it again: pip install --no-build-isolation --force-reinstall fastconv"
    ) from error

_C.environment()  # raises ValueError now, not in the first call, if an environment variable is not accepted

__all__ = ["_C", "has_cuda", "is_channels_last", "suggests_channels_last"]

Ints = Sequence[int]


def has_cuda() -> bool:
    """Whether the extension is built with CUDA, so that the operators take a GPU's tensors."""
    return _C.build_info()["cuda"] != "no"


def suggests_channels_last(tensor: Tensor) -> bool:
    """Whether the strides of a 4-D tensor are those of channels_last, by PyTorch's rule (c10/core/MemoryFormat.h).

    ``torch._prims_common.suggest_memory_format`` has the same rule and takes 2 us, six times as long.
    """
    sizes, strides = tensor.shape, tensor.stride()
    if strides[1] == 0:
        return False
    least = 0
    for axis in (1, 3, 2, 0):
        stride = strides[axis]
        # The batch's stride tells (N, C, 1, 1) from channels_last.
        if sizes[axis] == 0 or stride < least or (axis == 0 and least == strides[1]):
            return False
        least = stride * max(sizes[axis], 1)
    return True


def is_channels_last(tensor: Tensor) -> bool:
    """Whether a 4-D tensor is channels_last and nothing else, so that its gradient shall be, too."""
    return tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()


# Fake kernels: the result's shape and strides from the arguments' alone. They refuse what the real ones refuse, in the
# words of csrc/checks.cpp. Defaults are the schemas' own (csrc/ops.cpp): arguments that have them do not come here.

_FLOATING = {torch.float32: "Float", torch.float64: "Double", torch.bfloat16: "BFloat16", torch.float16: "Half"}
_INTEGER = {torch.uint8: "Byte", torch.int8: "Char", torch.int16: "Short", torch.int32: "Int", torch.int64: "Long"}
_OTHER = {torch.bool: "Bool", torch.complex64: "ComplexFloat", torch.complex128: "ComplexDouble"}
_TYPES = {**_FLOATING, **_INTEGER, **_OTHER}


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise RuntimeError(message)


def _check_type(given: Tensor, expected: torch.dtype, name: str) -> None:
    if given.dtype != expected:
        wanted, found = (_TYPES.get(dtype, str(dtype)) for dtype in (expected, given.dtype))
        raise RuntimeError(f"expected {name} of type {wanted}, but got {found}")


def _check_implemented(tensor: Tensor, operator: str, types: Mapping[torch.dtype, str]) -> None:
    if tensor.dtype not in types:
        raise RuntimeError(f"\"{operator}\" not implemented for '{_TYPES.get(tensor.dtype, tensor.dtype)}'")


def _check_sizes(sizes: Ints) -> None:
    for size in sizes:
        if size < 0:
            raise RuntimeError(f"Trying to create tensor with negative dimension {size}: {list(sizes)}")


def _check_gradient(expected: Ints, grad_output: Tensor, second: Tensor | None = None, name: str = "") -> None:
    """``grad_output``, and the tensor that says where it goes, have the size of the forward operator's output."""
    found = [grad_output] if second is None else [grad_output, second]
    if any(tensor.dim() != len(expected) for tensor in found) or any(
        given != wanted for tensor in found for given, wanted in zip(tensor.shape, expected, strict=True)
    ):
        names, sizes = f" and {name}" if name else "", " and ".join(str(list(tensor.shape)) for tensor in found)
        raise RuntimeError(f"expected grad_output{names} of size {list(expected)}, but got {sizes}")


def _check_convolution(stride: Ints, padding: Ints, dilation: Ints, groups: int, kernel_size: Ints = (1, 1)) -> None:
    pairs = (("stride", stride), ("padding", padding), ("dilation", dilation), ("kernel_size", kernel_size))
    for name, values in pairs:
        _check_pair(name, values)
    _check(groups > 0, "non-positive groups is not supported")
    _check(min(padding) >= 0, "negative padding is not supported")
    _check(min(stride) > 0, "non-positive stride is not supported")
    _check(min(dilation) > 0, "non-positive dilation is not supported")
    _check(max(*stride, *padding, *dilation) <= 2**40, "expected stride, padding and dilation to be at most 2^40")


def _check_pair(name: str, values: Ints) -> None:
    if len(values) != 2:
        raise RuntimeError(
            f"expected {name} to be a single integer value or a list of 2 values to match the convolution dimensions, "
            f"but got {name}={list(values)}"
        )


def _conv2d_size(
    input: Ints, weight: Ints, bias: Tensor | None, stride: Ints, padding: Ints, dilation: Ints, groups: int
) -> list[int]:
    """The size of conv2d's output, from the sizes of input and weight."""
    _check_sizes(input)
    _check_sizes(weight)
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
    return [N, K, *((size - span) // step + 1 for size, span, step in zip(padded, extent, stride, strict=True))]


def _check_pool(kernel_size: Ints, stride: Ints, padding: Ints, dilation: Ints) -> None:
    pair = "max_pool2d: {} must {} a single int, or a tuple of two ints"
    _check(len(kernel_size) == 2, pair.format("kernel_size", "either be"))
    _check(len(stride) == 2, pair.format("stride", "either be omitted,"))
    _check(len(padding) == 2, pair.format("padding", "either be"))
    _check(len(dilation) == 2, pair.format("dilation", "be either"))
    _check(stride[0] != 0 and stride[1] != 0, "stride should not be zero")
    for value in (*kernel_size, *stride, *padding, *dilation):
        _check(-(2**31) <= value < 2**31, "value cannot be converted to type int without overflow")
    for taps, pad, step in zip(kernel_size, padding, dilation, strict=True):
        if pad < 0:
            raise RuntimeError(f"pad must be non-negative, but got pad: {pad}")
        if pad > int((step * (taps - 1) + 1) / 2):
            raise RuntimeError(
                f"pad should be at most half of effective kernel size, but got pad={pad}, kernel_size={taps} and "
                f"dilation={step}"
            )
    for name, letter, values in (("kernel size", "k", kernel_size), ("stride", "d", stride)):
        if values[0] <= 0 or values[1] <= 0:
            raise RuntimeError(
                f"{name} should be greater than zero, but got {letter}H: {values[0]} {letter}W: {values[1]}"
            )
    if dilation[0] <= 0 or dilation[1] <= 0:
        raise RuntimeError(
            f"dilation should be greater than zero, but got dilationH: {dilation[0]} dilationW: {dilation[1]}"
        )


def _pooled_size(
    input: Ints, kernel_size: Ints, stride: Ints, padding: Ints, dilation: Ints, ceil_mode: bool, given: Ints = ()
) -> list[int]:
    """The size of max_pool2d's output, from that of the input.

    Backward operators have no ceil_mode. For them, ``given`` is the gradient's number of windows, (P, Q), and the
    rounding is the one that fits.
    """
    _check_sizes(input)
    N, C, *image = input
    if C == 0 or image[0] == 0 or image[1] == 0:
        raise RuntimeError(
            f"Expected 3D or 4D (batch mode) tensor with optional 0 dim batch size for input, but got:{list(input)}"
        )
    if padding[0] > kernel_size[0] // 2 or padding[1] > kernel_size[1] // 2:
        raise RuntimeError(
            f"pad should be smaller than or equal to half of kernel size, but got padW = {padding[1]}, padH = "
            f"{padding[0]}, kW = {kernel_size[1]}, kH = {kernel_size[0]}"
        )

    def windows(side: int, up: bool) -> int:
        size, pad, step = image[side], padding[side], stride[side]
        span = size + 2 * pad - dilation[side] * (kernel_size[side] - 1) - 1
        if not up:
            return span // step + 1
        count = (span + step - 1) // step + 1
        return count - 1 if (count - 1) * step >= size + pad else count

    sides = []
    for side in (0, 1):
        down = windows(side, False)
        up = ceil_mode if not given else given[side] != down
        sides.append(windows(side, True) if up else down)
    if sides[0] < 1 or sides[1] < 1:
        raise RuntimeError(
            f"Given input size: ({C}x{image[0]}x{image[1]}). Calculated output size: ({C}x{sides[0]}x{sides[1]}). "
            "Output size is too small"
        )
    return [N, C, *sides]


def _check_positions(kernel_size: Ints) -> None:
    _check(
        max(kernel_size) <= 255 and math.prod(kernel_size) <= 255,
        f"expected a pool of at most 255 pixels, but got kernel size {list(kernel_size)}",
    )


def _empty(like: Tensor, sizes: Sequence[int], channels_last: bool) -> Tensor:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(sizes, dtype=like.dtype, device=like.device, memory_format=memory_format)


def _check_conv2d(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Ints, padding: Ints, dilation: Ints, groups: int
) -> list[int]:
    if input.dim() != 4:
        raise RuntimeError(
            f"Expected 3D (unbatched) or 4D (batched) input to conv2d, but got input of size: {list(input.shape)}"
        )
    _check_convolution(stride, padding, dilation, groups)
    if weight.dim() != 4:
        raise RuntimeError(
            f"Expected {weight.dim()}-dimensional input for {weight.dim()}-dimensional weight {list(weight.shape)}, "
            f"but got 4-dimensional input of size {list(input.shape)} instead"
        )
    size = _conv2d_size(input.shape, weight.shape, bias, stride, padding, dilation, groups)
    _check_type(weight, input.dtype, "weight")
    if bias is not None:
        _check_type(bias, input.dtype, "bias")
    _check_implemented(input, "conv2d", _FLOATING)
    return size


@torch.library.register_fake("fastconv::conv2d")
def _conv2d(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Ints, padding: Ints, dilation: Ints, groups: int
) -> Tensor:
    size = _check_conv2d(input, weight, bias, stride, padding, dilation, groups)
    channels_last = suggests_channels_last(input) or suggests_channels_last(weight)
    return _empty(input, size, channels_last and input.numel() > 0)


@torch.library.register_fake("fastconv::conv2d_backward_data")
def _conv2d_backward_data(
    grad_output: Tensor, weight: Tensor, input_size: Ints, stride: Ints, padding: Ints, dilation: Ints, groups: int,
    channels_last: bool,
) -> Tensor:  # fmt: skip
    _check_convolution(stride, padding, dilation, groups)
    _check(len(input_size) == 4 and weight.dim() == 4, "expected a 4-dimensional input and weight")
    size = _conv2d_size(input_size, weight.shape, None, stride, padding, dilation, groups)
    _check_gradient(size, grad_output)
    _check_type(weight, grad_output.dtype, "weight")
    _check_implemented(grad_output, "conv2d_backward_data", _FLOATING)
    return _empty(grad_output, input_size, channels_last)


@torch.library.register_fake("fastconv::conv2d_backward_weight")
def _conv2d_backward_weight(
    grad_output: Tensor, input: Tensor, kernel_size: Ints, stride: Ints, padding: Ints, dilation: Ints, groups: int,
    channels_last: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    _check_convolution(stride, padding, dilation, groups, kernel_size)
    _check(input.dim() == 4 and grad_output.dim() == 4, "expected a 4-dimensional input and grad_output")
    K, C = grad_output.shape[1], input.shape[1]
    if C % groups != 0:
        raise RuntimeError(f"expected the {C} channels of input to be divisible by groups={groups}")
    weight_size = (K, C // groups, *kernel_size)
    _check_gradient(_conv2d_size(input.shape, weight_size, None, stride, padding, dilation, groups), grad_output)
    _check_type(grad_output, input.dtype, "grad_output")
    _check_implemented(input, "conv2d_backward_weight", _FLOATING)
    return _empty(input, weight_size, channels_last), input.new_empty((K,))


@torch.library.register_fake("fastconv::max_pool2d")
def _max_pool2d(
    input: Tensor, kernel_size: Ints, stride: Ints, padding: Ints, dilation: Ints, ceil_mode: bool
) -> tuple[Tensor, Tensor]:
    _check_pool(kernel_size, stride, padding, dilation)
    if input.dim() != 4:
        raise RuntimeError(
            "Expected 3D or 4D (batch mode) tensor with optional 0 dim batch size for input, but got:"
            f"{list(input.shape)}"
        )
    size = _pooled_size(input.shape, kernel_size, stride, padding, dilation, ceil_mode)
    _check_implemented(input, "max_pool2d", {**_FLOATING, **_INTEGER})
    values = _empty(input, size, suggests_channels_last(input))
    return values, torch.empty_like(values, dtype=torch.int64)


@torch.library.register_fake("fastconv::max_pool2d_backward")
def _max_pool2d_backward(
    grad_output: Tensor, indices: Tensor, input_size: Ints, kernel_size: Ints, stride: Ints, padding: Ints,
    dilation: Ints, channels_last: bool,
) -> Tensor:  # fmt: skip
    _check_pool(kernel_size, stride, padding, dilation)
    _check(len(input_size) == 4 and grad_output.dim() == 4, "expected a 4-dimensional input and grad_output")
    _check_type(indices, torch.int64, "indices")
    given = grad_output.shape[2:]
    expected = _pooled_size(input_size, kernel_size, stride, padding, dilation, False, given)
    _check_gradient(expected, grad_output, indices, "indices")
    _check_implemented(grad_output, "max_pool2d_backward", _FLOATING)
    return _empty(grad_output, input_size, channels_last)


@torch.library.register_fake("fastconv::relu")
def _relu(input: Tensor) -> Tensor:
    _check_implemented(input, "relu", {**_FLOATING, **_INTEGER})
    return torch.ops.aten.relu(input)


@torch.library.register_fake("fastconv::relu_")
def _relu_(input: Tensor) -> None:
    _check(
        input.numel() == 0
        or not any(stride == 0 and size > 1 for size, stride in zip(input.shape, input.stride(), strict=True)),
        "unsupported operation: more than one element of the written-to tensor refers to a single memory location. "
        "Please clone() the tensor before performing the operation.",
    )
    _check_implemented(input, "relu", {**_FLOATING, **_INTEGER})


@torch.library.register_fake("fastconv::relu_backward")
def _relu_backward(grad_output: Tensor, output: Tensor) -> Tensor:
    _check_gradient(output.shape, grad_output)
    _check_type(output, grad_output.dtype, "output")
    _check_implemented(grad_output, "relu_backward", _FLOATING)
    return torch.ops.aten.relu(output)


@torch.library.register_fake("fastconv::conv2d_relu")
def _conv2d_relu(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Ints = (1, 1), padding: Ints = (0, 0),
    dilation: Ints = (1, 1), groups: int = 1,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    output = _conv2d(input, weight, bias, stride, padding, dilation, groups)
    return output, _argmax(output)


@torch.library.register_fake("fastconv::conv2d_relu_max_pool2d")
def _conv2d_relu_max_pool2d(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Ints = (1, 1), padding: Ints = (0, 0),
    dilation: Ints = (1, 1), groups: int = 1, pool_kernel_size: Ints = (2, 2), pool_stride: Ints = (2, 2),
    pool_padding: Ints = (0, 0), pool_dilation: Ints = (1, 1), pool_ceil_mode: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    conv_size = _check_conv2d(input, weight, bias, stride, padding, dilation, groups)
    pool = (pool_kernel_size, pool_stride, pool_padding, pool_dilation)
    _check_pool(*pool)
    _check_positions(pool_kernel_size)
    size = _pooled_size(conv_size, *pool, pool_ceil_mode)
    channels_last = suggests_channels_last(input) or suggests_channels_last(weight)
    output = _empty(input, size, channels_last and input.numel() > 0)
    return output, _argmax(output)


def _argmax(output: Tensor) -> Tensor:
    return torch.empty(output.shape, dtype=torch.uint8, device=output.device, memory_format=torch.channels_last)


@torch.library.register_fake("fastconv::conv2d_relu_backward")
def _conv2d_relu_backward(
    grad_output: Tensor, argmax: Tensor, input: Tensor, weight: Tensor, needs_input: bool, needs_weight: bool,
    stride: Ints = (1, 1), padding: Ints = (0, 0), dilation: Ints = (1, 1), groups: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    no_pool = ((1, 1), (1, 1), (0, 0), (1, 1))
    return _conv2d_relu_max_pool2d_backward(
        grad_output, argmax, input, weight, needs_input, needs_weight, stride, padding, dilation, groups, *no_pool
    )


@torch.library.register_fake("fastconv::conv2d_relu_max_pool2d_backward")
def _conv2d_relu_max_pool2d_backward(
    grad_output: Tensor, argmax: Tensor, input: Tensor, weight: Tensor, needs_input: bool, needs_weight: bool,
    stride: Ints = (1, 1), padding: Ints = (0, 0), dilation: Ints = (1, 1), groups: int = 1,
    pool_kernel_size: Ints = (2, 2), pool_stride: Ints = (2, 2), pool_padding: Ints = (0, 0),
    pool_dilation: Ints = (1, 1),
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    conv_size = _check_conv2d(input, weight, None, stride, padding, dilation, groups)
    pool = (pool_kernel_size, pool_stride, pool_padding, pool_dilation)
    _check_pool(*pool)
    _check_positions(pool_kernel_size)
    _check(grad_output.dim() == 4, "expected a 4-dimensional grad_output")
    _check_type(grad_output, input.dtype, "grad_output")
    _check_type(argmax, torch.uint8, "argmax")
    expected = _pooled_size(conv_size, *pool, False, grad_output.shape[2:])
    _check_gradient(expected, grad_output, argmax, "argmax")
    grad_input = _empty(input, input.shape, is_channels_last(input)) if needs_input else input.new_empty((0,))
    grad_weight = _empty(input, weight.shape, is_channels_last(weight)) if needs_weight else input.new_empty((0,))
    return grad_input, grad_weight, input.new_empty((weight.shape[0] if needs_weight else 0,))
