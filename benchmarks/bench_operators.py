"""Time each operator on the layers of MnistCNN, batch 64: PyTorch's and ours, in NCHW and channels_last.

Both are called through torch.ops. (A call of torch.relu takes 0.6 us less than one of torch.ops.aten.relu.
call_overhead.py measures the cost of calls.)

The C allocator keeps its pages (conftest.py). bench_training_step.py uses the allocator's default settings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

import fastconv  # noqa: F401  registers torch.ops.fastconv

aten = torch.ops.aten
ours = torch.ops.fastconv
# Look the operators up once, as the callers in both libraries do. A look-up takes half a microsecond.
conv2d = ours.conv2d.default
conv2d_backward_data = ours.conv2d_backward_data.default
conv2d_backward_weight = ours.conv2d_backward_weight.default
max_pool2d = ours.max_pool2d.default
max_pool2d_backward = ours.max_pool2d_backward.default
relu = ours.relu.default
relu_backward = ours.relu_backward.default
aten_convolution = aten.convolution.default
aten_relu = aten.relu.default
aten_convolution_backward = aten.convolution_backward.default
aten_max_pool2d = aten.max_pool2d_with_indices.default
aten_max_pool2d_backward = aten.max_pool2d_with_indices_backward.default
aten_relu_backward = aten.threshold_backward.default

BATCH = 64


@dataclass(frozen=True)
class Layer:
    """A convolution of MnistCNN: input channels, output channels, and the height and width of its input."""

    name: str
    C: int
    K: int
    H: int

    @property
    def P(self) -> int:
        return self.H - 2

    def __str__(self) -> str:
        return self.name


CONV1, CONV2, CONV3 = LAYERS = (Layer("conv1", 1, 32, 28), Layer("conv2", 32, 64, 13), Layer("conv3", 64, 128, 5))
CONV = ((1, 1), (0, 0), (1, 1))
POOL = ((2, 2), (2, 2), (0, 0), (1, 1))


pytestmark = pytest.mark.usefixtures("keep_pages")


def channels_last(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tuple(t.to(memory_format=torch.channels_last) if t.dim() == 4 else t for t in tensors)


def four_variants(
    torch_operator: Callable[..., Any], fastconv_operator: Callable[..., Any], *tensors: torch.Tensor
) -> dict[str, Callable[[], object]]:
    """Return calls of both operators in NCHW and channels_last. Ours gets the result's format as a flag."""
    last = channels_last(*tensors)
    return {
        "torch NCHW": lambda: torch_operator(*tensors),
        "torch channels_last": lambda: torch_operator(*last),
        "fastconv NCHW": lambda: fastconv_operator(False, *tensors),
        "fastconv channels_last": lambda: fastconv_operator(True, *last),
    }


def conv2d_tensors(layer: Layer) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    x = torch.randn(BATCH, layer.C, layer.H, layer.H)
    w = torch.randn(layer.K, layer.C, 3, 3) / (3 * layer.C**0.5)
    g = torch.randn(BATCH, layer.K, layer.P, layer.P)
    return x, w, torch.randn(layer.K), g


def convolution_backward(x: torch.Tensor, w: torch.Tensor, g: torch.Tensor, wanted: list[bool]) -> object:
    stride, padding, dilation = CONV
    return aten_convolution_backward(g, x, w, [w.shape[0]], stride, padding, dilation, False, [0, 0], 1, wanted)


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_conv2d_forward(layer: Layer, alternate: Any) -> None:
    x, w, b, _ = conv2d_tensors(layer)
    alternate(
        four_variants(
            lambda x, w, b: aten_convolution(x, w, b, *CONV, False, (0, 0), 1),
            lambda _, x, w, b: conv2d(x, w, b, *CONV, 1),
            x, w, b,
        )
    )  # fmt: skip


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_conv2d_backward_weight(layer: Layer, alternate: Any) -> None:
    x, w, _, g = conv2d_tensors(layer)
    alternate(
        four_variants(
            lambda x, w, g: convolution_backward(x, w, g, [False, True, True]),
            lambda last, x, w, g: conv2d_backward_weight(g, x, (3, 3), *CONV, 1, last),
            x, w, g,
        )
    )  # fmt: skip


@pytest.mark.parametrize("layer", [CONV2, CONV3], ids=str)
def test_conv2d_backward_data(layer: Layer, alternate: Any) -> None:
    x, w, _, g = conv2d_tensors(layer)
    alternate(
        four_variants(
            lambda x, w, g: convolution_backward(x, w, g, [True, False, False]),
            lambda last, x, w, g: conv2d_backward_data(g, w, x.shape, *CONV, 1, last),
            x, w, g,
        )
    )  # fmt: skip


@pytest.mark.parametrize("layer", [CONV1, CONV2], ids=str)
def test_max_pool2d_forward(layer: Layer, alternate: Any) -> None:
    x = conv2d_tensors(layer)[3].relu()
    alternate(
        four_variants(
            lambda x: aten_max_pool2d(x, *POOL, False),
            lambda _, x: max_pool2d(x, *POOL, False),
            x,
        )
    )


@pytest.mark.parametrize("layer", [CONV1, CONV2], ids=str)
def test_max_pool2d_backward(layer: Layer, alternate: Any) -> None:
    x = conv2d_tensors(layer)[3].relu()
    y, indices = max_pool2d(x, *POOL, False)
    alternate(
        four_variants(
            lambda g, x, at: aten_max_pool2d_backward(g, x, *POOL, False, at),
            lambda last, g, x, at: max_pool2d_backward(g, at, x.shape, *POOL, last),
            torch.randn_like(y), x, indices,
        )
    )  # fmt: skip


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_relu_forward(layer: Layer, alternate: Any) -> None:
    x = conv2d_tensors(layer)[3]
    alternate(four_variants(aten_relu, lambda _, x: relu(x), x))


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_relu_backward(layer: Layer, alternate: Any) -> None:
    y = conv2d_tensors(layer)[3].relu()
    alternate(
        four_variants(
            lambda g, y: aten_relu_backward(g, y, 0),
            lambda _, g, y: relu_backward(g, y),
            torch.randn_like(y), y,
        )
    )  # fmt: skip
