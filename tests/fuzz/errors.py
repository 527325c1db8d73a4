"""Calls with one or two wrong arguments. fastconv must raise PyTorch's error, or return PyTorch's result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import fastconv.functional as FF

from .compare import same, same_values
from .draw import Draw

NUMBERS: tuple[Any, ...] = (
    0, -1, 1, 2, 3, 9, (1, 2), (0, 1), (1, -1), (1,), (1, 2, 3), (), [2, 2], 1.0, 2.5, True, None, "2", "same", "valid",
    "full", (1.0, 2), range(2),
)  # fmt: skip
SIZES: tuple[tuple[int, ...], ...] = (
    (), (3,), (3, 4), (4, 5, 5), (2, 4, 5, 5), (2, 4, 0, 5), (2, 0, 5, 5), (0, 4, 5, 5), (2, 3, 5, 5), (1, 2, 4, 5, 5),
    (2, 4, 2, 2), (4, 4, 3, 3), (6, 4, 3, 3), (6, 2, 3, 3), (6, 1, 3, 3), (0, 4, 3, 3), (6, 4, 0, 3), (6, 4, 9, 9),
    (6,),
)  # fmt: skip
OTHERS: tuple[Any, ...] = (None, 3, [1.0], "tensor")
DTYPES = (torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool, torch.complex64)


@dataclass
class Call:
    """One call, which either library can run."""

    name: str
    tensors: list[Any]
    arguments: dict[str, Any]
    leaf: bool

    def run(self, function: Callable[..., Any]) -> Any:
        tensors = [t.clone() if isinstance(t, Tensor) else t for t in self.tensors]
        if self.leaf and isinstance(tensors[0], Tensor) and tensors[0].is_floating_point():
            tensors[0].requires_grad_()
        return function(*tensors, **self.arguments)

    def check(self) -> None:
        ours, theirs = getattr(FF, self.name), getattr(F, self.name)
        try:
            expected = self.run(theirs)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            self.refuses(ours, error)
            return
        found = self.run(ours)
        if isinstance(expected, tuple):
            same_values("indices", found[1], expected[1])
            found, expected = found[0], expected[0]
        same("dtype", found.dtype, expected.dtype)
        if self.name == "batch_norm":
            torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)
            return
        same_values("y", found, expected)

    def refuses(self, ours: Callable[..., Any], expected: Exception) -> None:
        try:
            self.run(ours)
        except Exception as found:
            same("error", f"{type(found).__name__}: {text(found)}", f"{type(expected).__name__}: {text(expected)}")
            return
        same("error", "none", f"{type(expected).__name__}: {text(expected)}")


def text(error: Exception) -> str:
    """The first line without the list of argument types, which differs because fastconv passes more arguments."""
    return str(error).split("\n")[0].split(" - got (")[0]


def numbers(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The integers from -2 to 2 in turn, so that results are exact in every type."""
    return (torch.arange(torch.Size(size).numel()) % 5 - 2).view(size).to(dtype)


def draw_case(draw: Draw) -> Call:
    name = draw.pick(("conv2d", "conv2d", "conv2d", "max_pool2d", "max_pool2d", "relu", "batch_norm"))
    tensors: list[Any] = [numbers(2, 4, 5, 5)]
    parameters = ["stride", "padding", "dilation"]
    arguments: dict[str, Any] = {}
    if name == "conv2d":
        tensors += [numbers(6, 4, 3, 3), numbers(6)]
        parameters += ["groups"]
    elif name == "max_pool2d":
        arguments["kernel_size"] = 2
        parameters += ["kernel_size", "kernel_size", "ceil_mode", "return_indices"]
    elif name == "batch_norm":
        tensors += [numbers(4), numbers(4) ** 2, numbers(4), numbers(4)]
        parameters = ["training", "momentum", "eps"]
        arguments["training"] = draw.chance(0.7)
    else:
        parameters = ["inplace"]
    for _ in range(1 + draw.upto(1)):
        if draw.chance(0.5):
            argument = draw.pick(parameters)
            flag = argument in ("ceil_mode", "return_indices", "inplace", "training")
            arguments[argument] = draw.pick((True, False) if flag else NUMBERS)
            continue
        which = draw.upto(len(tensors) - 1)
        if draw.chance(0.15):
            tensors[which] = draw.pick(OTHERS)
        elif draw.chance(0.3) and isinstance(tensors[which], Tensor):
            tensors[which] = tensors[which].to(draw.pick(DTYPES))
        else:
            tensors[which] = numbers(*draw.pick(SIZES), dtype=draw.pick(DTYPES))
    return Call(name, tensors, arguments, draw.chance(0.3))
