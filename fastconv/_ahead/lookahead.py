"""Find what the program does with the result of a layer: the next layers, functions and additions.

The answer is about this very call. It comes from the bytecode of the code that runs (:mod:`fastconv._ahead.bytecode`)
and from the modules and tensors that its variables hold now. Only the analysis of the bytecode is remembered.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Generator, Iterator
from itertools import starmap
from types import CodeType, FrameType, FunctionType, ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.modules import module as torch_module

from fastconv._ahead.bytecode import Path, Uses, uses
from fastconv._layer import is_observed

__all__ = ["LAYERS_IN_FRAME", "Addition", "Step", "runs_stock_code", "steps"]


class Addition(NamedTuple):
    """The result + ``other``."""

    other: Any


class Step(NamedTuple):
    """What uses a result.

    Attributes:
        what: a module, a function or an Addition.
        is_clean: no variable holds an earlier result once this step is finished.
    """

    what: Any
    is_clean: bool


#: PyTorch's own methods of a module.
_CALL, _CALL_IMPL, _WRAPPED_CALL_IMPL, _GETATTR, _ITER = (
    Module.__call__, Module._call_impl, Module._wrapped_call_impl, Module.__getattr__, torch.nn.Sequential.__iter__,
)  # fmt: skip
_CALL_IMPL_CODE, _WRAPPED_CALL_IMPL_CODE = _CALL_IMPL.__code__, _WRAPPED_CALL_IMPL.__code__
_SEQUENTIAL = torch.nn.Sequential.forward.__code__
#: The code of Sequentials that keep their members and the position in the variables ``layers`` and ``i``.
LAYERS_IN_FRAME: set[CodeType] = set()
#: For each call that was analysed (the code's address and the offset), the code and its uses under several conditions.
_KNOWN: dict[tuple[int, int], tuple[CodeType, tuple[Uses, ...]]] = {}
#: More calls, or more combinations of conditions, are not remembered.
_MOST_CALLS, _MOST_COMBINATIONS = 4096, 8
#: Types whose values can be dropped without running code of the program. Tensors and modules are checked.
_SILENT = frozenset({type(None), bool, int, float, str, FunctionType, torch.Size, torch.dtype, torch.device})
#: A value that does not exist, or that is not known without running code.
_MISSING = object()
_get_tool: Any = getattr(getattr(sys, "monitoring", None), "get_tool", None)  # Python 3.12


def steps(layer: Module, frame: FrameType | None) -> Iterator[Step]:
    """Yield what uses the result of a layer, what uses the result of that, and so on.

    The steps end where the program runs other code, or where a hook sees a result.

    Args:
        layer: a layer without hooks.
        frame: the frame of its ``forward``.
    """
    if _is_traced() or torch_module._has_any_global_hook():
        return
    owner: Module | None = layer
    while owner is not None and frame is not None and runs_stock_code(owner, frame.f_code):
        frame = _caller(frame)
        if frame is None:
            return
        if frame.f_code is _SEQUENTIAL or frame.f_code in LAYERS_IN_FRAME:
            owner = yield from _of_sequential(frame, owner)
        else:
            owner = yield from _of_code(frame, owner)


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
    cls = type(module)
    return (
        cls.__call__ is _CALL
        and cls._call_impl is _CALL_IMPL
        and cls._wrapped_call_impl is _WRAPPED_CALL_IMPL
        and type(cls.forward) is FunctionType
        and cls.forward.__code__ is forward
        and not is_observed(module)
    )


def _caller(frame: FrameType) -> FrameType | None:
    """Return the frame that called the module whose ``forward`` runs in ``frame``. None if hooks see the result."""
    call = frame.f_back
    if call is None or call.f_code is not _CALL_IMPL_CODE:
        return None
    call = call.f_back
    if call is None or call.f_code is not _WRAPPED_CALL_IMPL_CODE:
        return None
    return call.f_back


def _of_sequential(frame: FrameType, layer: Module) -> Generator[Step, None, Module | None]:
    """Yield the layers after ``layer``. Return the Sequential."""
    variables = _variables(frame)
    owner: Module = variables["self"]
    if frame.f_code is _SEQUENTIAL:
        layers = list(owner._modules.values())
        places = [i for i, other in enumerate(layers) if other is layer]
        cls: Any = type(owner)
        if len(places) != 1 or cls.__iter__ is not _ITER:
            return None
        i = places[0]
    else:
        layers, i = variables["layers"], variables["i"]
        if layers[i] is not layer:
            return None
    if not _is_silent(variables["input"]):
        return None
    for module in layers[i + 1 :]:
        yield Step(module, True)
    return owner


def _of_code(frame: FrameType, layer: Module) -> Generator[Step, None, Module | None]:
    """Yield the steps of a function that has called ``layer``. If it then returns, return its first argument."""
    known = _known(frame) or (_analyse(frame, ()),)
    if not known[0].function:
        return None
    scope = _Scope(_variables(frame), frame.f_globals)
    if scope.value(known[0].function) is not layer:  # a C function such as functools.reduce has called the layer
        return None
    found = next((each for each in known if all(starmap(scope.holds, each.conditions))), None)
    for use in (found or _analyse(frame, known)).uses:
        if not all(_is_silent(scope.variables.get(name)) for name in use.stores):
            return None
        if use.kind == "call":
            yield Step(scope.value(use.path), use.is_clean)
        elif use.kind == "add":
            yield Step(Addition(scope.value(use.path)), use.is_clean)
        elif use.kind == "return" and known[0].owner is not None and all(map(_is_silent, scope.variables.values())):
            owner = scope.variables[known[0].owner]
            return owner if isinstance(owner, Module) else None
    return None


def _known(frame: FrameType) -> tuple[Uses, ...]:
    """Return the uses of the call that runs in ``frame``, as far as they are known."""
    code, known = _KNOWN.get((id(frame.f_code), frame.f_lasti), (None, ()))
    return known if code is frame.f_code else ()


def _analyse(frame: FrameType, known: tuple[Uses, ...]) -> Uses:
    """Find the uses of the call that runs in ``frame``, under the conditions of this moment. Remember them."""

    def is_none(path: Path) -> bool | None:
        value = _Scope(_variables(frame), frame.f_globals).value(path)
        return None if value is _MISSING else value is None

    found = uses(frame.f_code, frame.f_lasti, is_none)
    if len(known) < _MOST_COMBINATIONS:
        if len(_KNOWN) >= _MOST_CALLS:
            _KNOWN.clear()
        _KNOWN[id(frame.f_code), frame.f_lasti] = (frame.f_code, (*known, found))
    return found


class _Scope(NamedTuple):
    """The local and the global variables of a function."""

    variables: dict[str, Any]
    names: dict[str, Any]

    def value(self, path: Path) -> Any:
        """Return the value at a path. _MISSING if it does not exist, or if finding it runs code of the program."""
        if path[0] == "local":
            value = self.variables.get(path[1], _MISSING)
        elif type(self.names) is dict:
            value = self.names.get(path[1], _MISSING)
        else:
            return _MISSING
        for name in path[2:]:
            value = _attribute(value, name)
        return value

    def holds(self, path: Path, is_none: bool) -> bool:
        """Return whether a condition holds."""
        value = self.value(path)
        return value is not _MISSING and (value is None) == is_none


def _attribute(value: Any, name: str) -> Any:
    """Return an attribute of a module. _MISSING if finding it runs code of the program, or if it does not exist."""
    cls: Any = type(value)
    if cls is ModuleType:
        return vars(value).get(name, _MISSING)
    if (
        getattr(cls, "__getattr__", None) is not _GETATTR
        or cls.__getattribute__ is not object.__getattribute__
        or hasattr(cls, name)
    ):
        return _MISSING
    attributes = vars(value)
    if name in attributes:
        return attributes[name]
    if name in attributes["_parameters"] or name in attributes["_buffers"]:
        return _MISSING
    return attributes["_modules"].get(name, _MISSING)


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
    return cls in _SILENT or (isinstance(value, Module) and not hasattr(cls, "__del__"))
