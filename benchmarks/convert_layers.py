"""Time single layers of PyTorch and of fastconv: what fastconv.convert gains for each.

python benchmarks/convert_layers.py [--only depthwise] [--rounds 9] [--json .benchmarks/convert_layers.json]

Each layer runs forward and backward, and forward under inference_mode, in both memory formats. The variants take turns
in one process, with an allocator that keeps its pages. With one thread (OMP_NUM_THREADS=1) the CPU time is measured,
which other programs disturb less. Layers are convolutions alone, with ReLU and with a pool, ReLU and max-pools.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ratios import geometric_mean
from rich.console import Console
from rich.table import Table
from torch import nn

from fastconv import nn as fnn
from fastconv.benchmarking.alternating import alternate, keep_pages
from fastconv.benchmarking.machine import caption, machine
from fastconv.benchmarking.ratios import VARIANTS, medians

#: A convolution alone, with ReLU, and with ReLU and 2x2 pooling.
CONVOLUTIONS = ("conv", "block", "pooled")
MOST_MULTIPLICATIONS = 0.3e9  # per batch; larger layers get smaller batches


@dataclass(frozen=True)
class Case:
    kind: str
    C: int
    K: int
    kernel: int
    size: int
    batch: int
    stride: int = 1
    groups: int = 1
    dilation: int = 1

    def __str__(self) -> str:
        extra = [f"stride {self.stride}"] * (self.stride > 1) + [f"groups {self.groups}"] * (self.groups > 1)
        extra += [f"dilation {self.dilation}"] * (self.dilation > 1)
        what = f"{self.C}->{self.K} {self.kernel}x{self.kernel}" if self.kind in CONVOLUTIONS else f"{self.C}"
        return " ".join([self.kind, what, f"{self.size}x{self.size}", *extra, f"batch {self.batch}"])

    def module(self, layers: str) -> nn.Module:
        ours = layers.startswith("fastconv")
        if self.kind == "relu":
            return fnn.ReLU() if ours else nn.ReLU()
        if self.kind == "pool":
            window = (self.kernel, self.stride, self.kernel // 2 if self.stride < self.kernel else 0)
            return fnn.MaxPool2d(*window) if ours else nn.MaxPool2d(*window)
        padding = self.kernel // 2 * self.dilation
        arguments = (self.C, self.K, self.kernel, self.stride, padding, self.dilation, self.groups)
        if self.kind == "pooled":
            layers_of = (nn.Conv2d(*arguments), nn.ReLU(), nn.MaxPool2d(2))
            return fnn.ConvReLUMaxPool2d(*arguments) if ours else nn.Sequential(*layers_of)
        if self.kind == "block":
            return fnn.ConvReLU2d(*arguments) if ours else nn.Sequential(nn.Conv2d(*arguments), nn.ReLU())
        return fnn.Conv2d(*arguments) if ours else nn.Conv2d(*arguments)


def cases() -> Iterator[Case]:
    def conv(C: int, K: int, kernel: int, size: int, kind: str = "conv", **rest: int) -> Iterator[Case]:
        stride = rest.get("stride", 1)
        multiplications = C * K // rest.get("groups", 1) * kernel**2 * (size // stride) ** 2
        for batch in sorted({1, max(1, min(64, int(MOST_MULTIPLICATIONS / multiplications)))}):
            yield Case(kind, C, K, kernel, size, batch, **rest)

    for kind in CONVOLUTIONS:
        for kernel in (1, 3, 5, 7):
            for C, size in ((8, 28), (16, 28), (32, 28), (64, 14), (128, 28), (256, 14), (512, 7)):
                if kernel <= 3 or C <= 128:
                    yield from conv(C, C, kernel, size, kind)
            for C in (1, 3):
                yield from conv(C, 32, kernel, 32, kind)
        yield from conv(6, 16, 5, 14, kind)
        yield from conv(256, 512, 3, 4, kind)
        yield from conv(512, 512, 3, 4, kind)
    for kernel in (1, 3):
        for C, size in ((16, 56), (64, 28), (128, 14), (256, 14)):
            yield from conv(C, 2 * C, kernel, size, stride=2)
    yield from conv(3, 64, 7, 56, stride=2)
    yield from conv(32, 64, 3, 56)
    for kernel in (3, 5, 7):
        for C, size in ((32, 28), (128, 14), (512, 7)):
            yield from conv(C, C, kernel, size, groups=C)
    yield from conv(64, 64, 3, 28, groups=64, stride=2)
    for C, size, groups in ((64, 28, 2), (64, 28, 32), (128, 14, 8), (256, 14, 32)):
        yield from conv(C, C, 3, size, groups=groups)
    for C, size in ((32, 28), (64, 14)):
        yield from conv(C, C, 3, size, dilation=2)
    for batch in (1, 64):
        for C, size in ((32, 28), (64, 14), (256, 7)):
            yield Case("relu", C, C, 1, size, batch)
            yield Case("pool", C, C, 2, size, batch, stride=2)
            yield Case("pool", C, C, 3, size, batch, stride=2)
        yield Case("pool", 64, 64, 3, 14, batch)


def runs(case: Case, training: bool) -> dict[str, Callable[[], object]]:
    torch.manual_seed(0)
    x = torch.randn(case.batch, case.C, case.size, case.size)

    def variant(name: str) -> Callable[[], object]:
        memory_format = torch.channels_last if name.endswith("channels_last") else torch.contiguous_format
        module = case.module(name).to(memory_format=memory_format)  # type: ignore[call-overload]
        x_ = x.clone(memory_format=memory_format)
        if not training:

            def infer() -> None:
                with torch.inference_mode():
                    module(x_)

            return infer
        x_.requires_grad_(case.C > 4)  # layers with fewer channels are first layers, and images need no gradient
        inputs = [t for t in (x_, *module.parameters()) if t.requires_grad]
        g = torch.randn_like(module(x_))
        return lambda: torch.autograd.grad(module(x_), inputs, g)

    return {name: variant(name) for name in VARIANTS}


def measure(variants: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median seconds of each variant. Short ones are repeated within a round."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    for run in variants.values():
        run()
    start = clock()
    for run in variants.values():
        run()
    repeats = max(1, int(8e-3 / (clock() - start)))
    return medians(alternate(variants, rounds, repeats, clock))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], help="run only cases whose names contain one of these")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    keep_pages()
    results: list[dict[str, Any]] = []
    table = Table(title="torch's / fastconv's milliseconds: NCHW, channels_last, fastest", caption=caption(machine()))
    for heading in ("layer", "forward + backward", "", "", "inference", "", ""):
        table.add_column(heading, justify="left" if heading == "layer" else "right", no_wrap=True)
    for case in cases():
        if not any(part in str(case) for part in arguments.only):
            continue
        row = [str(case)]
        for training in (True, False):
            seconds = measure(runs(case, training), arguments.rounds)
            nchw, last, ours_nchw, ours_last = (seconds[name] for name in VARIANTS)
            pairs = ((nchw, ours_nchw), (last, ours_last), (min(nchw, last), min(ours_nchw, ours_last)))
            row += [f"{a * 1e3:.3f}/{b * 1e3:.3f} {a / b:.2f}" for a, b in pairs]
            results.append({"case": str(case), "training": training, "seconds": seconds})
        table.add_row(*row)
        print(*row, sep=" | ", file=sys.stderr, flush=True)
    Console(width=170).print(table)
    fastest = [
        min(s[name] for name in VARIANTS[:2]) / min(s[name] for name in VARIANTS[2:])
        for s in (result["seconds"] for result in results)
    ]
    Console().print(f"geometric mean of the ratios, fastest / fastest: {geometric_mean(fastest):.2f}")
    if arguments.json:
        arguments.json.parent.mkdir(exist_ok=True)
        arguments.json.write_text(json.dumps({"machine": machine(), "layers": results}, indent=1))


if __name__ == "__main__":
    main()
