"""The operators, ``torch.ops.fastconv``: loads the extension that has them, and tells the compiler their shapes.

Schemas and kernels stand in ``csrc/ops.cpp``; gradients in :mod:`fastconv.autograd`.
"""

from __future__ import annotations

from collections.abc import Sequence

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


# Fake kernels: the result's shape and strides from the arguments' alone. PyTorch's own operator, on the same fake
# tensors, gives the shape and refuses what is wrong. Defaults are the schemas' own (csrc/ops.cpp): arguments that have
# them do not come here.


def _empty(like: Tensor, sizes: Sequence[int], channels_last: bool) -> Tensor:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(sizes, dtype=like.dtype, device=like.device, memory_format=memory_format)


@torch.library.register_fake("fastconv::conv2d")
def _conv2d(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Ints, padding: Ints, dilation: Ints, groups: int
) -> Tensor:
    output = torch.nn.functional.conv2d(input, weight, bias, stride, padding, dilation, groups)
    channels_last = suggests_channels_last(input) or suggests_channels_last(weight)
    return _empty(input, output.shape, channels_last and input.numel() > 0)


@torch.library.register_fake("fastconv::conv2d_backward_data")
def _conv2d_backward_data(
    grad_output: Tensor, weight: Tensor, input_size: Ints, stride: Ints, padding: Ints, dilation: Ints, groups: int,
    channels_last: bool,
) -> Tensor:  # fmt: skip
    return _empty(grad_output, input_size, channels_last)


@torch.library.register_fake("fastconv::conv2d_backward_weight")
def _conv2d_backward_weight(
    grad_output: Tensor, input: Tensor, kernel_size: Ints, stride: Ints, padding: Ints, dilation: Ints, groups: int,
    channels_last: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    K, C = grad_output.shape[1], input.shape[1]
    return _empty(input, (K, C // groups, *kernel_size), channels_last), input.new_empty((K,))


@torch.library.register_fake("fastconv::max_pool2d")
def _max_pool2d(
    input: Tensor, kernel_size: Ints, stride: Ints, padding: Ints, dilation: Ints, ceil_mode: bool
) -> tuple[Tensor, Tensor]:
    channels_last = suggests_channels_last(input)
    output = torch.ops.aten.max_pool2d_with_indices(input, kernel_size, stride, padding, dilation, ceil_mode)[0]
    values = _empty(input, output.shape, channels_last)
    return values, torch.empty_like(values, dtype=torch.int64)


@torch.library.register_fake("fastconv::max_pool2d_backward")
def _max_pool2d_backward(
    grad_output: Tensor, indices: Tensor, input_size: Ints, kernel_size: Ints, stride: Ints, padding: Ints,
    dilation: Ints, channels_last: bool,
) -> Tensor:  # fmt: skip
    return _empty(grad_output, input_size, channels_last)


@torch.library.register_fake("fastconv::relu")
def _relu(input: Tensor) -> Tensor:
    return torch.ops.aten.relu(input)


@torch.library.register_fake("fastconv::relu_")
def _relu_(input: Tensor) -> None:
    return None


@torch.library.register_fake("fastconv::relu_backward")
def _relu_backward(grad_output: Tensor, output: Tensor) -> Tensor:
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
    conv = _conv2d(input, weight, bias, stride, padding, dilation, groups)
    pool = (pool_kernel_size, pool_stride, pool_padding, pool_dilation, pool_ceil_mode)
    shape = torch.ops.aten.max_pool2d_with_indices(conv, *pool)[0].shape
    channels_last = suggests_channels_last(input) or suggests_channels_last(weight)
    output = _empty(input, shape, channels_last and input.numel() > 0)
    return output, _argmax(output)


def _argmax(output: Tensor) -> Tensor:
    return torch.empty(output.shape, dtype=torch.uint8, device=output.device, memory_format=torch.channels_last)


@torch.library.register_fake("fastconv::conv2d_relu_backward")
def _conv2d_relu_backward(
    grad_output: Tensor, argmax: Tensor, input: Tensor, weight: Tensor, needs_input: bool, needs_weight: bool,
    stride: Ints = (1, 1), padding: Ints = (0, 0), dilation: Ints = (1, 1), groups: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    grad_input = _empty(input, input.shape, is_channels_last(input)) if needs_input else input.new_empty((0,))
    grad_weight = _empty(input, weight.shape, is_channels_last(weight)) if needs_weight else input.new_empty((0,))
    return grad_input, grad_weight, input.new_empty((weight.shape[0] if needs_weight else 0,))


@torch.library.register_fake("fastconv::conv2d_relu_max_pool2d_backward")
def _conv2d_relu_max_pool2d_backward(
    grad_output: Tensor, argmax: Tensor, input: Tensor, weight: Tensor, needs_input: bool, needs_weight: bool,
    stride: Ints = (1, 1), padding: Ints = (0, 0), dilation: Ints = (1, 1), groups: int = 1,
    pool_kernel_size: Ints = (2, 2), pool_stride: Ints = (2, 2), pool_padding: Ints = (0, 0),
    pool_dilation: Ints = (1, 1),
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return _conv2d_relu_backward(
        grad_output, argmax, input, weight, needs_input, needs_weight, stride, padding, dilation, groups
    )
