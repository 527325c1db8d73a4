"""Layers: :mod:`torch.nn`'s, with their arithmetic done by :mod:`fastconv.functional`.

They subclass PyTorch's, so ``isinstance``, ``state_dict``, initialisation, ``repr``, pickling and ``torch.nn.utils``
work as before.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fastconv import functional as FF

__all__ = ["Conv2d", "MaxPool2d", "ReLU"]


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
        padding = self.padding
        if self.padding_mode != "zeros":
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = (0, 0)
        return FF.conv2d(input, weight, bias, self.stride, padding, self.dilation, self.groups)


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
