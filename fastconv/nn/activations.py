"""Activations: layers of :mod:`fastconv.nn`. They run as one operator with the layer before them where possible."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: F401  torch.jit.script looks for the names of PyTorch's code here

from fastconv import functional as FF
from fastconv._ahead import Ahead, register
from fastconv._layer import Layer, is_patched, scripted_as
from fastconv.nn.layers import BatchNorm2d, Linear, MaxPool2d

__all__ = ["Hardswish", "LeakyReLU", "ReLU", "ReLU6", "SiLU"]


class ReLU(Layer, torch.nn.ReLU):
    """The rectifier: :class:`torch.nn.ReLU`. Shapes and errors: see :func:`fastconv.functional.relu`.

    Example:
        >>> ReLU()(torch.tensor([-1.0, 2.0]))
        tensor([0., 2.])
    """

    _torch_class = torch.nn.ReLU
    _conversion_attributes = ("_fuses",)
    #: :func:`fastconv.convert` sets it. PyTorch then computes each ReLU that is not fused, because PyTorch is faster.
    _fuses = False

    @scripted_as(torch.nn.ReLU.forward)
    def forward(self, input: Tensor) -> Tensor:
        if type(input) is Ahead:  # type: ignore[comparison-overlap]
            return input.passed()  # type: ignore[no-any-return]
        if self._fuses or is_patched():
            return super().forward(input)  # type: ignore[no-any-return]
        return FF.relu(input, inplace=self.inplace)


def _forward_of(torch_class: Any) -> Any:
    """Return a method ``forward(input)`` that computes what PyTorch's class computes, or passes on an ``Ahead``."""

    @scripted_as(torch_class.forward)
    def forward(self: Any, input: Tensor) -> Tensor:
        if type(input) is Ahead:  # type: ignore[comparison-overlap]
            return input.passed()  # type: ignore[no-any-return]
        return torch_class.forward(self, input)  # type: ignore[no-any-return]

    return forward


class ReLU6(Layer, torch.nn.ReLU6):
    """min(max(0, x), 6): :class:`torch.nn.ReLU6`.

    Example:
        >>> ReLU6()(torch.tensor([-1.0, 7.0]))
        tensor([0., 6.])
    """

    _torch_class = torch.nn.ReLU6
    forward = _forward_of(torch.nn.ReLU6)


class LeakyReLU(Layer, torch.nn.LeakyReLU):
    """x where it is positive, else a small multiple of x: :class:`torch.nn.LeakyReLU`.

    Example:
        >>> LeakyReLU(0.5)(torch.tensor([-1.0, 2.0]))
        tensor([-0.5000,  2.0000])
    """

    _torch_class = torch.nn.LeakyReLU
    forward = _forward_of(torch.nn.LeakyReLU)


class Hardswish(Layer, torch.nn.Hardswish):
    """x * relu6(x + 3) / 6: :class:`torch.nn.Hardswish`.

    Example:
        >>> Hardswish()(torch.tensor([-4.0, 4.0]))
        tensor([-0., 4.])
    """

    _torch_class = torch.nn.Hardswish
    forward = _forward_of(torch.nn.Hardswish)


class SiLU(Layer, torch.nn.SiLU):
    """x / (1 + exp(-x)): :class:`torch.nn.SiLU`.

    Example:
        >>> SiLU()(torch.tensor([0.0]))
        tensor([0.])
    """

    _torch_class = torch.nn.SiLU
    forward = _forward_of(torch.nn.SiLU)


register(BatchNorm2d, Linear, MaxPool2d, ReLU, ReLU6, LeakyReLU, Hardswish, SiLU)
