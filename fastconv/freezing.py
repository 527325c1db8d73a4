"""Freeze a model for inference: fold its batch norms, fuse its blocks and pack its weights."""

from __future__ import annotations

import copy
import weakref
from functools import partial
from typing import Any

import torch
from torch import fx, nn
from torch.nn.parameter import is_lazy

from fastconv._frozen.calls import Call, FrozenCalls, Record
from fastconv._frozen.folded import Folded
from fastconv._frozen.graph import fuse
from fastconv._frozen.layers import FrozenChain, FrozenLinear, freeze_weight
from fastconv._frozen.parts import freeze_parts, frozen_parts
from fastconv._frozen.record import record
from fastconv._frozen.recorder import record_call
from fastconv._frozen.state import Sealed
from fastconv.conversion import convert, revert

__all__ = ["freeze"]


def freeze(model: nn.Module, record_calls: bool = False) -> nn.Module:
    """Return a copy of the model for inference. The copy keeps the current values of the parameters.

    Batch norms are folded into the convolutions before them. A residual and an activation are computed with their
    convolution. The weights are packed in the first call and never compared again, so later changes of the frozen
    weights have no effect. The model itself does not change.

    ``torch.fx`` records the model once, for inputs of all sizes. The record keeps the branches and the Python values of
    that one run. If the record would be incomplete, the copy is converted instead (:func:`fastconv.convert`), and its
    weights are packed. The record of a model would be incomplete if

    - it has an ``if`` or a loop that depends on the input or on the modes of PyTorch;
    - it asks for the type or the identity of a value, as in ``mask is None``;
    - its ``forward`` has default values or ``**kwargs``;
    - its ``forward`` creates tensors, draws random numbers, changes the model or enters a context such as autocast.

    The stages and blocks of such a copy that take one tensor are then recorded one by one. With ``record_calls``, the
    copy also records the first call with each set of sizes, strides, dtypes and other arguments, up to 8. In a call,
    sizes, types and identities are known, and ``forward`` may create tensors. A call runs without a record if

    - the result depends on the values of a tensor in Python, as in ``if x.mean() > 0``;
    - ``forward`` draws random numbers, changes the model or enters a context;
    - the call needs a gradient, or runs in autocast or a transform;
    - an argument is not a tensor, a bool, an int, a string or None.

    Do not call ``freeze`` while another thread runs a model: ``torch.fx`` replaces functions of PyTorch meanwhile.
    Recording a call replaces no function.

    Args:
        model: a model in evaluation mode, on the CPU.
        record_calls: record calls of a model that ``torch.fx`` cannot record. To record a call, the model runs several
            times, also with negative inputs. Do not use it if ``forward`` reads or changes objects outside of the
            model, such as a global list.

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
        raise RuntimeError("freeze() needs all weights, but a lazy layer has none yet. Call the model once first")
    with torch.inference_mode(False):  # inputs of the copy may need gradients
        return _freeze(model, record_calls)


def _freeze(model: nn.Module, record_calls: bool) -> nn.Module:
    plain = _plain_copy(model)
    graph = record(copy.deepcopy(plain))  # a model may change while it is recorded
    if graph is not None:
        return _fused(plain, graph, {})
    for module in plain.modules():
        if type(module) is nn.Conv2d:
            module.weight = freeze_weight(module.weight)
    folded: Folded = {}
    freeze_parts(plain, partial(_recorded_part, folded=folded))
    copied = _FrozenCopy(convert(plain), folded, record_calls)
    copied.seal()
    return copied


def _fused(plain: nn.Module, graph: fx.Graph, folded: Folded) -> _FrozenGraph:
    fuse(plain, graph, folded)
    return convert(_FrozenGraph(plain, graph, f"Frozen{type(plain).__name__}"))


def _recorded_part(module: nn.Module, folded: Folded) -> nn.Module | None:
    graph = record(copy.deepcopy(module))
    return None if graph is None else _if_faster(_fused(_twin(module), graph, folded))


def _recorded_call(model: nn.Module, call: Call, folded: Folded) -> Record | None:
    plain = _twin(model)
    found = record_call(copy.deepcopy(plain), call)
    frozen = _if_faster(_fused(plain, found.graph, folded))
    return None if frozen is None else (frozen, found.tree)


def _if_faster(frozen: nn.Module) -> nn.Module | None:
    return frozen if any(isinstance(m, FrozenChain | FrozenLinear) for m in frozen.modules()) else None


def _plain_copy(model: nn.Module) -> nn.Module:
    return revert(copy.deepcopy(model)).requires_grad_(False)


def _twin(model: nn.Module) -> nn.Module:
    """Return a copy of the modules, as layers of PyTorch, with the same tensors. Its parts are not frozen."""
    parts = [*frozen_parts(model)]
    shared = {id(kept): kept for kept in (*model.parameters(), *model.buffers(), *parts)}
    twin = copy.deepcopy(model, shared)
    for module in twin.modules():
        if vars(module).get("forward") in parts:
            del vars(module)["forward"]
    return revert(twin)


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
    """A model that could not be recorded, and is converted instead. It may record its calls."""

    def __init__(self, model: nn.Module, folded: Folded, record_calls: bool) -> None:
        super().__init__()
        self.model = model
        self._calls = FrozenCalls(model, _recorded_call, folded) if record_calls else None

    def _sealed(self) -> list[Sealed]:
        return [*frozen_parts(self.model), *([] if self._calls is None else [self._calls])]

    def seal(self) -> None:
        for sealed in self._sealed():
            sealed.seal()

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Change the tensors of the parts, too, as in ``double()``."""
        unchanged = [sealed for sealed in self._sealed() if sealed.is_unchanged()]
        changed = [sealed for sealed in self._sealed() if sealed not in unchanged]
        super()._apply(fn, recurse)
        for part in frozen_parts(self.model):
            part.frozen._apply(fn)
        if self._calls is not None:
            self._calls.forget()
        for sealed in unchanged:
            sealed.seal()
        for sealed in changed:
            sealed.unseal()
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        is_recorded = self._calls is not None and not torch.compiler.is_compiling()
        return self._calls(*args, **kwargs) if is_recorded else self.model(*args, **kwargs)  # type: ignore[misc]
