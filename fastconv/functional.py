r"""Convolution, max-pooling, ReLU, batch norm and linear layers as in :mod:`torch.nn.functional`, and fused functions.

The functions take the arguments of PyTorch's functions of the same names and have the same results and errors.
``conv2d_relu``, ``conv2d_relu_max_pool2d`` and ``batch_norm_relu`` are compositions of these in one operator. PyTorch
handles all other calls, and those that it computes faster (docs/reference/pytorch_calls.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.overrides import has_torch_function

from fastconv._ops import conv2d as _conv2d
from fastconv._ops import conv2d_relu_max_pool2d as _fused
from fastconv._ops import gpu
from fastconv._ops import max_pool2d as _max_pool2d
from fastconv._ops import relu as _relu
from fastconv._ops.arguments import accepts, accepts_in_place, fused_pool_arguments, pad_same, pair, pool_arguments
from fastconv._ops.library import FLOATING_DTYPES, HAS_CUDA
from fastconv._ops.overrides import handle_override
from fastconv.linear import linear
from fastconv.normalization import batch_norm, batch_norm_relu

__all__ = [
    "batch_norm", "batch_norm_relu", "conv2d", "conv2d_relu", "conv2d_relu_max_pool2d", "linear", "max_pool2d", "relu",
]  # fmt: skip

Size2 = int | Sequence[int]
Pair = tuple[int, int]
#: The arguments of a convolution operator: input, weight, bias, stride, padding, dilation, groups.
Convolution = tuple[Tensor, Tensor, Tensor | None, Pair, Pair, Pair, int]


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size2 = 1,
    padding: str | Size2 = 0,
    dilation: Size2 = 1,
    groups: int = 1,
) -> Tensor:
    r"""2-D convolution (cross-correlation), as :func:`torch.nn.functional.conv2d`.

    .. math::
        y_{n,k,p,q} = b_k + \sum_{c,r,s} x_{n,\,c,\,p u_h - z_h + r d_h,\,q u_w - z_w + s d_w}\; w_{k,c,r,s}

    with stride :math:`u`, zero padding :math:`z`, dilation :math:`d`, and c over the channels of k's group.

    Args:
        input: (N, C, H, W), or (C, H, W). fastconv computes float32 and float64, and bfloat16 and float16 with sums in
            float32, on the CPU and, if the extension has CUDA, on a GPU. PyTorch computes the rest.
        weight: (K, C / groups, R, S), of the input's dtype.
        bias: (K,), or None.
        stride: one int or two, > 0.
        padding: one int or two, >= 0; or ``'valid'`` (none), or ``'same'`` (P = H, Q = W; stride 1 only).
        dilation: one int or two, > 0.
        groups: must divide C and K. C groups make a depthwise convolution.

    Returns:
        (N, K, P, Q), or (K, P, Q), with P = floor((H + 2 z - d (R - 1) - 1) / u) + 1; Q likewise.
        The result is channels_last if the input or the weight is.

    Raises:
        RuntimeError: invalid sizes, dtypes or parameters, with PyTorch's message.

    Example:
        >>> x, w = torch.randn(8, 3, 32, 32), torch.randn(16, 3, 3, 3)
        >>> conv2d(x, w, padding=1).shape
        torch.Size([8, 16, 32, 32])
    """
    tensors = (input, weight) if bias is None else (input, weight, bias)
    if has_torch_function(tensors):
        return handle_override(conv2d, F.conv2d, tensors, input, weight, bias, stride, padding, dilation, groups)
    left = getattr(input, "is_cuda", False) and gpu.is_left(input, weight, stride, padding, dilation, groups)
    arguments = None if left else convolution_arguments(input, weight, bias, stride, padding, dilation, groups)
    if arguments is None:
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    if input.dim() == 3:
        return _unbatched(_conv2d.conv2d, *arguments)
    # The same test as differentiable(). Without that call, a small convolution takes 10 % less time.
    if torch.is_grad_enabled() or torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return _conv2d.conv2d(*arguments)
    return _conv2d.operator(*arguments)


def convolution_arguments(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: Any
) -> Convolution | None:
    """Return the operator's arguments: pairs of ints, tensors that autocast has cast, and 'same' as numbers.

    Return None if PyTorch has to handle the call: the operator does not support the arguments, or they are invalid.
    """
    tensors = (input, weight) if bias is None else (input, weight, bias)
    for tensor in tensors:  # A loop is twice as fast as all() here.
        if (
            not isinstance(tensor, Tensor)
            or tensor.dtype not in FLOATING_DTYPES
            or not (tensor.is_cpu or tensor.is_meta or (HAS_CUDA and tensor.is_cuda))  # meta: the fake kernel
            or tensor.layout is not torch.strided
            or tensor.is_nested
            or (tensor is not input and tensor.device != input.device)
        ):
            return None
    if torch._C._get_tracing_state() is not None:  # torch.jit.trace has to record PyTorch's operators.
        return None
    device = "cuda" if input.is_cuda else "cpu"
    if torch.is_autocast_enabled(device) and torch.float64 not in {t.dtype for t in tensors}:
        # PyTorch's autocast rule for convolution: float64 is not cast.
        dtype = torch.get_autocast_dtype(device)
        input, weight, bias = input.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    elif weight.dtype != input.dtype or (bias is not None and bias.dtype != input.dtype):
        return None
    pairs: list[Any] = [stride, 0 if isinstance(padding, str) and padding in ("same", "valid") else padding, dilation]
    for i, value in enumerate(pairs):
        if type(value) is int:
            pairs[i] = (value, value)
        elif type(value) is not tuple or len(value) != 2 or not type(value[0]) is type(value[1]) is int:
            pairs[i] = pair(value)  # Only for unusual arguments: pair() takes 3 % of the time of a small convolution.
    strides, paddings, dilations = pairs
    if strides is None or paddings is None or dilations is None:
        return None
    if type(groups) is bool or not isinstance(groups, int | torch.SymInt):
        return None
    # PyTorch accepts some empty images, channels and kernels, and refuses others. For N = 0, its strides differ.
    if weight.dim() != 4 or input.dim() not in (3, 4) or 0 in input.shape[-3:] or 0 in weight.shape:
        return None
    if dilations[0] <= 0 or dilations[1] <= 0 or (not torch.compiler.is_compiling() and input.shape[0] == 0):
        return None
    if padding == "same":
        if strides != (1, 1):
            return None
        input, paddings = pad_same(input, weight, dilations)
    return input, weight, bias, strides, paddings, dilations, groups


def _unbatched(operator: Callable[..., Tensor], input: Tensor, *args: Any) -> Tensor:
    """Apply an operator to one image, as a batch of one."""
    return operator(input.unsqueeze(0), *args).squeeze(0)


def conv2d_relu(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size2 = 1,
    padding: str | Size2 = 0,
    dilation: Size2 = 1,
    groups: int = 1,
) -> Tensor:
    r"""``relu(conv2d(...))`` in one operator.

    .. math::
        y_{n,k,p,q} = \max(0, \mathrm{conv2d}(x, w, b)_{n,k,p,q})

    The convolution's output is never stored. The input, the weight and one byte per output element are saved for
    backward. If few outputs passed the ReLU, backward processes only those (Shi and Chu, "Speeding up Convolutional
    Neural Networks By Exploiting the Sparsity of Rectifier Units", arXiv 1704.07724).

    Values and gradients equal those of the composition up to rounding, including NaN and infinities. Two cases differ.
    PyTorch may skip products with padding. fastconv does not, so an infinite or NaN weight over padding gives NaN.
    With Winograd's algorithm (docs/explanation/kernels.md), the rounding error scales with the largest outputs nearby,
    so an output that should be exactly zero may be slightly above zero.

    Args and raised errors: see :func:`conv2d`.

    Returns:
        (N, K, P, Q), or (K, P, Q). The result is channels_last if the input or the weight is.

    Example:
        >>> conv2d_relu(torch.ones(1, 1, 3, 3), torch.tensor([1.0, -1.0]).view(2, 1, 1, 1)).flatten(2).sum(2)
        tensor([[9., 0.]])
    """
    tensors = (input, weight) if bias is None else (input, weight, bias)
    convolution = (input, weight, bias, stride, padding, dilation, groups)
    if has_torch_function(tensors):
        return handle_override(conv2d_relu, _composed, tensors, *convolution)
    if getattr(input, "is_cuda", False) and gpu.is_left(input, weight, *convolution[3:], relu=True):
        return gpu.conv2d_relu_max_pool2d(*convolution, None)
    arguments = convolution_arguments(*convolution)
    if arguments is None:
        return _composed(*convolution)
    if input.dim() == 3:
        return _unbatched(_fused.conv2d_relu_max_pool2d, *arguments, None)
    return _fused.conv2d_relu_max_pool2d(*arguments, None)


def conv2d_relu_max_pool2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size2 = 1,
    padding: str | Size2 = 0,
    dilation: Size2 = 1,
    groups: int = 1,
    pool_kernel_size: Size2 = 2,
    pool_stride: Size2 | None = None,
    pool_padding: Size2 = 0,
    pool_dilation: Size2 = 1,
    pool_ceil_mode: bool = False,
) -> Tensor:
    r"""``max_pool2d(relu(conv2d(...)))`` in one operator.

    .. math::
        y_{n,k,p,q} = \max_{i,j} \max(0, \mathrm{conv2d}(x, w, b)_{n,\,k,\,p u_h - z_h + i d_h,\,q u_w - z_w + j d_w})

    with the pool's stride u, padding z and dilation d. For each window, the operator stores the maximum, and its
    position in the window as one byte. These bytes, the input and the weight are saved for backward. At most one pixel
    of a window gets a gradient, and none if ReLU blocks it. If few pixels get one, backward multiplies only those.

    Args:
        input, weight, bias, stride, padding, dilation, groups: as for :func:`conv2d`.
        pool_kernel_size, pool_stride, pool_padding, pool_dilation, pool_ceil_mode: as for :func:`max_pool2d`. With more
            than 255 pixels in a window, or if PyTorch handles the convolution, three separate operators run.

    Returns:
        (N, K, P', Q'), or (K, P', Q'), the size of the pooled convolution. The result is channels_last if the input or
        the weight is. Values and gradients equal those of the composition up to rounding. The first of several maxima
        gets the gradient, and NaN is larger than every number.

    Raises:
        RuntimeError: invalid sizes, dtypes or parameters, with PyTorch's message.

    Example:
        >>> x, w = torch.randn(8, 1, 28, 28), torch.randn(32, 1, 3, 3)
        >>> conv2d_relu_max_pool2d(x, w).shape
        torch.Size([8, 32, 13, 13])
    """
    tensors = (input, weight) if bias is None else (input, weight, bias)
    convolution = (input, weight, bias, stride, padding, dilation, groups)
    pooling = (pool_kernel_size, pool_stride, pool_padding, pool_dilation, pool_ceil_mode)
    if has_torch_function(tensors):
        return handle_override(conv2d_relu_max_pool2d, _composed, tensors, *convolution, *pooling)
    if getattr(input, "is_cuda", False) and gpu.is_left(input, weight, *convolution[3:], relu=True, pool=pooling):
        return gpu.conv2d_relu_max_pool2d(*convolution, pooling)
    arguments = convolution_arguments(*convolution)
    pool = fused_pool_arguments(*pooling)
    if arguments is None or pool is None:
        return _composed(*convolution, *pooling)
    if input.dim() == 3:
        return _unbatched(_fused.conv2d_relu_max_pool2d, *arguments, pool)
    return _fused.conv2d_relu_max_pool2d(*arguments, pool)


def _composed(*args: Any) -> Any:
    """Return the result of a fused function, one function after the other."""
    y = relu(conv2d(*args[:7]))
    return max_pool2d(y, *args[7:]) if len(args) > 7 else y


# fmt: off
@overload
def max_pool2d(
    input: Tensor, kernel_size: Size2, stride: Size2 | None = ..., padding: Size2 = ..., dilation: Size2 = ...,
    ceil_mode: bool = ..., return_indices: Literal[False] = ...,
) -> Tensor: ...
@overload
def max_pool2d(
    input: Tensor, kernel_size: Size2, stride: Size2 | None, padding: Size2, dilation: Size2, ceil_mode: bool,
    return_indices: Literal[True],
) -> tuple[Tensor, Tensor]: ...
@overload
def max_pool2d(
    input: Tensor, kernel_size: Size2, stride: Size2 | None = ..., padding: Size2 = ..., dilation: Size2 = ...,
    ceil_mode: bool = ..., *, return_indices: bool,
) -> Tensor | tuple[Tensor, Tensor]: ...
# fmt: on
def max_pool2d(
    input: Tensor,
    kernel_size: Size2,
    stride: Size2 | None = None,
    padding: Size2 = 0,
    dilation: Size2 = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""2-D max-pooling, as :func:`torch.nn.functional.max_pool2d`.

    .. math::
        y_{n,c,p,q} = \max_{r,s} x_{n,\,c,\,p u_h - z_h + r d_h,\,q u_w - z_w + s d_w}

    over the taps inside the image. The first maximum in scan order is chosen and gets the gradient. NaN is larger than
    every number.

    Args:
        input: (N, C, H, W), or (C, H, W). fastconv computes floating types and integers on the CPU and, if the
            extension has CUDA, floating types on a GPU. PyTorch computes the rest.
        kernel_size: one int or two, > 0.
        stride: one int or two, > 0; ``kernel_size`` by default.
        padding: one int or two, at most half of the kernel.
        dilation: one int or two, > 0.
        ceil_mode: round the output's size up: windows may extend beyond the right and lower edge.
        return_indices: also return where each maximum was found.

    Returns:
        (N, C, P, Q) or (C, P, Q), in the input's memory format. With ``return_indices``, also int64 indices of the same
        shape, flat over H * W.

    Raises:
        RuntimeError: invalid sizes or parameters, with PyTorch's message.

    Example:
        >>> max_pool2d(torch.arange(16.0).view(1, 4, 4), 2)
        tensor([[[ 5.,  7.],
                 [13., 15.]]])
    """
    if has_torch_function((input,)):
        return handle_override(
            max_pool2d, F.max_pool2d, (input,), input, kernel_size, stride=stride, padding=padding, dilation=dilation,
            ceil_mode=ceil_mode, return_indices=return_indices,
        )  # fmt: skip
    pool = pool_arguments(kernel_size, stride, padding, dilation, ceil_mode)
    if pool is None or not accepts(input) or input.dim() not in (3, 4) or 0 in input.shape[-3:]:
        return F.max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)  # type: ignore[call-overload, misc]
    batch = input.unsqueeze(0) if input.dim() == 3 else input
    values, indices = _max_pool2d.max_pool2d(batch, *pool)
    if input.dim() == 3:
        values, indices = values.squeeze(0), indices.squeeze(0)
    return (values, indices) if return_indices else values


def relu(input: Tensor, inplace: bool = False) -> Tensor:
    r"""The rectifier :math:`\max(0, x)`, as :func:`torch.nn.functional.relu`.

    Args:
        input: any shape. fastconv computes floating types and integers on the CPU and, if the extension has CUDA,
            floating types on a GPU. PyTorch computes the rest.
        inplace: change the input instead of making a new tensor.

    Returns:
        A tensor with the input's shape and strides. NaN and -0.0 stay as they are. The gradient at 0 is 0.

    Raises:
        RuntimeError: bool or complex input, or in place on a leaf that requires grad, with PyTorch's message.

    Example:
        >>> relu(torch.tensor([-1.0, 0.0, 2.0]))
        tensor([0., 0., 2.])
    """
    if has_torch_function((input,)):
        return handle_override(relu, F.relu, (input,), input, inplace=inplace)
    if not accepts(input) or (inplace and not accepts_in_place(input)):
        return F.relu(input, inplace)
    return _relu.relu_(input) if inplace else _relu.relu(input)
