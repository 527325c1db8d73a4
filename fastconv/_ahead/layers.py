"""The layers and functions that may follow: batch norms, activations, convolutions and Identity."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import attrgetter
from types import BuiltinFunctionType, FunctionType, MethodDescriptorType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastconv import functional as FF
from fastconv._layer import is_observed
from fastconv._ops.conv2d_inference import Activation

__all__ = [
    "ACTIVATION", "CONVOLUTION", "FUNCTIONS", "IDENTITY", "KINDS", "NORM", "Arguments", "activation_of", "is_stock",
    "register", "register_convolution",
]  # fmt: skip

#: The constants among the arguments of a call, each with its position or name.
Arguments = tuple[tuple[int | str, Any], ...]
_NONE = Activation.NONE  # A member of an enum takes longer than a variable.


def activation_of(user: Any, arguments: Arguments = ()) -> tuple[Activation, float]:
    """Return the activation that a layer or a function computes, with the slope of a leaky ReLU. NONE for others.

    Args:
        user: any object.
        arguments: of the call of a function, the constants with their positions or names.
    """
    activation = _LAYERS.get(type(user))
    if activation is None:
        return _of_function(user, arguments) if type(user) in _FUNCTION_TYPES else (_NONE, 0.0)
    if activation is Activation.RELU6 and (user.min_val, user.max_val) != (0, 6):
        return _NONE, 0.0
    if activation is Activation.LEAKY_RELU:
        slope = user.negative_slope
        return (activation, float(slope)) if type(slope) in (float, int) else (_NONE, 0.0)
    return activation, 0.0


def _of_function(function: Any, arguments: Arguments) -> tuple[Activation, float]:
    activation, parameters = _FUNCTIONS.get(function, (_NONE, ()))
    slope = 0.01  # PyTorch's default
    for place, value in arguments:
        name = place if isinstance(place, str) else dict(enumerate(parameters, 1)).get(place)
        if name not in parameters or type(value) not in _TYPES[name]:
            return _NONE, 0.0
        slope = float(value) if name == "negative_slope" else slope
    return activation, slope


def is_stock(layer: nn.Module) -> bool:
    """Return whether a call of a layer of a known class runs only the code that its class had at import."""
    cls = type(layer)
    get, methods = _METHODS[cls]
    return get(cls) == methods and not is_observed(layer)


CONVOLUTION, NORM, IDENTITY, ACTIVATION = "convolution", "norm", "identity", "activation"
_CALLED = ("__call__", "_call_impl", "_wrapped_call_impl", "forward")
#: Get the methods that a call of a layer runs.
_GETTERS = {
    CONVOLUTION: attrgetter(*_CALLED, "_conv_forward"),
    NORM: attrgetter(*_CALLED, "_check_input_dim"),
    IDENTITY: attrgetter(*_CALLED),
    ACTIVATION: attrgetter(*_CALLED),
}
#: The exact classes that may follow. fastconv.nn adds its own.
_LAYERS: dict[type, Activation] = {
    nn.ReLU: Activation.RELU,
    nn.ReLU6: Activation.RELU6,
    nn.LeakyReLU: Activation.LEAKY_RELU,
    nn.Hardswish: Activation.HARDSWISH,
    nn.SiLU: Activation.SILU,
}
KINDS: dict[type, str] = {}
#: For each of them, the function that gets its methods, and the methods at import.
_METHODS: dict[type, tuple[Callable[[type], Any], Any]] = {}
_FUNCTION_TYPES = (FunctionType, BuiltinFunctionType, MethodDescriptorType)
_TYPES: dict[str, tuple[type, ...]] = {"inplace": (bool,), "negative_slope": (float, int)}
#: The functions that may follow, and the names of their other parameters.
_FUNCTIONS: dict[Any, tuple[Activation, tuple[str, ...]]] = {
    FF.relu: (Activation.RELU, ("inplace",)),
    F.relu: (Activation.RELU, ("inplace",)),
    torch.relu: (Activation.RELU, ()),
    torch.relu_: (Activation.RELU, ()),
    Tensor.relu: (Activation.RELU, ()),
    Tensor.relu_: (Activation.RELU, ()),
    F.relu6: (Activation.RELU6, ("inplace",)),
    F.leaky_relu: (Activation.LEAKY_RELU, ("negative_slope", "inplace")),
    F.hardswish: (Activation.HARDSWISH, ("inplace",)),
    F.silu: (Activation.SILU, ("inplace",)),
}
FUNCTIONS = frozenset(_FUNCTIONS)


def _add(kind: str, *classes: type) -> None:
    for cls in classes:
        KINDS[cls] = kind
        _METHODS[cls] = _GETTERS[kind], _GETTERS[kind](cls)


_add(NORM, nn.BatchNorm2d)
_add(IDENTITY, nn.Identity)
_add(ACTIVATION, *_LAYERS)


def register(batch_norm: type[nn.BatchNorm2d], activations: Mapping[type[nn.Module], Activation]) -> None:
    """Add layers that may follow."""
    _LAYERS.update(activations)
    _add(NORM, batch_norm)
    _add(ACTIVATION, *activations)


def register_convolution(convolution: type[nn.Conv2d]) -> None:
    """Add a convolution that may follow, if its attribute ``_fuses`` is true."""
    _add(CONVOLUTION, convolution)
