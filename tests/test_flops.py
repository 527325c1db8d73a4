"""FlopCounterMode counts as many operations on fastconv's operators as on PyTorch's."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, flop_registry

import fastconv
from fastconv import nn as fnn


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(16, 16, 3, padding=2, dilation=2, groups=4)
        self.shortcut = nn.Conv2d(8, 16, 1, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.conv2(self.relu(self.bn1(self.conv1(x)))) + self.shortcut(x))


def lenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(400, 10),
    )  # fmt: skip


def odd() -> nn.Module:
    """A network with strides, dilation, groups, depthwise, 'same' padding, ReLU and pools with padding."""
    return nn.Sequential(
        nn.Conv2d(4, 8, (3, 5), stride=(2, 1), padding=(1, 2), groups=2), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1),
        nn.Conv2d(8, 8, 3, padding="same", groups=8), nn.ReLU(), nn.Conv2d(8, 5, 2, dilation=2, bias=False),
    )  # fmt: skip


MODELS: list[tuple[Callable[[], nn.Module], tuple[int, ...]]] = [
    (lenet, (3, 1, 28, 28)),
    (Residual, (2, 8, 15, 16)),
    (odd, (2, 4, 21, 19)),
    (lambda: fastconv.models.MnistCNN(nn), (2, 1, 28, 28)),
]


def count(model: nn.Module, x: torch.Tensor, backward: bool) -> dict[str, int]:
    """The operations of each module, and of all modules together ("Global")."""
    with FlopCounterMode(display=False) as counter:
        output = model(x)
        if backward:
            output.sum().backward()
    return {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}


@pytest.mark.parametrize("inputs_too", [False, True])
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(("make", "shape"), MODELS)
def test_every_module_has_the_count_of_pytorchs_operators(
    make: Callable[[], nn.Module], shape: tuple[int, ...], backward: bool, inputs_too: bool
) -> None:
    model = make()
    x = torch.randn(shape, requires_grad=inputs_too)
    expected = count(model, x, backward)
    assert expected["Global"] > 0
    assert count(fastconv.convert(copy.deepcopy(model)), x, backward)["Global"] == expected["Global"]
    unfused = fastconv.convert(copy.deepcopy(model), fuse=False)
    assert count(unfused, x, backward) == expected
    with fastconv.enabled():
        assert count(model, x, backward) == expected
    with fastconv.enabled(fuse=True):
        assert count(model, x, backward)["Global"] == expected["Global"]


def test_fused_layers_have_the_count_of_their_convolutions_even_if_frozen() -> None:
    ours = nn.Sequential(fnn.ConvReLUMaxPool2d(2, 6, 3, stride=2, padding=1), fnn.ConvReLU2d(6, 4, 3, groups=2))
    theirs = fastconv.revert(copy.deepcopy(ours))
    x = torch.randn(2, 2, 20, 22, requires_grad=True)
    for frozen in (False, True):
        for model in (ours, theirs):
            model[0].requires_grad_(not frozen)  # type: ignore[arg-type]
        assert count(ours, x, True) == count(theirs, x, True)


@pytest.mark.parametrize("name", [name for name in dir(torch.ops.fastconv) if name.startswith("conv2d")])
def test_every_convolution_operator_has_a_formula(name: str) -> None:
    packet: Any = getattr(torch.ops.fastconv, name)
    assert packet in flop_registry


@pytest.mark.parametrize(("make", "size"), MODELS)
def test_a_frozen_model_counts_as_its_model(make: Callable[[], nn.Module], size: tuple[int, ...]) -> None:
    model, x = make().eval(), torch.randn(size)
    with torch.no_grad():
        assert count(fastconv.freeze(model), x, False)["Global"] == count(model, x, False)["Global"]
