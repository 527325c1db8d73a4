"""Convolutions: layers of :mod:`fastconv.nn`."""

from __future__ import annotations

import sys
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.modules.utils import _pair  # noqa: F401  torch.jit.script looks for the names of PyTorch's code here

from fastconv import functional as FF
from fastconv._ahead import (
    Ahead,
    convolution_ahead,
    keep_source,
    may_wait,
    register_convolution,
    take_source,
)
from fastconv._deferred import defer
from fastconv._layer import Layer, is_observed, is_patched, scripted_as
from fastconv._ops import gpu
from fastconv._scripted import scripted_relu, scripted_relu_max_pool

__all__ = ["Conv2d", "ConvReLU2d", "ConvReLUMaxPool2d", "LazyConv2d", "PaddingMode", "fuse_with_next"]

PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]


class Conv2d(Layer, torch.nn.Conv2d):
    """2-D convolution: the arguments, parameters, shapes and errors of :class:`torch.nn.Conv2d`.

    Args and shapes: see :func:`fastconv.functional.conv2d`; ``padding_mode`` is 'zeros', 'reflect', 'replicate' or
    'circular'.

    Raises:
        ValueError: invalid channels or padding, with PyTorch's message.
        RuntimeError: an invalid input, with PyTorch's message.

    Example:
        >>> Conv2d(3, 16, 3, padding="same")(torch.randn(8, 3, 32, 32)).shape
        torch.Size([8, 16, 32, 32])
    """

    _torch_class = torch.nn.Conv2d  # type: type[torch.nn.Module] | None
    _conversion_attributes = ("_fuses", "_patience")
    #: Run with the next layers as one operator where possible. :func:`fastconv.convert` sets it.
    _fuses = False
    #: After this many more Deferred results (:mod:`fastconv._deferred`) in a row that are not fused, the layer stops
    #: returning them. 0: it computes every result at once. :func:`fastconv.convert` sets this attribute.
    _patience = 0

    @scripted_as(torch.nn.Conv2d.forward)
    def forward(self, input: Tensor) -> Tensor:
        if type(input) is Ahead:  # type: ignore[comparison-overlap]
            return input.passed()  # type: ignore[no-any-return]
        if self._fuses and type(self) is Conv2d and not torch.compiler.is_compiling():
            source = take_source(self, input)
            result: Any = convolution_ahead(self, sys._getframe(0), input)
            if result is not None:
                return result  # type: ignore[no-any-return]
            if self._patience > 0 and not may_wait(self, sys._getframe(0), source is not None):
                vars(self)["_patience"] = 0
            if source is not None:
                result = super().forward(input)
                keep_source(result, input, source)
                return result  # type: ignore[no-any-return]
        return super().forward(input)  # type: ignore[no-any-return]

    @scripted_as(torch.nn.Conv2d._conv_forward)
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        geometry = (self.stride, self.padding, self.dilation, self.groups)
        if isinstance(input, Tensor) and input.is_cuda and gpu.is_left(input, weight, *geometry):
            return super()._conv_forward(input, weight, bias)
        if is_patched():
            return super()._conv_forward(input, weight, bias)
        arguments = self._arguments(input, weight, bias)
        if torch.compiler.is_compiling():
            return FF.conv2d(*arguments)
        if self._patience > 0 and not is_observed(self):
            result = defer(*arguments, layer=self)
            if result is not None:
                return result
        return FF.conv2d(*arguments)

    def _note_fusion(self, fused: bool) -> None:
        """Reset ``_patience`` if a deferred result was fused. Otherwise count it down."""
        if fused or self._patience > 0:
            vars(self)["_patience"] = _PATIENCE if fused else self._patience - 1

    def _arguments(
        self, input: Tensor, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None, Any, Any, Any, int]:
        """Return the arguments of :func:`fastconv.functional.conv2d`. Pad here if the padding is not zeros."""
        padding = self.padding
        if self.padding_mode != "zeros":
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = (0, 0)
        return input, weight, bias, self.stride, padding, self.dilation, self.groups


register_convolution(Conv2d)


class LazyConv2d(Layer, torch.nn.LazyConv2d):  # type: ignore[misc]
    """A :class:`Conv2d` that takes ``in_channels`` from its first input. Arguments: see :class:`torch.nn.LazyConv2d`.

    Example:
        >>> layer = LazyConv2d(16, 3)
        >>> layer(torch.randn(8, 3, 32, 32)).shape, type(layer)
        (torch.Size([8, 16, 30, 30]), <class 'fastconv.nn.Conv2d'>)
    """

    cls_to_become = Conv2d  # type: ignore[assignment]
    _torch_class = torch.nn.LazyConv2d
    _conversion_attributes = Conv2d._conversion_attributes


class ConvReLU2d(Conv2d):
    """:class:`Conv2d` and ReLU in one operator, with the arguments and parameters of :class:`Conv2d`.

    Do not give this layer to code that folds a following batch norm into convolutions. Such code would ignore the ReLU,
    because ``isinstance(layer, torch.nn.Conv2d)`` is true.

    Shapes and errors: see :func:`fastconv.functional.conv2d_relu`.

    Example:
        >>> ConvReLU2d(3, 16, 3)(torch.randn(8, 3, 32, 32)).shape
        torch.Size([8, 16, 30, 30])
    """

    _torch_class = None

    @scripted_as(scripted_relu)
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return FF.conv2d_relu(*self._arguments(input, weight, bias))


class ConvReLUMaxPool2d(Conv2d):
    """:class:`Conv2d`, ReLU and :class:`MaxPool2d` in one operator, with the parameters of :class:`Conv2d`.

    Args:
        in_channels to dtype: those of :class:`torch.nn.Conv2d`.
        pool_kernel_size, pool_stride, pool_padding, pool_dilation, pool_ceil_mode: those of
            :class:`torch.nn.MaxPool2d`; a pool of 2 x 2 by default.

    Shapes and errors: see :func:`fastconv.functional.conv2d_relu_max_pool2d`.

    Example:
        >>> ConvReLUMaxPool2d(1, 32, 3)(torch.randn(8, 1, 28, 28)).shape
        torch.Size([8, 32, 13, 13])
    """

    _torch_class = None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: FF.Size2,
        stride: FF.Size2 = 1,
        padding: str | FF.Size2 = 0,
        dilation: FF.Size2 = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        pool_kernel_size: FF.Size2 = 2,
        pool_stride: FF.Size2 | None = None,
        pool_padding: FF.Size2 = 0,
        pool_dilation: FF.Size2 = 1,
        pool_ceil_mode: bool = False,
    ) -> None:
        # torch accepts lists as sizes, but its annotations do not.
        sizes: dict[str, Any] = {"kernel_size": kernel_size, "stride": stride, "padding": padding, "dilation": dilation}
        options: dict[str, Any] = {"padding_mode": padding_mode, "device": device, "dtype": dtype}
        super().__init__(in_channels, out_channels, groups=groups, bias=bias, **sizes, **options)
        self.pool_kernel_size = pool_kernel_size
        self.pool_stride = pool_kernel_size if pool_stride is None else pool_stride
        self.pool_padding = pool_padding
        self.pool_dilation = pool_dilation
        self.pool_ceil_mode = pool_ceil_mode

    @scripted_as(scripted_relu_max_pool)
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


#: A convolution stops deferring its results after this many in a row that were not fused.
_PATIENCE = 3


def fuse_with_next(layer: torch.nn.Module) -> None:
    """Let a converted layer run together with the layers around it where possible."""
    vars(layer)["_fuses"] = True
    if isinstance(layer, Conv2d | LazyConv2d):
        vars(layer)["_patience"] = _PATIENCE
