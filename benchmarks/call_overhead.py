"""What a call costs before it computes: forward and backward on a 1x1x8x8 input, ours beside PyTorch's.

python benchmarks/call_overhead.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

import fastconv.functional as FF

ROUNDS, CALLS = 15, 300


def microseconds(*functions: Callable[[], object]) -> list[float]:
    """The median over rounds in which the functions take turns."""
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(ROUNDS):
        for function, of_function in zip(functions, times, strict=True):
            start = time.perf_counter()
            for _ in range(CALLS):
                function()
            of_function.append((time.perf_counter() - start) / CALLS * 1e6)
    return [statistics.median(of_function) for of_function in times]


def main() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 1, 8, 8, requires_grad=True)
    w, b = torch.randn(1, 1, 3, 3, requires_grad=True), torch.randn(1, requires_grad=True)

    def forward_and_backward(function: Callable[[], Tensor], *inputs: Tensor) -> Callable[[], object]:
        g = torch.ones_like(function())
        return lambda: torch.autograd.grad(function(), inputs, g)

    table = Table(caption="forward + backward of 1x1x8x8, microseconds")
    for heading in ("", "torch.nn.functional", "fastconv.functional"):
        table.add_column(heading)
    for name, theirs, ours, inputs in (
        ("conv2d", lambda: F.conv2d(x, w, b), lambda: FF.conv2d(x, w, b), (w, b)),
        ("max_pool2d", lambda: F.max_pool2d(x, 2), lambda: FF.max_pool2d(x, 2), (x,)),
        ("relu", lambda: F.relu(x), lambda: FF.relu(x), (x,)),
    ):
        costs = microseconds(forward_and_backward(theirs, *inputs), forward_and_backward(ours, *inputs))
        table.add_row(name, *(f"{cost:.0f}" for cost in costs))
    Console().print(table)


if __name__ == "__main__":
    main()
