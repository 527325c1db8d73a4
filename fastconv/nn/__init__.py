"""The layers of :mod:`torch.nn` on fastconv's operators, fused layers, and a Sequential that fuses its members.

The layers subclass PyTorch's, so ``isinstance``, ``state_dict``, initialisation, ``repr``, pickling and
``torch.nn.utils`` work as before. If a program replaces a method of PyTorch's classes or a function that they call
(``torch.nn.ReLU.forward = ...``, ``F.relu = ...``), the layers run PyTorch's code with the replacement.
"""

from __future__ import annotations

import torch  # noqa: F401  the examples of the layers use it

from fastconv.nn.activations import Hardswish, LeakyReLU, ReLU, ReLU6, SiLU
from fastconv.nn.convolution import Conv2d, ConvReLU2d, ConvReLUMaxPool2d, LazyConv2d
from fastconv.nn.convolution import fuse_with_next as fuse_with_next
from fastconv.nn.layers import BatchNorm2d, BatchNormReLU2d, Linear, MaxPool2d
from fastconv.nn.sequential import ROLES as ROLES
from fastconv.nn.sequential import Sequential
from fastconv.nn.sequential import flat as flat
from fastconv.nn.sequential import match as match

__all__ = [
    "BatchNorm2d",
    "BatchNormReLU2d",
    "Conv2d",
    "ConvReLU2d",
    "ConvReLUMaxPool2d",
    "Hardswish",
    "LazyConv2d",
    "LeakyReLU",
    "Linear",
    "MaxPool2d",
    "ReLU",
    "ReLU6",
    "Sequential",
    "SiLU",
]
