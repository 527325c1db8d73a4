"""Measure the device time of convolution blocks and layers of PyTorch and of fastconv on a GPU, without CPU time.

    python benchmarks/cuda_blocks.py                            as users get them, by the plan
    FASTCONV_ALGORITHM=own python benchmarks/cuda_blocks.py     fastconv's kernels alone
    python benchmarks/cuda_blocks.py --layers                   3 x 3 layers: each pass of fastconv's kernels alone

Each variant's calls are captured in a CUDA graph, and the graphs are replayed in turn. The results are the medians, in
microseconds per call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from cuda_measure import Results, microseconds, need, options, set_precision
from torch import Tensor
from torch.nn import functional as F

import fastconv.functional as FF
from fastconv.benchmarking.ratios import VARIANTS


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

    def __str__(self) -> str:
        return f"{self.name}, batch {self.N}"


BLOCKS = [
    Block("conv1 + pool", 64, 1, 28, 32, True, input_gradient=False),
    Block("conv2 + pool", 64, 32, 13, 64, True),
    Block("conv3", 64, 64, 5, 128, False),
    Block("conv1 + pool", 1024, 1, 28, 32, True, input_gradient=False),
    Block("conv2 + pool", 1024, 32, 13, 64, True),
    Block("conv3", 1024, 64, 5, 128, False),
]
LAYERS = [
    Block("64 -> 64, 56 x 56", 32, 64, 56, 64, False),
    Block("128 -> 128, 28 x 28", 32, 128, 28, 128, False),
    Block("256 -> 256, 14 x 14", 32, 256, 14, 256, False),
]


def tensors(block: Block, layout: str, device: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, dtype=dtype).contiguous(memory_format=memory_format)

    x, w = random(block.N, block.C, block.H, block.H), random(block.K, block.C, 3, 3).div_((9 * block.C) ** 0.5)
    return x, w, torch.zeros(block.K, device=device, dtype=dtype)


def block_calls(block: Block, variant: str, device: str, dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    """Return two functions: the forward pass, and the forward and backward pass."""
    backend, layout = variant.split()
    x, w, b = tensors(block, layout, device, dtype)
    inputs = [t.requires_grad_() for t in ([x, w, b] if block.input_gradient else [w, b])]

    def forward() -> Tensor:
        if backend == "fastconv":
            return FF.conv2d_relu_max_pool2d(x, w, b) if block.pool else FF.conv2d_relu(x, w, b)
        y = F.relu(F.conv2d(x, w, b))
        return F.max_pool2d(y, 2) if block.pool else y

    grad = torch.randn_like(forward())
    both = lambda: torch.autograd.grad(forward(), inputs, grad)  # noqa: E731
    return {"forward": torch.no_grad()(forward), "forward + backward": both}


def layer_calls(block: Block, variant: str, device: str, dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    """Return a function for each pass of a convolution alone, with padding. The operators do not ask the plan."""
    backend, layout = variant.split()
    x, w, b = tensors(block, layout, device, dtype)
    geometry: tuple[Any, ...] = ((1, 1), (1, 1), (1, 1))
    if backend == "fastconv":
        ops, last = torch.ops.fastconv, layout == "channels_last"
        g = torch.randn_like(ops.conv2d(x, w, b, *geometry, 1))
        return {
            "forward": lambda: ops.conv2d(x, w, b, *geometry, 1),
            "backward_data": lambda: ops.conv2d_backward_data(g, w, x.shape, *geometry, 1, last),
            "backward_weight": lambda: ops.conv2d_backward_weight(g, x, (3, 3), *geometry, 1, last),
        }
    g = torch.randn_like(F.conv2d(x, w, b, padding=1))

    def backward(data: bool) -> object:
        mask = (data, not data, not data)
        return torch.ops.aten.convolution_backward(g, x, w, [block.K], *geometry, False, (0, 0), 1, mask)

    return {
        "forward": lambda: F.conv2d(x, w, b, padding=1),
        "backward_data": lambda: backward(True),
        "backward_weight": lambda: backward(False),
    }


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--layers", action="store_true", help="the layers instead of MNIST's blocks")
    arguments = parser.parse_args()
    need(arguments.device)
    blocks, calls = (LAYERS, layer_calls) if arguments.layers else (BLOCKS, block_calls)
    if arguments.tiny:
        blocks = [replace(blocks[0], N=1, C=min(blocks[0].C, 4), H=10, K=4)]
    results = Results("3 x 3 layers, each pass alone" if arguments.layers else "Blocks of the MNIST CNN", arguments)
    for precision in arguments.precision:
        dtype = set_precision(precision)
        for block in blocks:
            functions = {variant: calls(block, variant, arguments.device, dtype) for variant in VARIANTS}
            for how in functions[VARIANTS[0]]:
                of_pass = {variant: found[how] for variant, found in functions.items()}
                results.add(str(block), how, precision, microseconds(of_pass, arguments))


if __name__ == "__main__":
    main()
