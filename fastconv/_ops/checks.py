"""Argument checks that the fake kernels of several operators share. The messages are those of ``csrc/checks.cpp``."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fastconv._ops.sizes import Ints

__all__ = [
    "FLOATING", "REAL", "check", "check_gradient", "check_implemented", "check_type", "type_name",
]  # fmt: skip

#: PyTorch's names of the dtypes in its messages.
FLOATING = {torch.float32: "Float", torch.float64: "Double", torch.bfloat16: "BFloat16", torch.float16: "Half"}
REAL = {
    **FLOATING,
    torch.uint8: "Byte",
    torch.int8: "Char",
    torch.int16: "Short",
    torch.int32: "Int",
    torch.int64: "Long",
}
_NAMES = {**REAL, torch.bool: "Bool", torch.complex64: "ComplexFloat", torch.complex128: "ComplexDouble"}


def check(condition: bool, message: str) -> None:
    if not condition:
        raise RuntimeError(message)


def type_name(dtype: torch.dtype) -> str:
    return _NAMES.get(dtype, str(dtype))


def check_type(tensor: Tensor, expected: torch.dtype, name: str) -> None:
    if tensor.dtype != expected:
        raise RuntimeError(f"expected {name} of type {type_name(expected)}, but got {type_name(tensor.dtype)}")


def check_implemented(tensor: Tensor, operator: str, dtypes: Mapping[torch.dtype, str]) -> None:
    if tensor.dtype not in dtypes:
        raise RuntimeError(f"\"{operator}\" not implemented for '{type_name(tensor.dtype)}'")


def check_gradient(expected: Ints, grad_output: Tensor, second: Tensor | None = None, name: str = "") -> None:
    """Check that ``grad_output`` and ``second`` have the output's size. ``name`` is the name of ``second``."""
    found = [grad_output] if second is None else [grad_output, second]
    if any(tensor.dim() != len(expected) for tensor in found) or any(
        given != wanted for tensor in found for given, wanted in zip(tensor.shape, expected, strict=True)
    ):
        names, sizes = f" and {name}" if name else "", " and ".join(str(list(tensor.shape)) for tensor in found)
        raise RuntimeError(f"expected grad_output{names} of size {list(expected)}, but got {sizes}")
