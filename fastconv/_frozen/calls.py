"""Record one call of a model, for the sizes of its inputs: run the model, and note the functions that it calls.

torch.fx cannot record a model that computes with sizes, as in ``if x.shape[-1] % 2``, or that asks whether an argument
is None. A run with real tensors knows these answers. They hold for all calls with the same sizes, dtypes and other
arguments.

The record may not depend on the values of tensors. So each function that the model calls has to return tensors, or
sizes and other metadata. The record has to give the model's results for other values, too. And it has to run with fake
tensors, which have no values.

A TorchFunctionMode notes the functions. It sees only those of its own thread, so other threads may run models
meanwhile. torch.fx replaces functions of PyTorch for all threads.
"""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Mapping, Sequence
from types import GetSetDescriptorType, MethodWrapperType
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode, handle_torch_function
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten
from torch.utils.weak import WeakTensorKeyDictionary

from fastconv._frozen.record import IN_PLACE, Refused
from fastconv._frozen.state import Sealed, is_same_state, modes, random_state, set_random_state, state_of
from fastconv._layer import is_observed
from fastconv._ops.function import is_transformed

__all__ = ["Call", "FrozenCalls", "Record", "record_call"]


class Call(NamedTuple):
    """The arguments of a call."""

    key: tuple[Any, ...]  # equal for calls with the same record
    tensors: list[Tensor]
    arguments: Sequence[Any]
    keywords: Mapping[str, Any]


class CallGraph(NamedTuple):
    """The graph of a call. Its inputs are the tensors of the call. It returns the leaves of the tree of the result."""

    graph: fx.Graph
    leaves: list[Any]
    tree: TreeSpec


def call_of(arguments: Sequence[Any], keywords: Mapping[str, Any]) -> Call | None:
    """Return the call. None if its record would depend on something that the key does not contain."""
    key: list[Any] = []
    tensors: list[Tensor] = []
    grad = torch.is_grad_enabled()
    for place, value in (*enumerate(arguments), *keywords.items()):
        if type(value) is Tensor:
            is_plain = value.is_cpu and value.layout is torch.strided and not vars(value)
            if not is_plain or (grad and value.requires_grad):
                return None
            tensors.append(value)
            key.append((place, value.shape, value.dtype))
        elif value is None or type(value) in (bool, int, str):
            key.append((place, type(value), value))
        else:
            return None
    has_aliases = len({id(tensor) for tensor in tensors}) < len(tensors)
    return Call(tuple(key), tensors, arguments, keywords) if tensors and not has_aliases else None


def record_call(model: nn.Module, call: Call) -> CallGraph:
    """Return the graph of a call.

    The model may be changed. The inputs are not.

    Raises:
        Refused: the call does something that a graph would not repeat.
        Exception: the call fails.
    """
    if any(is_observed(module) for module in model.modules()):
        raise Refused("a module has hooks")
    leaves = _prepare_leaves(model)
    before, numbers = state_of(model), random_state()
    try:
        # A branch on a mode or on a value, or a number that changes from run to run, gives two graphs.
        with torch.enable_grad():
            found = _Recorder(model, leaves).run(call, _copies(call.tensors))
        with torch.inference_mode():
            other = _Recorder(model, leaves).run(call, _negatives(call.tensors))
        if random_state() != numbers:
            raise Refused("the model draws random numbers")
    finally:
        if random_state() != numbers:
            set_random_state(numbers)
    if _source(found) != _source(other) or found.tree != other.tree or not is_same_state(before, state_of(model)):
        raise Refused("the next call may differ")
    for leaf in leaves:
        del vars(leaf.layer)["forward"]
    # A compiled function that is not PyTorch's may have changed a tensor, which the recorder does not see.
    with torch.inference_mode():
        repeated = fx.Interpreter(model, graph=found.graph).run(*_negatives(call.tensors))
    for mine, theirs in zip(repeated, other.leaves, strict=True):
        if isinstance(theirs, Tensor):
            torch.testing.assert_close(mine, theirs, equal_nan=True)
    # Fake tensors raise an error if a size depends on the values of a tensor.
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        fx.Interpreter(model, graph=found.graph).run(*[torch.empty(x.shape, dtype=x.dtype) for x in call.tensors])
    return found


def _copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in tensors]


def _negatives(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return other values of the same sizes. Integers may be indices, so they stay."""
    return [-copied if copied.is_floating_point() else copied for copied in _copies(tensors)]


def _source(found: CallGraph) -> str:
    return found.graph.python_code("self").src


# ---- the layers that the graph calls -----------------------------------------------------------------------------


class _Leaf:
    """The ``forward`` of a layer of PyTorch, which is one node of the graph."""

    def __init__(self, name: str, layer: nn.Module) -> None:
        self.name, self.layer, self._forward = name, layer, layer.forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return handle_torch_function(self.run, (), *args, **kwargs)

    def run(self, *args: Any, **kwargs: Any) -> Any:
        return self._forward(*args, **kwargs)


def _is_leaf(module: nn.Module) -> bool:
    is_container = isinstance(module, nn.Sequential) or type(module).forward is nn.Module.forward
    return module.__module__.startswith("torch.nn.") and not is_container


def _prepare_leaves(model: nn.Module) -> list[_Leaf]:
    """Have the layers of PyTorch tell the recorder when they run."""
    found = []

    def visit(module: nn.Module, name: str) -> None:
        if module is not model and _is_leaf(module):
            found.append(_Leaf(name, module))
        else:
            for child_name, child in module.named_children():
                visit(child, f"{name}.{child_name}" if name else child_name)

    visit(model, "")
    leaves = list({id(leaf.layer): leaf for leaf in found}.values())
    for leaf in leaves:
        vars(leaf.layer)["forward"] = leaf
    return leaves


# ---- the recorder ------------------------------------------------------------------------------------------------

#: Functions whose results follow from the key of a call. No graph contains them.
_METADATA: frozenset[Any] = frozenset({
    Tensor.shape, Tensor.ndim, Tensor.dtype, Tensor.device, Tensor.size, Tensor.dim, Tensor.ndimension, Tensor.numel,
    Tensor.nelement, Tensor.__len__, Tensor.is_floating_point, Tensor.is_complex, torch.numel, torch.is_floating_point,
    torch.is_complex,
})  # fmt: skip

#: Methods that graph.py fuses, as functions.
_FUNCTIONS: dict[Any, Any] = {Tensor.add: torch.add, Tensor.relu: torch.relu}
_FUNCTIONS[Tensor.add_] = next(function for function, name in IN_PLACE.items() if name == "__iadd__")

#: Arguments of functions that a graph contains.
_CONSTANTS = frozenset({
    bool, int, float, str, type(None), type(...), torch.dtype, torch.device, torch.layout, torch.memory_format,
})  # fmt: skip


class _Recorder(TorchFunctionMode):
    """Adds each function that is called to a graph. The functions that they call are not seen."""

    def __init__(self, model: nn.Module, leaves: Sequence[_Leaf]) -> None:
        super().__init__()
        self._model, self._graph, self._modes = model, fx.Graph(), modes()
        self._leaves: dict[Any, str] = {leaf.run: leaf.name for leaf in leaves}
        self._nodes = WeakTensorKeyDictionary()
        self._attributes: dict[int, str] = {
            id(t): name for name, t in (*model.named_parameters(), *model.named_buffers())
        }
        self._is_complete = True

    def run(self, call: Call, inputs: Sequence[Tensor]) -> CallGraph:
        """Call the model with these inputs instead of the tensors of the call."""
        given = {id(tensor): input for tensor, input in zip(call.tensors, inputs, strict=True)}
        for i, tensor in enumerate(inputs):
            self._nodes[tensor] = self._graph.placeholder(f"input_{i}")
        arguments = [given.get(id(value), value) for value in call.arguments]
        keywords = {name: given.get(id(value), value) for name, value in call.keywords.items()}
        with self:
            result = self._model(*arguments, **keywords)
        leaves, tree = tree_flatten(result)
        self._graph.output(self._argument(leaves))
        if not self._is_complete:
            raise Refused("a function failed, or was refused, and the model caught the error")
        return CallGraph(self._graph, leaves, tree)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        try:
            if modes() != self._modes:
                raise Refused("a context within forward is not recorded")
            return self._call(func, args, kwargs or {})
        except BaseException:  # the model may catch it
            self._is_complete = False
            raise

    def _call(self, func: Any, args: Any, kwargs: Any) -> Any:
        target: Any = func.__self__ if isinstance(func, MethodWrapperType) and func.__name__ == "__get__" else func
        if target in _METADATA:
            self._node(args[0])
            return func(*args, **kwargs)
        arguments, keywords = self._argument(args), self._argument(kwargs)
        result = func(*args, **kwargs)
        if target in self._leaves:
            node = self._graph.call_module(self._leaves[target], arguments, keywords)
        elif isinstance(target, GetSetDescriptorType):
            node = self._graph.call_function(getattr, (arguments[0], target.__name__))
        elif target in _FUNCTIONS and not keywords:
            node = self._graph.call_function(_FUNCTIONS[target], arguments)
        elif getattr(Tensor, target.__name__, None) is target:
            node = self._graph.call_method(target.__name__, arguments, keywords)
        else:
            node = self._graph.call_function(target, arguments, keywords)
        if target is not Tensor.__setitem__:
            self._add_result(result, node)
        return result

    def _add_result(self, result: Any, node: fx.Node) -> None:
        if type(result) in (Tensor, nn.Parameter):
            self._nodes[result] = node
        elif isinstance(result, tuple | list):
            for i, member in enumerate(result):
                if member is not None:
                    self._add_result(member, self._graph.call_function(operator.getitem, (node, i)))
        else:
            raise Refused(f"the {type(result).__name__} that {node.target} returns may depend on values")

    def _node(self, tensor: Tensor) -> fx.Node:
        if tensor not in self._nodes:
            if id(tensor) not in self._attributes:
                raise Refused("the origin of a tensor is not known")
            self._nodes[tensor] = self._graph.get_attr(self._attributes[id(tensor)])
        return self._nodes[tensor]

    def _argument(self, value: Any) -> Any:
        """Return the argument of a node for the argument of a function."""
        kind = type(value)
        if isinstance(value, Tensor):
            return self._node(value)
        if kind in (tuple, torch.Size):
            return tuple(map(self._argument, value))
        if kind is list:
            return [*map(self._argument, value)]
        if kind is dict:
            return {name: self._argument(member) for name, member in value.items()}
        if kind is slice:
            return slice(*map(self._argument, (value.start, value.stop, value.step)))
        if kind not in _CONSTANTS:
            raise Refused(f"an argument of the type {kind.__name__} is not recorded")
        return value


# ---- the records of a model --------------------------------------------------------------------------------------

#: The frozen graph of a call, and the structure of its result.
Record = tuple[nn.Module, TreeSpec]
#: One thread records at a time, because the random numbers belong to all threads.
_recording = threading.Lock()


class FrozenCalls(Sealed):
    """Calls a model. Records the first call with each set of sizes, and uses the record for the next ones.

    The records hold for the attributes, layers, hooks and values that the model had when it was frozen. They are not
    copied.

    Args:
        model: the model that computes calls without a record.
        freeze: records a call of the model. It returns None if the call cannot be recorded.
    """

    #: More sets of sizes than this are not recorded. A program with images of many sizes would record for ever.
    most_records = 8

    def __init__(self, model: nn.Module, freeze: Callable[[nn.Module, Call, Any], Record | None], folded: Any) -> None:
        super().__init__(model)
        self._freeze, self._folded = freeze, folded
        self._records: dict[Any, Record | None] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call = None if _is_special() else call_of(args, kwargs)
        if call is not None and self._is_unchanged() and (record := self._record(call)) is not None:
            frozen, tree = record
            return tree_unflatten(frozen(*call.tensors), tree)
        return self.module(*args, **kwargs)

    def _record(self, call: Call) -> Record | None:
        found = self._records.get(call.key)
        is_new = call.key not in self._records and len(self._records) < self.most_records
        if is_new and _recording.acquire(blocking=False):  # else another thread records: do not wait for it
            try:
                with torch.inference_mode(False):
                    found = self._freeze(self.module, call, self._folded)
            except (Exception, Refused):
                found = None
            finally:
                _recording.release()
            self._records[call.key] = found
        return found

    def forget(self) -> None:
        """Drop the records, because the model has new tensors."""
        self._records.clear()
        self._folded.clear()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_records": {}, "_folded": {}}


def _is_special() -> bool:
    """Return whether something sees or changes the functions of this call. A record would hide them."""
    return (
        is_transformed()
        or torch.is_autocast_enabled("cpu")
        or torch._C._get_tracing_state() is not None
        or torch._C._len_torch_function_stack() > 0
        or torch._C._len_torch_dispatch_stack() > 0
        or torch.nn.modules.module._has_any_global_hook()
    )
