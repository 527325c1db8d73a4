"""Time the convolution layers of known networks in PyTorch and in fastconv, and list where fastconv is slower.

python benchmarks/bench_layers.py                                  float32, dense gradients, batches of 1 and 8
python benchmarks/bench_layers.py --only depthwise SSIM            layers whose family or name contains a word
python benchmarks/bench_layers.py --dtype bfloat16 --batch 1 8 64 --most inf
FASTCONV_ALGORITHM=own python benchmarks/bench_layers.py           fastconv's kernels alone

A figure is PyTorch's time divided by fastconv's, each in its faster memory format. Above 1, fastconv is faster.
"forward" runs under inference_mode. "both" is forward and backward. Backward computes the gradients of weight and bias,
and of the input unless the layer is the first of its network. "backward_data" and "backward_weight" compute only the
gradient of the input, or those of weight and bias. With --gradient half, a random half of the incoming gradient is
zero, as after a ReLU. The variants take turns in one process, whose allocator keeps its pages. With one thread
(OMP_NUM_THREADS=1), CPU time is measured instead of wall time, because other programs disturb it less.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from layers import FAMILIES, Layer, layers
from ratios import geometric_mean
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from fastconv import nn as fnn
from fastconv.benchmarking.alternating import alternate, keep_pages
from fastconv.benchmarking.machine import caption, machine
from fastconv.benchmarking.ratios import TORCH, VARIANTS, medians

DTYPES = ("float32", "bfloat16", "float16", "float64")
PASSES = ("forward", "both", "backward_data", "backward_weight")
SLOW = 0.95


def runs(layer: Layer, batch: int, pass_: str, dtype: torch.dtype, dense: bool) -> dict[str, Callable[[], object]]:
    """Return the function to time for each variant."""
    torch.manual_seed(0)
    images = torch.randn(batch, layer.C, *layer.size).to(dtype)

    def variant(name: str) -> Callable[[], object]:
        memory_format = torch.channels_last if name.endswith("channels_last") else torch.contiguous_format
        module = layer.module(fnn.Conv2d if name.startswith("fastconv") else nn.Conv2d)
        module = module.to(dtype).to(memory_format=memory_format)  # type: ignore[call-overload]
        x = images.clone(memory_format=memory_format)
        if pass_ == "forward":

            def infer() -> None:
                with torch.inference_mode():
                    module(x)

            return infer
        gradient = torch.randn_like(module(x).detach())
        if not dense:
            gradient *= torch.rand_like(gradient) < 0.5
        if pass_ != "both":
            return one_gradient(module, x, gradient, pass_)
        x.requires_grad_(not layer.is_first)
        inputs = [t for t in (x, *module.parameters()) if t.requires_grad]
        return lambda: torch.autograd.grad(module(x), inputs, gradient)

    return {name: variant(name) for name in VARIANTS}


def one_gradient(module: nn.Conv2d, x: Tensor, gradient: Tensor, pass_: str) -> Callable[[], object]:
    w, stride, padding, dilation = module.weight.detach(), module.stride, module.padding, module.dilation
    if not isinstance(module, fnn.Conv2d):
        mask = [True, False, False] if pass_ == "backward_data" else [False, True, True]
        backward = torch.ops.aten.convolution_backward.default
        return lambda: backward(
            gradient, x, w, [w.shape[0]], stride, padding, dilation, False, [0, 0], module.groups, mask
        )
    channels_last = x.is_contiguous(memory_format=torch.channels_last)
    rest = (stride, padding, dilation, module.groups, channels_last)
    if pass_ == "backward_data":
        return lambda: torch.ops.fastconv.conv2d_backward_data(gradient, w, x.shape, *rest)
    return lambda: torch.ops.fastconv.conv2d_backward_weight(gradient, x, w.shape[2:], *rest)


def measure(variants: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median seconds of each variant. Short calls repeat within a round, long calls have fewer rounds."""
    for run in variants.values():  # packs weights and requests memory
        run(), run()
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    for run in variants.values():
        run()
    once = clock() - start
    return medians(alternate(variants, max(3, min(rounds, int(rounds * 0.2 / once))), max(1, int(8e-3 / once)), clock))


def ratio(record: dict[str, Any]) -> float:
    seconds = record["seconds"]
    return min(seconds[name] for name in TORCH) / min(seconds[name] for name in VARIANTS if name not in TORCH)


def measure_all(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a record of each layer, batch and pass, with the seconds of each variant."""
    records = []
    for layer in layers():
        if not any(word in f"{layer.family}: {layer}" for word in arguments.only):
            continue
        for batch in arguments.batch:
            if batch > 1 and batch * layer.multiplications > arguments.most:
                continue
            for pass_ in arguments.pass_:
                dtype = getattr(torch, arguments.dtype)
                variants = runs(layer, batch, pass_, dtype, arguments.gradient == "dense")
                seconds = measure(variants, arguments.rounds)
                names = {"layer": str(layer), "family": layer.family, "batch": batch, "pass": pass_}
                records.append({**names, "seconds": seconds})
                milliseconds = " ".join(f"{value * 1e3:8.3f}" for value in seconds.values())
                print(f"{layer} x{batch} {pass_:8}{milliseconds} {ratio(records[-1]):.2f}", file=sys.stderr, flush=True)
    return records


def summary(records: list[dict[str, Any]], title: str) -> Table:
    """Return the table of the geometric mean and the least ratio of each family."""
    table = Table(title=title)
    passes = [pass_ for pass_ in PASSES if any(record["pass"] == pass_ for record in records)]
    for heading in ("family", "layers", *(f"{pass_}, {what}" for pass_ in passes for what in ("mean", "least"))):
        table.add_column(heading, justify="left" if heading == "family" else "right")
    for family in (*FAMILIES, "all"):
        of_family = [record for record in records if family in ("all", record["family"])]
        if not of_family:
            continue
        row = [family, str(len({record["layer"] for record in of_family}))]
        for pass_ in passes:
            found = [ratio(record) for record in of_family if record["pass"] == pass_]
            row += [f"{geometric_mean(found):.2f}", f"{min(found):.2f}"] if found else ["", ""]
        table.add_row(*row, end_section=family == FAMILIES[-1])
    return table


def slow_ones(records: list[dict[str, Any]]) -> Table:
    """Return the table of the layers with a ratio below SLOW, least first. Times are in the faster memory format."""
    table = Table(title=f"below {SLOW}")
    for heading in ("layer", "batch", "pass", "torch, ms", "fastconv, ms", "ratio"):
        table.add_column(heading, justify="left" if heading == "layer" else "right", no_wrap=heading == "layer")
    for record in sorted(records, key=ratio):
        if ratio(record) < SLOW:
            seconds = record["seconds"]
            theirs = min(seconds[name] for name in TORCH)
            figures = [f"{value:.3f}" for value in (theirs * 1e3, theirs / ratio(record) * 1e3)]
            table.add_row(
                record["layer"], str(record["batch"]), record["pass"], *figures, f"{ratio(record):.2f}"
            )  # fmt: skip
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], metavar="WORD", help="parts of names of layers or families")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--most", type=float, default=0.5e9, help="skip batches over 1 with more multiplications (5e8)")
    parser.add_argument("--pass", dest="pass_", nargs="+", choices=PASSES, default=["forward", "both"])
    parser.add_argument("--gradient", choices=("dense", "half"), default="dense")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    keep_pages()
    records = measure_all(arguments)
    info = {**machine(), "dtype": arguments.dtype, "gradient": arguments.gradient}
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps({"machine": info, "layers": records}, indent=1))
    console = Console(width=max(120, Console().width))
    console.print(summary(records, f"torch's / fastconv's time, {arguments.dtype}, {arguments.gradient} gradients"))
    console.print(slow_ones(records), caption(machine()))


if __name__ == "__main__":
    main()
