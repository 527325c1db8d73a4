r"""Convolution, max-pooling and ReLU: drop-in replacements for the functions of :mod:`torch.nn.functional`, and fused.

The former take the arguments of PyTorch's functions of the same names, in the same order and with the same defaults,
and return the same values, dtypes, shapes, memory formats and errors; conv2d_relu and conv2d_relu_max_pool2d are their
compositions in one operator. Tensors that fastconv's operators do not serve (another device, another dtype, a sparse or
quantised layout) are passed on to PyTorch: GPUs are served by an extension that is built with CUDA, see docs/cuda.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import handle_torch_function, has_torch_function

from fastconv import autograd
from fastconv.ops import has_cuda

__all__ = ["conv2d", "conv2d_relu", "conv2d_relu_max_pool2d", "max_pool2d", "relu"]

Size2 = int | Sequence[int]
Pair = tuple[int, int]
#: A convolution operator's own: input, weight, bias, stride, padding, dilation, groups.
Convolution = tuple[Tensor, Tensor, Tensor | None, Pair, Pair, Pair, int]

_REDUCED = frozenset({torch.bfloat16, torch.float16})
_FLOATING = frozenset({torch.float32, torch.float64}) | _REDUCED
#: A byte says where in its window a maximum was, or, by one more value, that no gradient passes.
_MOST_POSITIONS = 255
_REAL = _FLOATING | {torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64}
#: What the operators take on a GPU; nothing where the extension is built without CUDA.
_ON_CUDA = _FLOATING if has_cuda() else frozenset()


def _is_served(tensor: Any, dtypes: frozenset[torch.dtype]) -> bool:
    """Whether an operator of fastconv takes this tensor: of these dtypes on the CPU, of its own on a GPU.

    Meta tensors count: the operators have fake kernels.
    """
    return (
        isinstance(tensor, Tensor)
        and (tensor.dtype in dtypes if tensor.is_cpu or tensor.is_meta else tensor.is_cuda and tensor.dtype in _ON_CUDA)
        and tensor.layout is torch.strided
        and not tensor.is_nested
    )


def _is_recorded() -> bool:
    """Whether torch.jit.trace is watching: what it keeps shall be PyTorch's operators, which run without fastconv."""
    return torch._C._get_tracing_state() is not None


def _pair(value: Any) -> tuple[int, int] | None:
    """An int or two, as two. None for anything else, which is then left to PyTorch to take or to refuse."""
    # The usual cases: without these lines, a layer's pairs are a tenth of a small call.
    if type(value) is int:
        return value, value
    if type(value) is tuple and len(value) == 2 and type(value[0]) is type(value[1]) is int:
        return value
    values = tuple(value) if isinstance(value, tuple | list) else (value,)
    # bool is an int to Python, but not to PyTorch.
    if len(values) not in (1, 2) or not all(isinstance(v, int | torch.SymInt) and type(v) is not bool for v in values):
        return None
    return values[0], values[-1]


def _pad_same(input: Tensor, weight: Tensor, dilation: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
    """'same' as numbers. Where it is uneven, the input gets one more row below, or column on the right."""
    total_h, total_w = (d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True))
    if total_h % 2 or total_w % 2:
        input = F.pad(input, (0, total_w % 2, 0, total_h % 2))
    return input, (total_h // 2, total_w // 2)


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
        input: (N, C, H, W), or (C, H, W). float32, float64, and bfloat16 and float16 with sums in float32, are served
            by fastconv, on the CPU and, where the extension has CUDA, on a GPU; the rest by PyTorch.
        weight: (K, C / groups, R, S), of the input's dtype.
        bias: (K,), or None.
        stride: one int or two, > 0.
        padding: one int or two, >= 0; or ``'valid'`` (none), or ``'same'`` (P = H, Q = W; stride 1 only).
        dilation: one int or two, > 0.
        groups: divides C and K; C is depthwise.

    Returns:
        (N, K, P, Q), or (K, P, Q), with P = floor((H + 2 z - d (R - 1) - 1) / u) + 1; Q likewise.
        channels_last if the input or the weight is.

    Raises:
        RuntimeError: sizes, dtypes or parameters that do not fit, in PyTorch's words.

    Example:
        >>> x, w = torch.randn(8, 3, 32, 32), torch.randn(16, 3, 3, 3)
        >>> conv2d(x, w, padding=1).shape
        torch.Size([8, 16, 32, 32])
    """
    tensors = (input, weight) if bias is None else (input, weight, bias)
    if has_torch_function(tensors):
        return handle_torch_function(
            conv2d, tensors, input, weight, bias, stride=stride, padding=padding, dilation=dilation, groups=groups
        )
    served = _served_convolution(input, weight, bias, stride, padding, dilation, groups)
    if served is None:
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    if input.dim() == 3:
        return autograd.conv2d(served[0].unsqueeze(0), *served[1:]).squeeze(0)
    return autograd.conv2d(*served)


def _served_convolution(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: Any
) -> Convolution | None:
    """The operator's own arguments: cast by autocast, padded where 'same' is uneven. None: left to PyTorch."""
    tensors = (input, weight) if bias is None else (input, weight, bias)
    if _is_recorded():
        return None
    for tensor in tensors:  # all() and any() take twice as long
        if not _is_served(tensor, _FLOATING) or tensor.device != input.device:
            return None
    device = "cuda" if input.is_cuda else "cpu"
    if torch.is_autocast_enabled(device) and torch.float64 not in {t.dtype for t in tensors}:
        # PyTorch's rule for convolution, which leaves float64 as it is.
        dtype = torch.get_autocast_dtype(device)
        input, weight, bias = input.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    elif weight.dtype != input.dtype or (bias is not None and bias.dtype != input.dtype):
        return None
    strides, dilations = _pair(stride), _pair(dilation)
    paddings = _pair(0 if isinstance(padding, str) else padding)
    if strides is None or paddings is None or dilations is None:
        return None
    regular = type(groups) is not bool and isinstance(groups, int | torch.SymInt)
    regular = regular and weight.dim() == 4 and input.dim() in (3, 4)
    # Of empty images, channels or kernels, PyTorch takes some and refuses others.
    regular = regular and 0 not in input.shape[-3:] and 0 not in weight.shape
    if padding == "same":
        regular = regular and strides == (1, 1)
    elif isinstance(padding, str):
        regular = regular and padding == "valid"
    if not regular:
        return None
    if dilations[0] <= 0 or dilations[1] <= 0:  # which PyTorch words in two ways
        return None
    if padding == "same":
        input, paddings = _pad_same(input, weight, dilations)
    return input, weight, bias, strides, paddings, dilations, groups


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

    The convolution's results are never written down. For backward, input, weight and one byte for each output are
    saved, and what ReLU let through takes part in it alone (Shi and Chu, "Speeding up Convolutional Neural Networks By
    Exploiting the Sparsity of Rectifier Units", arXiv 1704.07724).

    Args and raised errors: see :func:`conv2d`, of which every argument is served. Values and gradients are those of
    the composition, to rounding, NaN and infinities included. (Where PyTorch leaves out the products of padding, an
    infinite or NaN weight over it gives NaN here. And where Winograd's algorithm serves, see docs/kernels.md, rounding
    is that of the largest results nearby, so a result that should be exactly zero may come out slightly above.)

    Returns:
        (N, K, P, Q), or (K, P, Q); channels_last if the input or the weight is.

    Example:
        >>> conv2d_relu(torch.ones(1, 1, 3, 3), torch.tensor([1.0, -1.0]).view(2, 1, 1, 1)).flatten(2).sum(2)
        tensor([[9., 0.]])
    """
    tensors = (input, weight) if bias is None else (input, weight, bias)
    if has_torch_function(tensors):
        return handle_torch_function(
            conv2d_relu, tensors, input, weight, bias, stride=stride, padding=padding, dilation=dilation, groups=groups
        )
    served = _served_convolution(input, weight, bias, stride, padding, dilation, groups)
    if served is None:
        return relu(conv2d(input, weight, bias, stride, padding, dilation, groups))
    return _fused(served, None)


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

    with the pool's stride u, padding z and dilation d. Only the pooled values are written down, and a byte for each
    that says where in its window the maximum was; with input and weight that is all that backward saves. Backward
    multiplies the live gradients alone where they are few: at most one value of a window is, and none where ReLU lets
    none pass.

    Args:
        input, weight, bias, stride, padding, dilation, groups: as for :func:`conv2d`.
        pool_kernel_size, pool_stride, pool_padding, pool_dilation, pool_ceil_mode: as for :func:`max_pool2d`. Pools of
            more than 255 pixels are composed of the three functions, as is everything that conv2d leaves to PyTorch.

    Returns:
        (N, K, P', Q'), or (K, P', Q'): the pool's size over the convolution's; channels_last if the input or the weight
        is. Values and gradients are those of the composition, to rounding: the first of several maxima takes the
        gradient, a NaN wins over every number.

    Raises:
        RuntimeError: sizes, dtypes or parameters that do not fit, in PyTorch's words.

    Example:
        >>> x, w = torch.randn(8, 1, 28, 28), torch.randn(32, 1, 3, 3)
        >>> conv2d_relu_max_pool2d(x, w).shape
        torch.Size([8, 32, 13, 13])
    """
    tensors = (input, weight) if bias is None else (input, weight, bias)
    if has_torch_function(tensors):
        return handle_torch_function(
            conv2d_relu_max_pool2d, tensors, input, weight, bias, stride=stride, padding=padding, dilation=dilation,
            groups=groups, pool_kernel_size=pool_kernel_size, pool_stride=pool_stride, pool_padding=pool_padding,
            pool_dilation=pool_dilation, pool_ceil_mode=pool_ceil_mode,
        )  # fmt: skip
    served = _served_convolution(input, weight, bias, stride, padding, dilation, groups)
    pool = _served_pool(pool_kernel_size, pool_stride, pool_padding, pool_dilation, pool_ceil_mode)
    if served is None or pool is None:
        conv = conv2d(input, weight, bias, stride, padding, dilation, groups)
        return max_pool2d(relu(conv), pool_kernel_size, pool_stride, pool_padding, pool_dilation, pool_ceil_mode)
    return _fused(served, pool)


def _served_pool(kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: Any) -> autograd.Pool | None:
    """The fused operator's own arguments. None: not for it."""
    kernel, paddings, dilations = _pair(kernel_size), _pair(padding), _pair(dilation)
    strides = kernel if stride is None else _pair(stride)
    if kernel is None or strides is None or paddings is None or dilations is None or type(ceil_mode) is not bool:
        return None
    return (kernel, strides, paddings, dilations, ceil_mode) if 0 < kernel[0] * kernel[1] <= _MOST_POSITIONS else None


def _fused(served: Convolution, pool: autograd.Pool | None) -> Tensor:
    input, *others = served
    if input.dim() == 3:
        return autograd.conv2d_relu_max_pool2d(input.unsqueeze(0), *others, pool).squeeze(0)
    return autograd.conv2d_relu_max_pool2d(*served, pool)


@overload
def max_pool2d(
    input: Tensor,
    kernel_size: Size2,
    stride: Size2 | None = ...,
    padding: Size2 = ...,
    dilation: Size2 = ...,
    ceil_mode: bool = ...,
    return_indices: Literal[False] = ...,
) -> Tensor: ...  # fmt: skip
@overload
def max_pool2d(
    input: Tensor,
    kernel_size: Size2,
    stride: Size2 | None,
    padding: Size2,
    dilation: Size2,
    ceil_mode: bool,
    return_indices: Literal[True],
) -> tuple[Tensor, Tensor]: ...  # fmt: skip
@overload
def max_pool2d(
    input: Tensor,
    kernel_size: Size2,
    stride: Size2 | None = ...,
    padding: Size2 = ...,
    dilation: Size2 = ...,
    ceil_mode: bool = ...,
    *,
    return_indices: bool,
) -> Tensor | tuple[Tensor, Tensor]: ...  # fmt: skip
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

    over the taps that lie in the image. The first maximum in scan order wins, and takes the gradient; a NaN wins over
    every number.

    Args:
        input: (N, C, H, W), or (C, H, W). Floating types and integers on the CPU, and floating types on a GPU where the
            extension has CUDA, are served by fastconv.
        kernel_size: one int or two, > 0.
        stride: one int or two, > 0; ``kernel_size`` by default.
        padding: one int or two, at most half of the kernel.
        dilation: one int or two, > 0.
        ceil_mode: round the output's size up: windows may hang over the right and lower edge.
        return_indices: return where each maximum was found, too.

    Returns:
        (N, C, P, Q) or (C, P, Q), in the input's memory format; with ``return_indices``, and int64 indices of the same
        shape, flat over H * W.

    Raises:
        RuntimeError: sizes or parameters that do not fit, in PyTorch's words.

    Example:
        >>> max_pool2d(torch.arange(16.0).view(1, 4, 4), 2)
        tensor([[[ 5.,  7.],
                 [13., 15.]]])
    """
    if has_torch_function((input,)):
        return handle_torch_function(
            max_pool2d, (input,), input, kernel_size, stride=stride, padding=padding, dilation=dilation,
            ceil_mode=ceil_mode, return_indices=return_indices,
        )  # fmt: skip
    pairs = [_pair(v) for v in (kernel_size, kernel_size if stride is None else stride, padding, dilation)]
    regular = None not in pairs and type(ceil_mode) is bool and _is_served(input, _REAL) and input.dim() in (3, 4)
    if not regular or _is_recorded() or 0 in input.shape[-3:]:
        return F.max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)  # type: ignore[call-overload, misc]
    batch = input.unsqueeze(0) if input.dim() == 3 else input
    values, indices = autograd.max_pool2d(batch, *pairs, ceil_mode)
    if input.dim() == 3:
        values, indices = values.squeeze(0), indices.squeeze(0)
    return (values, indices) if return_indices else values


def relu(input: Tensor, inplace: bool = False) -> Tensor:
    r"""The rectifier :math:`\max(0, x)`, as :func:`torch.nn.functional.relu`.

    Args:
        input: any shape. Floating types and integers on the CPU, and floating types on a GPU where the extension has
            CUDA, are served by fastconv.
        inplace: change the input instead of making a new tensor.

    Returns:
        The input's shape and strides. NaN and -0.0 pass; the gradient at 0 is 0.

    Raises:
        RuntimeError: bool or complex input; in place on a leaf that requires grad; in PyTorch's words.

    Example:
        >>> relu(torch.tensor([-1.0, 0.0, 2.0]))
        tensor([0., 0., 2.])
    """
    if has_torch_function((input,)):
        return handle_torch_function(relu, (input,), input, inplace=inplace)
    if not _is_served(input, _REAL) or _is_recorded() or (inplace and not _may_change(input)):
        return F.relu(input, inplace)
    return autograd.relu_(input) if inplace else autograd.relu(input)


def _may_change(input: Tensor) -> bool:
    """Whether the operator may write to this tensor. What PyTorch refuses, it shall refuse in its own words."""
    if input.is_leaf and input.requires_grad and torch.is_grad_enabled():
        return False
    if torch.compiler.is_compiling():  # Dynamo does not trace is_inference
        return True
    is_frozen = input.is_inference() and not torch.is_inference_mode_enabled()
    return not (is_frozen or input.is_neg())
