"""Record a model as a graph of torch.fx, or find that the record would compute something else than the model."""

from __future__ import annotations

import inspect
import operator
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import Attribute, TraceError

from fastconv._layer import is_observed

__all__ = ["IN_PLACE", "record"]


def record(model: nn.Module) -> fx.Graph | None:
    """Return the graph of a model. None if torch.fx cannot record it, or if the record would miss something.

    A model that is not recorded may have been changed by the attempt.
    """
    if is_observed(model):
        return None
    before, numbers = _state(model), torch.get_rng_state()
    try:
        if _has_optional_arguments(model):
            return None
        # A context within forward changes the modes of at least one of the two runs.
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            _Tracer().trace(model)
        with torch.enable_grad(), torch.autocast("cpu", enabled=False):
            graph = _Tracer().trace(model)
    except Exception:  # the model does something that torch.fx cannot trace
        return None
    is_same = _is_same(before, _state(model)) and torch.equal(numbers, torch.get_rng_state())
    return graph if is_same else None


def _has_optional_arguments(model: nn.Module) -> bool:
    """Return whether a call may leave out arguments. torch.fx passes a Proxy for each, so ``mask is None`` is false."""
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    parameters = inspect.signature(model.forward).parameters.values()
    return any(p.default is not inspect.Parameter.empty or p.kind in kinds for p in parameters)


# ---- the state of a model ----------------------------------------------------------------------------------------

State = list[tuple[str, object, int]]


def _state(model: nn.Module) -> State:
    """Return the attributes of all modules: the names, the values, and their versions or lengths."""
    found: State = []
    for module in model.modules():
        for name, value in vars(module).items():
            members = value.items() if name in ("_buffers", "_modules", "_parameters") else [(name, value)]
            found += [(key, member, _version(member)) for key, member in members]
    return found


def _version(value: object) -> int:
    if isinstance(value, Tensor):
        return 0 if value.is_inference() else value._version
    return len(value) if isinstance(value, list | dict | set) else 0


def _is_same(before: State, after: State) -> bool:
    return len(before) == len(after) and all(
        a[0] == b[0] and a[1] is b[1] and a[2] == b[2] for a, b in zip(before, after, strict=True)
    )


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
    """A Proxy that records ``a += b`` as a change of a, and refuses what torch.fx would record as something else.

    A Proxy of torch.fx records ``a = a + b``. A second variable of the same tensor would then miss the change.
    """

    @property  # type: ignore[misc]
    def __class__(self) -> Any:  # isinstance() reads it. A Proxy is no Tensor, but the value is.
        if not sys._getframe(1).f_globals.get("__name__", "").startswith(("torch.", "fastconv.")):
            raise TraceError("the type of a value is not recorded")
        return type(self)

    def __getattr__(self, name: str) -> Any:
        if name in ("numpy", "data_ptr", "untyped_storage", "storage"):
            raise TraceError(f"changes through {name} are not recorded")
        return _RecordedAttribute(self, name)  # type: ignore[arg-type]

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in ("node", "tracer", "root", "attr", "_node"):
            raise TraceError(f"an assignment to {name} is not recorded")
        object.__setattr__(self, name, value)


class _RecordedProxy(_Recorded, fx.Proxy):
    pass


class _RecordedAttribute(_Recorded, Attribute):
    pass


def _method(function: Any) -> Any:
    return lambda a, b: a.tracer.create_proxy("call_function", function, (a, b), {})


for _function, _name in IN_PLACE.items():
    setattr(_Recorded, _name, _method(_function))


# ---- the tracer --------------------------------------------------------------------------------------------------


def _modes() -> tuple[object, ...]:
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
    return dtype, torch.is_grad_enabled(), torch.is_inference_mode_enabled()


class _Tracer(fx.Tracer):
    """Records a model, or raises TraceError if the record would compute something else.

    Modules with hooks stay modules in the graph. A tensor that ``forward`` creates would be a constant, although it may
    be random, or be changed in place. A context such as ``torch.autocast`` would have no effect.
    """

    def __init__(self) -> None:
        super().__init__()
        self._modes = _modes()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        is_layer = isinstance(m, nn.Conv2d) or type(m).__module__.startswith("fastconv.")
        return is_layer or is_observed(m) or super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _RecordedProxy(node, self)

    def create_node(self, kind: str, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        if kind == "get_attr" and str(target).startswith("_tensor_constant"):
            raise TraceError("a tensor that forward creates is not recorded")
        if _modes() != self._modes:
            raise TraceError("a context within forward is not recorded")
        return super().create_node(kind, target, *args, **kwargs)

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, dict | list) and type(a) not in (dict, list):
            raise TraceError(f"a {type(a).__name__} is recorded as another type")
        return super().create_arg(a)
