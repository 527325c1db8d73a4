"""Networks from a short list of their layers, such as ``conv32, pool, conv64, pool, conv128, dense128``."""

import difflib
import re
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

import fastconv.nn
from fastconv.models import blocks

__all__ = ["build_cnn", "parse"]

_LAYER = re.compile(
    r"conv(?P<conv>[1-9]\d{0,6})(x(?P<kernel>[1-9]\d{0,6}))?(?P<same>same)?"
    r"|(?P<kind>pool|avgpool)(?P<pool>[1-9]\d{0,6})?"
    r"|dense(?P<dense>[1-9]\d{0,6})"
    r"|dropout(?P<dropout>0?\.\d+)"
    r"|(?P<norm>bn)"
    r"|(?P<activation>relu|sigmoid|tanh|leakyrelu|none)"
)
#: Words of a description, and names of the same layers in other libraries. They suggest a layer for an unknown word.
_EXAMPLES = (
    *("conv32", "conv32x5", "conv32same", "pool", "pool3", "avgpool", "dense128", "dropout.5", "bn"),
    *("relu", "sigmoid", "tanh", "leakyrelu", "none"),
)
_OTHER_NAMES = {
    **dict.fromkeys(("maxpool", "maxpooling", "max", "maxpool2d", "maxpooling2d"), "pool"),
    **dict.fromkeys(("averagepool", "avg", "meanpool", "avgpool2d", "averagepooling2d"), "avgpool"),
    **dict.fromkeys(("batchnorm", "norm", "batchnormalization", "batchnorm2d", "bnorm"), "bn"),
    **dict.fromkeys(("linear", "fc"), "dense"),
    **dict.fromkeys(("lrelu", "leaky"), "leakyrelu"),
    **dict.fromkeys(("identity", "linearactivation"), "none"),
    **dict.fromkeys(("conv2d", "convolution"), "conv"),
}


def build_cnn(
    description: str, shape: tuple[int, int, int] = (1, 28, 28), classes: int = 10, layers: Any = fastconv.nn
) -> nn.Sequential:
    """Build a network from a description. A last dense layer is added, which has no activation.

    The layers compute in the order in which they are listed. Each convolution and each dense layer is followed by a
    ReLU, unless another activation is listed after it. If a batch normalisation follows the layer, the ReLU comes after
    that. A convolution, its ReLU and the max-pool after it become one layer, :class:`fastconv.nn.ConvReLUMaxPool2d`.

    Args:
        description: the layers, separated by commas:

            * ``conv32`` (32 output channels, 3 x 3), ``conv32x5`` (5 x 5), ``conv32same`` (padded to keep the size)
            * ``pool`` (2 x 2 max-pooling), ``pool3``, ``avgpool`` (2 x 2 average pooling), ``avgpool3``
            * ``dense128``, ``dropout.5``. Dense layers come last.
            * ``bn``: batch normalisation
            * ``relu``, ``sigmoid``, ``tanh``, ``leakyrelu`` (a slope of 0.01 below 0), ``none``: the activation of the
              convolution, dense layer or batch normalisation before it
        shape: (C, H, W) of an image.
        classes: the number of classes.
        layers: the module that has the layers: :mod:`fastconv.nn` or :mod:`torch.nn`.

    Shape:
        (N, C, H, W) -> (N, classes), logits.

    Raises:
        ValueError: the description is invalid, or it shrinks the image to nothing.

    Example:
        >>> import torch
        >>> model = build_cnn("conv32same, bn, conv32, pool, dropout.25, dense128, tanh", shape=(3, 32, 32))
        >>> model(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    network = _Network(shape, layers)
    parsed = parse(description)
    while parsed:
        layer = parsed.pop(0)
        if layer["conv"]:
            last = layer
            if parsed and parsed[0]["activation"] == "relu":
                last = parsed.pop(0)
            relu = last is not layer or not (_follows(parsed, "norm") or _follows(parsed, "activation"))
            window = 1
            if relu and parsed and parsed[0]["kind"] == "pool":
                last = parsed.pop(0)
                window = int(last["pool"] or 2)
            network.add_convolution(layer, window, relu)
            layer = last
        elif layer["kind"]:
            network.add_pool(layer)
        elif layer["dense"]:
            network.add_dense(int(layer["dense"]))
            if not _follows(parsed, "norm") and not _follows(parsed, "activation"):
                network.modules[f"relu{network.dense}"] = layers.ReLU()
        elif layer["norm"]:
            network.add_norm(layer, _follows(parsed, "activation"))
        elif layer["activation"]:
            network.add_activation(layer)
        else:
            network.modules[f"dropout{len(network.modules) + 1}"] = nn.Dropout(float(layer["dropout"]))
        network.previous = layer
    network.add_dense(classes)
    result = nn.Sequential()
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
            known = f"{', '.join(_EXAMPLES[:-1])} or {_EXAMPLES[-1]}"
            raise ValueError(f"{word!r} is not a layer: expected, for example, {known}{_suggestion(word)}")
    return [match.groupdict() | {"word": match[0]} for match in matches if match is not None]


def _suggestion(word: str) -> str:
    """Return a question about the layer that ``word`` may mean. Return "" if no layer is like it."""
    letters, number = re.fullmatch(r"(.*?)(\d*)\)?", word.lower()).groups()  # type: ignore[union-attr]
    kinds = {kind: kind for kind in map(_without_numbers, _EXAMPLES)} | _OTHER_NAMES
    similar = difflib.get_close_matches(_without_numbers(letters), kinds, 1, 0.7)
    if not similar:
        return ""
    kind = kinds[similar[0]]
    numbers = {"conv": number or "32", "dense": number or "128", "dropout": f".{number.lstrip('0') or '5'}"}
    known = kind + numbers.get(kind, number if kind.endswith("pool") else "")
    return f"; did you mean {known!r}?" if _LAYER.fullmatch(known) else ""


def _without_numbers(word: str) -> str:
    return re.sub(r"[\d.(].*|[-_ ]", "", word)


def _follows(parsed: list[dict[str, str]], kind: str) -> bool:
    """Return whether the next layer is of this kind."""
    return bool(parsed) and bool(parsed[0][kind])


class _AnyBatch(nn.modules.batchnorm._BatchNorm):
    """Batch norm that accepts training batches with one value per channel, and normalises them as in evaluation.

    PyTorch raises an error for such a batch. It occurs if the last batch of an epoch has one image.
    """

    def forward(self, input: Tensor) -> Tensor:
        if self.training and input.numel() == input.shape[1]:
            return F.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        return super().forward(input)


class _BatchNorm1d(_AnyBatch, nn.BatchNorm1d):
    """Batch normalisation of dense layers."""


class _BatchNorm2d(_AnyBatch, nn.BatchNorm2d):
    """Batch normalisation of convolutions."""


#: The activations. ``relu`` is the ReLU of the library of the layers, and ``none`` adds no layer.
_ACTIVATIONS: dict[str, type[nn.Module] | None] = {
    "relu": None,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "leakyrelu": nn.LeakyReLU,
    "none": None,
}


class _Network:
    """The modules built so far and the shape of their output, with the names of :class:`fastconv.models.MnistCNN`."""

    def __init__(self, shape: tuple[int, int, int], layers: Any) -> None:
        self.modules: dict[str, nn.Module] = {}
        self.convolutions = self.dense = 0
        self.previous: dict[str, str] | None = None
        self._shape, self._image = shape, shape
        self._features: int | None = None
        self._layers = layers

    def add_convolution(self, layer: dict[str, str], window: int, relu: bool) -> None:
        K, R = int(layer["conv"]), int(layer["kernel"] or 3)
        if layer["same"] and R % 2 == 0:
            raise ValueError(f"{layer['word']!r}: an even kernel cannot keep the size")
        padding = R // 2 if layer["same"] else 0
        C, H, W = self._shape
        self._set_shape(layer, K, (H + 2 * padding - R + 1) // window, (W + 2 * padding - R + 1) // window)
        conv_relu, conv_relu_pool = blocks(self._layers)
        self.convolutions += 1
        if window > 1:
            module = conv_relu_pool(C, K, R, padding=padding, pool_kernel_size=window)
        else:
            module = (conv_relu if relu else self._layers.Conv2d)(C, K, R, padding=padding)
        self.modules[f"conv{self.convolutions}"] = module

    def add_pool(self, layer: dict[str, str]) -> None:
        (C, H, W), window = self._shape, int(layer["pool"] or 2)
        self._set_shape(layer, C, H // window, W // window)
        kind = nn.AvgPool2d if layer["kind"] == "avgpool" else self._layers.MaxPool2d
        self.modules[f"{layer['kind']}{len(self.modules) + 1}"] = kind(window)

    def add_norm(self, layer: dict[str, str], activated: bool) -> None:
        if self.previous is None:
            raise ValueError("'bn' comes first: it must follow a layer")
        name = f"bn{len(self.modules) + 1}"
        features = self._features
        self.modules[name] = _BatchNorm2d(self._shape[0]) if features is None else _BatchNorm1d(features)
        if not activated and (self.previous["conv"] or self.previous["dense"]):
            self.modules[f"{name}_relu"] = self._layers.ReLU()

    def add_activation(self, layer: dict[str, str]) -> None:
        previous, name = self.previous, layer["activation"]
        if previous is None or not (previous["conv"] or previous["dense"] or previous["norm"]):
            raise ValueError(f"{name!r} must follow a convolution, a dense layer or bn")
        kind = self._layers.ReLU if name == "relu" else _ACTIVATIONS[name]
        if kind is not None:
            self.modules[f"{list(self.modules)[-1]}_{name}"] = kind()

    def add_dense(self, units: int) -> None:
        if self._features is None:
            self.modules["flatten"] = nn.Flatten()
            self._features = self._shape[0] * self._shape[1] * self._shape[2]
        self.dense += 1
        self.modules[f"dense{self.dense}"] = self._layers.Linear(self._features, units)
        self._features = units

    def _set_shape(self, layer: dict[str, str], *shape: int) -> None:
        if self._features is not None:
            raise ValueError(f"{layer['word']!r} comes after a dense layer")
        C, H, W = shape
        if H < 1 or W < 1:
            height, width = self._image[1:]
            raise ValueError(f"{layer['word']!r} leaves nothing of an image of {height} x {width} pixels")
        self._shape = C, H, W
