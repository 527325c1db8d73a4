"""Find what the program does with the result of a layer: the next layers, functions and additions.

The answer is about this very call. It comes from the bytecode of the code that runs (:mod:`fastconv._ahead.bytecode`)
and from the modules and tensors that its variables hold now.
"""

from __future__ import annotations

import sys
from types import CodeType, FrameType
from typing import Any, NamedTuple

import torch
from torch.nn import Module
from torch.nn.modules import module as torch_module

from fastconv._ahead.bytecode import Uses, uses
from fastconv._layer import is_observed

__all__ = ["Addition", "steps"]


class Addition(NamedTuple):
    """The result + ``other``."""

    other: Any


_CALL_IMPL, _WRAPPED_CALL_IMPL = Module._call_impl.__code__, Module._wrapped_call_impl.__code__
_SEQUENTIAL = torch.nn.Sequential.forward.__code__
#: For each call that was analysed, its uses under different conditions.
_USES: dict[tuple[CodeType, int], tuple[Uses, ...]] = {}
#: The most uses of one call. More combinations of conditions are not remembered.
_MOST_USES = 8
#: Whether ``self.name`` finds a submodule and runs no code of the class, by class and name.
_PLAIN: dict[tuple[type, str], bool] = {}


def steps(frame: FrameType | None, most: int) -> list[Any]:
    """Return what uses the result of a layer, the result of that, and so on: modules, functions and Additions.

    The list ends where the program runs other code, or a module has hooks.

    Args:
        frame: the frame of the layer's ``forward``.
        most: the most steps to find.
    """
    found: list[Any] = []
    if torch_module._has_any_global_hook() or sys.gettrace() is not None or sys.getprofile() is not None:
        return found
    while len(found) < most:
        frame = _caller(frame)
        if frame is None:
            break
        returned = _of_sequential(frame, found) if frame.f_code is _SEQUENTIAL else _of_code(frame, found)
        if not returned:
            break
    for i, step in enumerate(found):
        if step is None or (isinstance(step, Module) and is_observed(step)):
            return found[:i]
    return found


def _caller(frame: FrameType | None) -> FrameType | None:
    """Return the frame that called the module whose ``forward`` runs in ``frame``. None if hooks may see the result."""
    for code in (_CALL_IMPL, _WRAPPED_CALL_IMPL):
        frame = None if frame is None else frame.f_back
        if frame is None or frame.f_code is not code:
            return None
    assert frame is not None
    return frame.f_back


def _of_sequential(frame: FrameType, found: list[Any]) -> bool:
    """Append the layers after the current one. Return whether the Sequential then returns."""
    variables = frame.f_locals
    layers, current = list(variables["self"]._modules.values()), variables.get("module")
    if layers.count(current) != 1:
        return False
    found += layers[layers.index(current) + 1 :]
    return True


def _of_code(frame: FrameType, found: list[Any]) -> bool:
    """Append the steps of a function. Return whether it then returns."""
    key = (frame.f_code, frame.f_lasti)
    known = _USES.get(key, ())
    variables = frame.f_locals
    owner = variables.get("self")
    if not isinstance(owner, Module) or frame.f_code.co_varnames[:1] != ("self",):
        owner = None
    chosen = None
    for candidate in known:
        if not candidate.conditions or all(_is_none(owner, name) == is_none for name, is_none in candidate.conditions):
            chosen = candidate.uses
            break
    if chosen is None:
        if len(known) == _MOST_USES:
            return False
        analysed = uses(frame.f_code, frame.f_lasti, lambda name: _is_none(owner, name))
        _USES[key] = (*known, analysed)
        chosen = analysed.uses
    for kind, path in chosen:
        if kind == "call":
            found.append(_submodule(owner, path[1:]) if path[0] == "self" else _global(frame, path))
        elif kind == "add":
            found.append(Addition(variables.get(path[0])))
        else:
            return kind == "return"
    return False


def _is_none(owner: Module | None, name: str) -> bool | None:
    """Return whether ``owner.name`` is None. None if that is not known without running code."""
    if owner is None or not _is_plain(type(owner), name):
        return None
    if name in owner.__dict__:
        return owner.__dict__[name] is None
    return owner._modules[name] is None if name in owner._modules else None


def _is_plain(cls: type, name: str) -> bool:
    plain = _PLAIN.get((cls, name))
    if plain is None:
        plain = (
            cls.__getattribute__ is object.__getattribute__
            and getattr(cls, "__getattr__", None) is Module.__getattr__
            and not hasattr(cls, name)
        )
        _PLAIN[cls, name] = plain
    return plain


def _submodule(module: Any, path: tuple[str, ...]) -> Module | None:
    for name in path:
        if not isinstance(module, Module) or not _is_plain(type(module), name) or name in module.__dict__:
            return None
        module = module._modules.get(name)
    return module if isinstance(module, Module) else None


def _global(frame: FrameType, path: tuple[str, ...]) -> Any:
    value = frame.f_globals.get(path[0])
    for name in path[1:]:
        if type(value) is not type(torch):  # not a Python module
            return None
        value = vars(value).get(name)
    return value
