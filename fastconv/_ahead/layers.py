"""The layers and functions that may follow: batch norms, activations, convolutions, linear layers and others."""

from __future__ import annotations

from inspect import getattr_static
from itertools import chain
from types import BuiltinFunctionType, FunctionType, MethodDescriptorType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastconv import functional as FF
from fastconv._ops.conv2d_inference import Activation

__all__ = [
    "ACTIVATION", "CALLED", "CONVOLUTION", "FUNCTIONS", "FUNCTION_TYPES", "IDENTITY", "KINDS", "LINEAR", "METHODS",
    "NORM", "POOLS", "Arguments", "activation_of", "keeps_argument", "methods", "register", "register_convolution",
]  # fmt: skip

#: The constants among the arguments of a call, each with its position or name.
Arguments = tuple[tuple[int | str, Any], ...]
# A member of an enum takes longer than a variable.
_NONE, _RELU6, _LEAKY_RELU = Activation.NONE, Activation.RELU6, Activation.LEAKY_RELU


def activation_of(user: Any, arguments: Arguments = ()) -> tuple[Activation, float]:
    """Return the activation that a layer or a function computes, with the slope of a leaky ReLU. NONE for others.

    Args:
        user: any object.
        arguments: of the call of a function, the constants with their positions or names.
    """
    activation = _LAYERS.get(type(user))
    if activation is None:
        return _of_function(user, arguments) if type(user) in FUNCTION_TYPES else (_NONE, 0.0)
    if activation is _RELU6 and (user.min_val, user.max_val) != (0, 6):
        return _NONE, 0.0
    if activation is _LEAKY_RELU:
        slope = user.negative_slope
        return (activation, float(slope)) if type(slope) in (float, int) else (_NONE, 0.0)
    return activation, 0.0


def _of_function(function: Any, arguments: Arguments) -> tuple[Activation, float]:
    activation, parameters = _FUNCTIONS.get(function, (_NONE, ()))
    given: dict[str, Any] = {}
    for place, value in arguments:
        name = place if isinstance(place, str) else dict(enumerate(parameters, 1)).get(place)
        if name not in parameters or type(value) not in _TYPES[name] or name in given:
            return _NONE, 0.0
        given[name] = value
    return activation, float(given.get("negative_slope", 0.01))  # PyTorch's default


def keeps_argument(user: Any) -> bool:
    """Return whether a layer or a function is an activation of PyTorch that keeps its argument until backward."""
    cls = type(user)
    return (user if cls in FUNCTION_TYPES else cls) in _KEEPING


def methods(cls: type, *names: str) -> tuple[Any, ...]:
    """Return a tuple of a name, a function and its code for each method, for ``_C.is_stock``."""
    found = [getattr_static(cls, name) for name in names]
    codes = [getattr(function, "__code__", None) for function in found]
    return tuple(chain.from_iterable(zip(names, found, codes, strict=True)))


CONVOLUTION, LINEAR, NORM, IDENTITY, ACTIVATION = "convolution", "linear", "norm", "identity", "activation"
#: The methods that a call of a layer runs. A batch norm and a convolution have one more.
CALLED = ("__call__", "_call_impl", "_wrapped_call_impl", "forward")
_OWN = {CONVOLUTION: "_conv_forward", NORM: "_check_input_dim"}
#: The exact classes that may follow. fastconv.nn adds its own.
_LAYERS: dict[type, Activation] = {
    nn.ReLU: Activation.RELU,
    nn.ReLU6: Activation.RELU6,
    nn.LeakyReLU: Activation.LEAKY_RELU,
    nn.Hardswish: Activation.HARDSWISH,
    nn.SiLU: Activation.SILU,
}
KINDS: dict[type, str] = {}
#: For each of them, the methods that a call runs, as they were at import, for ``_C.is_stock``.
METHODS: dict[type, tuple[Any, ...]] = {}
#: The methods of a max-pool, which only ends the steps after a batch norm and so has no kind.
POOLS: dict[type, tuple[Any, ...]] = {}
FUNCTION_TYPES = (FunctionType, BuiltinFunctionType, MethodDescriptorType)
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
_KEEPING: set[Any] = {nn.GELU, nn.Hardswish, nn.SiLU, F.gelu, F.hardswish, F.silu}


def _add(kind: str, *classes: type) -> None:
    for cls in classes:
        KINDS[cls] = kind
        METHODS[cls] = methods(cls, *CALLED, *([_OWN[kind]] if kind in _OWN else []))


_add(NORM, nn.BatchNorm2d)
_add(IDENTITY, nn.Identity)
_add(ACTIVATION, nn.GELU, *_LAYERS)


def register(
    batch_norm: type[nn.BatchNorm2d], linear: type[nn.Linear], max_pool: type[nn.MaxPool2d], *activations: Any
) -> None:
    """Add layers of fastconv that may follow."""
    POOLS[max_pool] = methods(max_pool, *CALLED)
    _LAYERS.update({cls: _LAYERS[cls._torch_class] for cls in activations})
    _KEEPING.update(cls for cls in activations if cls._torch_class in _KEEPING)
    _add(NORM, batch_norm)
    _add(LINEAR, linear)
    _add(ACTIVATION, *activations)


def register_convolution(convolution: type[nn.Conv2d]) -> None:
    """Add a convolution that may follow, if its attribute ``_fuses`` is true."""
    _add(CONVOLUTION, convolution)
