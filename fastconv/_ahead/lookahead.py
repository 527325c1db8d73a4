"""Find what the program does with the result of a layer: the next layers, functions and additions.

The answer is about this very call. It comes from the bytecode of the code that runs (:mod:`fastconv._ahead.bytecode`)
and from the modules and tensors that its variables hold now. Only the analysis of the bytecode is remembered.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Collection, Iterator
from inspect import getattr_static
from types import CodeType, FrameType, FunctionType, MethodDescriptorType
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.modules import module as torch_module

from fastconv._ahead.bytecode import START, Use, Uses, is_readable, uses
from fastconv._ahead.layers import CALLED, FUNCTION_TYPES, KINDS, methods
from fastconv._ahead.values import MISSING, value_at
from fastconv._ops.library import _C

__all__ = ["ADDITION", "LAYERS_IN_FRAME", "SEQUENTIAL_CALLS", "Step", "first_layer", "runs_stock_code", "steps"]

#: The user of a result, its other arguments, and whether no variable that is read later holds an earlier result.
#: The user is a module, a function or ADDITION. The arguments of a call are pairs of a name or position and a constant.
#: For an addition, the argument is the other operand.
Step = tuple[Any, Any, bool]
#: The user of an addition.
ADDITION = object()

_is_stock = _C.is_stock
#: PyTorch's own methods of a module.
_CALLS = methods(Module, "__call__", "_call_impl", "_wrapped_call_impl")
_CALL_IMPL_CODE, _WRAPPED_CALL_IMPL_CODE = Module._call_impl.__code__, Module._wrapped_call_impl.__code__
_ITER = torch.nn.Sequential.__iter__
_SEQUENTIAL = torch.nn.Sequential.forward.__code__
#: For each Sequential that only calls its members, the methods that a call runs.
SEQUENTIAL_CALLS = [methods(torch.nn.Sequential, *CALLED, "__iter__")]
#: The code of Sequentials that keep their members and the position in the variables ``layers`` and ``i``, by address.
#: The hash of a code object takes 3 us.
LAYERS_IN_FRAME: dict[int, CodeType] = {}
#: For each call that was analysed (the code's address and the offset), the code and its uses under several conditions.
_KNOWN: dict[tuple[int, int], tuple[CodeType, tuple[Uses, ...]]] = {}
#: More calls, or more combinations of conditions, are not remembered.
_MOST_CALLS, _MOST_COMBINATIONS = 4096, 8
#: Modules that are nested more deeply are not entered. A module may call itself without end.
_DEEPEST = 100
#: Types whose values can be dropped without running code of the program. Tensors and modules are checked.
_SILENT = frozenset({type(None), bool, int, float, str, FunctionType, torch.Size, torch.dtype, torch.device})
_get_tool: Any = getattr(getattr(sys, "monitoring", None), "get_tool", None)  # Python 3.12


def steps(layer: Module, frame: FrameType | None, last: Collection[str] = ()) -> Iterator[Step]:
    """Yield the steps after a layer: the use of its result, the use of that result, and so on.

    The steps end where the program runs other code, or where a hook sees a result.

    Args:
        layer: a layer without hooks.
        frame: the frame of its ``forward``.
        last: the kinds of layers that end the steps of a Sequential: it may have hundreds of layers.
    """
    if _is_traced() or torch_module._has_any_global_hook():
        return
    owner: Module | None = layer
    while owner is not None and frame is not None and runs_stock_code(owner, frame.f_code):
        frame = _caller(frame)
        if frame is None:
            return
        is_sequential = frame.f_code is _SEQUENTIAL or id(frame.f_code) in LAYERS_IN_FRAME
        found, owner = _of_sequential(frame, owner, last) if is_sequential else _of_code(frame, owner)
        yield from found


def _is_traced() -> bool:
    """Return whether a debugger, profiler or coverage tool watches this thread."""
    if sys.gettrace() is not None or sys.getprofile() is not None:
        return True
    if _get_tool is not None:
        for tool in range(6):
            if _get_tool(tool) is not None:
                return True
    return False


def runs_stock_code(module: Module, forward: CodeType) -> bool:
    """Return whether a call of the module runs only PyTorch's own code and the code ``forward``."""
    function: Any = type(module).forward
    return type(function) is FunctionType and function.__code__ is forward and _is_stock(module, _CALLS)


def _caller(frame: FrameType) -> FrameType | None:
    """Return the frame that called the module whose ``forward`` runs in ``frame``. None if hooks see the result."""
    call = frame.f_back
    if call is None or call.f_code is not _CALL_IMPL_CODE:
        return None
    call = call.f_back
    if call is None or call.f_code is not _WRAPPED_CALL_IMPL_CODE:
        return None
    return call.f_back


def _of_sequential(frame: FrameType, layer: Module, last: Collection[str]) -> tuple[list[Step], Module | None]:
    """Return the layers after ``layer``, and the Sequential, unless the steps end before it returns."""
    variables = _variables(frame)
    owner: Module = variables["self"]
    if frame.f_code is _SEQUENTIAL:
        layers = list(owner._modules.values())
        places = [i for i, other in enumerate(layers) if other is layer]
        if len(places) != 1 or type(owner).__iter__ is not _ITER:  # type: ignore[attr-defined]
            return [], None
        i = places[0]
    else:
        layers, i = variables["layers"], variables["i"]
        if layers[i] is not layer:
            return [], None
    if not _is_silent(variables["input"]):
        return [], None
    found: list[Step] = []
    for module in layers[i + 1 :]:
        kind = KINDS.get(type(module))
        if kind is not None:
            found.append((module, (), True))
            if kind in last:
                return found, None
        elif not _add_call(found, module, (), True):
            return found, None
    return found, owner


def _add_call(found: list[Step], user: Any, arguments: Any, is_clean: bool) -> bool:
    """Add the call of a layer or function, or the calls of the layers of a Sequential. Return whether more may follow.

    The last layer of a Sequential ends its call. Until then, a variable may hold the argument of the Sequential.
    A module that only calls a function counts as that function.
    """
    kind = type(user)
    if kind in KINDS or not issubclass(kind, Module):
        found.append((user, arguments, is_clean))
        return True
    if not issubclass(kind, torch.nn.Sequential) or arguments or not _runs_its_layers(user):
        function, constants = _only_function(user)
        found.append((user, arguments, is_clean) if function is None or arguments else (function, constants, is_clean))
        return function is not None and not arguments
    layers = list(user._modules.values())
    left = len(layers)
    for layer in layers:
        left -= 1
        if type(layer) in KINDS:
            found.append((layer, (), is_clean and left == 0))
        elif not _add_call(found, layer, (), is_clean and left == 0):
            return False
    return True


def _runs_its_layers(sequential: torch.nn.Sequential) -> bool:
    """Return whether a call of a Sequential only calls its layers, of which there are some."""
    is_plain = any(_is_stock(sequential, calls) for calls in SEQUENTIAL_CALLS)
    return is_plain and bool(sequential._modules)


def _of_code(frame: FrameType, layer: Module) -> tuple[list[Step], Module | None]:
    """Return the steps of a function that has called ``layer``, and its first argument if it then returns."""
    if not is_readable(frame.f_code):
        return [], None
    variables, names = _variables(frame), frame.f_globals
    found = _uses(frame.f_code, frame.f_lasti, variables, names)
    steps: list[Step] = []
    # A C function such as functools.reduce may have called the layer.
    if not found.function or value_at(found.function, variables, names) is not layer:
        return steps, None
    for use in found.uses:
        for name in use.stores:
            if not _is_silent(variables.get(name)):
                return steps, None
        if use.kind == "call":
            if not _add_call(steps, _called(use, variables, names), use.arguments, use.is_clean):
                return steps, None
        elif use.kind == "method":
            steps.append((getattr(Tensor, str(use.path[0]), None), use.arguments, use.is_clean))
        elif use.kind == "add":
            steps.append((ADDITION, value_at(use.path, variables, names), use.is_clean))
        elif use.kind == "return" and found.owner is not None and all(map(_is_silent, variables.values())):
            owner = variables[found.owner]
            return steps, owner if isinstance(owner, Module) else None
    return steps, None


def _only_function(module: Module) -> tuple[Any, Any]:
    """Return the function whose result a call of ``module`` returns, and its arguments after the first.

    None if the module does anything else.
    """
    uses, function = _of_argument(module)
    is_only = len(uses) == 2 and uses[0].kind == "call" and uses[1].kind == "return"
    if not is_only or type(function) not in FUNCTION_TYPES or any(use.stores for use in uses):
        return None, ()
    return function, uses[0].arguments


def _of_argument(module: Module) -> tuple[tuple[Use, ...], Any]:
    """Return how a call of ``module`` uses its argument, and the layer or function that it calls first."""
    forward: Any = getattr_static(type(module), "forward")  # A static method has no parameter for the module.
    if type(forward) is not FunctionType or not runs_stock_code(module, forward.__code__):
        return (), None
    code, names = forward.__code__, forward.__globals__
    if code.co_argcount < 2:
        return (), None
    variables = {code.co_varnames[0]: module}
    found = _uses(code, START, variables, names).uses
    return found, _called(found[0], variables, names) if found[0].kind == "call" else None


def _called(call: Use, variables: dict[str, Any], names: dict[str, Any]) -> Any:
    """Return what a call calls. MISSING for a tensor's method: ``Tensor.relu(x)`` accepts only a tensor as ``x``."""
    value = value_at(call.path, variables, names)
    return MISSING if type(value) is MethodDescriptorType else value


def first_layer(module: Any) -> Any:
    """Return the layer that a call of ``module`` calls first, with its argument and nothing else. None if not known.

    Args:
        module: a layer, a Sequential, or another module or object.
    """
    for _ in range(_DEEPEST):
        cls = type(module)
        if cls in KINDS:
            return module
        if not issubclass(cls, Module):
            return None
        if issubclass(cls, torch.nn.Sequential) and _runs_its_layers(module):
            module = next(iter(module._modules.values()))
            continue
        found, called = _of_argument(module)
        if not found or found[0].kind != "call" or found[0].arguments:
            return None
        module = called
    return None


def _uses(code: CodeType, offset: int, variables: dict[str, Any], names: dict[str, Any]) -> Uses:
    """Return the uses of a result under the conditions of this moment. Remember them."""
    known_code, known = _KNOWN.get((id(code), offset), (None, ()))
    if known_code is not code:
        known = ()
    for found in known:
        if _holds(found, variables, names):
            return found

    def is_none(path: Any) -> bool | None:
        value = value_at(path, variables, names)
        return None if value is MISSING else value is None

    found = uses(code, offset, is_none)
    if len(known) < _MOST_COMBINATIONS:
        if len(_KNOWN) >= _MOST_CALLS:
            _KNOWN.clear()
        _KNOWN[id(code), offset] = (code, (*known, found))
    return found


def _holds(found: Uses, variables: dict[str, Any], names: dict[str, Any]) -> bool:
    """Return whether all conditions hold."""
    for path, is_none in found.conditions:
        value = value_at(path, variables, names)
        if value is MISSING or (value is None) is not is_none:
            return False
    return True


def _variables(frame: FrameType) -> dict[str, Any]:
    """Return a copy of a frame's local variables."""
    variables = frame.f_locals
    copied = dict(variables)
    # Before Python 3.13, the frame keeps the dictionary, and so the values, until the function returns. It has three
    # references: of the frame, of this function and of the call of getrefcount. With more, the program uses it.
    if sys.version_info < (3, 13) and sys.getrefcount(variables) <= 3:
        variables.clear()
    return copied


def _is_silent(value: Any) -> bool:
    """Return whether dropping a value runs no code of the program, such as ``__del__``."""
    cls = type(value)
    if cls is Tensor:
        return weakref.getweakrefcount(value) == 0
    return cls in _SILENT or (issubclass(cls, Module) and not hasattr(cls, "__del__"))
