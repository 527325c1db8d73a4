"""The layers in PyTorch's other tools: torch.fx, torch.ao.quantization, torch.jit.script and print.

These tools find layers by their exact class (``type(module) is torch.nn.Conv2d``) or by the place of that class, so a
subclass goes unnoticed: it is not fused, not quantised, and no error says so. This module makes them find fastconv's.

* torch.fx records a layer of fastconv as one ``call_module`` node, as it does torch.nn's. A new ``GraphModule`` gets a
  layer of torch.nn that shares the parameters, so that every pass recognises it. The traced model stays converted.
  :func:`fastconv.convert` converts a GraphModule, too.
* A layer that is given a ``qconfig`` becomes torch.nn's. ``prepare`` and ``prepare_qat`` give one to each layer that is
  to be quantised, in a copy of the model unless ``inplace=True``.
* ``fuse_modules`` accepts fastconv's layers wherever it accepts torch.nn's.
* ``torch.jit.script`` compiles the code of torch.nn's layers.

:class:`fastconv.nn.ConvReLU2d` and :class:`fastconv.nn.ConvReLUMaxPool2d` have no counterpart that can be quantised.
They raise a TypeError.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import graph_module
from torch.nn import Module
from torch.nn.modules.module import register_module_module_registration_hook

__all__ = ["Layer", "scripted_as"]


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
            _become_torchs(layer)
        vars(layer)["qconfig"] = qconfig

    def __delete__(self, layer: Any) -> None:
        if vars(layer).pop("qconfig", self) is self:
            raise AttributeError("qconfig")


class Layer:
    """Base of fastconv's layers: what other tools see of them."""

    qconfig = _QConfig()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.__module__ == "fastconv.nn":  # a user's subclass is no leaf, nor is one of torch.nn's
            cls.__module__ = _DefinedIn(cls.__module__)

    def _get_name(self) -> str:
        name: str = super()._get_name()  # type: ignore[misc]
        return f"fastconv.{name}" if _kind(self).__module__ == "fastconv.nn" else name


def scripted_as(source: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Has ``torch.jit.script`` compile the code of ``source`` in place of the method's own.

    The compiler reads the source of ``__wrapped__``, by the convention of :func:`functools.wraps`.
    """

    def mark(method: Callable[..., Any]) -> Callable[..., Any]:
        method.__wrapped__ = source  # type: ignore[attr-defined]
        return method

    return mark


def _kind(layer: Any) -> type:
    from fastconv.nn import kind

    return kind(layer)


def _has_twin(module: Module) -> bool:
    """Whether the module is one of fastconv's layers that torch.nn has, too."""
    from fastconv.convert import BLOCKS, TO_TORCH

    twin = TO_TORCH.get(_kind(module))
    return twin is not None and twin not in BLOCKS


def _become_torchs(layer: Any) -> None:
    """Makes torch.nn's of one layer, in place. Members of a Sequential stay what they are."""
    from fastconv.convert import TO_TORCH, revert, set_class

    kind = _kind(layer)
    if not _has_twin(layer):
        raise TypeError(
            f"{kind.__name__} cannot be quantised: it computes several layers in one. Build the model of torch.nn's "
            "Conv2d, ReLU and MaxPool2d, which fastconv.convert accelerates, or set qconfig = None on this layer to "
            "keep it in floating point"
        )
    if isinstance(layer, torch.nn.Sequential):
        set_class(layer, TO_TORCH[kind])
    else:
        revert(layer)


# torch.fx


def _give_graphs_torchs_layers(parent: Module, name: str, module: Module | None) -> Module | None:
    """Runs where a module gets a sub-module. In a new GraphModule, puts torch.nn's layer in the place of fastconv's."""
    if not isinstance(module, Layer):
        return None
    copying = sys._getframe(2)  # this function, Module.__setattr__, and what assigns
    if copying.f_code is not graph_module._copy_attr.__code__ or copying.f_back is None:
        return None
    root = copying.f_back.f_locals.get("root")
    if isinstance(root, graph_module._CodeOnlyModule) or not _has_twin(module):  # deepcopy and unpickling: a copy
        return None
    twin: Module = object.__new__(type(module))
    twin.__dict__ = dict(vars(module))  # shares parameters, buffers and hooks, also those that come later
    _become_torchs(twin)
    return twin


register_module_module_registration_hook(_give_graphs_torchs_layers)  # type: ignore[arg-type]


# torch.ao.quantization


def let_fuse_modules_take_layers() -> None:
    """Adds fastconv's layers to the table of what ``fuse_modules`` fuses."""
    try:
        from torch.ao.quantization.fuser_method_mappings import _DEFAULT_OP_LIST_TO_FUSER_METHOD as fusers
    except ImportError:  # a torch without it: fuse_modules raises, if there is one
        return
    from fastconv.convert import LAYERS

    def fuser(theirs: Callable[..., Any]) -> Callable[..., Any]:
        def fuse(is_qat: bool, *layers: Module) -> Any:
            for layer in layers:
                if isinstance(layer, Layer):
                    _become_torchs(layer)
            return theirs(is_qat, *layers)

        return fuse

    for classes, method in list(fusers.items()):
        choices = [(cls, LAYERS[cls]) if cls in LAYERS else (cls,) for cls in classes]
        for ours in itertools.product(*choices):
            fusers.setdefault(ours, fuser(method))
