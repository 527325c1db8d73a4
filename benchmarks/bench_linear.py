"""Time linear layers of known networks in PyTorch and in fastconv, in float32.

python benchmarks/bench_linear.py                                  as installed
FASTCONV_ALGORITHM=own python benchmarks/bench_linear.py           fastconv's kernels, also in calls that go to PyTorch

A figure is PyTorch's time divided by fastconv's. Above 1, fastconv is faster. "forward" runs under inference_mode.
"both" is forward and backward, with the gradients of input, weight and bias. The two libraries take turns in one
process. Its allocator keeps freed pages.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from bench_layers import measure
from ratios import geometric_mean
from rich.console import Console
from rich.table import Table
from torch import nn

from fastconv import nn as fnn
from fastconv.benchmarking.alternating import keep_pages
from fastconv.benchmarking.machine import caption, machine

#: Network, rows, input and output channels. A row is an image, a pixel or a token.
LAYERS = (
    ("MnistCNN", 64, 1152, 128),
    ("LeNet-5", 64, 400, 120),
    ("VGG-11", 8, 8192, 4096),
    ("MobileNetV2", 8, 1280, 1000),
    ("ConvNeXt-T, 1 image", 1024, 96, 384),
    ("ConvNeXt-T, 1 image", 64, 1536, 384),
    ("ConvNeXt-T, 8 images", 8192, 384, 96),
    ("ConvNeXt-T, 8 images", 512, 384, 1536),
    ("ViT-S, 1 image", 65, 384, 384),
    ("ViT-S, 1 image", 65, 384, 1536),
    ("ViT-B, 1 image", 197, 768, 768),
    ("ViT-B, 8 images", 1576, 768, 3072),
    ("Swin-T, 8 images", 25088, 96, 288),
    ("BERT, 16 tokens", 16, 768, 768),
    ("BERT, 128 tokens", 128, 768, 3072),
    ("BERT, 128 tokens", 128, 3072, 768),
    ("GPT-2 large, 64 tokens", 64, 1280, 5120),
)


def runs(rows: int, C: int, K: int, backward: bool) -> dict[str, Callable[[], object]]:
    """Return the function to time for each library."""
    torch.manual_seed(0)
    input, gradient = torch.randn(rows, C), torch.randn(rows, K)

    def variant(layer: nn.Linear) -> Callable[[], object]:
        x = input.clone().requires_grad_(backward)
        inputs = [x, *layer.parameters()]

        def infer() -> object:
            with torch.inference_mode():
                return layer(x)

        return (lambda: torch.autograd.grad(layer(x), inputs, gradient)) if backward else infer

    return {"torch": variant(nn.Linear(C, K)), "fastconv": variant(fnn.Linear(C, K))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    keep_pages()
    ratios: dict[str, list[float]] = {"forward": [], "both": []}
    records = []
    table = Table("network", "rows", "layer", "forward, us", "ratio", "both, us", "ratio", title=caption(machine()))
    for network, rows, C, K in LAYERS:
        cells = []
        for name in ratios:
            seconds = measure(runs(rows, C, K, name == "both"), arguments.rounds)
            records.append({"network": network, "rows": rows, "C": C, "K": K, "pass": name, "seconds": seconds})
            ratios[name].append(seconds["torch"] / seconds["fastconv"])
            cells += [f"{seconds['fastconv'] * 1e6:.0f}", f"{ratios[name][-1]:.2f}"]
        table.add_row(network, str(rows), f"{C}→{K}", *cells)
    Console().print(table)
    for name, found in ratios.items():
        print(f"{name}: geometric mean {geometric_mean(found):.2f}, least {min(found):.2f}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine(), "layers": records}, indent=1) + "\n")


if __name__ == "__main__":
    main()
