"""What a function does with the result of a call, read from its bytecode.

:func:`uses` follows the instructions after a call to the one that uses the result, such as the call of another layer.
Then it follows the result of that one, and so on. It knows only instructions that move values: loads and stores of
local variables, loads of attributes and globals, and jumps on ``x is None``. At any other instruction it stops. So no
other code of the function runs between the call and these uses. A load or store can still run code, such as a property.
The caller of :func:`uses` checks the paths and stores of each use. Then it has checked every load before a clean use:
nothing but the result is stored, and another loaded value would still be on the stack.

This module does not import torch.
"""

from __future__ import annotations

import dis
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from types import CodeType
from typing import NamedTuple

__all__ = ["Condition", "Path", "Use", "Uses", "uses"]

#: Where a value comes from: "local" or "global", the variable's name, and names of attributes.
Path = tuple[str, ...]


class Condition(NamedTuple):
    """A branch that was followed because the value at ``path`` is None, or is not."""

    path: Path
    is_none: bool


class Use(NamedTuple):
    """An instruction that uses a result.

    Attributes:
        kind: 'call' (the result is the only argument), 'add' (the result + a variable, or += that changes the result),
            'return', or 'unknown'.
        path: of a call, the path of the function. Of an addition, that of the variable.
        stores: the local variables that the function stores between the last use and this one.
        is_clean: no variable holds the used value, or an earlier one, once this use is finished.
    """

    kind: str
    path: Path = ()
    stores: tuple[str, ...] = ()
    is_clean: bool = False


class Uses(NamedTuple):
    """The uses of a result, of the result of that use, and so on.

    Attributes:
        function: the path of the called function.
        uses: the last one is 'return' or 'unknown'.
        conditions: hold for these uses.
        owner: the name of the function's first parameter, if it keeps its value.
    """

    function: Path
    uses: tuple[Use, ...]
    conditions: tuple[Condition, ...] = ()
    owner: str | None = None


class _Value(NamedTuple):
    """A value on the stack or in a variable.

    ``kind`` is 'path' (the value at ``path``), 'old path' (the value that was there before unknown code ran), 'result'
    (the followed value), 'used' (a result that was used), 'null', 'none', 'is none' and 'is not none' (whether the
    value at ``path`` is None), or 'other'.
    """

    kind: str
    path: Path = ()

    def is_local(self) -> bool:
        """Return whether this is the value of a local variable."""
        return self.kind == "path" and self.path[0] == "local" and len(self.path) == 2

    def aged(self) -> _Value:
        """Return this value after unknown code has run."""
        return self if self.kind != "path" or self.is_local() else _Value("old path", self.path)


_RESULT, _USED, _NULL, _NONE, _OTHER = map(_Value, ("result", "used", "null", "none", "other"))


class _Unknown(Exception):
    """An instruction that the analysis does not follow."""


@dataclass
class _State:
    """The stack and the variables, as far as they are known."""

    is_none: Callable[[Path], bool | None]
    stack: list[_Value] = field(default_factory=list)
    variables: dict[str, _Value] = field(default_factory=dict)
    conditions: list[Condition] = field(default_factory=list)
    stores: list[str] = field(default_factory=list)

    def pop(self, count: int = 1) -> list[_Value]:
        """Remove and return the values on top. Values below the known part of the stack are 'other'."""
        missing, kept = max(0, count - len(self.stack)), max(0, len(self.stack) - count)
        values = [_OTHER] * missing + self.stack[kept:]
        del self.stack[kept:]
        return values

    def load_local(self, name: str) -> None:
        value = self.variables.get(name)
        if value == _USED:
            raise _Unknown
        self.stack.append(_Value("path", ("local", name)) if value is None else value)

    def load_attribute(self, name: str) -> None:
        (base,) = self.pop()
        if base.kind != "path":
            raise _Unknown
        self.stack.append(_Value("path", (*base.path, name)))

    def store(self, name: str) -> None:
        (self.variables[name],) = self.pop()
        self.stores.append(name)


_IGNORED = frozenset({"EXTENDED_ARG", "NOP", "NOT_TAKEN", "PRECALL"})
_LOADS = frozenset({"LOAD_FAST", "LOAD_FAST_BORROW", "LOAD_FAST_CHECK"})
_DOUBLE_LOADS = frozenset({"LOAD_FAST_LOAD_FAST", "LOAD_FAST_BORROW_LOAD_FAST_BORROW"})
_CALLS = frozenset({"CALL", "CALL_FUNCTION", "CALL_METHOD"})
#: Whether the jump is taken if the value is None, or if it is true. Python 3.11 has names with "FORWARD_".
_JUMPS_ON_NONE = {"POP_JUMP_IF_NONE": True, "POP_JUMP_IF_NOT_NONE": False}
_JUMPS_ON_TRUTH = {"POP_JUMP_IF_TRUE": True, "POP_JUMP_IF_FALSE": False}
#: A function with one of these names may keep a dictionary of its variables, which reading the variables would change.
_INSPECTORS = frozenset({"locals", "vars", "eval", "exec", "f_locals", "_getframe", "currentframe"})


def uses(code: CodeType, offset: int, is_none: Callable[[Path], bool | None]) -> Uses:
    """Return how the result of the call at ``offset`` is used.

    Args:
        code: a function's code.
        offset: the position of the instruction: ``frame.f_lasti``.
        is_none: returns whether the value at a path is None now, or None if that is not known.
    """
    if not code.co_flags & inspect.CO_OPTIMIZED or not _INSPECTORS.isdisjoint(code.co_names):
        return Uses((), (Use("unknown"),))
    instructions = [i for i in dis.get_instructions(code) if i.opname not in _IGNORED or i.is_jump_target]
    index = {instruction.offset: i for i, instruction in enumerate(instructions)}
    state, found, function = _State(is_none), [], ()  # type: tuple[_State, list[Use], Path]
    try:
        position = index[offset]
        function = _start(instructions, position, state)
        while not found or found[-1].kind != "return":
            use, position = _follow(instructions, index, position + 1, state)
            found.append(use)
    except (_Unknown, KeyError):
        found.append(Use("unknown"))
    return Uses(function, tuple(found), tuple(state.conditions), _owner(code, instructions))


def _owner(code: CodeType, instructions: list[dis.Instruction]) -> str | None:
    """Return the name of the first parameter. None if the function stores it, or if a nested function uses it."""
    name = code.co_varnames[0] if code.co_argcount > 0 else None
    for instruction in instructions:
        has_variables = instruction.opcode in dis.haslocal or instruction.opcode in dis.hasfree
        if has_variables and instruction.opname not in _LOADS | _DOUBLE_LOADS:
            argument = instruction.argval
            if name in (argument if type(argument) is tuple else (argument,)):
                return None
    return name


def _start(instructions: list[dis.Instruction], call: int, state: _State) -> Path:
    """Simulate the statement of the call up to its result. Return the path of the called function."""
    start = call
    while start > 0 and not (instructions[start].is_jump_target or _ends_statement(instructions[start - 1])):
        start -= 1
    function, arguments = _OTHER, []  # type: tuple[_Value, list[_Value]]
    for instruction in instructions[start : call + 1]:
        if instruction.opname not in _CALLS:
            if instruction is instructions[call] or not _move(instruction, state):
                raise _Unknown
            continue
        function, arguments = _call(instruction, state)
        # A call runs unknown code. So may the load of an attribute for an argument.
        if instruction is not instructions[call] or any(len(argument.path) > 2 for argument in arguments):
            state.stack = [value.aged() for value in state.stack]
    state.stack[-1] = _RESULT
    state.stores.clear()
    return function.path


def _ends_statement(instruction: dis.Instruction) -> bool:
    """Return whether the simulation may start after this instruction, with an unknown stack."""
    return instruction.opname in ("STORE_FAST", "POP_TOP", "RESUME") or "JUMP" in instruction.opname


def _call(instruction: dis.Instruction, state: _State) -> tuple[_Value, list[_Value]]:
    """Remove the arguments and the function, and push the result. Return the function and the arguments."""
    arguments = state.pop(instruction.arg or 0)
    function = [value for value in state.pop(1 if instruction.opname == "CALL_FUNCTION" else 2) if value != _NULL]
    state.stack.append(_OTHER)
    return function[0] if len(function) == 1 else _OTHER, arguments


def _follow(instructions: list[dis.Instruction], index: dict[int, int], i: int, state: _State) -> tuple[Use, int]:
    """Follow the result from instruction ``i`` on. Return its use and the position of that."""
    while i < len(instructions):
        instruction = instructions[i]
        is_taken = _jump(instruction, state)
        if is_taken is not None:
            if is_taken and instruction.argval <= instruction.offset:
                raise _Unknown
            i = index[instruction.argval] if is_taken else i + 1
            continue
        use = _use(instruction, state)
        if use is not None:
            use = use._replace(stores=tuple(state.stores))
            state.stores.clear()
            if use.kind != "return":
                use = use._replace(is_clean=_take(instructions[i + 1], state))
            return use, i
        is_store = instruction.opname in ("STORE_FAST", "STORE_FAST_LOAD_FAST")
        if (is_store and state.stack[-1:] != [_RESULT]) or not _move(instruction, state):
            raise _Unknown
        i += 1
    raise _Unknown


def _take(following: dis.Instruction, state: _State) -> bool:
    """Replace the used result by that of the use. Return whether no variable holds a used result after this."""
    state.stack.pop()
    if _RESULT in state.stack:
        raise _Unknown
    state.stack.append(_RESULT)
    state.variables = {name: _USED if value == _RESULT else value for name, value in state.variables.items()}
    if following.opname == "RETURN_VALUE":
        return True
    holders = {name for name, value in state.variables.items() if value == _USED}
    if following.opname in ("STORE_FAST", "STORE_FAST_LOAD_FAST"):
        holders.discard(following.argval if following.opname == "STORE_FAST" else following.argval[0])
    return not holders


def _jump(instruction: dis.Instruction, state: _State) -> bool | None:
    """Return whether this jump is taken. None for other instructions."""
    name = instruction.opname.replace("FORWARD_", "")
    if instruction.opname == "JUMP_FORWARD":
        return True
    if name in _JUMPS_ON_NONE:
        (value,) = state.pop()
        if value.kind != "path":
            raise _Unknown
        is_taken_if_none = _JUMPS_ON_NONE[name]
    elif name in _JUMPS_ON_TRUTH:
        (value,) = state.pop()
        if value.kind not in ("is none", "is not none"):
            raise _Unknown
        is_taken_if_none = _JUMPS_ON_TRUTH[name] == (value.kind == "is none")
    else:
        return None
    is_none = state.is_none(value.path)
    if is_none is None:
        raise _Unknown
    state.conditions.append(Condition(value.path, is_none))
    return is_none == is_taken_if_none


def _use(instruction: dis.Instruction, state: _State) -> Use | None:
    """Return the use if this instruction is one: a call, an addition or a return."""
    name = instruction.opname
    if name == "RETURN_VALUE":
        if state.pop() != [_RESULT]:
            raise _Unknown
        return Use("return")
    if name in _CALLS:
        function, arguments = _call(instruction, state)
        if arguments != [_RESULT] or function.kind != "path":
            raise _Unknown
        return Use("call", function.path)
    in_place = {"BINARY_ADD": False, "INPLACE_ADD": True}.get(name)  # Python 3.10
    if name == "BINARY_OP":
        in_place = {"+": False, "+=": True}.get(instruction.argrepr)
    if in_place is None:
        return None
    left, right = state.pop(2)
    state.stack.append(_OTHER)
    other = right if left == _RESULT else left
    if (left == _RESULT) == (right == _RESULT) or not other.is_local() or (in_place and left != _RESULT):
        raise _Unknown
    return Use("add", other.path)


def _move(instruction: dis.Instruction, state: _State) -> bool:
    """Simulate an instruction that moves values. Return False if it is another one."""
    name, argument = instruction.opname, instruction.argval
    has_null = bool((instruction.arg or 0) & 1)
    if name in _IGNORED or name == "RESUME":
        pass
    elif name in _LOADS:
        state.load_local(argument)
    elif name in _DOUBLE_LOADS:
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
            state.stack.append(_NULL)
    elif name == "LOAD_GLOBAL":
        state.stack.append(_Value("path", ("global", argument)))
        if has_null and sys.version_info >= (3, 11):
            state.stack.insert(-1, _NULL)
    elif name == "PUSH_NULL":
        state.stack.append(_NULL)
    elif name == "LOAD_CONST":
        state.stack.append(_NONE if argument is None else _OTHER)
    elif name == "IS_OP":
        value, none = state.pop(2)
        if none != _NONE or value.kind != "path":
            return False
        state.stack.append(_Value("is not none" if instruction.arg else "is none", value.path))
    else:
        return False
    return True
