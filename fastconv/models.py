"""The two networks of the worked job (MNIST; cross-correlation without padding, as in the textbook)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import fastconv.nn

__all__ = ["MnistCNN", "SimpleCNN"]


class MnistCNN(torch.nn.Module):
    """conv 32 3x3, ReLU, pool 2; conv 64 3x3, ReLU, pool 2; conv 128 3x3, ReLU; dense 128, ReLU; dense 10.

    241,546 parameters.

    Args:
        layers: what provides ``Conv2d``, ``MaxPool2d`` and ``ReLU``: :mod:`fastconv.nn`, or :mod:`torch.nn` for the
            same network, with the same state_dict, on PyTorch's operators.

    Shape:
        (N, 1, 28, 28) -> (N, 10), logits.

    Raises:
        RuntimeError: an input of another size, in PyTorch's words.

    Example:
        >>> MnistCNN()(torch.rand(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(self, layers: Any = fastconv.nn) -> None:
        super().__init__()
        self.conv1 = layers.Conv2d(1, 32, 3)
        self.conv2 = layers.Conv2d(32, 64, 3)
        self.conv3 = layers.Conv2d(64, 128, 3)
        self.relu = layers.ReLU()
        self.pool = layers.MaxPool2d(2)
        self.dense1 = torch.nn.Linear(1152, 128)
        self.dense2 = torch.nn.Linear(128, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.pool(self.relu(self.conv1(images)))
        x = self.pool(self.relu(self.conv2(x)))
        x = self.relu(self.conv3(x))
        x = self.relu(self.dense1(x.flatten(1)))
        return self.dense2(x)


class SimpleCNN(torch.nn.Module):
    """conv 32 3x3, ReLU, pool 2; conv 64 3x3, ReLU, pool 2; dense 64, ReLU; dense 10.

    Args:
        layers: as for :class:`MnistCNN`.

    Shape:
        (N, 1, 28, 28) -> (N, 10), logits.

    Raises:
        RuntimeError: an input of another size, in PyTorch's words.

    Example:
        >>> SimpleCNN()(torch.rand(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(self, layers: Any = fastconv.nn) -> None:
        super().__init__()
        self.conv1 = layers.Conv2d(1, 32, 3)
        self.conv2 = layers.Conv2d(32, 64, 3)
        self.relu = layers.ReLU()
        self.pool = layers.MaxPool2d(2)
        self.dense1 = torch.nn.Linear(1600, 64)
        self.dense2 = torch.nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.pool(self.relu(self.conv1(images)))
        x = self.pool(self.relu(self.conv2(x)))
        x = self.relu(self.dense1(x.flatten(1)))
        return self.dense2(x)
