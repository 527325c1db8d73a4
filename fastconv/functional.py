r"""Convolution, max-pooling and ReLU: drop-in replacements for the functions of :mod:`torch.nn.functional`.

Each takes the arguments of PyTorch's function of the same name, in the same order and with the same defaults, and
returns the same values, dtypes, shapes, memory formats and errors. Tensors that fastconv's operators do not serve
(another device, another dtype, a sparse or quantised layout) are passed on to PyTorch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast, overload

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import handle_torch_function, has_torch_function

from fastconv import autograd

__all__ = ["conv2d", "max_pool2d", "relu"]

Size2 = int | Sequence[int]
Pair = tuple[int, int]

_FLOATING = frozenset({torch.float32, torch.float64})
_REAL = _FLOATING | {torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64}


def _is_served(tensor: Any, dtypes: frozenset[torch.dtype]) -> bool:
    """Whether an operator of fastconv takes this tensor. Meta tensors count: the operators have fake kernels."""
    return (
        isinstance(tensor, Tensor)
        and tensor.dtype in dtypes
        and (tensor.is_cpu or tensor.is_meta)
        and tensor.layout is torch.strided
        and not tensor.is_nested
    )


def _pair(value: Any) -> tuple[int, int] | None:
    """An int or two, as two. None for anything else, which is then left to PyTorch to take or to refuse."""
    if type(value) is int:  # the usual case: these few lines are a fifth of a small call
        return value, value
    values = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
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
        input: (N, C, H, W), or (C, H, W). float32 and float64 on the CPU are served by fastconv, the rest by PyTorch.
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
    served = all(_is_served(t, _FLOATING) and t.dtype == input.dtype and t.device == input.device for t in tensors)
    if not served or torch.is_autocast_enabled("cpu"):
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    pairs = _pair(stride), _pair(0 if isinstance(padding, str) else padding), _pair(dilation)
    regular = None not in pairs and type(groups) is not bool and isinstance(groups, int | torch.SymInt)
    regular = regular and weight.dim() == 4 and input.dim() in (3, 4)
    # Of empty images, channels or kernels, PyTorch takes some and refuses others.
    regular = regular and 0 not in input.shape[-3:] and 0 not in weight.shape
    if padding == "same":
        regular = regular and pairs[0] == (1, 1)
    elif isinstance(padding, str):
        regular = regular and padding == "valid"
    if not regular:
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    strides, paddings, dilations = cast("tuple[Pair, Pair, Pair]", pairs)
    if padding == "same":
        input, paddings = _pad_same(input, weight, dilations)
    geometry = (strides, paddings, dilations, groups)
    if input.dim() == 3:
        return autograd.conv2d(input.unsqueeze(0), weight, bias, *geometry).squeeze(0)
    return autograd.conv2d(input, weight, bias, *geometry)


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
        input: (N, C, H, W), or (C, H, W). float32, float64 and the integers on the CPU are served by fastconv.
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
    if not regular or 0 in input.shape[-3:]:
        return F.max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)  # type: ignore[call-overload, misc]
    batch = input.unsqueeze(0) if input.dim() == 3 else input
    values, indices = autograd.max_pool2d(batch, *pairs, ceil_mode)
    if input.dim() == 3:
        values, indices = values.squeeze(0), indices.squeeze(0)
    return (values, indices) if return_indices else values


def relu(input: Tensor, inplace: bool = False) -> Tensor:
    r"""The rectifier :math:`\max(0, x)`, as :func:`torch.nn.functional.relu`.

    Args:
        input: any shape. float32, float64 and the integers on the CPU are served by fastconv.
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
    if not _is_served(input, _REAL) or (inplace and not _may_change(input)):
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
