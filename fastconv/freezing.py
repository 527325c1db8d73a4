"""Freeze a model for inference: fold its batch norms, fuse its blocks and pack its weights, once and for all."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import fx, nn

from fastconv._frozen.graph import IN_PLACE, fuse
from fastconv._frozen.layers import freeze_weight
from fastconv._layer import is_observed
from fastconv.conversion import convert, revert

__all__ = ["freeze"]


def freeze(model: nn.Module) -> nn.Module:
    """Return a copy of a model for inference with its values as they are now.

    Batch norms are folded into the convolutions before them. A residual and an activation are computed with their
    convolution. The weights are packed in the first call and never compared again, so later changes of the frozen
    weights have no effect. The model itself does not change.

    ``torch.fx`` traces the model once. So the copy does what the model does for every input only if no ``if`` or loop
    depends on the input. A model is converted instead (:func:`fastconv.convert`), with packed weights, if it cannot be
    traced, if its ``forward`` has parameters with default values, or if it creates tensors or enters a context.

    Args:
        model: a model in evaluation mode, on the CPU.

    Returns:
        A module with the arguments and results of the model. ``train()`` raises an error.

    Raises:
        TypeError: the model is not a module.
        RuntimeError: the model is in training mode.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU()).eval()
        >>> x = torch.randn(1, 3, 8, 8)
        >>> torch.allclose(freeze(model)(x), model(x), atol=1e-5)
        True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"freeze() takes a torch.nn.Module, but got {type(model).__name__}")
    if model.training:
        raise RuntimeError("freeze() takes a model in evaluation mode: call model.eval() first")
    plain = revert(copy.deepcopy(model)).requires_grad_(False)
    try:
        graph = None if is_observed(plain) or _has_defaults(plain) else _Tracer().trace(plain)
    except Exception:  # whatever the model does that a tracer cannot follow
        graph = None
    if graph is None:
        for module in plain.modules():
            if type(module) is nn.Conv2d:
                freeze_weight(module, module.weight)
        return _FrozenCopy(convert(plain)).eval()
    fuse(plain, graph)
    return convert(_FrozenGraph(plain, graph, f"Frozen{type(model).__name__}")).eval()


def _has_defaults(model: nn.Module) -> bool:
    """Return whether ``forward`` has default values. A trace always takes the branch for a value that is given."""
    parameters = inspect.signature(model.forward).parameters.values()
    return any(parameter.default is not inspect.Parameter.empty for parameter in parameters)


class _Proxy(fx.Proxy):
    """Records ``a += b`` as a change of a.

    A Proxy of torch.fx records ``a = a + b``. Then another variable with the same tensor would keep the old values.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in ("node", "tracer"):
            raise fx.proxy.TraceError(f"an assignment to {name} is not recorded")
        super().__setattr__(name, value)


def _in_place(function: Any) -> Any:
    return lambda a, b: a.tracer.create_proxy("call_function", function, (a, b), {})


for _function, _method in IN_PLACE.items():
    setattr(_Proxy, _method, _in_place(_function))


def _modes() -> tuple[object, ...]:
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
    return dtype, torch.is_grad_enabled(), torch.is_inference_mode_enabled()


class _Tracer(fx.Tracer):
    """Records a model, or raises TraceError if the record would compute something else than the model.

    Modules whose hooks see them run are kept. A tensor that ``forward`` creates would be the same in all calls,
    although it may be random or change. A context such as ``torch.autocast`` would have no effect.
    """

    def __init__(self) -> None:
        super().__init__()
        self._modes = _modes()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_observed(m) or super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def create_node(self, kind: str, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        if kind == "get_attr" and str(target).startswith("_tensor_constant"):
            raise fx.proxy.TraceError("a tensor that forward creates is not recorded")
        if _modes() != self._modes:
            raise fx.proxy.TraceError("a context within forward is not recorded")
        return super().create_node(kind, target, *args, **kwargs)


class _Frozen(nn.Module):
    """Refuses to train."""

    def train(self, mode: bool = True) -> Any:
        if mode:
            raise RuntimeError("a frozen model cannot be trained: train the model itself, and freeze() it again")
        return super().train(False)


class _FrozenGraph(_Frozen, fx.GraphModule):
    """A model that was traced."""


class _FrozenCopy(_Frozen):
    """A model that was not traced."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)
