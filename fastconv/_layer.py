"""Base of fastconv's layers: what PyTorch's other tools see of them, and how a layer changes its class.

These tools find layers by their exact class (``type(module) is torch.nn.Conv2d``) or by the module of that class. A
subclass is not found: it is not fused and not quantised, without an error. :mod:`fastconv.conversion.interop` has the
tools that need more than this base.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.nn import Module

__all__ = ["Layer", "become_torchs", "is_observed", "kind", "scripted_as", "set_class", "torch_class"]


class _DefinedIn(str):
    """The name of the Python module that defines a class; for an instance of the class, "torch.nn".

    torch.fx decides by it which layers become nodes: ``layer.__module__.startswith("torch.nn")``. Pickle asks the
    class, and gets the true name.
    """

    __slots__ = ()

    def __get__(self, layer: Any, owner: type | None = None) -> str:
        return str(self) if layer is None else "torch.nn"

    def __reduce__(self) -> tuple[Any, ...]:
        return str, (str(self),)


class _QConfig:
    """The attribute ``qconfig``: a layer that gets one becomes torch.nn's."""

    def __get__(self, layer: Any, owner: type | None = None) -> Any:
        if layer is None:
            return self
        try:
            return vars(layer)["qconfig"]
        except KeyError:
            raise AttributeError("qconfig") from None

    def __set__(self, layer: Any, qconfig: Any) -> None:
        if qconfig is not None:  # None: the layer is not to be quantised
            become_torchs(layer)
        vars(layer)["qconfig"] = qconfig

    def __delete__(self, layer: Any) -> None:
        if vars(layer).pop("qconfig", self) is self:
            raise AttributeError("qconfig")


class Layer:
    """Base of fastconv's layers."""

    # torch.jit.script would read annotations, so the types are comments.
    #: torch.nn's class that computes the same. A fused layer has none.
    _torch_class = None  # type: type[Module] | None
    #: Attributes of an instance that :func:`fastconv.convert` sets.
    _conversion_attributes = ()  # type: tuple[str, ...]
    qconfig = _QConfig()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.__module__ == "fastconv.nn":  # a user's subclass is no leaf, as a subclass of torch.nn's is none
            cls.__module__ = _DefinedIn(cls.__module__)

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
    """Return the module's class. Of a parametrised module, the class that it had before."""
    return type(module).__bases__[0] if "parametrizations" in module._modules else type(module)


def set_class(module: Module, cls: type) -> None:
    """Give a module another class. A parametrised module has a class of its own, with its tensors as properties."""
    own = type(module)
    if own is not kind(module):
        members = {name: value for name, value in vars(own).items() if name not in ("__dict__", "__weakref__")}
        cls = type(f"Parametrized{cls.__name__}", (cls,), members)
    module.__class__ = cls


def torch_class(module: Module) -> type[Module] | None:
    """Return torch.nn's class of one of fastconv's layers. None for a fused layer, and for other modules."""
    return vars(kind(module)).get("_torch_class")  # not that of a base: a user's subclass has none


def become_torchs(layer: Any) -> None:
    """Make one layer torch.nn's, in place. Members of a Sequential keep their classes."""
    theirs = torch_class(layer)
    if theirs is None:
        raise TypeError(
            f"{kind(layer).__name__} cannot be quantised: it computes several layers in one. Build the model of "
            "torch.nn's Conv2d, ReLU and MaxPool2d, which fastconv.convert accelerates, or set qconfig = None on this "
            "layer to keep it in floating point"
        )
    for name in layer._conversion_attributes:
        vars(layer).pop(name, None)
    set_class(layer, theirs)


def is_observed(module: Module) -> bool:
    """Whether a hook sees this module's input or result, or a method of this very instance has been replaced."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or not _REPLACEABLE_METHODS.isdisjoint(module.__dict__)
        or module._compiled_call_impl is not None
    )


#: Methods that a program may replace in an instance.
_REPLACEABLE_METHODS = frozenset({"forward", "_conv_forward", "_call_impl", "_wrapped_call_impl"})
