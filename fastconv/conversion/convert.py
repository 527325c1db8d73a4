"""Convert the layers of a model to fastconv's, and back.

A conversion changes the class of a layer: ``layer.__class__ = fastconv.nn.Conv2d``. The layer stays the same object. So
it keeps its parameters, buffers, hooks and attributes, and everything that refers to it still works: optimizers, tied
layers, the model's own code.
"""

from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch.nn import Module

from fastconv import models
from fastconv import nn as fnn
from fastconv._layer import Layer, kind, set_class
from fastconv.conversion.report import Line, Report

__all__ = ["conversion_report", "convert", "revert"]

M = TypeVar("M", bound=Module)


def _by_torch_class(*classes: Any) -> dict[type, type]:
    """Return fastconv's classes, each under the class of PyTorch that it replaces."""
    return {cls._torch_class: cls for cls in classes}


#: Activations, which run with the layer before them where possible.
ACTIVATIONS = _by_torch_class(fnn.ReLU, fnn.ReLU6, fnn.LeakyReLU, fnn.Hardswish, fnn.SiLU)
#: PyTorch's classes, and the classes that they become.
LAYERS = _by_torch_class(fnn.Conv2d, fnn.LazyConv2d, fnn.MaxPool2d, fnn.BatchNorm2d, fnn.Linear) | ACTIVATIONS
#: Blocks on PyTorch's operators, and the fused classes that they become.
BLOCKS: dict[type, type] = {
    models.TorchConvReLU2d: fnn.ConvReLU2d,
    models.TorchConvReLUMaxPool2d: fnn.ConvReLUMaxPool2d,
}
TO_TORCH = {**{ours: theirs for theirs, ours in (LAYERS | BLOCKS).items()}, fnn.Sequential: torch.nn.Sequential}
#: The classes that a Sequential fuses, before the conversion and after, with their roles.
ROLES: dict[type, str] = {torch.nn.Conv2d: "conv", **fnn.ROLES}


@dataclass
class Conversion:
    """The changes that :func:`convert` will make to one model, and the report of them."""

    #: The class that each module gets.
    classes: dict[Module, type] = field(default_factory=dict)
    #: The layers that may run with neighbouring layers as one operator.
    fusing: list[Module] = field(default_factory=list)
    report: Report = field(default_factory=Report)


def convert(model: M, fuse: bool = True) -> M:
    """Convert layers of a model to fastconv's, in place.

    Every layer stays the same object, with its parameters, buffers, hooks, parametrisations and attributes. Only its
    class changes. So optimizers, tied layers, state_dict, checkpoints, pickling and the model's own methods work as
    before. Results and gradients are the same up to rounding.

    Only layers whose class is exactly Conv2d, LazyConv2d, BatchNorm2d, MaxPool2d, Linear, ReLU, ReLU6, LeakyReLU,
    Hardswish or SiLU of :mod:`torch.nn` are converted. A converted activation runs PyTorch's function unless it is
    fused. A converted convolution or linear layer runs PyTorch's operator in the calls that PyTorch computes faster
    (docs/reference/pytorch_calls.md). :func:`conversion_report` lists every layer, with the reason.

    Args:
        model: any module, or a single layer.
        fuse: run a convolution and the ReLU and max-pool that follow it as one operator. A Sequential fuses its
            members. In other code a convolution returns a tensor that waits for the next operation
            (:mod:`fastconv._deferred`). If that is ReLU or a max-pool, as a layer or as a function, the two are fused.
            If the program passes a result on at once, a convolution without gradient runs together with the batch norm,
            the addition and the activation after it. A batch norm runs together with the addition and the activation
            after it (:mod:`fastconv._ahead`).

    Returns:
        The model itself.

    Raises:
        TypeError: the model is not a module.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.ReLU(), torch.nn.MaxPool2d(2))
        >>> convert(model) is model
        True
        >>> print(conversion_report(model))
        layers: 0 converted, 3 fused, 0 left to PyTorch
        0  Conv2d     fused  with 1 and 2
        1  ReLU       fused  into 0
        2  MaxPool2d  fused  into 0
    """
    check(model, "convert")
    conversion = plan_conversion(model, fuse)
    forget(model)
    for module, cls in conversion.classes.items():
        set_class(module, cls)
    for conv in conversion.fusing:
        fnn.fuse_with_next(conv)
    return model


def revert(model: M) -> M:
    """Undo :func:`convert`: make all layers plain :mod:`torch.nn` again, in place.

    The layers stay the same objects with the same parameters. Layers that were fastconv's before any conversion
    become PyTorch's, too. A fused layer becomes a convolution whose ``forward`` calls PyTorch's functions.

    Returns:
        The model itself.

    Raises:
        TypeError: the model is not a module.
    """
    check(model, "revert")
    forget(model)
    for module in model.modules():
        if (cls := TO_TORCH.get(kind(module))) is not None:
            set_class(module, cls)
    return model


def conversion_report(model: Module, fuse: bool = True) -> Report:
    """List what :func:`convert` will do with every layer of a model, or has done, and why. The model does not change.

    Args:
        model: a model, before or after its conversion.
        fuse: as for :func:`convert`.

    Returns:
        A report to print; rich prints a table.

    Raises:
        TypeError: the model is not a module.
    """
    check(model, "conversion_report")
    return plan_conversion(model, fuse).report


def check(model: Any, name: str) -> None:
    if not isinstance(model, Module):
        raise TypeError(f"{name}() takes a torch.nn.Module, but got {type(model).__name__}")


def plan_conversion(model: Module, fuse: bool) -> Conversion:
    conversion = Conversion()
    names = {module: name for name, module in model.named_modules()}
    fused = plan_sequentials(names, conversion) if fuse else {}
    for module, name in names.items():
        line = plan_layer(module, fuse, fused.get(module, ""), conversion)
        if line is not None:
            conversion.report.lines.append(Line(name, *line))
    return conversion


def plan_sequentials(names: dict[Module, str], conversion: Conversion) -> dict[Module, str]:
    """Plan the Sequentials that fuse their members. Return the fused layers, each with the names of its partners."""
    fused: dict[Module, str] = {}
    for sequential in names:
        if type(sequential) not in (torch.nn.Sequential, fnn.Sequential):
            continue
        assert isinstance(sequential, torch.nn.Sequential)
        layers = fnn.flat(sequential)
        i = 0
        while i < len(layers):
            conv, *followers = block = fnn.match(layers, i, ROLES)
            i += len(block)
            if not followers:
                continue
            conversion.classes[sequential] = fnn.Sequential
            if conv not in fused:  # an outer Sequential may have fused it already
                fused[conv] = f"with {' and '.join(names[layer] for layer in followers)}"
                for layer in followers:
                    before = f"{fused[layer]} and " if layer in fused else "into "
                    fused[layer] = before + names[conv]
    return fused


def plan_layer(module: Module, fuse: bool, fused: str, conversion: Conversion) -> tuple[str, str, str] | None:
    """Plan one layer. Return its line of the report, without the name. None for a module that convert ignores."""
    cls = kind(module)
    theirs = TO_TORCH.get(cls, cls)
    if theirs in BLOCKS:
        if not fuse and cls is theirs:
            return theirs.__name__, "left", "fuse=False"
        conversion.classes[module] = BLOCKS[theirs]
        return theirs.__name__, "converted", ""
    if theirs not in LAYERS:
        if isinstance(module, torch.nn.Conv2d | torch.nn.MaxPool2d | torch.nn.ReLU | torch.nn.BatchNorm2d):
            return theirs.__name__, "left", f"a subclass of torch.nn's layer: {cls.__module__}.{cls.__qualname__}"
        return None
    if replaced := [name for name in ("forward", "_conv_forward") if name in vars(module)]:
        conversion.classes[module] = theirs
        return theirs.__name__, "left", f"its {replaced[0]} has been replaced"
    is_native = cls is not theirs and "_fuses" not in vars(module)  # fastconv's before any conversion
    if theirs in ACTIVATIONS and not is_native:
        conversion.classes[module] = ACTIVATIONS[theirs] if fuse else theirs
        if fuse:
            conversion.fusing.append(module)
        if fused:
            return theirs.__name__, "fused", fused
        faster = "PyTorch is faster at an activation alone"
        return theirs.__name__, "left", f"{faster}; fused after a convolution or batch norm" if fuse else faster
    conversion.classes[module] = LAYERS[theirs]
    if fuse and isinstance(module, torch.nn.Conv2d | torch.nn.BatchNorm2d | torch.nn.Linear):
        conversion.fusing.append(module)
    return theirs.__name__, "fused" if fused else "converted", fused


def forget(model: Module) -> None:
    """Undo the settings of an earlier conversion with ``fuse``."""
    for module in model.modules():
        if isinstance(module, Layer):
            for name in module._conversion_attributes:
                vars(module).pop(name, None)
        if type(module) is fnn.Sequential:
            set_class(module, torch.nn.Sequential)
