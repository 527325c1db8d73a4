"""Networks from a short list of their layers, such as ``conv32, pool, conv64, pool, conv128, dense128``."""

from __future__ import annotations

import re
from typing import Any

import torch

import fastconv.nn
from fastconv.models import blocks

__all__ = ["build_cnn", "parse"]

_LAYER = re.compile(
    r"conv(?P<conv>[1-9]\d{0,6})(x(?P<kernel>[1-9]\d{0,6}))?(?P<same>same)?"
    r"|pool(?P<pool>[1-9]\d{0,6})?"
    r"|dense(?P<dense>[1-9]\d{0,6})"
    r"|dropout(?P<dropout>0?\.\d+)"
)


def build_cnn(
    description: str, shape: tuple[int, int, int] = (1, 28, 28), classes: int = 10, layers: Any = fastconv.nn
) -> torch.nn.Sequential:
    """Build a network from a description. A ReLU follows each convolution and dense layer. A last dense layer is added.

    A convolution and the pool after it become one layer, :class:`fastconv.nn.ConvReLUMaxPool2d`.

    Args:
        description: the layers, separated by commas: ``conv32`` (32 output channels, 3 x 3), ``conv32x5`` (5 x 5),
            ``conv32same`` (padded to keep the size), ``pool`` (2 x 2 max-pooling), ``pool3``, ``dense128``,
            ``dropout.5``. Dense layers come last.
        shape: (C, H, W) of an image.
        classes: the number of classes.
        layers: the module that has the layers: :mod:`fastconv.nn` or :mod:`torch.nn`.

    Shape:
        (N, C, H, W) -> (N, classes), logits.

    Raises:
        ValueError: the description is invalid, or it shrinks the image to nothing.

    Example:
        >>> model = build_cnn("conv32same, conv32, pool, dropout.25, dense128", shape=(3, 32, 32))
        >>> model(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    parsed = parse(description)
    network = _Network(shape, layers)
    while parsed:
        layer = parsed.pop(0)
        if layer["conv"]:
            window = _window(parsed.pop(0)) if parsed and _is_pool(parsed[0]) else 1
            network.add_convolution(layer, window)
        elif _is_pool(layer):
            network.add_pool(layer)
        elif layer["dense"]:
            network.add_dense(int(layer["dense"]))
            network.modules[f"relu{network.dense}"] = layers.ReLU()
        else:
            network.modules[f"dropout{len(network.modules) + 1}"] = torch.nn.Dropout(float(layer["dropout"]))
    network.add_dense(classes)
    result = torch.nn.Sequential()
    for name, module in network.modules.items():
        result.add_module(name, module)
    return result


def parse(description: str) -> list[dict[str, str]]:
    """Parse a description into its layers, each with its ``word`` and numbers.

    Raises:
        ValueError: a word does not name a layer.
    """
    words = [word.strip() for word in description.split(",")]
    matches = [_LAYER.fullmatch(word) for word in words]
    for word, match in zip(words, matches, strict=True):
        if match is None:
            known = "conv32, conv32x5, conv32same, pool, pool3, dense128 or dropout.5"
            raise ValueError(f"{word!r} is not a layer: expected, for example, {known}")
    return [match.groupdict() | {"word": match[0]} for match in matches if match is not None]


def _is_pool(layer: dict[str, str]) -> bool:
    return layer["word"].startswith("pool")


def _window(layer: dict[str, str]) -> int:
    return int(layer["pool"] or 2)


class _Network:
    """The modules built so far and the shape of their output, with the names of :class:`fastconv.models.MnistCNN`."""

    def __init__(self, shape: tuple[int, int, int], layers: Any) -> None:
        self.modules: dict[str, torch.nn.Module] = {}
        self.convolutions = self.dense = 0
        self._shape, self._image = shape, shape
        self._features: int | None = None
        self._layers = layers

    def add_convolution(self, layer: dict[str, str], window: int) -> None:
        K, R = int(layer["conv"]), int(layer["kernel"] or 3)
        if layer["same"] and R % 2 == 0:
            raise ValueError(f"{layer['word']!r}: an even kernel cannot keep the size")
        padding = R // 2 if layer["same"] else 0
        C, H, W = self._shape
        self._set_shape(layer, K, (H + 2 * padding - R + 1) // window, (W + 2 * padding - R + 1) // window)
        conv_relu, conv_relu_pool = blocks(self._layers)
        self.convolutions += 1
        self.modules[f"conv{self.convolutions}"] = (
            conv_relu(C, K, R, padding=padding)
            if window == 1
            else conv_relu_pool(C, K, R, padding=padding, pool_kernel_size=window)
        )

    def add_pool(self, layer: dict[str, str]) -> None:
        (C, H, W), window = self._shape, _window(layer)
        self._set_shape(layer, C, H // window, W // window)
        self.modules[f"pool{len(self.modules) + 1}"] = self._layers.MaxPool2d(window)

    def add_dense(self, units: int) -> None:
        if self._features is None:
            self.modules["flatten"] = torch.nn.Flatten()
            self._features = self._shape[0] * self._shape[1] * self._shape[2]
        self.dense += 1
        self.modules[f"dense{self.dense}"] = torch.nn.Linear(self._features, units)
        self._features = units

    def _set_shape(self, layer: dict[str, str], *shape: int) -> None:
        if self._features is not None:
            raise ValueError(f"{layer['word']!r} comes after a dense layer")
        C, H, W = shape
        if H < 1 or W < 1:
            height, width = self._image[1:]
            raise ValueError(f"{layer['word']!r} leaves nothing of an image of {height} x {width} pixels")
        self._shape = C, H, W
