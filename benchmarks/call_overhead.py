"""Measure the overhead of a call: forward and backward on a 1x1x8x8 input, by PyTorch and by fastconv.

python benchmarks/call_overhead.py
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

import fastconv.functional as FF
from fastconv.benchmarking.alternating import alternate
from fastconv.benchmarking.ratios import medians

ROUNDS, CALLS = 15, 300


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
        functions = {"theirs": forward_and_backward(theirs, *inputs), "ours": forward_and_backward(ours, *inputs)}
        seconds = medians(alternate(functions, ROUNDS, CALLS))
        table.add_row(name, *(f"{seconds[side] * 1e6:.0f}" for side in functions))
    Console().print(table)


if __name__ == "__main__":
    main()
