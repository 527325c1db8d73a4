"""The calls of a frozen model, and their records (:mod:`fastconv._frozen.recorder`)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._device import DeviceContext
from torch.utils._pytree import TreeSpec, tree_unflatten

from fastconv._frozen.record import Refused
from fastconv._frozen.state import Sealed
from fastconv._ops.function import is_transformed

__all__ = ["Call", "FrozenCalls", "Record", "call_of"]


class Call(NamedTuple):
    """The arguments of a call."""

    key: tuple[Any, ...]  # equal for calls with the same record
    tensors: list[Tensor]
    arguments: Sequence[Any]
    keywords: Mapping[str, Any]


def call_of(arguments: Sequence[Any], keywords: Mapping[str, Any]) -> Call | None:
    """Return the call. None if its record would depend on something that the key does not contain."""
    key: list[Any] = []
    tensors: list[Tensor] = []
    grad = torch.is_grad_enabled()
    for place, value in (*enumerate(arguments), *keywords.items()):
        if type(value) is Tensor:
            is_plain = value.is_cpu and value.layout is torch.strided and not value.is_nested and not vars(value)
            if not is_plain or (grad and value.requires_grad):
                return None
            tensors.append(value)
            key.append((place, value.shape, value.stride(), value.dtype))
        elif value is None or type(value) in (bool, int, str):
            key.append((place, type(value), value))
        else:
            return None
    has_aliases = len({id(tensor) for tensor in tensors}) < len(tensors)
    return Call(tuple(key), tensors, arguments, keywords) if tensors and not has_aliases else None


#: The frozen graph of a call, and the structure of its result.
Record = tuple[nn.Module, TreeSpec]
#: One thread records at a time, because the random numbers belong to all threads.
_recording = threading.Lock()


class FrozenCalls(Sealed):
    """Calls a model. Records the first call with each set of sizes, and uses the record for the next ones.

    The records are valid for the attributes, layers, hooks and values that the model had when it was frozen. Copies of
    this object contain no records.

    Args:
        model: the model that computes calls without a record.
        freeze: records a call of the model. It returns None if the call cannot be recorded.
    """

    #: More sets of sizes than this are not recorded. Otherwise, a program whose sizes vary would keep recording.
    most_records = 8

    def __init__(self, model: nn.Module, freeze: Callable[[nn.Module, Call, Any], Record | None], folded: Any) -> None:
        super().__init__(model)
        self._freeze, self._folded = freeze, folded
        self._records: dict[Any, Record | None] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call = None if _is_special() else call_of(args, kwargs)
        if call is not None and self.is_unchanged() and (record := self._record(call)) is not None:
            frozen, tree = record
            return tree_unflatten(frozen(*call.tensors), tree)
        return self.module(*args, **kwargs)

    def _record(self, call: Call) -> Record | None:
        found = self._records.get(call.key)
        is_new = call.key not in self._records and len(self._records) < self.most_records
        if is_new and _recording.acquire(blocking=False):  # else another thread records: do not wait for it
            try:
                with torch.inference_mode(False):
                    found = self._freeze(self.module, call, self._folded)
            except (Exception, Refused):
                found = None
            finally:
                _recording.release()
            self._records[call.key] = found
        return found

    def forget(self) -> None:
        """Drop the records, because the model has new tensors."""
        self._records.clear()
        self._folded.clear()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_records": {}, "_folded": {}}


def _is_special() -> bool:
    """Return whether something sees or changes the functions of this call. A record would hide them."""
    return (
        is_transformed()
        or torch.is_autocast_enabled("cpu")
        or torch._C._get_tracing_state() is not None
        or _is_mode_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch.nn.modules.module._has_any_global_hook()
    )


def _is_mode_active() -> bool:
    """Return whether a function mode is active, other than that of ``torch.set_default_device("cpu")``."""
    modes = map(torch._C._get_function_stack_at, range(torch._C._len_torch_function_stack()))
    return any(type(mode) is not DeviceContext or mode.device.type != "cpu" for mode in modes)
