"""Decide whether fastconv's kernels or PyTorch's operators compute a call on a GPU.

``csrc/cuda/plan.cpp`` decides. Its answer depends on whether PyTorch may use TF32, which the stable ABI cannot read.
So Python asks the plan before it calls an operator. The operators ``torch.ops.fastconv`` themselves always run
fastconv's kernels on a GPU.

PyTorch computes everything in transforms, in ``torch.compile`` and in forward-mode AD: its operators support all of
them, and Inductor fuses what follows them. With ``FASTCONV_ALGORITHM=own``, fastconv computes every call that it can.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastconv._ops.conv2d import Geometry
from fastconv._ops.function import is_transformed
from fastconv._ops.library import _C, FLOATING_DTYPES, HAS_CUDA
from fastconv._ops.max_pool2d import Pool

__all__ = ["computes_all", "conv2d_relu_max_pool2d", "gradients_of_torch", "is_left"]

_OWN = _C.environment()["FASTCONV_ALGORITHM"] == "own"
_PLAIN = (Tensor, nn.Parameter)


def computes_all() -> bool:
    """Return whether fastconv computes every call on a GPU that it can, also where PyTorch is faster."""
    if torch.compiler.is_compiling():  # Dynamo does not trace functions of the extension.
        return HAS_CUDA and _OWN
    return HAS_CUDA and not _C.torch_is_allowed()


def is_left(
    input: Tensor, weight: Any, stride: Any, padding: Any, dilation: Any, groups: Any, relu: bool = False,
    pool: tuple[Any, ...] | None = None,
) -> bool:  # fmt: skip
    """Return whether PyTorch's operators compute a convolution on a GPU, and the ReLU and max-pool after it.

    Args:
        input: on a GPU.
        weight to groups: as for :func:`torch.nn.functional.conv2d`. PyTorch computes unusual calls.
        relu: a ReLU follows.
        pool: the arguments of a max-pool that follows, without those of its indices.
    """
    if computes_all():
        return False
    if not HAS_CUDA or is_transformed() or type(input) not in _PLAIN or type(weight) not in _PLAIN:
        return True
    dtype = input.dtype
    if torch.is_autocast_enabled("cuda") and dtype is not torch.float64:
        dtype = torch.get_autocast_dtype("cuda")
    try:
        return _is_left(
            ("forward",), input.shape, weight.shape, stride, padding, dilation, groups, relu, pool, dtype,
            _are_channels_last(input, weight), _may_use_tf32(), _capability(input.device.index),
        )[0]  # fmt: skip
    except TypeError:  # a list cannot be hashed
        return True


def gradients_of_torch(input: Tensor, weight: Tensor, geometry: Geometry, pool: Pool | None) -> tuple[bool, ...]:
    """Return whether PyTorch computes the gradients of input and weight of a fused operator on a GPU."""
    if computes_all():
        return False, False
    return _is_left(
        ("backward_data", "backward_weight"), input.shape, weight.shape, *geometry, True, pool, input.dtype,
        _are_channels_last(input, weight), _may_use_tf32(), _capability(input.device.index),
    )  # fmt: skip


@functools.lru_cache(maxsize=4096)
def _is_left(
    passes: tuple[str, ...], input_size: Any, weight_size: Any, stride: Any, padding: Any, dilation: Any, groups: Any,
    relu: bool, pool: tuple[Any, ...] | None, dtype: torch.dtype, channels_last: bool, tf32: bool, capability: int,
) -> tuple[bool, ...]:  # fmt: skip
    """Ask the plan about each pass."""
    left = (True,) * len(passes)
    has_ceil_mode = pool is not None and pool[4]  # was not measured
    if len(input_size) != 4 or dtype not in FLOATING_DTYPES or has_ceil_mode:
        return left
    name = str(dtype).removeprefix("torch.")
    options: dict[str, Any] = {"relu": relu, "dtype": name, "channels_last": channels_last, "tf32": tf32}
    if pool is not None:
        kernel_size, pool_stride, pool_padding, pool_dilation, _ = pool
        pool_stride = kernel_size if pool_stride is None else pool_stride
        options["pool"] = [_pair(value) for value in (kernel_size, pool_stride, pool_padding, pool_dilation)]
    try:
        sizes = (list(input_size), list(weight_size), _pair(stride), _pair(padding), _pair(dilation), groups)
        plans = [_C.plan(pass_, *sizes, cuda_capability=capability, **options) for pass_ in passes]  # type: ignore[arg-type]
    except (RuntimeError, TypeError):  # PyTorch's operators raise the error.
        return left
    return tuple(plan["algorithm"] == "torch" for plan in plans)


def _pair(value: Any) -> Any:
    return (value, value) if isinstance(value, int) else value


def _are_channels_last(input: Tensor, weight: Tensor) -> bool:
    return (
        input.dim() == 4
        and weight.dim() == 4
        and input.is_contiguous(memory_format=torch.channels_last)
        and weight.is_contiguous(memory_format=torch.channels_last)
    )


def _may_use_tf32() -> bool:
    precision: str = torch._C._get_fp32_precision_getter("cuda", "conv")
    return precision == "tf32"


@functools.cache
def _capability(device: int) -> int:
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def conv2d_relu_max_pool2d(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: Any,
    pool: tuple[Any, ...] | None,
) -> Tensor:  # fmt: skip
    """Compute a fused function by PyTorch's operators.

    ReLU comes after the pool, where it has a quarter of the values. The results and the gradients are the same.
    """
    y = F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    return F.relu(y if pool is None else F.max_pool2d(y, *pool), inplace=True)
