"""PyTorch's override protocol: types and modes whose ``__torch_function__`` handles a call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function

__all__ = ["accept_fastconv", "handle_override", "register_type"]

#: The implementations of ``__torch_function__`` that treat all functions alike.
_ACCEPTING: set[Any] = {Tensor.__torch_function__.__func__, torch._C._disabled_torch_function_impl}  # type: ignore[attr-defined]


def register_type(cls: type) -> None:
    """Add a type whose ``__torch_function__`` knows fastconv's functions."""
    _ACCEPTING.add(_implementation(cls))


def _implementation(cls: Any) -> Any:
    method = getattr(cls, "__torch_function__", torch._C._disabled_torch_function_impl)
    return getattr(method, "__func__", method)


def accept_fastconv(types: Iterable[type]) -> bool:
    """Return whether fastconv's functions may take the place of PyTorch's in calls with these types.

    False if a type has its own ``__torch_function__``. It may look for PyTorch's functions, as in PyTorch's guide to
    its extension ("Extending torch with a Tensor-like type").
    """
    return all(_implementation(cls) in _ACCEPTING for cls in types)


def handle_override(
    function: Callable[..., Any], torch_function: Callable[..., Any], tensors: Sequence[Any], *args: Any, **kwargs: Any
) -> Any:
    """Let a type or a mode handle a call.

    Args:
        function: fastconv's function.
        torch_function: the same of PyTorch. A type with its own ``__torch_function__`` sees this one.
        tensors: the arguments that may have such a type.
        args, kwargs: all arguments.
    """
    if accept_fastconv(map(type, tensors)):
        return handle_torch_function(function, tensors, *args, **kwargs)
    return torch_function(*args, **kwargs)
