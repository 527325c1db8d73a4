"""Measure the device time of convolution blocks of PyTorch and of fastconv on a GPU, without CPU time.

    python benchmarks/cuda_blocks.py

Each variant's calls are captured in a CUDA graph, and the graphs are replayed in turn. The table has the medians, in
microseconds per call.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

import fastconv.functional as FF
from fastconv.benchmarking.ratios import OURS, TORCH

VARIANTS = (*TORCH, OURS)
CALLS, ROUNDS = 20, 20


@dataclass(frozen=True)
class Block:
    """A 3 x 3 convolution of (N, C, H, H) to K channels, ReLU and, if asked, a 2 x 2 pool."""

    name: str
    N: int
    C: int
    H: int
    K: int
    pool: bool
    input_gradient: bool = True


BLOCKS = [
    Block("conv1 + pool", 64, 1, 28, 32, True, input_gradient=False),
    Block("conv2 + pool", 64, 32, 13, 64, True),
    Block("conv3", 64, 64, 5, 128, False),
    Block("conv2 + pool", 1024, 32, 13, 64, True),
    Block("conv3", 1024, 64, 5, 128, False),
    Block("64 -> 64, 56 x 56", 32, 64, 56, 64, False),
    Block("256 -> 256, 14 x 14", 32, 256, 14, 256, False),
]


def calls(block: Block, variant: str, dtype: torch.dtype) -> list[Callable[[], object]]:
    """Return two functions: the forward pass, and the forward and backward pass."""
    backend, layout = variant.split()
    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, device="cuda", dtype=dtype).contiguous(memory_format=memory_format)

    x = random(block.N, block.C, block.H, block.H).requires_grad_(block.input_gradient)
    w = random(block.K, block.C, 3, 3).div_((9 * block.C) ** 0.5).requires_grad_()
    b = torch.zeros(block.K, device="cuda", dtype=dtype, requires_grad=True)

    def forward() -> Tensor:
        if backend == "fastconv":
            return FF.conv2d_relu_max_pool2d(x, w, b) if block.pool else FF.conv2d_relu(x, w, b)
        y = F.relu(F.conv2d(x, w, b))
        return F.max_pool2d(y, 2) if block.pool else y

    grad = torch.randn_like(forward())
    inputs = [x, w, b] if block.input_gradient else [w, b]
    return [torch.no_grad()(forward), lambda: torch.autograd.grad(forward(), inputs, grad)]


def graphed(call: Callable[[], object]) -> torch.cuda.CUDAGraph:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # the libraries choose their algorithms during these calls
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(CALLS):
            call()
    return graph


def microseconds(functions: list[Callable[[], object]]) -> list[float]:
    """Return the time per call of each function. The functions keep the tensors alive that the graphs read."""
    graphs = [graphed(function) for function in functions]
    times: list[list[float]] = [[] for _ in graphs]
    for _ in range(ROUNDS):
        for graph, of_graph in zip(graphs, times, strict=True):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            of_graph.append(start.elapsed_time(end) * 1e3 / CALLS)
    return [statistics.median(of_graph) for of_graph in times]


def main() -> None:
    if not torch.cuda.is_available():
        raise SystemExit("no GPU")
    torch.backends.cudnn.benchmark = True
    for dtype, tf32 in ((torch.float32, False), (torch.float32, True), (torch.float16, False)):
        torch.backends.cudnn.allow_tf32 = tf32
        table = Table(title=f"{dtype}{', TF32 in cuDNN' * tf32}, us: forward, forward + backward")
        for heading in ("block", "batch", *VARIANTS):
            table.add_column(heading)
        for block in BLOCKS:
            forward, both = zip(*(calls(block, variant, dtype) for variant in VARIANTS), strict=True)
            cells = zip(microseconds(list(forward)), microseconds(list(both)), strict=True)
            table.add_row(block.name, str(block.N), *(f"{a:.1f}, {c:.1f}" for a, c in cells))
        Console().print(table)


if __name__ == "__main__":
    main()
