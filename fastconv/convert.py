"""Converts the convolutions, max-pools and ReLUs of a model to fastconv's layers, and back.

A layer is converted by a change of its class: ``layer.__class__ = fastconv.nn.Conv2d``. It stays the same object, so
its parameters, buffers, hooks and attributes stay, as does everything that refers to it: optimizers, tied layers, the
model's own code.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch.nn import Module

from fastconv import models, served
from fastconv import nn as fnn
from fastconv.report import Line, Report

__all__ = ["conversion_report", "convert", "revert"]

M = TypeVar("M", bound=Module)

#: PyTorch's classes, and those that they become.
LAYERS: dict[type, type] = {
    torch.nn.Conv2d: fnn.Conv2d,
    torch.nn.LazyConv2d: fnn.LazyConv2d,
    torch.nn.MaxPool2d: fnn.MaxPool2d,
    torch.nn.ReLU: fnn.ReLU,
}
#: fastconv's own blocks, of PyTorch's operators and fused.
BLOCKS: dict[type, type] = {
    models.TorchConvReLU2d: fnn.ConvReLU2d,
    models.TorchConvReLUMaxPool2d: fnn.ConvReLUMaxPool2d,
}
TO_TORCH = {**{ours: theirs for theirs, ours in (LAYERS | BLOCKS).items()}, fnn.Sequential: torch.nn.Sequential}
#: The classes of a Sequential's members that it runs as one, before the conversion or after.
ROLES: dict[type, str] = {torch.nn.Conv2d: "conv", **fnn.ROLES}


@dataclass
class Plan:
    """The conversion of one model."""

    classes: dict[Module, type] = field(default_factory=dict)
    waiting: dict[Module, frozenset[str]] = field(default_factory=dict)  # convolutions, and what is left to PyTorch
    report: Report = field(default_factory=Report)


def convert(model: M, fuse: bool = True) -> M:
    """Converts the convolutions, max-pools and ReLUs of a model to fastconv's layers. In place.

    Every layer stays the same object, with its parameters, buffers, hooks, parametrisations and attributes, and changes
    its class alone. So optimizers, tied layers, state_dict and checkpoints work as before, as do the model's own class
    and methods, and pickling. Results and gradients are the same, to rounding.

    Only layers whose class is exactly :class:`torch.nn.Conv2d`, :class:`torch.nn.LazyConv2d`,
    :class:`torch.nn.MaxPool2d` or :class:`torch.nn.ReLU` are converted. PyTorch computes the layers that it computes
    faster (:mod:`fastconv.served`). Such a convolution changes its class only if it may be fused.
    :func:`conversion_report` lists every layer, with the reason.

    Args:
        model: any module, or a single layer.
        fuse: run a convolution and the ReLU and max-pool that follow it as one operator. A Sequential fuses its
            members. In other code a convolution returns a tensor that waits for the next operation
            (:mod:`fastconv.deferred`): if that is ReLU or a max-pool, as a layer or as a function, the two are fused.

    Returns:
        The model itself.

    Raises:
        TypeError: not a module.

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
    plan = make_plan(model, fuse)
    forget(model)
    for module, cls in plan.classes.items():
        set_class(module, cls)
    for conv, left_to_torch in plan.waiting.items():
        fnn.wait_for_fusion(conv, left_to_torch)
    return model


def revert(model: M) -> M:
    """Undoes :func:`convert`: makes all layers plain :mod:`torch.nn` again. In place.

    The layers stay the same objects with the same parameters. Layers that were fastconv's from the beginning become
    PyTorch's, too. A fused layer becomes a convolution whose ``forward`` calls PyTorch's functions.

    Returns:
        The model itself.

    Raises:
        TypeError: not a module.
    """
    check(model, "revert")
    forget(model)
    for module in model.modules():
        if (cls := TO_TORCH.get(fnn.kind(module))) is not None:
            set_class(module, cls)
    return model


def conversion_report(model: Module, fuse: bool = True) -> Report:
    """Lists what :func:`convert` will do with every layer of a model, or has done, and why. The model is not changed.

    Args:
        model: before its conversion or after.
        fuse: as for :func:`convert`.

    Returns:
        A report to print; rich prints a table.

    Raises:
        TypeError: not a module.
    """
    return make_plan(model, fuse).report


def check(model: Any, name: str) -> None:
    if not isinstance(model, Module):
        raise TypeError(f"{name}() takes a torch.nn.Module, but got {type(model).__name__}")


def make_plan(model: Module, fuse: bool) -> Plan:
    check(model, "convert")
    plan = Plan()
    names = {module: name for name, module in model.named_modules()}
    fused = plan_sequentials(names, plan) if fuse else {}
    for module, name in names.items():
        line = plan_layer(module, fuse, fused.get(module, ""), plan)
        if line is not None:
            plan.report.lines.append(Line(name, *line))
    return plan


def plan_sequentials(names: dict[Module, str], plan: Plan) -> dict[Module, str]:
    """Plans the Sequentials that fuse their members. Returns these, each with the names of its partners."""
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
            if not followers or slower(conv, fnn.fused_with(block)):
                continue
            plan.classes[sequential] = fnn.Sequential
            if conv not in fused:  # else by a Sequential around this one
                fused[conv] = f"with {' and '.join(names[layer] for layer in followers)}"
                for layer in followers:
                    before = f"{fused[layer]} and " if layer in fused else "into "
                    fused[layer] = before + names[conv]
    return fused


def plan_layer(module: Module, fuse: bool, fused: str, plan: Plan) -> tuple[str, str, str] | None:
    """Plans one layer. Returns its line of the report, without the name; None for a module of no interest."""
    cls = fnn.kind(module)
    theirs = TO_TORCH.get(cls, cls)
    if theirs in BLOCKS:
        if not fuse and cls is theirs:
            return theirs.__name__, "left", "fuse=False"
        plan.classes[module] = BLOCKS[theirs]
        return theirs.__name__, "converted", ""
    if theirs not in LAYERS:
        if isinstance(module, torch.nn.Conv2d | torch.nn.MaxPool2d | torch.nn.ReLU):
            return theirs.__name__, "left", f"of another class, {cls.__module__}.{cls.__qualname__}"
        return None
    if replaced := [name for name in ("forward", "_conv_forward") if name in vars(module)]:
        plan.classes[module] = theirs
        return theirs.__name__, "left", f"it has been given another {replaced[0]}"
    reason = slower(module)
    partners = plan_waiting(module, plan) if fuse and isinstance(module, torch.nn.Conv2d) else ""
    plan.classes[module] = theirs if reason and not partners else LAYERS[theirs]
    if fused:
        return theirs.__name__, "fused", fused
    if reason:
        return theirs.__name__, "left", f"{reason}, unless {partners} follows" if partners else reason
    return theirs.__name__, "converted", ""


def plan_waiting(conv: torch.nn.Conv2d, plan: Plan) -> str:
    """Lets the results of a convolution wait for the next operation, if any is worth it. Returns which."""
    left_to_torch = frozenset() if is_native(conv) else served.left_to_torch(conv)
    partners = {"ReLU": "a ReLU", "pool": "a max-pool with ReLU"}
    worthwhile = [text for name, text in partners.items() if name not in left_to_torch]
    if worthwhile:
        plan.waiting[conv] = left_to_torch
    return " or ".join(worthwhile)


def is_native(module: Module) -> bool:
    """Whether a layer was fastconv's before any conversion: then its author has chosen."""
    return fnn.kind(module) in LAYERS.values() and "_left_to_torch" not in vars(module)


def slower(module: Module, fused_with: str = "") -> str:
    """Why PyTorch should compute a layer; empty if fastconv should."""
    return "" if is_native(module) else served.slower_than_torch(module, fused_with) or ""


def set_class(module: Module, cls: type) -> None:
    """Gives a module another class. A parametrised one has a class of its own, with its tensors as properties."""
    own = type(module)
    if own is not fnn.kind(module):
        members = {name: value for name, value in vars(own).items() if name not in ("__dict__", "__weakref__")}
        cls = type(f"Parametrized{cls.__name__}", (cls,), members)
    module.__class__ = cls


def forget(model: Module) -> None:
    """Undoes what an earlier conversion with ``fuse`` has set."""
    for module in model.modules():
        vars(module).pop("_waits", None)
        vars(module).pop("_left_to_torch", None)
        if type(module) is fnn.Sequential:
            set_class(module, torch.nn.Sequential)
