"""Compute a Deferred before its memory becomes that of another tensor: ``tensor.data = deferred``."""

from __future__ import annotations

import torch
from torch import Tensor

from fastconv._deferred.tensor import Deferred

__all__: list[str] = []

_SHALLOW_COPY = torch.ops.aten._has_compatible_shallow_copy_type.default
_PYTHON_KEYS = torch._C.DispatchKeySet(torch._C.DispatchKey.PythonTLSSnapshot)
_LIBRARY = torch.library.Library("aten", "IMPL")  # a name, because the kernel lasts as long as this object


def _settle_before_shallow_copy(tensor: Tensor, data: Tensor) -> bool:
    """Compute ``data`` before ``tensor.data = data`` copies its reference to memory.

    PyTorch calls neither ``__torch_function__`` nor ``__torch_dispatch__`` of ``data`` there. But it calls this
    operator first, and this kernel serves subclasses of Tensor.
    """
    if type(data) is Deferred:
        value = data.settle().detach()
        with torch._C.DisableTorchFunction():
            data.data = value  # from now on, both objects refer to the same memory
    with torch._C._ExcludeDispatchKeyGuard(_PYTHON_KEYS):
        return _SHALLOW_COPY(tensor, data)  # type: ignore[no-any-return]


_LIBRARY.impl("_has_compatible_shallow_copy_type", _settle_before_shallow_copy, "PythonTLSSnapshot")
