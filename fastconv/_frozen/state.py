"""The state for which a record is valid: a module's attributes, layers, hooks and values, and the modes of PyTorch."""

from __future__ import annotations

import pickle
import random
from collections import deque
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from fastconv._ops.library import _C

__all__ = ["Sealed", "is_same_state", "modes", "random_state", "set_random_state", "state_of"]

#: Returns the members of lists and dictionaries, and the attributes of modules.
_members = _C.members


class Sealed:
    """Notes the attributes, layers, hooks and values of a module, and notices later changes.

    ``_patience`` is ignored, because a convolution changes it while it runs.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._versions: Any = ()  # not sealed

    def seal(self) -> None:
        """Note the state of the module."""
        modules = list(self.module.modules())
        self._patience = [(module, vars(module)["_patience"]) for module in modules if "_patience" in vars(module)]
        found: dict[int, Any] = {}
        left: list[Any] = [*modules]
        while left:
            container = left.pop()
            if id(container) not in found:
                found[id(container)] = container
                left += [member for member in _members([container]) if isinstance(member, dict | list)]
        self._containers = list(found.values())
        self._found = _members(self._containers)
        self._types = [*map(type, self._found)]
        self._tensors = [member for member in self._found if isinstance(member, Tensor) and not member.is_inference()]
        self._versions = [tensor._version for tensor in self._tensors]

    def is_unchanged(self) -> bool:
        """Compare the state. For the 388 modules in five parts of a RegNetY, this takes 0.1 ms."""
        if self._versions == ():
            return False
        if not self._has_same_members():
            for module, patience in self._patience:
                vars(module)["_patience"] = patience
            if not self._has_same_members():
                return False
        return [tensor._version for tensor in self._tensors] == self._versions

    def unseal(self) -> None:
        """Count as changed from now on."""
        self._versions = ()

    def _has_same_members(self) -> bool:
        try:  # The comparison of two lists compares their members by identity first.
            members = _members(self._containers)
            # 2.0 equals 2, but is another value.
            return members == self._found and [*map(type, members)] == self._types
        except Exception:  # a tensor was replaced: == has no truth value
            return False

    def __getstate__(self) -> dict[str, Any]:
        """Copies have tensors with other versions. Some types, such as that of functions, have no pickle."""
        state = {**vars(self), "_versions": None if self.is_unchanged() else ()}
        state.pop("_types", None)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if "_found" in state:
            self._types = [*map(type, self._found)]
        if self._versions is None:
            self._versions = [tensor._version for tensor in self._tensors]


# ---- the state of a model while it is recorded ------------------------------------------------------------------

State = list[tuple[object, object]]


def random_state() -> tuple[Any, ...]:
    """Return the states of the global random number generators, which == compares."""
    of_torch = torch.get_rng_state().numpy().tobytes()
    return of_torch, random.getstate(), pickle.dumps(numpy.random.get_state())


def set_random_state(state: tuple[Any, ...]) -> None:
    of_torch, of_python, of_numpy = state
    torch.set_rng_state(torch.frombuffer(bytearray(of_torch), dtype=torch.uint8))
    random.setstate(of_python)
    numpy.random.set_state(pickle.loads(of_numpy))


def state_of(model: nn.Module) -> State:
    """Return all objects that the attributes of the modules lead to, with their versions or members."""
    found: State = []
    seen: set[int] = set()
    left: list[object] = [vars(module) for module in model.modules()]
    while left:
        value = left.pop()
        if id(value) in seen or isinstance(value, _NOT_FOLLOWED):
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            found.append((value, 0 if value.is_inference() else value._version))
            continue
        members = _members_of(value)
        found.append((value, [member if isinstance(member, _VALUES) else _Same(member) for member in members]))
        left += members
    return found


#: Compared by their values, not by their identity.
_VALUES = (bool, int, float, complex, str, bytes)
_NOT_FOLLOWED = (
    *_VALUES, type(None), type, nn.Module, FunctionType, BuiltinFunctionType, ModuleType, torch.dtype, torch.device,
)  # fmt: skip


def _members_of(value: Any) -> list[object]:
    """Return the members of a collection and the attributes of an object. For random numbers, return the state."""
    if isinstance(value, random.Random):
        return [repr(value.getstate())]
    if isinstance(value, numpy.random.Generator):
        return [repr(value.bit_generator.state)]
    if isinstance(value, numpy.ndarray):
        return [value.tobytes()]
    found: list[object] = []
    if isinstance(value, dict):
        found = [*value, *value.values()]
    elif isinstance(value, list | tuple | set | frozenset | deque):
        found = [*value]
    return [*found, *getattr(value, "__dict__", {}).values()]


class _Same:
    """Equals itself for the same object only: tensors have no single truth value."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    __hash__ = None  # type: ignore[assignment]


def is_same_state(before: State, after: State) -> bool:
    return len(before) == len(after) and all(a[0] is b[0] and a[1] == b[1] for a, b in zip(before, after, strict=True))


def modes() -> tuple[object, ...]:
    """Return the modes of PyTorch that a context within ``forward`` may change."""
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
    return dtype, torch.is_grad_enabled(), torch.is_inference_mode_enabled()
