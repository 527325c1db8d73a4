"""The uses of the result of a call in a function, read from its bytecode.

:func:`uses` follows the instructions after a call to the one that uses the result, such as the call of another layer.
Then it follows the result of that one, and so on. It knows only instructions that move values: loads and stores of
local variables, loads of attributes and globals, and jumps on ``x is None``. At any other instruction it stops. So no
other code of the function runs between the call and these uses. A load or store can still run code, such as a property.
So the caller of :func:`uses` checks the paths and stores of each use. At a clean use, it has checked all loads: the
function stores only results, and any other loaded value would still be on the stack.

This module does not import torch.
"""

from __future__ import annotations

import dis
import inspect
from collections.abc import Callable
from types import CodeType
from typing import Any, NamedTuple

from fastconv._ahead.stack import (
    CALLS,
    DOUBLE_LOADS,
    IGNORED,
    LOADS,
    OTHER,
    RESULT,
    USED,
    Condition,
    Item,
    Path,
    State,
    Unknown,
    Value,
    call,
    move,
)

__all__ = ["START", "Condition", "Item", "Path", "Use", "Uses", "is_readable", "uses"]

#: In place of the offset of a call: :func:`uses` follows the second argument of the function, the input of a module.
START = -1


class Use(NamedTuple):
    """An instruction that uses a result.

    Attributes:
        kind: 'call' (the result is the first argument, the others are constants), 'method' (a call of a method of the
            result), 'add' (the result + a variable, or += that changes the result), 'return', or 'unknown'.
        path: for a call, the path of the function. For a method, its name. For an addition, the path of the variable.
        arguments: the constants among the arguments of a call, each with its position or its name.
        stores: the local variables that the function stores between the last use and this one.
        is_clean: no variable that is read later holds the used value, or an earlier one, once this use is finished.
    """

    kind: str
    path: Path = ()
    arguments: tuple[tuple[int | str, Any], ...] = ()
    stores: tuple[str, ...] = ()
    is_clean: bool = False


class Uses(NamedTuple):
    """The uses of a result, of the result of that use, and so on.

    Attributes:
        function: the path of the called function. Empty at the START.
        uses: the last one is 'return' or 'unknown'.
        conditions: the uses are valid while these hold.
        owner: the name of the function's first parameter, if it keeps its value.
    """

    function: Path
    uses: tuple[Use, ...]
    conditions: tuple[Condition, ...] = ()
    owner: str | None = None


#: For each jump, True if it is taken for None (or for a true value). Python 3.11 has names with "FORWARD_".
_JUMPS_ON_NONE = {"POP_JUMP_IF_NONE": True, "POP_JUMP_IF_NOT_NONE": False}
_JUMPS_ON_TRUTH = {"POP_JUMP_IF_TRUE": True, "POP_JUMP_IF_FALSE": False}
#: A function that uses one of these names may keep a dictionary of its variables. Reading the variables would change
#: this dictionary. Or the function may stop in a debugger, which shows all variables.
_INSPECTORS = frozenset(
    {"locals", "vars", "eval", "exec", "f_locals", "_getframe", "currentframe", "breakpoint", "set_trace", "embed"}
)


def uses(code: CodeType, offset: int, is_none: Callable[[Path], bool | None]) -> Uses:
    """Return how the result of the call at ``offset`` is used.

    Args:
        code: a function's code. At the START, it has two parameters or more.
        offset: the position of the instruction: ``frame.f_lasti``, or START.
        is_none: returns whether the value at a path is None now, or None if that is not known.
    """
    if not is_readable(code):
        return Uses((), (Use("unknown"),))
    instructions = [i for i in dis.get_instructions(code) if i.opname not in IGNORED or i.is_jump_target]
    index = {instruction.offset: i for i, instruction in enumerate(instructions)}
    state, found, function = State(is_none, code.co_consts), [], ()  # type: tuple[State, list[Use], Path]
    try:
        position = START if offset == START else index[offset]
        if position == START:
            state.variables[code.co_varnames[1]] = RESULT
        else:
            function = _start(instructions, position, state)
        while not found or found[-1].kind != "return":
            use, position = _follow(instructions, index, position + 1, state)
            found.append(use)
    except (Unknown, KeyError):
        found.append(Use("unknown"))
    return Uses(function, tuple(found), tuple(state.conditions), _owner(code, instructions))


def is_readable(code: CodeType) -> bool:
    """Return whether a function cannot notice that its variables are read."""
    return bool(code.co_flags & inspect.CO_OPTIMIZED) and _INSPECTORS.isdisjoint(code.co_names)


def _owner(code: CodeType, instructions: list[dis.Instruction]) -> str | None:
    """Return the name of the first parameter. None if the function stores it, or if a nested function uses it."""
    name = code.co_varnames[0] if code.co_argcount > 0 else None
    for instruction in instructions:
        has_variables = instruction.opcode in dis.haslocal or instruction.opcode in dis.hasfree
        if has_variables and instruction.opname not in LOADS | DOUBLE_LOADS:
            argument = instruction.argval
            if name in (argument if type(argument) is tuple else (argument,)):
                return None
    return name


def _start(instructions: list[dis.Instruction], position: int, state: State) -> Path:
    """Simulate the statement of the call up to its result. Return the path of the called function."""
    start = position
    while start > 0 and not (instructions[start].is_jump_target or _ends_statement(instructions[start - 1])):
        start -= 1
    function, arguments = OTHER, []  # type: tuple[Value, list[Value]]
    for instruction in instructions[start : position + 1]:
        if instruction.opname not in CALLS:
            if instruction is instructions[position] or not move(instruction, state):
                raise Unknown
            continue
        function, arguments, _ = call(instruction, state)
        # A call runs unknown code. So may the load of an attribute or item for an argument.
        if instruction is not instructions[position] or any(len(argument.path) > 2 for argument in arguments):
            state.stack = [value.aged() for value in state.stack]
    state.stack[-1] = RESULT
    state.stores.clear()
    return function.path


def _ends_statement(instruction: dis.Instruction) -> bool:
    """Return whether the simulation may start after this instruction, with an unknown stack."""
    return instruction.opname in ("STORE_FAST", "POP_TOP", "RESUME") or "JUMP" in instruction.opname


def _follow(instructions: list[dis.Instruction], index: dict[int, int], i: int, state: State) -> tuple[Use, int]:
    """Follow the result from instruction ``i`` on. Return its use and the position of the use."""
    while i < len(instructions):
        instruction = instructions[i]
        is_taken = _jump(instruction, state)
        if is_taken is not None:
            if is_taken and instruction.argval <= instruction.offset:
                raise Unknown
            i = index[instruction.argval] if is_taken else i + 1
            continue
        use = _use(instruction, state)
        if use is not None:
            use = use._replace(stores=tuple(state.stores))
            state.stores.clear()
            if use.kind != "return":
                use = use._replace(is_clean=not _is_read(_take(instructions[i + 1], state), instructions, i + 1))
            return use, i
        is_store = instruction.opname in ("STORE_FAST", "STORE_FAST_LOAD_FAST")
        if (is_store and state.stack[-1:] != [RESULT]) or not move(instruction, state):
            raise Unknown
        i += 1
    raise Unknown


def _take(following: dis.Instruction, state: State) -> set[str]:
    """Follow the result of the use from here on. Return the variables that still hold an earlier result."""
    state.stack.pop()
    if RESULT in state.stack:
        raise Unknown
    state.stack.append(RESULT)
    state.variables = {name: USED if value == RESULT else value for name, value in state.variables.items()}
    if following.opname == "RETURN_VALUE":
        return set()
    holders = {name for name, value in state.variables.items() if value == USED}
    if following.opname in ("STORE_FAST", "STORE_FAST_LOAD_FAST"):
        holders.discard(following.argval if following.opname == "STORE_FAST" else following.argval[0])
    return holders


def _is_read(names: set[str], instructions: list[dis.Instruction], position: int) -> bool:
    """Return whether an instruction that may run from ``position`` on reads one of these variables."""
    if not names:
        return False
    jumps = (*dis.hasjrel, *dis.hasjabs)
    if any(i.opcode in jumps and i.argval <= i.offset for i in instructions[position:]):  # a loop
        position = 0
    for instruction in instructions[position:]:
        has_variables = instruction.opcode in dis.haslocal or instruction.opcode in dis.hasfree
        if has_variables and instruction.opname != "STORE_FAST":
            argument = instruction.argval
            if not names.isdisjoint(argument if type(argument) is tuple else (argument,)):
                return True
    return False


def _jump(instruction: dis.Instruction, state: State) -> bool | None:
    """Return whether this jump is taken. None for other instructions."""
    name = instruction.opname.replace("FORWARD_", "")
    if instruction.opname == "JUMP_FORWARD":
        return True
    if name in _JUMPS_ON_NONE:
        (value,) = state.pop()
        if value.kind != "path":
            raise Unknown
        is_taken_if_none = _JUMPS_ON_NONE[name]
    elif name in _JUMPS_ON_TRUTH:
        (value,) = state.pop()
        if value.kind not in ("is none", "is not none"):
            raise Unknown
        is_taken_if_none = _JUMPS_ON_TRUTH[name] == (value.kind == "is none")
    else:
        return None
    is_none = state.is_none(value.path)
    if is_none is None:
        raise Unknown
    state.conditions.append(Condition(value.path, is_none))
    return is_none == is_taken_if_none


def _use(instruction: dis.Instruction, state: State) -> Use | None:
    """Return the use if this instruction is one: a call, an addition or a return."""
    name = instruction.opname
    if name == "RETURN_VALUE":
        if state.pop() != [RESULT]:
            raise Unknown
        return Use("return")
    if name in CALLS:
        return _use_in_call(*call(instruction, state))
    in_place = {"BINARY_ADD": False, "INPLACE_ADD": True}.get(name)  # Python 3.10
    if name == "BINARY_OP":
        in_place = {"+": False, "+=": True}.get(instruction.argrepr)
    if in_place is None:
        return None
    left, right = state.pop(2)
    state.stack.append(OTHER)
    other = right if left == RESULT else left
    if (left == RESULT) == (right == RESULT) or not other.is_local() or (in_place and left != RESULT):
        raise Unknown
    return Use("add", other.path)


def _use_in_call(function: Value, arguments: list[Value], keywords: tuple[str, ...]) -> Use:
    """Return the use of the result in a call: as its first argument, or as the object of a method."""
    kind = {"path": "call", "method": "method"}.get(function.kind)
    first, others = (0, arguments) if kind == "method" else (1, arguments[1:])
    if kind is None or (kind == "call" and (arguments[:1] != [RESULT] or len(keywords) > len(others))):
        raise Unknown
    if any(value.kind != "constant" for value in others):
        raise Unknown
    places = [*range(first, first + len(others) - len(keywords)), *keywords]
    constants = (value.constant for value in others)
    return Use(kind, function.path, tuple(zip(places, constants, strict=True)))
