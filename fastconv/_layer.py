"""Base class of fastconv's layers, which makes PyTorch's tools accept them, and functions that change a layer's class.

Some tools find layers by their exact class (``type(module) is torch.nn.Conv2d``) or by the module of that class. They
neither fuse nor quantise a subclass, and raise no error. :mod:`fastconv.conversion.interop` supports the tools that
need more than this base class.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Module
from torch.nn import functional as F
from torch.utils._device import DeviceContext

__all__ = [
    "Layer", "is_observed", "is_patched", "is_watched", "kind", "register_mode", "scripted_as", "set_class",
    "set_torch_class", "torch_class",
]  # fmt: skip


class _DefinedIn(str):
    """The attribute ``__module__`` of a class. An instance of the class sees "torch.nn" instead of the true name.

    torch.fx makes a layer a node if ``layer.__module__.startswith("torch.nn")``. Pickle reads the attribute from the
    class and gets the true name.
    """

    __slots__ = ()

    def __get__(self, layer: Any, owner: type | None = None) -> str:
        return str(self) if layer is None else "torch.nn"

    def __reduce__(self) -> tuple[Any, ...]:
        return str, (str(self),)


def _qconfig_by_class(layer: Any, qconfig: Any) -> Any:
    """Return the qconfig that PyTorch's quantisation chose for the layer's torch.nn class, or else the given one.

    PyTorch looks up the layer's class in a dictionary of torch.nn's classes.
    """
    setter = sys._getframe(2).f_back  # frames: this function, __set__, Module.__setattr__, the caller
    if setter is None or setter.f_code.co_name != "_propagate_qconfig_helper":
        return qconfig
    if "qconfig" in vars(layer):
        return qconfig
    chosen = setter.f_locals.get("qconfig_dict", {})
    return qconfig if setter.f_locals.get("prefix") in chosen else chosen.get(torch_class(layer), qconfig)


class _QConfig:
    """The attribute ``qconfig``. Setting it changes the layer's class to the class of torch.nn."""

    def __get__(self, layer: Any, owner: type | None = None) -> Any:
        if layer is None:
            return self
        try:
            return vars(layer)["qconfig"]
        except KeyError:
            raise AttributeError("qconfig") from None

    def __set__(self, layer: Any, qconfig: Any) -> None:
        qconfig = _qconfig_by_class(layer, qconfig)
        if qconfig is not None:  # None: the layer is not to be quantised
            set_torch_class(layer)
        vars(layer)["qconfig"] = qconfig

    def __delete__(self, layer: Any) -> None:
        if vars(layer).pop("qconfig", self) is self:
            raise AttributeError("qconfig")


class Layer:
    """Base of fastconv's layers."""

    # torch.jit.script would read annotations, so the types are comments.
    #: The torch.nn class that computes the same. None for a fused layer.
    _torch_class = None  # type: type[Module] | None
    #: Attributes of an instance that :func:`fastconv.convert` sets.
    _conversion_attributes = ()  # type: tuple[str, ...]
    qconfig = _QConfig()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # torch.fx traces into users' subclasses, as it does for torch.nn's layers.
        if cls.__module__.startswith("fastconv.nn."):
            cls.__module__ = _DefinedIn("fastconv.nn")

    def _get_name(self) -> str:
        name: str = super()._get_name()  # type: ignore[misc]
        return f"fastconv.{name}" if kind(self).__module__ == "fastconv.nn" else name  # type: ignore[arg-type]


def scripted_as(source: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Have ``torch.jit.script`` compile the code of ``source`` in place of the method's own.

    The compiler reads the source of ``__wrapped__``, by the convention of :func:`functools.wraps`.
    """

    def mark(method: Callable[..., Any]) -> Callable[..., Any]:
        method.__wrapped__ = source  # type: ignore[attr-defined]
        return method

    return mark


def kind(module: Module) -> type:
    """Return the module's class. For a parametrised module, return the class that it had before."""
    return type(module).__bases__[0] if "parametrizations" in module._modules else type(module)


def set_class(module: Module, cls: type) -> None:
    """Change a module's class. For a parametrised module, keep the properties of its generated class."""
    own = type(module)
    if own is not kind(module):
        members = {name: value for name, value in vars(own).items() if name not in ("__dict__", "__weakref__")}
        cls = type(f"Parametrized{cls.__name__}", (cls,), members)
    module.__class__ = cls


def torch_class(module: Module) -> type[Module] | None:
    """Return the torch.nn class of a fastconv layer. None for a fused layer, and for other modules."""
    return vars(kind(module)).get("_torch_class")  # vars: a user's subclass must not inherit it


def set_torch_class(layer: Any) -> None:
    """Change a layer's class to the class of torch.nn, in place. The members of a Sequential keep their classes."""
    theirs = torch_class(layer)
    if theirs is None:
        raise TypeError(
            f"{kind(layer).__name__} cannot be quantised because it computes several layers in one. Build the "
            "model from torch.nn's Conv2d, ReLU and MaxPool2d, which fastconv.convert accelerates, or set qconfig = "
            "None on this layer to keep it in floating point"
        )
    for name in layer._conversion_attributes:
        vars(layer).pop(name, None)
    set_class(layer, theirs)


def is_observed(module: Module) -> bool:
    """Return whether a hook sees this module's input or result, or the instance has an own method or tensor."""
    attributes = module.__dict__  # An attribute of a module takes three times as long as an item of this dictionary.
    # A chain of `in` is a third faster than a set's isdisjoint, which visits every attribute.
    return bool(
        attributes["_forward_hooks"]
        or attributes["_forward_pre_hooks"]
        or attributes["_backward_hooks"]
        or attributes["_backward_pre_hooks"]
        or "forward" in attributes
        or "_conv_forward" in attributes
        or "_call_impl" in attributes
        or "_wrapped_call_impl" in attributes
        or "_check_input_dim" in attributes
        or "weight" in attributes  # hides the parameter
        or "bias" in attributes
        or "running_mean" in attributes
        or "running_var" in attributes
        or attributes.get("_compiled_call_impl") is not None
    )


def _bypassed() -> tuple[Any, ...]:
    """Return PyTorch's methods and functions that fastconv's layers bypass."""
    return (
        Module.__call__,
        nn.Conv2d.forward,
        nn.Conv2d._conv_forward,
        nn.MaxPool2d.forward,
        nn.BatchNorm2d.forward,
        nn.BatchNorm2d._check_input_dim,
        nn.Linear.forward,
        nn.Sequential.forward,
        nn.ReLU.forward,
        nn.ReLU6.forward,
        nn.LeakyReLU.forward,
        nn.Hardswish.forward,
        nn.SiLU.forward,
        F.batch_norm,
        F.conv2d,
        F.gelu,
        F.linear,
        F.max_pool2d,
        F.relu,
        F.relu6,
        F.hardtanh,
        F.leaky_relu,
        F.hardswish,
        F.silu,
        torch.batch_norm,
        torch.relu,
        torch.relu_,
        Tensor.__add__,
        Tensor.__radd__,
        Tensor.__iadd__,
    )


#: These methods and functions at import, as PyTorch defines them.
_STOCK = _bypassed()


def is_watched() -> bool:
    """Return whether a function mode of the program is active. Such a mode expects PyTorch's functions."""
    if _len_torch_function_stack() == 0:
        return False
    modes = (_get_function_stack_at(i) for i in range(_len_torch_function_stack()))
    return not all(type(mode) in _UNCONCERNED for mode in modes)


_get_function_stack_at = torch._C._get_function_stack_at
_len_torch_function_stack = torch._C._len_torch_function_stack
#: The modes that treat fastconv's functions as PyTorch's. fastconv.enabled adds itself.
_UNCONCERNED: list[type] = [DeviceContext]


def register_mode(mode: type) -> None:
    """Add a mode that treats fastconv's functions as PyTorch's."""
    _UNCONCERNED.append(mode)


def is_patched() -> bool:
    """Return whether the program replaced a method or function that fastconv's layers bypass, or has a function mode.

    torch.export replaces ``Module.__call__`` while it records. That does not count, except for ONNX, which needs
    PyTorch's operators.
    """
    if not torch.compiler.is_compiling() and is_watched():
        return True
    found = _bypassed()
    if found == _STOCK:
        return False
    return found[1:] != _STOCK[1:] or not torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export()
