"""What a function does with a result, read from its bytecode.

This file needs no torch: ``python test_ahead_bytecode.py`` runs it with any version of Python.
"""

from __future__ import annotations

import dis
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

if __name__ == "__main__":  # Without torch, the package itself cannot be imported.
    for name, folder in (("fastconv", "fastconv"), ("fastconv._ahead", "fastconv/_ahead")):
        sys.modules[name] = ModuleType(name)
        sys.modules[name].__path__ = [str(Path(__file__).parents[1] / folder)]
bytecode = importlib.import_module("fastconv._ahead.bytecode")

#: A function body, and how the result of ``self.conv`` is used: "name" for a call, "+name" for an addition, "return",
#: or "?" for what is unknown. After an addition or call, "!" says that a variable holds an earlier result, and that the
#: function reads it later.
#: Versions of Python may differ in where the analysis stops: "|" separates the answers.
FOLLOWED: dict[str, str] = {
    "return self.conv(x)": "return",
    "y = self.conv(x)\nreturn y": "return",
    "return self.bn(self.conv(x))": "bn return",
    "return self.a(self.b(self.conv(x)))": "b a return",
    "y = self.conv(x)\ny = self.bn(y)\ny = F.relu(y)\nreturn y": "bn F.relu return",
    "y = self.conv(x)\nreturn self.relu(self.bn(y))": "bn relu return",
    "x = self.conv(x)\nx = self.relu(self.bn(x))\nreturn x": "bn! relu return",
    "y = self.conv(x)\nz = self.bn(y)\nreturn self.relu(z)": "bn relu return",
    "y = self.conv(x)\nz = self.relu(self.bn(y))\nself.k()\nreturn z": "bn relu ?",
    "y = self.conv(x)\nz = self.relu(self.bn(y))\nself.k()\nreturn y": "bn! relu! ?",
    "y = self.conv(x)\nz = self.relu(self.bn(y))\nself.k()\ndel y": "bn! relu! ?",
    "y = self.conv(x)\nz = self.relu(self.bn(y))\nbreakpoint()\nreturn z": "?",
    "for i in x:\n    self.k()\n    y = self.conv(i)\n    z = self.bn(y)\nreturn z": "bn! ?",
    "y = x\nwhile x:\n    x = y.k()\n    y = self.conv(x)\n    z = self.bn(y)\n    x = self.relu(z)": "bn! relu! ?",
    "y = x\nwhile self.k():\n    print(y)\n    y = self.conv(y)\n    z = self.bn(y)": "bn! ?",
    "try:\n    y = self.conv(x)\n    z = self.bn(y)\n    self.k()\nexcept E:\n    print(y)": "bn! ?|?",
    "y = self.conv(x)\nz = self.bn(y)\nreturn self.relu(y)": "bn! ?",
    "y = self.conv(x)\nz = y\ny = self.bn(y)\nreturn y + z": "bn! ?",
    "i = x\ny = self.bn(self.conv(x))\ny += i\nreturn self.relu(y)": "bn +i relu return",
    "y = x + self.conv(x)\nreturn y": "+x return",
    "y = self.conv(x) + x\nreturn y": "+x return",
    "y = self.conv(x)\nz = x\nreturn y + x": "?",
    "i = x\ni += self.conv(x)\nreturn i": "?",
    "y = self.conv(x)\nreturn y + y": "?",
    "y = self.conv(x)\nreturn y + 1": "?",
    "y = self.conv(x)\nreturn y + self.z": "?",
    "y = self.conv(x)\nreturn y * x": "?",
    "y = self.conv(x)\nif self.none is not None:\n    y = self.bn(y)\nreturn self.relu(y)": "relu return",
    "y = self.conv(x)\nif self.some is not None:\n    y = self.bn(y)\nreturn self.relu(y)": "bn relu return",
    "y = self.conv(x)\nif self.some is None:\n    x = self.bn(x)\ny += x\nreturn y": "+x return",
    "y = self.conv(x)\nif self.none is None:\n    x = self.bn(x)\ny += x\nreturn y": "?",
    "y = self.conv(x)\nif self.flag:\n    y = self.bn(y)\nreturn y": "?",
    "y = self.conv(x)\nif y is None:\n    y = self.bn(y)\nreturn y": "?",
    "y = self.conv(x)\nreturn self.bn(y) if self.unknown is None else y": "?",
    "y = self.conv(x)\nreturn self.bn(y, y)": "?",
    "y = self.conv(x)\nreturn self.bn(input=y)": "?",
    "y = self.conv(x)\nreturn self.bn(*[y])": "?",
    "y = self.conv(x)\nreturn y.bn(y)": "?",
    "y = self.conv(x)\nself.y = y\nreturn y": "?",
    "y = self.conv(x)\nt = self.z\nreturn self.bn(y)": "?",
    "y = self.conv(x)\nprint()\nreturn y": "?",
    "y = self.conv(x)\ndel x\nreturn y": "?",
    "y = z = self.conv(x)\nreturn y": "?",
    "return self.bn(y := self.conv(x))": "?",
    "y, = [self.conv(x)]\nreturn y": "?",
    "y = self.conv(x)\nassert y\nreturn y": "?",
    "y = self.conv(x)\nreturn f'{y}'": "?",
    "y = self.conv(x)\nf = lambda: y\nreturn self.bn(y)": "?",
    "global y\ny = self.conv(x)\nreturn self.bn(y)": "?",
    "y = self.conv(x)\nwith x:\n    y = self.bn(y)\nreturn y": "?",
    "with x:\n    y = self.bn(self.conv(x))\n    y = self.relu(y)\nreturn y": "bn relu ?",
    "try:\n    y = self.conv(x)\n    return self.bn(y)\nfinally:\n    print(y)": "bn! ?|?",
    "try:\n    y = self.bn(self.conv(x))\nexcept E:\n    y = x\nreturn y": "?|bn ?|bn return",
    "for i in x:\n    y = self.conv(i)\n    y = self.bn(y)\nreturn y": "bn ?",
    "while self.none is None:\n    y = self.conv(x)\nreturn y": "?",
    "while True:\n    y = self.bn(self.conv(x))": "bn ?",
    "return [self.bn(self.conv(i)) for i in x]": "?|bn ?",
    "yield self.bn(self.conv(x))": "?|bn ?",
    "y = self.conv(x)\ny = self.bn(y)\nd = locals()\nreturn y": "?",
    "return self.bn(self.conv(self.pad(x)))": "?",
    "return self.bn(self.conv(x.data))": "?",
    "y = self.conv(self.pad(x))\nreturn self.bn(y)": "bn return",
    "return x + self.conv(self.pad(x))": "+x return",
    "return self.bn((self.conv if x else self.conv)(x))": "?|bn return",
    "return NULL_ACT(self.bn(self.conv(x)))": "bn NULL_ACT return",
    "self = x\nreturn self.bn(self.conv(x))": "bn return",
    "y = self.conv(x)\nself = y\nreturn x.bn(self)": "x.bn return",
}


def function(body: str) -> CodeType:
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    names: dict[str, Any] = {}
    exec(f"def forward(self, x):\n{lines}", names)
    code: CodeType = names["forward"].__code__
    nested = [c for c in code.co_consts if isinstance(c, CodeType) and "conv" in c.co_names]
    return nested[0] if nested else code


def call_of(code: CodeType, name: str) -> int:
    """Return the offset of the call that follows the last load of ``self.name``."""
    depth = None
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_ATTR", "LOAD_METHOD") and instruction.argval == name:
            depth = 0
        elif depth is not None and instruction.opname in ("LOAD_ATTR", "LOAD_METHOD") and instruction.argval == "pad":
            depth += 1
        elif depth is not None and instruction.opname in ("CALL", "CALL_FUNCTION", "CALL_METHOD"):
            if depth == 0:
                return instruction.offset
            depth -= 1
    raise AssertionError(name)


def is_none(path: tuple[Any, ...]) -> bool | None:
    return {"none": True, "some": False}.get(path[-1])


def found(body: str, is_none: Callable[[Any], bool | None] = is_none) -> Any:
    code = function(body)
    return bytecode.uses(code, call_of(code, "conv"), is_none)


def described(result: Any) -> str:
    texts = []
    for use in result.uses:
        names = use.path[1 + (use.path[1:2] == ("self",)) :]
        text = {"call": ".".join(names), "add": "+" + ".".join(names), "unknown": "?"}.get(use.kind, use.kind)
        texts.append(text + "!" * (use.kind in ("call", "add") and not use.is_clean))
    return " ".join(texts)


def test_the_uses_of_a_result_are_followed() -> None:
    for body, expected in FOLLOWED.items():
        assert described(found(body)) in expected.split("|"), (body, described(found(body)), expected)


def test_the_called_function_is_known() -> None:
    assert found("return self.conv(x)").function == ("local", "self", "conv")
    assert found("y = self.conv(self.pad(x))\nreturn y").function == ("local", "self", "conv")
    assert found("return self.bn((self.conv if x else self.conv)(x))").function in ((), ("local", "self", "conv"))


def test_conditions_are_noted() -> None:
    body = "y = self.conv(x)\nif self.none is not None:\n    y = self.bn(y)\nreturn y"
    assert found(body).conditions == ((("local", "self", "none"), True),)
    unknown = found(body, lambda path: None)
    assert (described(unknown), unknown.conditions) == ("?", ())


def test_stores_before_a_use_are_noted() -> None:
    bn, *_ = found("y = self.conv(x)\nreturn F.relu(self.bn(y))").uses
    assert bn.stores == ("y",)


def test_a_function_that_stores_its_first_parameter_has_no_owner() -> None:
    assert found("return self.conv(x)").owner == "self"
    for body in (
        "y = self.conv(x)\nself = 1\nreturn y", "y = self.conv(x)\ndel self\nreturn y",
        "f = lambda: self\nreturn self.conv(x)",
    ):  # fmt: skip
        code = function(body)
        offset = next(i.offset for i in dis.get_instructions(code) if i.opname.startswith("CALL"))
        assert bytecode.uses(code, offset, is_none).owner is None


def test_every_offset_of_any_code_gets_an_answer() -> None:
    for module in (dis, importlib):
        for value in vars(module).values():
            code = getattr(value, "__code__", None)
            if isinstance(code, CodeType):
                for instruction in dis.get_instructions(code):
                    for known in (True, False, None):
                        result = bytecode.uses(code, instruction.offset, lambda path, known=known: known)
                        assert result.uses[-1].kind in ("return", "unknown")


if __name__ == "__main__":
    for name, test in list(globals().items()):
        if name.startswith("test_"):
            test()
    print("passed:", sys.version.split()[0])
