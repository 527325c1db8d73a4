"""Reference implementations of the functions of :mod:`fastconv.functional`, in plain PyTorch.

They have the same arguments and results. They are slow and written to be read. The tests compare with them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "batch_norm", "batch_norm_relu", "conv2d", "conv2d_relu", "conv2d_relu_max_pool2d", "linear", "max_pool2d", "relu",
]  # fmt: skip

Size2 = int | Sequence[int]


def _pair(value: Size2) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """See :func:`fastconv.functional.batch_norm`.

    Example:
        >>> batch_norm(torch.tensor([[1.0], [3.0]]), None, None, training=True, eps=1e-12)
        tensor([[-1.],
                [ 1.]])
    """
    dims = [d for d in range(input.dim()) if d != 1]
    shape = [-1 if d == 1 else 1 for d in range(input.dim())]
    if training:
        pixels = input.numel() // input.shape[1]
        mean = input.sum(dims) / pixels
        var = (input - mean.view(shape)).square().sum(dims) / pixels
        with torch.no_grad():
            if running_mean is not None:
                running_mean += momentum * (mean - running_mean)
            if running_var is not None:
                running_var += momentum * (var * pixels / (pixels - 1) - running_var)
    else:
        assert running_mean is not None
        assert running_var is not None
        mean, var = running_mean, running_var
    y = (input - mean.view(shape)) / (var + eps).sqrt().view(shape)
    y = y if weight is None else y * weight.view(shape)
    return y if bias is None else y + bias.view(shape)


def batch_norm_relu(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    residual: Tensor | None = None,
) -> Tensor:
    """See :func:`fastconv.functional.batch_norm_relu`.

    Example:
        >>> batch_norm_relu(torch.tensor([[1.0], [3.0]]), None, None, training=True, eps=1e-12)
        tensor([[0.],
                [1.]])
    """
    y = batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    return relu(y if residual is None else y + residual)


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size2 = 1,
    padding: str | Size2 = 0,
    dilation: Size2 = 1,
    groups: int = 1,
) -> Tensor:
    """See :func:`fastconv.functional.conv2d`. The input must have a batch dimension.

    Example:
        >>> conv2d(torch.ones(1, 1, 3, 3), torch.ones(1, 1, 2, 2))
        tensor([[[[4., 4.],
                  [4., 4.]]]])
    """
    K, _, R, S = weight.shape
    (u_h, u_w), (d_h, d_w) = _pair(stride), _pair(dilation)
    if padding == "same":
        total_h, total_w = d_h * (R - 1), d_w * (S - 1)
        margins = (total_w // 2, total_w - total_w // 2, total_h // 2, total_h - total_h // 2)
    else:
        z_h, z_w = (0, 0) if isinstance(padding, str) else _pair(padding)
        margins = (z_w, z_w, z_h, z_h)
    x = F.pad(input, margins)
    P = (x.shape[2] - d_h * (R - 1) - 1) // u_h + 1
    Q = (x.shape[3] - d_w * (S - 1) - 1) // u_w + 1
    y = x.new_zeros(x.shape[0], K, P, Q)
    for r in range(R):
        for s in range(S):
            pixels = x[:, :, r * d_h :: u_h, s * d_w :: u_w][:, :, :P, :Q]
            tap = weight[:, :, r, s]
            for x_group, w_group, y_group in zip(
                pixels.chunk(groups, 1), tap.chunk(groups, 0), y.chunk(groups, 1), strict=True
            ):
                y_group += torch.einsum("ncpq,kc->nkpq", x_group, w_group)
    return y if bias is None else y + bias.view(-1, 1, 1)


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """See :func:`fastconv.functional.linear`.

    Example:
        >>> linear(torch.tensor([1.0, 2.0]), torch.tensor([[3.0, 4.0]]))
        tensor([11.])
    """
    y = (input[..., None, :] * weight).sum(-1)
    return y if bias is None else y + bias


def max_pool2d(
    input: Tensor,
    kernel_size: Size2,
    stride: Size2 | None = None,
    padding: Size2 = 0,
    dilation: Size2 = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """See :func:`fastconv.functional.max_pool2d`. The input must be floating, with a batch dimension.

    Example:
        >>> max_pool2d(torch.tensor([[[[1.0, 2.0], [4.0, 3.0]]]]), 2, return_indices=True)
        (tensor([[[[4.]]]]), tensor([[[[2]]]]))
    """
    (R, S), (z_h, z_w), (d_h, d_w) = _pair(kernel_size), _pair(padding), _pair(dilation)
    u_h, u_w = _pair(kernel_size if stride is None else stride)
    N, C, H, W = input.shape

    def windows(size: int, kernel: int, z: int, u: int, d: int) -> int:
        span = size + 2 * z - d * (kernel - 1) - 1
        count = (span + (u - 1 if ceil_mode else 0)) // u + 1
        # A last window that would start beyond the input and its left padding is dropped.
        return count - 1 if ceil_mode and (count - 1) * u >= size + z else count

    P, Q = windows(H, R, z_h, u_h, d_h), windows(W, S, z_w, u_w, d_w)
    values, indices = input.new_empty(N, C, P, Q), torch.empty(N, C, P, Q, dtype=torch.int64)
    for p in range(P):
        for q in range(Q):
            rows = [h for h in range(p * u_h - z_h, p * u_h - z_h + R * d_h, d_h) if 0 <= h < H]
            columns = [w for w in range(q * u_w - z_w, q * u_w - z_w + S * d_w, d_w) if 0 <= w < W]
            best = torch.full((N, C), -torch.inf, dtype=input.dtype)
            at = torch.full((N, C), rows[0] * W + columns[0])
            for h in rows:
                for w in columns:
                    here = input[:, :, h, w]
                    take = (here > best) | here.isnan()
                    best, at = torch.where(take, here, best), torch.where(take, h * W + w, at)
            values[:, :, p, q], indices[:, :, p, q] = best, at
    return (values, indices) if return_indices else values


def relu(input: Tensor, inplace: bool = False) -> Tensor:
    """See :func:`fastconv.functional.relu`.

    Example:
        >>> relu(torch.tensor([-1.0, 2.0]))
        tensor([0., 2.])
    """
    result = torch.where(input < 0, torch.zeros_like(input), input)
    return input.copy_(result) if inplace else result


def conv2d_relu(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size2 = 1,
    padding: str | Size2 = 0,
    dilation: Size2 = 1,
    groups: int = 1,
) -> Tensor:
    """See :func:`fastconv.functional.conv2d_relu`.

    Example:
        >>> conv2d_relu(torch.ones(1, 1, 2, 2), -torch.ones(1, 1, 1, 1))
        tensor([[[[0., 0.],
                  [0., 0.]]]])
    """
    return relu(conv2d(input, weight, bias, stride, padding, dilation, groups))


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
    """See :func:`fastconv.functional.conv2d_relu_max_pool2d`.

    Example:
        >>> conv2d_relu_max_pool2d(torch.tensor([[[[1.0, 2.0], [4.0, 3.0]]]]), torch.ones(1, 1, 1, 1))
        tensor([[[[4.]]]])
    """
    activations = conv2d_relu(input, weight, bias, stride, padding, dilation, groups)
    result = max_pool2d(activations, pool_kernel_size, pool_stride, pool_padding, pool_dilation, pool_ceil_mode)
    assert isinstance(result, Tensor)
    return result
