"""Find the value of a variable, an attribute or an item, without running code of the program."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from torch import nn

from fastconv._ahead.bytecode import Item, Path

__all__ = ["MISSING", "value_at"]

#: A value that does not exist, or that is not known without running code.
MISSING = object()
_GETATTR, _GETATTRIBUTE = nn.Module.__getattr__, object.__getattribute__


def _subscription(cls: Any) -> tuple[Any, ...]:
    """Return the methods that a subscript of a container of modules calls."""
    names = ("__getitem__", "__len__", "__class_getitem__", "_get_abs_string_index", "_get_item_by_idx")
    return tuple(getattr(cls, name, None) for name in names)


#: For each container of modules, its methods at import.
_CONTAINERS = {cls: _subscription(cls) for cls in (nn.ModuleList, nn.ModuleDict, nn.Sequential)}


def value_at(path: Path, variables: dict[str, Any], names: dict[str, Any]) -> Any:
    """Return the value at a path. MISSING if it does not exist, or if finding it runs code of the program.

    Args:
        path: see :mod:`fastconv._ahead.bytecode`.
        variables: the local variables.
        names: the global variables.
    """
    if path[0] == "local":
        value = variables.get(path[1], MISSING)  # type: ignore[arg-type]
    elif type(names) is dict:
        value = names.get(path[1], MISSING)  # type: ignore[arg-type]
    else:
        return MISSING
    for name in path[2:]:
        if type(name) is str:
            value = _attribute(value, name)
        else:
            assert type(name) is Item
            value = _item(value, variables.get(name.key, MISSING) if name.is_variable else name.key)
    return value


def _attribute(value: Any, name: str) -> Any:
    """Return an attribute of a module. MISSING if finding it runs code of the program, or if it does not exist."""
    cls: Any = type(value)
    if cls is ModuleType:
        return vars(value).get(name, MISSING)
    if (
        getattr(cls, "__getattr__", None) is not _GETATTR
        or cls.__getattribute__ is not _GETATTRIBUTE
        or hasattr(cls, name)
    ):
        return MISSING
    attributes = value.__dict__
    if name in attributes:
        return attributes[name]
    if name in attributes["_parameters"] or name in attributes["_buffers"]:
        return MISSING
    return attributes["_modules"].get(name, MISSING)


def _item(value: Any, key: Any) -> Any:
    """Return an item of a list, a tuple or a container of modules. MISSING for other objects and other keys."""
    cls: Any = type(value)
    if cls in (list, tuple):
        items: Any = value
    else:
        kind = next((kind for kind in _CONTAINERS if issubclass(cls, kind)), None)
        if kind is None or _subscription(cls) != _CONTAINERS[kind]:
            return MISSING
        modules = value.__dict__["_modules"]
        if kind is nn.ModuleDict:
            return modules.get(key, MISSING) if type(key) is str else MISSING
        items = list(modules.values())
        if kind is nn.ModuleList and list(modules) != [str(i) for i in range(len(items))]:
            return MISSING
    return items[key] if type(key) is int and -len(items) <= key < len(items) else MISSING
