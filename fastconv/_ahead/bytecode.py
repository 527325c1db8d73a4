"""What a function does with the result of a call, read from its bytecode.

:func:`uses` follows the instructions after a call to the one that uses the result, such as the call of another layer.
Then it follows the result of that one, and so on. It knows only instructions that move values: loads and stores of local
variables, loads of attributes and globals, and jumps on ``self.name is None``. At any other instruction it stops. So its
answer is a proof: no other code of the function runs between the call and these uses. It also proves that no variable
holds a result after its use.
"""

from __future__ import annotations

import dis
from collections.abc import Callable
from dataclasses import dataclass, field
from types import CodeType
from typing import Any, NamedTuple

__all__ = ["Condition", "Use", "uses"]


class Value(NamedTuple):
    """A value on the stack or in a variable."""

    #: 'result', 'local', 'attribute', 'global', 'none', 'is none', 'is not none' or 'other'
    kind: str
    name: str = ""
    base: Any = None  # of an attribute: the Value that has it


RESULT, OTHER, NULL, NONE = Value("result"), Value("other"), Value("null"), Value("none")


class Condition(NamedTuple):
    """The branch holds if ``self.name is None`` equals ``is_none``."""

    name: str
    is_none: bool


class Use(NamedTuple):
    """An instruction that uses a result.

    Attributes:
        kind: 'call' (the result is the only argument), 'add' (the result + a variable, or += that changes the result),
            'return', or 'unknown'.
        path: of a call, the names that lead to the function: ('self', 'bn1') or ('F', 'relu'). Of an addition, the
            name of the variable.
    """

    kind: str
    path: tuple[str, ...] = ()


class Uses(NamedTuple):
    """The uses of a result, of the result of that use, and so on. The last one is 'return' or 'unknown'."""

    uses: tuple[Use, ...]
    conditions: tuple[Condition, ...]


@dataclass
class _State:
    """The stack and the variables, as far as they are known."""

    stack: list[Value] = field(default_factory=list)
    variables: dict[str, Value] = field(default_factory=dict)
    conditions: list[Condition] = field(default_factory=list)

    def pop(self, count: int = 1) -> list[Value]:
        """Remove and return the values on top. Values below the known part of the stack are OTHER."""
        if count == 0:
            return []
        missing = [OTHER] * max(0, count - len(self.stack))
        values = missing + self.stack[-count:]
        del self.stack[-count:]
        return values

    def load(self, name: str) -> None:
        self.stack.append(self.variables.get(name, Value("local", name)))

    def store(self, name: str) -> None:
        self.variables[name] = self.pop()[0]


class _Unknown(Exception):
    """An instruction that the analysis does not follow."""


_IGNORED = frozenset({"CACHE", "EXTENDED_ARG", "NOP", "NOT_TAKEN", "PRECALL", "RESUME"})
_LOADS = frozenset({"LOAD_FAST", "LOAD_FAST_BORROW", "LOAD_FAST_CHECK"})
_DOUBLE_LOADS = frozenset({"LOAD_FAST_LOAD_FAST", "LOAD_FAST_BORROW_LOAD_FAST_BORROW"})
_CALLS = frozenset({"CALL", "CALL_FUNCTION", "CALL_METHOD"})
_JUMPS_ON_NONE = {
    "POP_JUMP_IF_NONE": True,
    "POP_JUMP_FORWARD_IF_NONE": True,
    "POP_JUMP_IF_NOT_NONE": False,
    "POP_JUMP_FORWARD_IF_NOT_NONE": False,
}
_JUMPS_ON_TRUTH = {
    "POP_JUMP_IF_TRUE": True,
    "POP_JUMP_FORWARD_IF_TRUE": True,
    "POP_JUMP_IF_FALSE": False,
    "POP_JUMP_FORWARD_IF_FALSE": False,
}
#: After one of these, the stack is at the level of the statement.
_ENDS_OF_STATEMENTS = frozenset({"STORE_FAST", "POP_TOP", "RESUME", "JUMP_FORWARD", *_JUMPS_ON_NONE, *_JUMPS_ON_TRUTH})
_ADDITIONS = {"+": False, "+=": True}


def uses(code: CodeType, offset: int, is_none: Callable[[str], bool | None]) -> Uses:
    """Return how the result of the call at ``offset`` is used.

    Args:
        code: a function's code.
        offset: the position of the instruction: ``frame.f_lasti``.
        is_none: returns whether ``self.name`` is None now, or None if that is not known.
    """
    instructions = list(dis.get_instructions(code))
    index = {instruction.offset: i for i, instruction in enumerate(instructions)}
    state = _State()
    found: list[Use] = []
    try:
        position = index[offset]
        _start(instructions, position, state)
        while not found or found[-1].kind not in ("return", "unknown"):
            use, position = _follow(instructions, index, position + 1, state, is_none)
            found.append(use)
    except (_Unknown, KeyError):
        found.append(Use("unknown"))
    return Uses(tuple(found), tuple(state.conditions))


def _start(instructions: list[dis.Instruction], call: int, state: _State) -> None:
    """Simulate the statement of the call up to its result."""
    i = call
    while i > 0 and instructions[i - 1].opname not in _ENDS_OF_STATEMENTS:
        i -= 1
    for instruction in instructions[i:call]:
        if instruction.opname in _CALLS:
            _call(instruction, state)
        elif not _move(instruction, state):
            raise _Unknown
    if instructions[call].opname not in _CALLS:
        raise _Unknown
    _call(instructions[call], state)
    state.stack[-1] = RESULT


def _follow(
    instructions: list[dis.Instruction],
    index: dict[int, int],
    i: int,
    state: _State,
    is_none: Callable[[str], bool | None],
) -> tuple[Use, int]:
    """Follow the result from instruction ``i`` on. Return its use and the position of that. Its result is RESULT then."""
    while i < len(instructions):
        instruction = instructions[i]
        target = _jump(instruction, state, is_none)
        if target is not None:
            i = index[target] if target >= 0 else i + 1
            continue
        use = _use(instruction, state)
        if use is not None:
            if use.kind != "return":
                if not _is_dead_after(instructions, i, state):
                    raise _Unknown
                state.variables = {name: OTHER if value == RESULT else value for name, value in state.variables.items()}
                state.stack[-1] = RESULT
            return use, i
        if not _move(instruction, state):
            raise _Unknown
        i += 1
    raise _Unknown


def _call(instruction: dis.Instruction, state: _State) -> tuple[list[Value], list[Value]]:
    """Remove the arguments and the function, and push the result. Return the function's values and the arguments."""
    arguments = state.pop(instruction.arg or 0)
    function = state.pop(1 if instruction.opname == "CALL_FUNCTION" else 2)
    state.stack.append(OTHER)
    return function, arguments


def _jump(instruction: dis.Instruction, state: _State, is_none: Callable[[str], bool | None]) -> int | None:
    """Follow a jump. Return the target's offset, -1 if the jump is not taken, or None for other instructions."""
    name = instruction.opname
    if name == "JUMP_FORWARD":
        return int(instruction.argval)
    if name in _JUMPS_ON_NONE:
        (value,) = state.pop()
        wanted = _JUMPS_ON_NONE[name]
    elif name in _JUMPS_ON_TRUTH:
        (value,) = state.pop()
        if value.kind not in ("is none", "is not none"):
            raise _Unknown
        wanted = _JUMPS_ON_TRUTH[name] == (value.kind == "is none")
        value = value.base
    else:
        return None
    if value.kind != "attribute" or value.base != Value("local", "self"):
        raise _Unknown
    found = is_none(value.name)
    if found is None:
        raise _Unknown
    state.conditions.append(Condition(value.name, found))
    return int(instruction.argval) if found == wanted else -1


def _use(instruction: dis.Instruction, state: _State) -> Use | None:
    """Return the use if this instruction is one: a call, an addition or a return."""
    name = instruction.opname
    if name == "RETURN_VALUE":
        if state.pop() != [RESULT]:
            raise _Unknown
        return Use("return")
    if name in _CALLS:
        function, arguments = _call(instruction, state)
        if arguments != [RESULT] or RESULT in function:
            raise _Unknown
        named = [value for value in function if value.kind in ("attribute", "global")]
        path = _path(named[0]) if len(named) == 1 else None
        if path is None:
            raise _Unknown
        return Use("call", path)
    addition = _addition(instruction)
    if addition is not None:
        left, right = state.pop(2)
        state.stack.append(OTHER)
        in_place = addition
        other = right if left == RESULT else left
        if (left == RESULT) == (right == RESULT) or other.kind != "local" or (in_place and left != RESULT):
            raise _Unknown
        return Use("add", (other.name,))
    return None


def _addition(instruction: dis.Instruction) -> bool | None:
    """Return False for +, True for +=, and None for other instructions."""
    if instruction.opname == "BINARY_OP":
        return _ADDITIONS.get(instruction.argrepr)
    return {"BINARY_ADD": False, "INPLACE_ADD": True}.get(instruction.opname)


def _path(value: Value) -> tuple[str, ...] | None:
    if value.kind == "attribute":
        before = _path(value.base)
        return None if before is None else (*before, value.name)
    return (value.name,) if value.kind == "global" or value == Value("local", "self") else None


def _move(instruction: dis.Instruction, state: _State) -> bool:
    """Simulate an instruction that moves values. Return False if it is another one."""
    name, argument = instruction.opname, instruction.argval
    if name in _IGNORED:
        pass
    elif name in _LOADS:
        state.load(argument)
    elif name in _DOUBLE_LOADS:
        state.load(argument[0])
        state.load(argument[1])
    elif name == "STORE_FAST":
        state.store(argument)
    elif name == "STORE_FAST_LOAD_FAST":
        state.store(argument[0])
        state.load(argument[1])
    elif name in ("LOAD_ATTR", "LOAD_METHOD"):
        (base,) = state.pop()
        if base == RESULT:
            return False
        state.stack.append(Value("attribute", argument, base))
        if name == "LOAD_METHOD" or "NULL|self" in instruction.argrepr:
            state.stack.append(NULL)
    elif name == "LOAD_GLOBAL":
        if "NULL" in instruction.argrepr:
            state.stack.append(NULL)
        state.stack.append(Value("global", argument))
        if instruction.argrepr.endswith("+ NULL") and not instruction.argrepr.startswith("NULL"):
            state.stack[-2:] = [state.stack[-1], state.stack[-2]]
    elif name == "PUSH_NULL":
        state.stack.append(NULL)
    elif name == "LOAD_CONST":
        state.stack.append(NONE if argument is None else OTHER)
    elif name == "IS_OP":
        value, none = state.pop(2)
        if none != NONE:
            return False
        state.stack.append(Value("is not none" if instruction.arg else "is none", base=value))
    else:
        return False
    return True


def _is_dead_after(instructions: list[dis.Instruction], use: int, state: _State) -> bool:
    """Return whether nothing holds the used value after the instruction ``use``, whose result is on the stack."""
    if RESULT in state.stack[:-1]:
        return False
    holders = {name for name, value in state.variables.items() if value == RESULT}
    following = next((i for i in instructions[use + 1 :] if i.opname not in _IGNORED), None)
    if following is not None and following.opname in ("STORE_FAST", "STORE_FAST_LOAD_FAST"):
        stored = following.argval if following.opname == "STORE_FAST" else following.argval[0]
        holders.discard(stored)
    if following is not None and following.opname == "RETURN_VALUE":
        return True
    if not holders:
        return True
    if any("BACKWARD" in i.opname or i.opname in ("JUMP_ABSOLUTE", "FOR_ITER") for i in instructions):
        return False
    later = instructions[use + 1 :]
    loaded = {i.argval for i in later if i.opname in _LOADS}
    for i in later:
        if i.opname in _DOUBLE_LOADS or i.opname == "STORE_FAST_LOAD_FAST":
            loaded.update(i.argval)
        elif i.opname.startswith(("LOAD_FAST_AND", "DELETE_FAST")):
            loaded.add(i.argval)
    return not holders & loaded
