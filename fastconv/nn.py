"""Layers: :mod:`torch.nn`'s, with their arithmetic done by :mod:`fastconv.functional`, convolutions that have ReLU and
max-pooling in them, and a Sequential that runs three layers as one of those.

They subclass PyTorch's, so ``isinstance``, ``state_dict``, initialisation, ``repr``, pickling and ``torch.nn.utils``
work as before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Optional

import torch
from torch import Tensor
from torch.fx import Proxy
from torch.nn import functional as F
from torch.nn.modules import module as torch_module
from torch.nn.modules.utils import _pair

from fastconv import functional as FF
from fastconv.interop import Layer, scripted_as

__all__ = ["Conv2d", "ConvReLU2d", "ConvReLUMaxPool2d", "LazyConv2d", "MaxPool2d", "ReLU", "Sequential"]


def _scripted_relu(self: Any, input: Tensor, weight: Tensor, bias: Optional[Tensor]) -> Tensor:  # noqa: UP045
    if self.padding_mode != "zeros":
        input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
        return F.relu(F.conv2d(input, weight, bias, self.stride, _pair(0), self.dilation, self.groups))
    return F.relu(F.conv2d(input, weight, bias, self.stride, self.padding, self.dilation, self.groups))


def _scripted_relu_max_pool(self: Any, input: Tensor, weight: Tensor, bias: Optional[Tensor]) -> Tensor:  # noqa: UP045
    if self.padding_mode != "zeros":
        input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
        conv = F.conv2d(input, weight, bias, self.stride, _pair(0), self.dilation, self.groups)
    else:
        conv = F.conv2d(input, weight, bias, self.stride, self.padding, self.dilation, self.groups)
    return F.max_pool2d(
        F.relu(conv),
        self.pool_kernel_size,
        self.pool_stride,
        self.pool_padding,
        self.pool_dilation,
        self.pool_ceil_mode,
    )


class Conv2d(Layer, torch.nn.Conv2d):
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

    #: Whether a :class:`Sequential` may run it as one with the layers behind it.
    fuses = True

    @scripted_as(torch.nn.Conv2d._conv_forward)
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


class LazyConv2d(Layer, torch.nn.LazyConv2d):  # type: ignore[misc]
    """A :class:`Conv2d` whose ``in_channels`` the first input decides: :class:`torch.nn.LazyConv2d`'s arguments.

    Example:
        >>> layer = LazyConv2d(16, 3)
        >>> layer(torch.randn(8, 3, 32, 32)).shape, type(layer)
        (torch.Size([8, 16, 30, 30]), <class 'fastconv.nn.Conv2d'>)
    """

    cls_to_become = Conv2d  # type: ignore[assignment]


class ConvReLU2d(Conv2d):
    """:class:`Conv2d` and ReLU in one: the arguments and parameters of the former.

    To code that asks ``isinstance`` it is a convolution: what folds a following batch norm into convolutions has to be
    kept from it.

    Shapes and errors: see :func:`fastconv.functional.conv2d_relu`.

    Example:
        >>> ConvReLU2d(3, 16, 3)(torch.randn(8, 3, 32, 32)).shape
        torch.Size([8, 16, 30, 30])
    """

    @scripted_as(_scripted_relu)
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

    @scripted_as(_scripted_relu_max_pool)
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


class MaxPool2d(Layer, torch.nn.MaxPool2d):
    """2-D max-pooling: the arguments, shapes and errors of :class:`torch.nn.MaxPool2d`.

    Args, shapes and errors: see :func:`fastconv.functional.max_pool2d`.

    Example:
        >>> MaxPool2d(2)(torch.randn(8, 16, 32, 32)).shape
        torch.Size([8, 16, 16, 16])
    """

    @scripted_as(torch.nn.MaxPool2d.forward)
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


class ReLU(Layer, torch.nn.ReLU):
    """The rectifier: :class:`torch.nn.ReLU`. Shapes and errors: see :func:`fastconv.functional.relu`.

    Example:
        >>> ReLU()(torch.tensor([-1.0, 2.0]))
        tensor([0., 2.])
    """

    @scripted_as(torch.nn.ReLU.forward)
    def forward(self, input: Tensor) -> Tensor:
        return FF.relu(input, inplace=self.inplace)


class Sequential(Layer, torch.nn.Sequential):
    """:class:`torch.nn.Sequential`, which runs a :class:`Conv2d`, a ReLU and a max-pool in a row as one operator.

    Also a :class:`Conv2d` and a ReLU, and the pool before the ReLU, which comes to the same. The layers stay what they
    are: indexed, sliced, called one by one or replaced, each does its own work, and so does each when one of them has
    a hook, which would see what lies between them.

    Example:
        >>> layers = Sequential(Conv2d(1, 32, 3), ReLU(), MaxPool2d(2))
        >>> layers(torch.randn(8, 1, 28, 28)).shape, layers[0](torch.randn(8, 1, 28, 28)).shape
        (torch.Size([8, 32, 13, 13]), torch.Size([8, 32, 26, 26]))
    """

    @scripted_as(torch.nn.Sequential.forward)
    def forward(self, input: Tensor) -> Tensor:
        if isinstance(input, Proxy):  # torch.fx records the layers, each by itself
            return super().forward(input)
        if torch_module._has_any_global_hook():
            return super().forward(input)
        layers = flat(self)
        i = 0
        while i < len(layers):
            conv, block = layers[i], match(layers, i, _ROLES)
            if len(block) > 1 and conv.fuses:
                pool = next((layer for layer in block if isinstance(layer, torch.nn.MaxPool2d)), None)
                input = conv_relu_max_pool(conv, input, conv.weight, conv.bias, pool)
                i += len(block)
            else:
                input = layers[i](input)
                i += 1
        return input


#: Which layers a Sequential runs as one: classes, and what they are to it.
_ROLES: dict[type, str] = {
    Conv2d: "conv",
    torch.nn.ReLU: "relu",
    ReLU: "relu",
    torch.nn.MaxPool2d: "pool",
    MaxPool2d: "pool",
}


def flat(layers: torch.nn.Sequential) -> list[Any]:
    """The layers, and in the place of a Sequential among them, its own."""
    result: list[Any] = []
    for layer in layers._modules.values():
        if type(layer) in (Sequential, torch.nn.Sequential) and not is_observed(layer):
            result += flat(layer)  # type: ignore[arg-type]
        else:
            result.append(layer)
    return result


def match(layers: list[Any], i: int, roles: Mapping[type, str]) -> list[Any]:
    """The layers from i on that are one block: convolution, ReLU, perhaps a pool. Else that one layer."""
    if role(layers[i], roles) == "conv":
        found = [role(layer, roles) for layer in layers[i + 1 : i + 3]]
        if found in (["relu", "pool"], ["pool", "relu"]):
            return layers[i : i + 3]
        if found[:1] == ["relu"]:
            return layers[i : i + 2]
    return layers[i : i + 1]


def role(layer: Any, roles: Mapping[type, str]) -> str | None:
    """What a layer can be in a block. None if someone looks at it, or if it returns more than a block does."""
    result = roles.get(kind(layer))
    if result is None or is_observed(layer) or (result == "pool" and layer.return_indices):
        return None
    return result


def kind(module: torch.nn.Module) -> type:
    """The module's class; of a parametrised one, what it was before."""
    return type(module).__bases__[0] if "parametrizations" in module._modules else type(module)


def is_observed(module: torch.nn.Module) -> bool:
    """Whether someone sees what this module takes or returns, or has given it another ``forward``."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
    )


def conv_relu_max_pool(
    conv: Conv2d, input: Tensor, weight: Tensor, bias: Tensor | None, pool: torch.nn.MaxPool2d | None
) -> Tensor:
    arguments = conv._arguments(input, weight, bias)
    if pool is None:
        return FF.conv2d_relu(*arguments)
    pooling = (pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.ceil_mode)
    return FF.conv2d_relu_max_pool2d(*arguments, *pooling)
