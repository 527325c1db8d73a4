"""A model's convolutions, max-pools and ReLUs made fastconv's, and PyTorch's again.

A layer is converted by another class: ``layer.__class__ = fastconv.nn.Conv2d``. So it stays the same object, and all
that it holds and all that holds it stay as they were: parameters, buffers, hooks, attributes, optimizers, tied layers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch.nn import Module

from fastconv import models, served
from fastconv import nn as fnn
from fastconv.chains import Chain, find_chains, in_sequentials
from fastconv.fuse import FusedConv2d, FusedMaxPool2d, FusedReLU, Fusion
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
FUSED: dict[type, type] = {
    FusedConv2d: torch.nn.Conv2d,
    FusedReLU: torch.nn.ReLU,
    FusedMaxPool2d: torch.nn.MaxPool2d,
}
TO_TORCH = {**{ours: theirs for theirs, ours in (LAYERS | BLOCKS).items()}, fnn.Sequential: torch.nn.Sequential}


@dataclass
class Plan:
    """What is to be done."""

    classes: dict[Module, type] = field(default_factory=dict)
    chains: list[Chain] = field(default_factory=list)  # other than those in Sequentials
    alone: list[Module] = field(default_factory=list)  # convolutions that are faster when not fused
    report: Report = field(default_factory=Report)


def convert(model: M, fuse: bool = True) -> M:
    """Has fastconv serve the convolutions, max-pools and ReLUs of a model.

    In place: every layer stays the same object, with its parameters, buffers, hooks, parametrisations, attributes and
    place, and changes its class alone. So optimizers, tied layers, state_dict and checkpoints go on as before, as do
    the model's own class, methods and pickling. Results and gradients are the same, to rounding.

    Layers of other classes than exactly :class:`torch.nn.Conv2d`, :class:`torch.nn.LazyConv2d`,
    :class:`torch.nn.MaxPool2d` and :class:`torch.nn.ReLU` are left alone, as are those that fastconv would serve slower
    than PyTorch (:mod:`fastconv.served`). :func:`conversion_report` tells which, and why.

    Args:
        model: any module; a single layer too. Convert it as it is to run: layers, hooks and parametrisations added.
        fuse: run a convolution with the ReLU, and the max-pool, that get its result as one operator, where no hook and
            no other code sees what lies between them: in Sequentials, and where torch.fx can follow the model's code.
            ReLU and pool have to be modules, though between a convolution and a pool that are, the ReLU may be a
            function.

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
    unfuse(model)
    for module, cls in plan.classes.items():
        set_class(module, cls)
    for conv in plan.alone:
        if isinstance(conv, fnn.Conv2d):
            conv.fuses = False
    for group in connected(plan.chains):
        apply_fusion(model, group)
    return model


def revert(model: M) -> M:
    """Undoes :func:`convert`: plain :mod:`torch.nn` again, the same objects with the same parameters. In place.

    Layers that were fastconv's from the beginning become PyTorch's too; of the fused ones, that is a convolution whose
    ``forward`` calls PyTorch's three functions.

    Returns:
        The model itself.

    Raises:
        TypeError: not a module.
    """
    check(model, "revert")
    unfuse(model)
    for module in model.modules():
        if (cls := TO_TORCH.get(fnn.kind(module))) is not None:
            set_class(module, cls)
    return model


def conversion_report(model: Module, fuse: bool = True) -> Report:
    """What :func:`convert` will do with a model, or has done: every layer, and why. The model is left as it is.

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
    fused: dict[Module, str] = {}  # and with what
    alone: dict[Module, str] = {}  # and why
    if fuse:
        find_fusions(model, names, plan, fused, alone)
    for module, name in names.items():
        cls = fnn.kind(module)
        theirs = FUSED.get(cls) or TO_TORCH.get(cls, cls)
        becomes, why = "converted", alone.get(module, "")
        if theirs in LAYERS:
            native = cls is LAYERS[theirs]
            fused_conv = module in fused and theirs is torch.nn.Conv2d
            slower = None if native or fused_conv else served.slower_than_torch(module)
            if module in fused:
                becomes, why = "fused", fused[module]
            elif "forward" in vars(module):
                becomes, why, slower = "left", "it has been given another forward", ""
            elif slower:
                becomes, why = "left", slower
            plan.classes[module] = LAYERS[theirs] if slower is None else theirs
        elif theirs in BLOCKS:
            if fuse or cls is not theirs:
                plan.classes[module] = BLOCKS[theirs]
            else:
                becomes, why = "left", "fuse=False"
        elif isinstance(module, torch.nn.Conv2d | torch.nn.MaxPool2d | torch.nn.ReLU):
            becomes, why = "left", f"of another class, {cls.__module__}.{cls.__qualname__}"
        else:
            continue
        plan.report.lines.append(Line(name, theirs.__name__, becomes, why))
    return plan


def find_fusions(
    model: Module, names: dict[Module, str], plan: Plan, fused: dict[Module, str], alone: dict[Module, str]
) -> None:
    """Adds Sequentials that run chains, and chains in other code, to the plan; and says what is fused, or why not."""

    def pays(chain: Chain) -> bool:
        slower = served.slower_than_torch(chain.conv, fused_with="ReLU" if chain.pool is None else "pool")
        if slower is not None:
            alone[chain.conv] = slower
            plan.alone.append(chain.conv)
        return slower is None

    def tell(chain: Chain) -> None:
        fused[chain.conv] = f"with {' and '.join(names[layer] for layer in chain.followers())}"
        for layer in chain.followers():
            fused[layer] = f"{fused[layer]} and {names[chain.conv]}" if layer in fused else f"into {names[chain.conv]}"

    found = find_chains(model)
    alone |= found.reasons
    plan.chains = [chain for chain in found.chains if pays(chain)]
    for chain in plan.chains:
        tell(chain)
    elsewhere = {chain.conv for chain in plan.chains}
    for sequential, chains in in_sequentials(model).items():
        for chain in chains:
            if pays(chain) and chain.conv not in elsewhere:
                plan.classes[sequential] = fnn.Sequential
                if chain.conv not in fused:  # else by a Sequential around this one
                    tell(chain)
    for module, reason in found.untraced.items():
        if any(fnn.kind(layer) in (*LAYERS, *LAYERS.values(), *FUSED) for layer in module.modules()):
            where = f"{names[module]}.forward" if names[module] else "forward"
            plan.report.notes.append(f"torch.fx cannot follow {where}, so its parts were searched: {reason}")


def set_class(module: Module, cls: type) -> None:
    """Gives a module another class. A parametrised one has a class of its own, with its tensors as properties."""
    own = type(module)
    if own is not fnn.kind(module):
        members = {name: value for name, value in vars(own).items() if name not in ("__dict__", "__weakref__")}
        cls = type(f"Parametrized{cls.__name__}", (cls,), members)
    module.__class__ = cls


def unfuse(model: Module) -> None:
    """Makes single layers of those that are fused, and of all that they are fused with; they may be elsewhere."""
    modules = list(model.modules())
    partners = [layer for m in modules if fnn.kind(m) in FUSED for _, _, layer in vars(m)["fusion"].members]
    for module in [*modules, *partners]:
        cls = fnn.kind(module)
        if cls in FUSED:
            set_class(module, FUSED[cls])
            for name in ("fusion", "fused_pool"):
                vars(module).pop(name, None)
        elif cls is fnn.Conv2d:
            vars(module).pop("fuses", None)
        elif cls is fnn.Sequential:
            set_class(module, torch.nn.Sequential)


def connected(chains: list[Chain]) -> list[list[Chain]]:
    """Chains that share a layer, together."""
    groups: list[list[Chain]] = []
    for chain in chains:
        layers = set(chain.followers())
        touching = [group for group in groups if any(layers & set(other.followers()) for other in group)]
        groups = [group for group in groups if group not in touching]
        groups.append([chain, *(other for group in touching for other in group)])
    return groups


def apply_fusion(model: Module, chains: list[Chain]) -> None:
    layers = {layer: None for chain in chains for layer in (chain.conv, *chain.followers())}
    paths = [name.split(".") for name, module in model.named_modules() if module in layers]
    owner = [names[0] for names in zip(*(path[:-1] for path in paths), strict=False) if len(set(names)) == 1]
    members = []
    for path in paths:
        parent = model.get_submodule(".".join(path[:-1]))
        members.append((parent, path[-1], parent.get_submodule(path[-1])))
    fusion = Fusion(model.get_submodule(".".join(owner)), members)
    classes = {theirs: cls for cls, theirs in FUSED.items()}
    for layer in layers:
        set_class(layer, classes[TO_TORCH.get(fnn.kind(layer), fnn.kind(layer))])
        layer.fusion = fusion  # type: ignore[assignment]
    for chain in chains:
        chain.conv.fused_pool = () if chain.pool is None else (chain.pool,)  # type: ignore[assignment]
