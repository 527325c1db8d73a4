"""Record a model as a graph of torch.fx, or find that the record would compute something else than the model."""

from __future__ import annotations

import dis
import inspect
import operator
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import Attribute

from fastconv._frozen.state import is_same_state, modes, random_state, set_random_state, state_of
from fastconv._layer import is_observed

__all__ = ["IN_PLACE", "Refused", "record"]


class Refused(BaseException):
    """The record would compute something else than the model. ``except Exception`` in the model does not catch it."""


def record(model: nn.Module) -> fx.Graph | None:
    """Return the graph of a model. None if torch.fx cannot record it, or if the record would miss something.

    A model that is not recorded may have been changed by the attempt.
    """
    if is_observed(model):
        return None
    before, numbers = state_of(model), random_state()
    tracers = []
    try:
        if _has_optional_arguments(model) or _compares_objects(model, {}):
            return None
        # A context within forward changes the modes of at least one of the two runs.
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
            tracers.append(_Tracer())
            other = tracers[-1].trace(model)
        with torch.enable_grad(), torch.autocast("cpu", enabled=False):
            tracers.append(_Tracer())
            graph = tracers[-1].trace(model)
        # A branch on the mode, or a number that changes from run to run, gives two graphs.
        is_same = graph.python_code("self").src == other.python_code("self").src
        is_same = is_same and is_same_state(before, state_of(model)) and random_state() == numbers
    except (Exception, Refused):  # the model does something that torch.fx cannot trace
        return None
    finally:
        set_random_state(numbers)
        for tracer in tracers:
            tracer.forget()
    for node in graph.nodes:
        node.type = None  # torch.fx cannot pickle annotations that are text
    return graph if is_same else None


def _has_optional_arguments(model: nn.Module) -> bool:
    """Return whether a call may leave out arguments. torch.fx passes a Proxy for each, so ``mask is None`` is false."""
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    parameters = inspect.signature(model.forward).parameters.values()
    return any(p.default is not inspect.Parameter.empty or p.kind in kinds for p in parameters)


#: Functions that tell a Proxy from a tensor, and that a Proxy cannot intercept.
_INSPECTORS = frozenset({"callable", "id", "type"})


def _compares_objects(module: nn.Module, arguments: dict[str, Any]) -> bool:
    """Return whether ``forward`` looks at the identity or the type of an argument of the model, as in ``mask is None``.

    Args:
        module: a module that is traced through.
        arguments: of this call. The model's own arguments may have any value, but results of layers are tensors.
    """
    code = getattr(inspect.unwrap(module.forward), "__code__", None)
    names: set[Any] = set(inspect.signature(module.forward).parameters)
    names -= {name for name, value in arguments.items() if not _is_argument(value)}
    before: list[Any] = [None, None]
    for instruction in dis.get_instructions(code) if code is not None else ():
        if instruction.opname == "LOAD_GLOBAL" and instruction.argval in _INSPECTORS:
            return True
        # In Python 3.11, POP_JUMP_FORWARD_IF_NONE and others include the comparison with None.
        compared = before if instruction.opname == "IS_OP" or instruction.opname.endswith("_NONE") else ()
        if not names.isdisjoint(compared):
            return True
        loaded = instruction.argval if type(instruction.argval) is tuple else (instruction.argval,)
        before = [before[-1], *(name for name in loaded if type(name) is str)][-2:]
    return False


def _is_argument(value: Any) -> bool:
    return isinstance(value, fx.Proxy) and value.node.op == "placeholder"


# ---- changes in place --------------------------------------------------------------------------------------------

#: In-place operators, as functions that the graph calls, and their methods. The code that torch.fx writes for
#: ``operator.iadd`` gives numbers a new value in all variables.
IN_PLACE: dict[Any, str] = {}


def _add_in_place(name: str) -> None:
    operation: Callable[[Any, Any], Any] = getattr(operator, f"i{name}")

    def in_place(a: Any, b: Any) -> Any:
        return operation(a, b)

    in_place.__name__ = in_place.__qualname__ = f"in_place_{name}"
    globals()[in_place.__name__] = in_place  # the graph's code imports it
    IN_PLACE[in_place] = f"__i{name}__"


for _name in (
    "add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor", "lshift", "rshift",
):  # fmt: skip
    _add_in_place(_name)


class _Recorded:
    """A Proxy that records ``a += b`` as a change of a, and refuses operations that torch.fx would record wrongly.

    A Proxy of torch.fx records ``a = a + b``. A second variable of the same tensor would then miss the change.
    """

    @property  # type: ignore[misc]
    def __class__(self) -> Any:  # isinstance() reads it. A Proxy is no Tensor, but the value is.
        if not _is_called_by_torch():
            raise Refused("the type of a value is not recorded")
        return type(self)

    def __getattr__(self, name: str) -> Any:
        if name in ("numpy", "data_ptr", "untyped_storage", "storage"):
            raise Refused(f"changes through {name} are not recorded")
        if not hasattr(Tensor, name) and not _is_called_by_torch():
            raise Refused(f"whether a value has the attribute {name} is not recorded")
        return _RecordedAttribute(self, name)  # type: ignore[arg-type]

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in ("node", "tracer", "root", "attr", "_node"):
            raise Refused(f"an assignment to {name} is not recorded")
        object.__setattr__(self, name, value)

    def __hash__(self) -> int:
        return self._ask_object("__hash__")  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        return self._ask_object("__repr__")  # type: ignore[no-any-return]

    def __str__(self) -> str:
        return self._ask_object("__repr__")  # type: ignore[no-any-return]

    def __format__(self, spec: str) -> str:
        return format(self._ask_object("__repr__"), spec)

    def _ask_object(self, method: str) -> Any:
        """Call a method of ``object`` for torch.fx. Refuse the program: the value's own result is not known."""
        if not _is_called_by_torch(3):
            raise Refused(f"the result of {method} is not recorded")
        return getattr(object, method)(self)


def _is_called_by_torch(depth: int = 2) -> bool:
    return sys._getframe(depth).f_globals.get("__name__", "").startswith(("torch.", "fastconv."))  # type: ignore[no-any-return]


def _refuse(self: Any, *_: Any) -> NoReturn:
    raise Refused("a value is not known while the model is recorded")


for _name in ("array", "bool", "complex", "float", "index", "int", "len", "round", "trunc"):
    setattr(_Recorded, f"__{_name}__", _refuse)


class _RecordedProxy(_Recorded, fx.Proxy):
    pass


class _RecordedAttribute(_Recorded, Attribute):
    pass


def _method(function: Any) -> Any:
    return lambda a, b: a.tracer.create_proxy("call_function", function, (a, b), {})


for _function, _name in IN_PLACE.items():
    setattr(_Recorded, _name, _method(_function))


# ---- the tracer --------------------------------------------------------------------------------------------------


class _Tracer(fx.Tracer):
    """Records a model, or raises Refused if the record would compute something else.

    Modules with hooks stay modules in the graph. A tensor that ``forward`` creates would be a constant, although it may
    be random, or be changed in place. A context such as ``torch.autocast`` would have no effect.
    """

    def __init__(self) -> None:
        super().__init__()
        self._modes = modes()

    def forget(self) -> None:
        """Release the model. Reference cycles keep the tracer until the garbage collector runs."""
        vars(self).clear()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        is_layer = isinstance(m, nn.Conv2d) or type(m).__module__.startswith("fastconv.")
        return is_layer or is_observed(m) or super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _RecordedProxy(node, self)

    def iter(self, obj: fx.Proxy) -> NoReturn:
        raise Refused("a loop over a value is not recorded")

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if not self.is_leaf_module(m, self.path_of_module(m)):
            given = inspect.signature(m.forward).bind(*args, **kwargs).arguments
            if _compares_objects(m, given):
                raise Refused("a comparison of objects is not recorded")
        return super().call_module(m, forward, args, kwargs)

    def create_node(self, kind: str, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        if kind == "get_attr" and str(target).startswith("_tensor_constant"):
            raise Refused("a tensor that forward creates is not recorded")
        if modes() != self._modes:
            raise Refused("a context within forward is not recorded")
        return super().create_node(kind, target, *args, **kwargs)

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, dict | list) and type(a) not in (dict, list):
            raise Refused(f"a {type(a).__name__} is recorded as another type")
        return super().create_arg(a)
