"""Freeze a model for inference: fold its batch norms, fuse its blocks and pack its weights."""

import copy
import weakref
from typing import Any

import torch
from torch import fx, nn
from torch.nn.parameter import is_lazy

from fastconv._frozen.graph import fuse
from fastconv._frozen.layers import FrozenChain, FrozenLinear, freeze_weight
from fastconv._frozen.parts import freeze_parts, frozen_parts
from fastconv._frozen.record import record
from fastconv.conversion import convert, revert

__all__ = ["freeze"]


def freeze(model: nn.Module) -> nn.Module:
    """Return a copy of the model for inference. The copy keeps the current values of the parameters.

    Batch norms are folded into the convolutions before them. A residual and an activation are computed with their
    convolution. The weights are packed in the first call and never compared again, so later changes of the frozen
    weights have no effect. The model itself does not change.

    ``torch.fx`` records the model once. The record keeps the branches and the Python values of that one run. If the
    record would miss something, the copy is converted instead (:func:`fastconv.convert`), and its weights are packed.
    The stages and blocks of the copy that take one tensor are then recorded one by one. The record of a model would
    miss something if

    - it has an ``if`` or a loop that depends on the input or on the modes of PyTorch;
    - it asks for the type or the identity of a value, as in ``mask is None``;
    - its ``forward`` has default values or ``**kwargs``;
    - its ``forward`` creates tensors, draws random numbers, changes the model or enters a context such as autocast.

    Do not call ``freeze`` while another thread runs a model: ``torch.fx`` replaces functions of PyTorch meanwhile.

    Args:
        model: a model in evaluation mode, on the CPU.

    Returns:
        A module with the arguments and results of the model. ``train()`` raises an error.

    Raises:
        TypeError: the model is not a module.
        RuntimeError: the model is in training mode, or its lazy layers have not run.

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
    if any(is_lazy(tensor) for tensor in (*model.parameters(), *model.buffers())):
        raise RuntimeError("freeze() takes a model with all its weights: run the lazy layers once first")
    with torch.inference_mode(False):  # inputs of the copy may need gradients
        return _freeze(model)


def _freeze(model: nn.Module) -> nn.Module:
    frozen = _recorded(_plain_copy(model))
    if frozen is not None:
        return frozen
    plain = _plain_copy(model)  # the first copy may have changed
    freeze_parts(plain, _recorded_part)
    for module in plain.modules():
        if type(module) is nn.Conv2d:
            module.weight = nn.Parameter(freeze_weight(module, module.weight), requires_grad=False)
    copied = _FrozenCopy(convert(plain))
    copied.seal()
    return copied


def _recorded(plain: nn.Module) -> nn.Module | None:
    """Return the recorded model, with its blocks fused. None if it cannot be recorded, and then it may have changed."""
    graph = record(plain)
    if graph is None:
        return None
    fuse(plain, graph)
    return convert(_FrozenGraph(plain, graph, f"Frozen{type(plain).__name__}"))


def _recorded_part(module: nn.Module) -> nn.Module | None:
    frozen = _recorded(copy.deepcopy(module))
    has_chains = frozen is not None and any(isinstance(m, FrozenChain | FrozenLinear) for m in frozen.modules())
    return frozen if has_chains else None


def _plain_copy(model: nn.Module) -> nn.Module:
    return revert(copy.deepcopy(model)).requires_grad_(False)


class _Frozen(nn.Module):
    """Refuses to train and to load values: the weights are packed already."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.training = False  # only this module: a Dropout in it may be in training mode

    def train(self, mode: bool = True) -> Any:
        if mode:
            raise RuntimeError("a frozen model cannot be trained: train the model itself, and freeze() it again")
        return super().train(False)

    def load_state_dict(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("a frozen model cannot load values: load them into the model itself, and freeze() it again")


class _FrozenGraph(_Frozen, fx.GraphModule):
    """A model that was recorded."""

    @property
    def graph(self) -> fx.Graph:
        return super().graph

    @graph.setter
    def graph(self, graph: fx.Graph) -> None:
        fx.GraphModule.graph.fset(self, graph)  # type: ignore[attr-defined]
        # Otherwise only the garbage collector would free the model.
        graph.owning_module = weakref.proxy(self)  # type: ignore[assignment]

    def __reduce__(self) -> Any:
        return _unpickled, (super().__reduce__(),)


def _unpickled(reduced: tuple[Any, ...]) -> _FrozenGraph:
    function, arguments = reduced[:2]
    module = function(*arguments)
    return _FrozenGraph(module, module.graph, type(module).__name__)


class _FrozenCopy(_Frozen):
    """A model that could not be recorded, and is converted instead."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def seal(self) -> None:
        for part in frozen_parts(self.model):
            part.seal()

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Change the tensors of the parts, too, as in ``double()``."""
        super()._apply(fn, recurse)
        for part in frozen_parts(self.model):
            part.frozen._apply(fn)
        self.seal()
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)
