"""The layers that PyTorch computes faster, which fastconv.convert does not convert."""

from __future__ import annotations

import pytest
from torch import nn

import fastconv
from fastconv import nn as fnn
from fastconv._deferred import Fusion
from fastconv.conversion.slower_layers import choose

conv = nn.Conv2d

FASTCONVS = [
    (conv(1, 32, 3), "alone"),
    (conv(3, 64, 7, stride=2), "alone"),
    (conv(64, 64, 3), "alone"),
    (conv(64, 128, 1, stride=2), "alone"),
    (conv(64, 64, 3, groups=2), "alone"),
    (conv(64, 64, 3, groups=64), "alone"),
    (conv(64, 64, 3, groups=8), "ReLU"),
    (conv(64, 64, 3), "ReLU"),
    (conv(16, 16, 5), "ReLU"),
    (conv(64, 64, 1), "pool"),
    (conv(512, 512, 3), "pool"),
    (nn.MaxPool2d(2), "alone"),
    (nn.LazyConv2d(4, 1), "alone"),
]
TORCHS = [
    (conv(64, 64, 1), "alone", "1x1 kernels of stride 1"),
    (conv(64, 64, 1), "ReLU", "1x1 kernels of stride 1, even with ReLU"),
    (conv(64, 128, 3, groups=64), "alone", "groups of 1 input channels"),
    (conv(48, 48, 3, groups=16), "pool", "groups of 3 input channels, even with pool"),
    (conv(8, 8, 3), "alone", "3x3 kernels on 8 channels"),
    (conv(16, 16, 3), "ReLU", "3x3 kernels on 16 channels, even with ReLU"),
    (conv(512, 512, 3), "alone", "3x3 kernels on 512 channels"),
    (conv(64, 64, 5), "alone", "5x5 kernels on 64 channels"),
    (conv(3, 32, 7), "ReLU", "7x7 kernels on 3 channels with ReLU"),
    (nn.ReLU(), "alone", "ReLU alone"),
]


@pytest.mark.parametrize(("layer", "fusion"), FASTCONVS, ids=str)
def test_fastconv_computes_the_layers_at_which_it_is_faster(layer: nn.Module, fusion: Fusion) -> None:
    assert choose(layer, fusion).fastconv


@pytest.mark.parametrize(("layer", "fusion", "reason"), TORCHS, ids=str)
def test_pytorch_computes_the_layers_at_which_it_is_faster(layer: nn.Module, fusion: Fusion, reason: str) -> None:
    choice = choose(layer, fusion)
    assert not choice.fastconv
    assert choice.reason.startswith(f"PyTorch is faster at {reason}")


def test_convert_follows_these_choices() -> None:
    model = fastconv.convert(nn.Sequential(conv(3, 64, 3), nn.BatchNorm2d(64), nn.ReLU(), conv(64, 64, 1), nn.ReLU()))
    assert [type(layer) for layer in model] == [fnn.Conv2d, nn.BatchNorm2d, nn.ReLU, fnn.Conv2d, nn.ReLU]
    assert sorted(model[3]._torch_is_faster) == ["ReLU", "alone"]  # fastconv computes it only with a pool
    lines = {line.name: line for line in fastconv.conversion_report(model).lines}
    assert lines["0"].becomes == "converted"
    assert lines["3"].becomes == "left"
    assert "1x1 kernels" in lines["3"].why
    assert "unless a max-pool with ReLU follows" in lines["3"].why
    fastconv.convert(model, fuse=False)
    assert type(model[3]) is nn.Conv2d
