"""The stack and the variables of a function, as far as they are known, and the instructions that move values.

This module does not import torch.
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

__all__ = [
    "CALLS", "DOUBLE_LOADS", "IGNORED", "LOADS", "NULL", "OTHER", "RESULT", "USED", "Condition", "Item", "Path",
    "State", "Unknown", "Value", "call", "move",
]  # fmt: skip


class Item(NamedTuple):
    """A subscript in a path. ``key`` is a constant, or the name of a local variable that holds the key."""

    key: Any
    is_variable: bool


#: The origin of a value: "local" or "global", the variable's name, then names of attributes and Items.
Path = tuple[str | Item, ...]


class Condition(NamedTuple):
    """A branch that was followed because the value at ``path`` is None, or is not."""

    path: Path
    is_none: bool


class Value(NamedTuple):
    """A value on the stack or in a variable.

    Kinds:
        'path': the value at ``path``. 'old path': the value that was there before unknown code ran.
        'result': the followed value. 'method': its attribute ``path``. 'used': a result that was used.
        'is none', 'is not none': whether the value at ``path`` is None.
        'null', 'constant', 'other'.
    """

    kind: str
    path: Path = ()
    constant: Any = None

    def is_local(self) -> bool:
        """Return whether this is the value of a local variable."""
        return self.kind == "path" and self.path[0] == "local" and len(self.path) == 2

    def aged(self) -> Value:
        """Return this value after unknown code has run."""
        return self if self.kind != "path" or self.is_local() else Value("old path", self.path)


RESULT, USED, NULL, OTHER = map(Value, ("result", "used", "null", "other"))


class Unknown(Exception):
    """An instruction that the analysis does not follow."""


@dataclass
class State:
    """The stack and the variables, as far as they are known."""

    is_none: Callable[[Path], bool | None]
    constants: tuple[Any, ...] = ()
    stack: list[Value] = field(default_factory=list)
    variables: dict[str, Value] = field(default_factory=dict)
    conditions: list[Condition] = field(default_factory=list)
    stores: list[str] = field(default_factory=list)
    #: The names of the last arguments of the next call.
    keywords: tuple[str, ...] = ()

    def pop(self, count: int = 1) -> list[Value]:
        """Remove and return the values on top. Values below the known part of the stack are 'other'."""
        missing, kept = max(0, count - len(self.stack)), max(0, len(self.stack) - count)
        values = [OTHER] * missing + self.stack[kept:]
        del self.stack[kept:]
        return values

    def load_local(self, name: str) -> None:
        value = self.variables.get(name)
        if value == USED:
            raise Unknown
        self.stack.append(Value("path", ("local", name)) if value is None else value)

    def load_attribute(self, name: str) -> None:
        (base,) = self.pop()
        if base == RESULT:
            self.stack.append(Value("method", (name,)))
        elif base.kind == "path":
            self.stack.append(Value("path", (*base.path, name)))
        else:
            raise Unknown

    def load_item(self) -> None:
        base, key = self.pop(2)
        if base.kind != "path" or not (key.is_local() or (key.kind == "constant" and type(key.constant) in (int, str))):
            raise Unknown
        item = Item(key.path[1], True) if key.is_local() else Item(key.constant, False)
        self.stack.append(Value("path", (*base.path, item)))

    def store(self, name: str) -> None:
        (self.variables[name],) = self.pop()
        self.stores.append(name)


IGNORED = frozenset({"EXTENDED_ARG", "NOP", "NOT_TAKEN", "PRECALL"})
LOADS = frozenset({"LOAD_FAST", "LOAD_FAST_BORROW", "LOAD_FAST_CHECK"})
DOUBLE_LOADS = frozenset({"LOAD_FAST_LOAD_FAST", "LOAD_FAST_BORROW_LOAD_FAST_BORROW"})
#: Calls. The last two have the names of their keyword arguments on the stack.
CALLS = frozenset({"CALL", "CALL_FUNCTION", "CALL_METHOD", "CALL_KW", "CALL_FUNCTION_KW"})
_CALLS_WITH_NAMES = frozenset({"CALL_KW", "CALL_FUNCTION_KW"})


def call(instruction: dis.Instruction, state: State) -> tuple[Value, list[Value], tuple[str, ...]]:
    """Remove the arguments and the function, and push the result.

    Return the function, the arguments, and the names of the last arguments.
    """
    keywords, state.keywords = state.keywords, ()
    if instruction.opname in _CALLS_WITH_NAMES:
        (names,) = state.pop()
        if names.kind != "constant":
            raise Unknown
        keywords = names.constant
    arguments = state.pop(instruction.arg or 0)
    has_function_alone = instruction.opname in ("CALL_FUNCTION", "CALL_FUNCTION_KW")
    function = [value for value in state.pop(1 if has_function_alone else 2) if value != NULL]
    state.stack.append(OTHER)
    return function[0] if len(function) == 1 else OTHER, arguments, keywords


def move(instruction: dis.Instruction, state: State) -> bool:
    """Simulate an instruction that moves values. Return False if it is another one."""
    name, argument = instruction.opname, instruction.argval
    has_null = bool((instruction.arg or 0) & 1)
    if name in IGNORED or name == "RESUME":
        pass
    elif name in LOADS:
        state.load_local(argument)
    elif name in DOUBLE_LOADS:
        state.load_local(argument[0])
        state.load_local(argument[1])
    elif name == "STORE_FAST":
        state.store(argument)
    elif name == "STORE_FAST_LOAD_FAST":
        state.store(argument[0])
        state.load_local(argument[1])
    elif name in ("LOAD_ATTR", "LOAD_METHOD"):
        state.load_attribute(argument)
        if name == "LOAD_METHOD" or (has_null and sys.version_info >= (3, 12)):
            state.stack.append(NULL)
    elif name == "LOAD_GLOBAL":
        state.stack.append(Value("path", ("global", argument)))
        if has_null and sys.version_info >= (3, 11):
            state.stack.insert(-1, NULL)
    elif name == "PUSH_NULL":
        state.stack.append(NULL)
    elif name in ("LOAD_CONST", "LOAD_SMALL_INT"):
        state.stack.append(Value("constant", (), argument))
    elif name == "KW_NAMES":
        state.keywords = state.constants[instruction.arg or 0]  # dis does not find them in Python 3.11
    elif name == "BINARY_SUBSCR" or (name == "BINARY_OP" and instruction.argrepr == "[]"):
        state.load_item()
    elif name == "IS_OP":
        value, none = state.pop(2)
        if none != Value("constant") or value.kind != "path":
            return False
        state.stack.append(Value("is not none" if instruction.arg else "is none", value.path))
    else:
        return False
    return True
