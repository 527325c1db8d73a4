"""Two small CNNs for MNIST, without padding.

:mod:`fastconv.builder` makes other networks.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import fastconv.nn

__all__ = ["MnistCNN", "SimpleCNN"]


class TorchConvReLU2d(torch.nn.Conv2d):
    """:class:`fastconv.nn.ConvReLU2d` on PyTorch's operators."""

    def forward(self, input: Tensor) -> Tensor:
        return F.relu(super().forward(input))


class TorchConvReLUMaxPool2d(torch.nn.Conv2d):
    """:class:`fastconv.nn.ConvReLUMaxPool2d` on PyTorch's operators, with the same arguments and attributes."""

    def __init__(
        self,
        *args: Any,
        pool_kernel_size: Any = 2,
        pool_stride: Any = None,
        pool_padding: Any = 0,
        pool_dilation: Any = 1,
        pool_ceil_mode: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.pool_kernel_size = pool_kernel_size
        self.pool_stride = pool_kernel_size if pool_stride is None else pool_stride
        self.pool_padding = pool_padding
        self.pool_dilation = pool_dilation
        self.pool_ceil_mode = pool_ceil_mode

    def forward(self, input: Tensor) -> Tensor:
        pool = (self.pool_kernel_size, self.pool_stride, self.pool_padding, self.pool_dilation, self.pool_ceil_mode)
        return F.max_pool2d(F.relu(super().forward(input)), *pool)


def blocks(layers: Any) -> tuple[Any, Any]:
    """Return two classes: convolution with ReLU, and convolution with ReLU and max-pool. Only fastconv's are fused."""
    if layers is torch.nn:
        return TorchConvReLU2d, TorchConvReLUMaxPool2d
    return layers.ConvReLU2d, layers.ConvReLUMaxPool2d


class MnistCNN(torch.nn.Module):
    """conv 32 3x3, ReLU, pool 2; conv 64 3x3, ReLU, pool 2; conv 128 3x3, ReLU; dense 128, ReLU; dense 10.

    241,546 parameters.

    Args:
        layers: :mod:`fastconv.nn` for fused layers, or :mod:`torch.nn` for the same network, with the same state_dict,
            on PyTorch's operators.

    Shape:
        (N, 1, 28, 28) -> (N, 10), logits.

    Raises:
        RuntimeError: an input of another size, with PyTorch's message.

    Example:
        >>> MnistCNN()(torch.rand(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(self, layers: Any = fastconv.nn) -> None:
        super().__init__()
        conv_relu, conv_relu_pool = blocks(layers)
        self.conv1 = conv_relu_pool(1, 32, 3)
        self.conv2 = conv_relu_pool(32, 64, 3)
        self.conv3 = conv_relu(64, 128, 3)
        self.dense1 = layers.Linear(1152, 128)
        self.dense2 = layers.Linear(128, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv3(self.conv2(self.conv1(images)))
        x = F.relu(self.dense1(x.flatten(1)))
        return self.dense2(x)


class SimpleCNN(torch.nn.Module):
    """conv 32 3x3, ReLU, pool 2; conv 64 3x3, ReLU, pool 2; dense 64, ReLU; dense 10.

    Args:
        layers: as for :class:`MnistCNN`.

    Shape:
        (N, 1, 28, 28) -> (N, 10), logits.

    Raises:
        RuntimeError: an input of another size, with PyTorch's message.

    Example:
        >>> SimpleCNN()(torch.rand(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(self, layers: Any = fastconv.nn) -> None:
        super().__init__()
        _, conv_relu_pool = blocks(layers)
        self.conv1 = conv_relu_pool(1, 32, 3)
        self.conv2 = conv_relu_pool(32, 64, 3)
        self.dense1 = layers.Linear(1600, 64)
        self.dense2 = layers.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv2(self.conv1(images))
        x = F.relu(self.dense1(x.flatten(1)))
        return self.dense2(x)
