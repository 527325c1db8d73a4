"""The results of converted and frozen models have PyTorch's strides, even if they fit both memory formats."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastconv
import fastconv.functional as FF

CHANNELS_LAST = torch.channels_last


class Block(nn.Module):
    """A convolution, a batch norm, an addition and ReLU, and a convolution that reads the result."""

    norm: nn.Module
    relu: nn.Module

    def __init__(self, channels: int, kernel: int, add: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, bias=False)
        self.norm, self.relu, self.last = nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, 3, 3, padding=1)
        self.add = add

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.conv(x)
        y = self.norm(y)
        y = self.add(y, x)
        y = self.relu(y)
        return y, self.last(y)


class Added(Block):
    """The same, with the addition in ``forward`` itself."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.conv(x)
        y = self.norm(y)
        y = y + x
        y = self.relu(y)
        return y, self.last(y)


def in_place(y: Tensor, x: Tensor) -> Tensor:
    y += x
    return y


BLOCKS: dict[str, Callable[[int, int], Block]] = {
    "none": lambda channels, kernel: Block(channels, kernel, lambda y, x: y),
    "y + x": lambda channels, kernel: Block(channels, kernel, lambda y, x: y + x),
    "x + y": lambda channels, kernel: Block(channels, kernel, lambda y, x: x + y),
    "y += x": lambda channels, kernel: Block(channels, kernel, in_place),
    "in forward": lambda channels, kernel: Added(channels, kernel, in_place),
}


def with_strides_of_channels_last(size: tuple[int, ...]) -> Tensor:
    N, C, H, W = size
    return torch.randn(N, H, W, C).permute(0, 3, 1, 2)


#: Each of these sizes except the last fits both memory formats.
SIZES = [(3, 4, 1, 1), (1, 4, 1, 1), (2, 1, 5, 5), (2, 1, 1, 1), (2, 4, 1, 5), (0, 4, 5, 5), (0, 1, 1, 1), (2, 4, 5, 5)]
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "none": nn.Identity,
    "ReLU": nn.ReLU,
    "ReLU in place": lambda: nn.ReLU(True),
    "ReLU6": nn.ReLU6,
    "SiLU": nn.SiLU,
    "SiLU in place": lambda: nn.SiLU(True),
}


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("weights", [torch.contiguous_format, CHANNELS_LAST])
@pytest.mark.parametrize("input", [torch.randn, with_strides_of_channels_last])
def test_strides_are_pytorchs(
    name: str, size: tuple[int, ...], activation: str, norm: bool, weights: Any, input: Any
) -> None:
    model = BLOCKS[name](size[1], 3)
    model.relu = ACTIVATIONS[activation]()
    model.norm = model.norm if norm else nn.Identity()
    model.eval().to(memory_format=weights)
    x = input(size)
    for found in (fastconv.convert(copy.deepcopy(model)), fastconv.freeze(model)):
        for grad in (False, True):
            with torch.set_grad_enabled(grad):
                for result, expected in zip(found(x), model(x), strict=True):
                    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)
                    assert result.stride() == expected.stride()
            x = x.detach().requires_grad_()


#: Convolution, ReLU and pool, as a converted Sequential runs them.
SEQUENTIAL: dict[str, Callable[[], list[nn.Module]]] = {
    "ReLU": lambda: [nn.ReLU()],
    "ReLU in place": lambda: [nn.ReLU(True)],
    "ReLU, pool": lambda: [nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True)],
    "ReLU in place, pool": lambda: [nn.ReLU(True), nn.MaxPool2d(2, ceil_mode=True)],
    "pool, ReLU": lambda: [nn.MaxPool2d(2, ceil_mode=True), nn.ReLU()],
    "pool, ReLU in place": lambda: [nn.MaxPool2d(2, ceil_mode=True), nn.ReLU(True)],
}


@pytest.mark.parametrize("name", SEQUENTIAL)
@pytest.mark.parametrize("size", [(3, 4, 1, 1), (1, 1, 1, 1), (2, 1, 5, 5), (2, 4, 2, 2), (2, 4, 5, 5), (0, 4, 5, 5)])
@pytest.mark.parametrize("K", [1, 4])
@pytest.mark.parametrize("weights", [torch.contiguous_format, CHANNELS_LAST])
@pytest.mark.parametrize("input", [torch.randn, with_strides_of_channels_last])
def test_strides_of_fused_layers_are_pytorchs(
    name: str, size: tuple[int, ...], K: int, weights: Any, input: Any
) -> None:
    model = nn.Sequential(nn.Conv2d(size[1], K, 1), *SEQUENTIAL[name]()).to(memory_format=weights)
    x = input(size)
    expected = model(x)
    assert fastconv.convert(copy.deepcopy(model))(x).stride() == expected.stride()
    with fastconv.enabled(fuse=True):
        assert model(x).stride() == expected.stride()
    operands = (x, model[0].weight, model[0].bias)
    if name == "ReLU":
        assert FF.conv2d_relu(*operands).stride() == expected.stride()
    elif name == "ReLU, pool":
        assert FF.conv2d_relu_max_pool2d(*operands, pool_ceil_mode=True).stride() == expected.stride()


def test_a_traced_sequential_compares_no_sizes() -> None:
    model = fastconv.convert(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True)))
    with warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)
        traced = torch.jit.trace(model, torch.randn(2, 3, 8, 8), check_trace=False)
    x = torch.randn(1, 3, 3, 9)
    torch.testing.assert_close(traced(x), model(x))
