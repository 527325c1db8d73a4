"""Compare the rounding errors of fastconv and PyTorch against float64, for MnistCNN's convolutions and fused blocks.

The argmax of a block is computed once, in float64, and both libraries compute their gradients from it. Otherwise
rounding could choose different maxima of nearly equal values, and their gradients would go to different pixels.

python benchmarks/accuracy.py [--json .benchmarks/accuracy.json]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from bench_blocks import BLOCKS, Block, block_tensors
from bench_operators import CONV, LAYERS, Layer, conv2d_tensors
from ratios import Claim
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

import fastconv

aten = torch.ops.aten
ours = torch.ops.fastconv

RESULTS = ("forward", "backward_data", "backward_weight", "backward_bias")
DEAD = 255  # the value in argmax of a window that passes no gradient


def error(result: Tensor, reference: Tensor) -> float:
    return float((result.double() - reference).pow(2).mean().sqrt())


def quotients(mine: list[Tensor], theirs: list[Tensor], exact: list[Tensor]) -> list[float]:
    return [error(m, e) / error(t, e) for m, t, e in zip(mine, theirs, exact, strict=True)]


def torch_gradients(g: Tensor, x: Tensor, w: Tensor) -> list[Tensor]:
    return list(aten.convolution_backward(g, x, w, [w.shape[0]], *CONV, False, [0, 0], 1, [True, True, True]))


def of_convolution(layer: Layer) -> list[float]:
    x, w, b, g = conv2d_tensors(layer)

    def torch_results(x: Tensor, w: Tensor, b: Tensor, g: Tensor) -> list[Tensor]:
        return [torch.conv2d(x, w, b), *torch_gradients(g, x, w)]

    mine = [
        ours.conv2d(x, w, b, *CONV, 1),
        ours.conv2d_backward_data(g, w, x.shape, *CONV, 1, False),
        *ours.conv2d_backward_weight(g, x, (3, 3), *CONV, 1, False),
    ]
    return quotients(mine, torch_results(x, w, b, g), torch_results(x.double(), w.double(), b.double(), g.double()))


def decisions(block: Block, x: Tensor, w: Tensor, b: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Return argmax for our operators and the gradient of the convolution's results, both from PyTorch in float64."""
    y = F.conv2d(x.double(), w.double(), b.double()).relu()
    if not block.pooled:
        return torch.where(y > 0, 0, DEAD).to(torch.uint8), g * (y > 0)
    maxima, indices = F.max_pool2d(y, 2, return_indices=True)
    rows, columns = indices // y.shape[3], indices % y.shape[3]
    argmax = torch.where(maxima > 0, rows % 2 * 2 + columns % 2, DEAD).to(torch.uint8)
    return argmax, F.max_unpool2d(g * (maxima > 0), indices, (2, 2), output_size=y.shape[2:])


def of_block(block: Block) -> list[float]:
    x, w, b, g = block_tensors(block)
    argmax, g_conv = decisions(block, x, w, b, g)
    backward = ours.conv2d_relu_max_pool2d_backward if block.pooled else ours.conv2d_relu_backward
    mine = [block.fastconv(x, w, b), *backward(g, argmax, x, w, True, True)]
    theirs = [block.torch(x, w, b), *torch_gradients(g_conv, x, w)]
    x, w, b, g_conv = (t.double() for t in (x, w, b, g_conv))
    return quotients(mine, theirs, [block.torch(x, w, b), *torch_gradients(g_conv, x, w)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the largest ratios to this file, for report.py")
    arguments = parser.parse_args()
    table = Table(caption="root-mean-square error against float64: fastconv / PyTorch")
    for heading in ("level", "layer", *RESULTS):
        table.add_column(heading)
    convolutions, blocks = [], []
    for level in fastconv._C.cpu_capabilities():
        fastconv._C.set_cpu_capability(level)
        for layer in LAYERS:
            convolutions.append(of_convolution(layer))
            table.add_row(level, layer.name, *(f"{quotient:.2f}" for quotient in convolutions[-1]))
        for block in BLOCKS:
            blocks.append(of_block(block))
            name = f"{block} + ReLU{' + pool' if block.pooled else ''}"
            table.add_row(level, name, *(f"{quotient:.2f}" for quotient in blocks[-1]))
    Console(width=120).print(table)
    if arguments.json:
        claims: list[Claim] = [
            {
                "what": f"largest ratio of errors against float64, fastconv / PyTorch: {what}",
                "ratio": max(map(max, of)),
            }
            for what, of in (("conv2d", convolutions), ("the blocks", blocks))
        ]
        arguments.json.write_text(json.dumps({"claims": claims}))


if __name__ == "__main__":
    main()
