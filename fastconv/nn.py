"""Layers: :mod:`torch.nn`'s, with their arithmetic done by :mod:`fastconv.functional`, and convolutions that have ReLU
and max-pooling in them.

They subclass PyTorch's, so ``isinstance``, ``state_dict``, initialisation, ``repr``, pickling and ``torch.nn.utils``
work as before.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastconv import functional as FF

__all__ = ["Conv2d", "ConvReLU2d", "ConvReLUMaxPool2d", "MaxPool2d", "ReLU"]


class Conv2d(torch.nn.Conv2d):
    """2-D convolution: the arguments, parameters, shapes and errors of :class:`torch.nn.Conv2d`.

    Args and shapes: see :func:`fastconv.functional.conv2d`; ``padding_mode`` is 'zeros', 'reflect', 'replicate' or
    'circular'.

    Raises:
        ValueError: channels or padding that do not fit, as PyTorch's constructor raises.
        RuntimeError: an input that does not fit, in PyTorch's words.

    Example:
        >>> Conv2d(3, 16, 3, padding="same")(torch.randn(8, 3, 32, 32)).shape
        torch.Size([8, 16, 32, 32])
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return FF.conv2d(*self._arguments(input, weight, bias))

    def _arguments(
        self, input: Tensor, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None, Any, Any, Any, int]:
        """Those of :func:`fastconv.functional.conv2d`; padding other than of zeros is done here."""
        padding = self.padding
        if self.padding_mode != "zeros":
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = (0, 0)
        return input, weight, bias, self.stride, padding, self.dilation, self.groups


class ConvReLU2d(Conv2d):
    """:class:`Conv2d` and ReLU in one: the arguments and parameters of the former.

    To code that asks ``isinstance`` it is a convolution: what folds a following batch norm into convolutions has to be
    kept from it.

    Shapes and errors: see :func:`fastconv.functional.conv2d_relu`.

    Example:
        >>> ConvReLU2d(3, 16, 3)(torch.randn(8, 3, 32, 32)).shape
        torch.Size([8, 16, 30, 30])
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return FF.conv2d_relu(*self._arguments(input, weight, bias))


class ConvReLUMaxPool2d(Conv2d):
    """:class:`Conv2d`, ReLU and :class:`MaxPool2d` in one: parameters as :class:`torch.nn.Conv2d` has them.

    Args:
        args, kwargs: those of :class:`torch.nn.Conv2d`.
        pool_kernel_size, pool_stride, pool_padding, pool_dilation, pool_ceil_mode: those of
            :class:`torch.nn.MaxPool2d`; a pool of 2 x 2 by default.

    Shapes and errors: see :func:`fastconv.functional.conv2d_relu_max_pool2d`.

    Example:
        >>> ConvReLUMaxPool2d(1, 32, 3)(torch.randn(8, 1, 28, 28)).shape
        torch.Size([8, 32, 13, 13])
    """

    def __init__(
        self,
        *args: Any,
        pool_kernel_size: FF.Size2 = 2,
        pool_stride: FF.Size2 | None = None,
        pool_padding: FF.Size2 = 0,
        pool_dilation: FF.Size2 = 1,
        pool_ceil_mode: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.pool_kernel_size = pool_kernel_size
        self.pool_stride = pool_kernel_size if pool_stride is None else pool_stride
        self.pool_padding = pool_padding
        self.pool_dilation = pool_dilation
        self.pool_ceil_mode = pool_ceil_mode

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return FF.conv2d_relu_max_pool2d(
            *self._arguments(input, weight, bias),
            pool_kernel_size=self.pool_kernel_size,
            pool_stride=self.pool_stride,
            pool_padding=self.pool_padding,
            pool_dilation=self.pool_dilation,
            pool_ceil_mode=self.pool_ceil_mode,
        )

    def extra_repr(self) -> str:
        pool = f"pool_kernel_size={self.pool_kernel_size}, pool_stride={self.pool_stride}"
        if self.pool_padding not in (0, (0, 0), [0, 0]):
            pool += f", pool_padding={self.pool_padding}"
        if self.pool_dilation not in (1, (1, 1), [1, 1]):
            pool += f", pool_dilation={self.pool_dilation}"
        if self.pool_ceil_mode:
            pool += ", pool_ceil_mode=True"
        return f"{super().extra_repr()}, {pool}"


class MaxPool2d(torch.nn.MaxPool2d):
    """2-D max-pooling: the arguments, shapes and errors of :class:`torch.nn.MaxPool2d`.

    Args, shapes and errors: see :func:`fastconv.functional.max_pool2d`.

    Example:
        >>> MaxPool2d(2)(torch.randn(8, 16, 32, 32)).shape
        torch.Size([8, 16, 16, 16])
    """

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:  # type: ignore[override]
        return FF.max_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            ceil_mode=self.ceil_mode,
            return_indices=self.return_indices,
        )


class ReLU(torch.nn.ReLU):
    """The rectifier: :class:`torch.nn.ReLU`. Shapes and errors: see :func:`fastconv.functional.relu`.

    Example:
        >>> ReLU()(torch.tensor([-1.0, 2.0]))
        tensor([0., 2.])
    """

    def forward(self, input: Tensor) -> Tensor:
        return FF.relu(input, inplace=self.inplace)
