"""Rounding error against float64: ours over PyTorch's, for the convolutions of MnistCNN.

python benchmarks/accuracy.py
"""

from __future__ import annotations

import torch
from bench_operators import CONV, LAYERS, conv2d_tensors
from rich.console import Console
from rich.table import Table

import fastconv

aten = torch.ops.aten
ours = torch.ops.fastconv


def error(result: torch.Tensor, reference: torch.Tensor) -> float:
    return float((result.double() - reference).pow(2).mean().sqrt())


def main() -> None:
    table = Table(caption="root of the mean squared error against float64, fastconv / PyTorch")
    for heading in ("level", "layer", "forward", "backward_data", "backward_weight", "backward_bias"):
        table.add_column(heading)
    for level in fastconv._C.cpu_capabilities():
        fastconv._C.set_cpu_capability(level)
        for layer in LAYERS:
            x, w, b, g = conv2d_tensors(layer)

            def torch_results(*tensors: torch.Tensor) -> list[torch.Tensor]:
                x, w, b, g = tensors
                backward = aten.convolution_backward(g, x, w, [w.shape[0]], *CONV, False, [0, 0], 1, [True, True, True])
                return [torch.conv2d(x, w, b), *backward]

            fastconv_results = [
                ours.conv2d(x, w, b, *CONV, 1),
                ours.conv2d_backward_data(g, w, x.shape, *CONV, 1, False),
                *ours.conv2d_backward_weight(g, x, (3, 3), *CONV, 1, False),
            ]
            reference = torch_results(x.double(), w.double(), b.double(), g.double())
            quotients = [
                error(mine, exact) / error(theirs, exact)
                for mine, theirs, exact in zip(fastconv_results, torch_results(x, w, b, g), reference, strict=True)
            ]
            table.add_row(level, layer.name, *(f"{quotient:.2f}" for quotient in quotients))
    Console().print(table)


if __name__ == "__main__":
    main()
