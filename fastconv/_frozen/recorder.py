"""Record a call of a model: run the model, and note the functions that it calls. The record is for the same sizes.

torch.fx cannot record a model that computes with sizes, as in ``if x.shape[-1] % 2``, or that asks whether an argument
is None. A run with real tensors knows these answers. They are the same in all calls with the same sizes, strides,
dtypes and other arguments.

The record may not depend on the values of tensors. So each function that the model calls has to return tensors, or
sizes and other metadata. The record is then checked with other values, and with fake tensors, which have no values.

A TorchFunctionMode notes the functions. It sees only its own thread. torch.fx replaces functions for all threads, so
other threads must wait.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from types import GetSetDescriptorType, MethodWrapperType
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode, handle_torch_function
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import TreeSpec, tree_flatten
from torch.utils.weak import WeakTensorKeyDictionary

from fastconv._frozen.calls import Call
from fastconv._frozen.record import IN_PLACE, Refused
from fastconv._frozen.state import is_same_state, modes, random_state, set_random_state, state_of
from fastconv._layer import is_observed

__all__ = ["record_call"]


class CallGraph(NamedTuple):
    """The graph of a call. Its inputs are the tensors of the call. It returns the leaves of the tree of the result."""

    graph: fx.Graph
    leaves: list[Any]
    tree: TreeSpec


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
    # The recorder does not see a tensor change in code that is not PyTorch's, such as C++.
    for run, inputs in ((found, _copies(call.tensors)), (other, _negatives(call.tensors))):
        with torch.inference_mode():
            repeated = fx.Interpreter(model, graph=found.graph).run(*inputs)
        for mine, theirs in zip(repeated, run.leaves, strict=True):
            if isinstance(theirs, Tensor):
                torch.testing.assert_close(mine, theirs, equal_nan=True)
    # Fake tensors raise an error if a size depends on the values of a tensor.
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        fakes = [torch.empty_strided(x.shape, x.stride(), dtype=x.dtype) for x in call.tensors]
        fx.Interpreter(model, graph=found.graph).run(*fakes)
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

#: Functions whose results depend only on the key of a call. The graph does not contain them.
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
        self._depth = 0  # of the functions that run

    def run(self, call: Call, inputs: Sequence[Tensor]) -> CallGraph:
        """Call the model with these inputs instead of the tensors of the call."""
        given = {id(tensor): input for tensor, input in zip(call.tensors, inputs, strict=True)}
        for i, tensor in enumerate(inputs):
            self._nodes[tensor] = self._graph.placeholder(f"input_{i}")
        arguments = [given.get(id(value), value) for value in call.arguments]
        keywords = {name: given.get(id(value), value) for name, value in call.keywords.items()}
        # torch.cond compiles its branches, and Dynamo does not work within a dispatch mode.
        with torch.compiler.set_stance("force_eager"), _Unseen(self), self:
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
        self._depth += 1
        try:
            result = func(*args, **kwargs)
        finally:
            self._depth -= 1
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

    def note_operator(self) -> None:
        """Refuse the record if an operator runs that no function of the graph calls, such as one of TorchScript."""
        if self._depth == 0:
            self._is_complete = False

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


class _Unseen(TorchDispatchMode):
    """Tells the recorder of each operator."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._recorder.note_operator()
        return func(*args, **(kwargs or {}))
