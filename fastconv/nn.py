"""The layers of :mod:`torch.nn` on fastconv's operators, fused layers, and a Sequential that fuses its members.

The layers subclass PyTorch's, so ``isinstance``, ``state_dict``, initialisation, ``repr``, pickling and
``torch.nn.utils`` work as before. If a program replaces a method of PyTorch's classes or a function that they call
(``torch.nn.ReLU.forward = ...``, ``F.relu = ...``), the layers run PyTorch's code with the replacement.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.fx import Proxy
from torch.nn import functional as F
from torch.nn.modules import module as torch_module
from torch.nn.modules.utils import _pair  # noqa: F401  torch.jit.script looks for the names of PyTorch's code here

from fastconv import functional as FF
from fastconv._deferred import defer
from fastconv._layer import Layer, is_observed, is_patched, kind, scripted_as
from fastconv._scripted import scripted_relu, scripted_relu_max_pool

__all__ = ["Conv2d", "ConvReLU2d", "ConvReLUMaxPool2d", "LazyConv2d", "MaxPool2d", "ReLU", "Sequential"]

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
    _conversion_attributes = ("_patience",)
    #: The layer stops returning Deferred results (:mod:`fastconv._deferred`) after this many more in a row that are not
    #: fused. 0: it computes every result at once. :func:`fastconv.convert` sets it.
    _patience = 0

    @scripted_as(torch.nn.Conv2d._conv_forward)
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
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


class MaxPool2d(Layer, torch.nn.MaxPool2d):
    """2-D max-pooling: the arguments, shapes and errors of :class:`torch.nn.MaxPool2d`.

    Args, shapes and errors: see :func:`fastconv.functional.max_pool2d`.

    Example:
        >>> MaxPool2d(2)(torch.randn(8, 16, 32, 32)).shape
        torch.Size([8, 16, 16, 16])
    """

    _torch_class = torch.nn.MaxPool2d

    @scripted_as(torch.nn.MaxPool2d.forward)
    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:  # type: ignore[override]
        if is_patched():
            return super().forward(input)  # type: ignore[no-any-return]
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

    _torch_class = torch.nn.ReLU

    @scripted_as(torch.nn.ReLU.forward)
    def forward(self, input: Tensor) -> Tensor:
        if is_patched():
            return super().forward(input)  # type: ignore[no-any-return]
        return FF.relu(input, inplace=self.inplace)


class Sequential(Layer, torch.nn.Sequential):
    """A :class:`torch.nn.Sequential` that runs a :class:`Conv2d`, a ReLU and a max-pool in a row as one operator.

    It also fuses a :class:`Conv2d` and a ReLU without a pool. The pool may come before the ReLU: the result is the
    same. The layers do not change: they can be indexed, sliced, called one by one and replaced. Each call inspects the
    layers. It runs a layer alone if the layer has a hook, is of another class or has a replaced ``forward``.

    Example:
        >>> layers = Sequential(Conv2d(1, 32, 3), ReLU(), MaxPool2d(2))
        >>> layers(torch.randn(8, 1, 28, 28)).shape, layers[0](torch.randn(8, 1, 28, 28)).shape
        (torch.Size([8, 32, 13, 13]), torch.Size([8, 32, 26, 26]))
    """

    _torch_class = torch.nn.Sequential

    @scripted_as(torch.nn.Sequential.forward)
    def forward(self, input: Tensor) -> Tensor:
        is_recorded = isinstance(input, Proxy) or torch.compiler.is_exporting()  # Proxy: torch.fx
        if is_recorded or is_patched() or torch_module._has_any_global_hook():
            return super().forward(input)
        layers = flat(self)
        i = 0
        while i < len(layers):
            conv, block = layers[i], match(layers, i, ROLES)
            if len(block) > 1:
                pool = next((layer for layer in block if isinstance(layer, torch.nn.MaxPool2d)), None)
                arguments = conv._arguments(input, conv.weight, conv.bias)
                if pool is None:
                    input = FF.conv2d_relu(*arguments)
                else:
                    pooling: Any = (pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.ceil_mode)
                    input = FF.conv2d_relu_max_pool2d(*arguments, *pooling)
                i += len(block)
            else:
                input = layers[i](input)
                i += 1
        return input


#: A convolution stops deferring its results after this many in a row that were not fused.
_PATIENCE = 3


def wait_for_fusion(conv: torch.nn.Module) -> None:
    """Defer the results of a :class:`Conv2d` or :class:`LazyConv2d`, so that the next operations can be fused."""
    vars(conv)["_patience"] = _PATIENCE


#: The classes that a Sequential fuses, and the role of each.
ROLES: dict[type, str] = {
    Conv2d: "conv",
    torch.nn.ReLU: "relu",
    ReLU: "relu",
    torch.nn.MaxPool2d: "pool",
    MaxPool2d: "pool",
}


def flat(layers: torch.nn.Sequential) -> list[Any]:
    """Return the layers, with each Sequential among them replaced by its own layers."""
    result: list[Any] = []
    for layer in layers._modules.values():
        if type(layer) in (Sequential, torch.nn.Sequential) and not is_observed(layer):
            result += flat(layer)  # type: ignore[arg-type]
        else:
            result.append(layer)
    return result


def match(layers: list[Any], i: int, roles: Mapping[type, str]) -> list[Any]:
    """Return the block that starts at layer i: a convolution, ReLU and perhaps a pool. Without one, layer i alone."""
    if role(layers[i], roles) == "conv":
        found = [role(layer, roles) for layer in layers[i + 1 : i + 3]]
        if found in (["relu", "pool"], ["pool", "relu"]):
            return layers[i : i + 3]
        if found[:1] == ["relu"]:
            return layers[i : i + 2]
    return layers[i : i + 1]


def role(layer: Any, roles: Mapping[type, str]) -> str | None:
    """Return the role of a layer in a block. None if the layer is observed, or if it returns indices as well."""
    result = roles.get(kind(layer))
    if result is None or is_observed(layer) or (result == "pool" and layer.return_indices):
        return None
    return result
