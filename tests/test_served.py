"""What fastconv.convert leaves to PyTorch."""

from __future__ import annotations

import pytest
from torch import nn

import fastconv
from fastconv import nn as fnn
from fastconv.served import slower_than_torch

conv = nn.Conv2d

SERVED = [
    (conv(1, 32, 3), ""),
    (conv(3, 64, 7, stride=2), ""),
    (conv(64, 64, 3), ""),
    (conv(64, 128, 1, stride=2), ""),
    (conv(64, 64, 3, groups=2), ""),
    (conv(64, 64, 3), "ReLU"),
    (conv(16, 16, 5), "ReLU"),
    (conv(64, 64, 1), "pool"),
    (conv(512, 512, 3), "pool"),
    (nn.MaxPool2d(2), ""),
    (nn.LazyConv2d(4, 1), ""),
]
LEFT = [
    (conv(64, 64, 1), "", "1x1 kernels of stride 1"),
    (conv(64, 64, 1), "ReLU", "1x1 kernels of stride 1, even with ReLU"),
    (conv(64, 64, 3, groups=64), "", "depthwise convolution"),
    (conv(64, 64, 3, groups=8), "pool", "groups of 8 channels, even with pool"),
    (conv(8, 8, 3), "", "3x3 kernels on 8 channels"),
    (conv(16, 16, 3), "ReLU", "3x3 kernels on 16 channels, even with ReLU"),
    (conv(512, 512, 3), "", "3x3 kernels on 512 channels"),
    (conv(64, 64, 5), "", "5x5 kernels on 64 channels"),
    (conv(3, 32, 7), "ReLU", "7x7 kernels on 3 channels with ReLU"),
    (nn.ReLU(), "", "ReLU alone"),
]


@pytest.mark.parametrize(("layer", "fused_with"), SERVED, ids=str)
def test_layers_that_are_served(layer: nn.Module, fused_with: str) -> None:
    assert slower_than_torch(layer, fused_with) is None


@pytest.mark.parametrize(("layer", "fused_with", "reason"), LEFT, ids=str)
def test_layers_that_are_left_to_pytorch(layer: nn.Module, fused_with: str, reason: str) -> None:
    told = slower_than_torch(layer, fused_with)
    assert told is not None
    assert told.startswith(f"PyTorch is faster at {reason}")


def test_convert_asks() -> None:
    model = fastconv.convert(nn.Sequential(conv(3, 64, 3), nn.BatchNorm2d(64), nn.ReLU(), conv(64, 64, 1), nn.ReLU()))
    assert [type(layer) for layer in model] == [fnn.Conv2d, nn.BatchNorm2d, nn.ReLU, fnn.Conv2d, nn.ReLU]
    assert sorted(model[3]._left_to_torch) == ["ReLU", "alone"]  # fastconv's with a pool only
    lines = {line.name: line for line in fastconv.conversion_report(model).lines}
    assert lines["0"].becomes == "converted"
    assert lines["3"].becomes == "left"
    assert "1x1 kernels" in lines["3"].why
    assert "unless a max-pool with ReLU follows" in lines["3"].why
    fastconv.convert(model, fuse=False)
    assert type(model[3]) is nn.Conv2d
