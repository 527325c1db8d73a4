"""Time the inference of networks in PyTorch, with fastconv (converted and frozen), in ONNX Runtime and, if it is
installed, in OpenVINO.

python benchmarks/runtimes.py [--only LeNet-5] [--batch 1] [--rounds 30] [--json .benchmarks/runtimes.json]

The programs take turns in one process, with the same number of threads. PyTorch and fastconv run in channels_last. The
outputs are compared before the times are measured.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import statistics
import tempfile
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from models import NETWORKS
from rich.console import Console
from rich.table import Table
from torch import Tensor

import fastconv
from fastconv.benchmarking.alternating import alternate, keep_pages
from fastconv.benchmarking.machine import caption, machine

Run = Callable[[], Any]

#: The threads of ONNX Runtime spin for 0.14 s after a call, and would slow the next program down.
PAUSE = 0.2


def onnx_file(model: torch.nn.Module, images: Tensor, folder: str) -> Path:
    path = Path(folder, "model.onnx")
    logging.disable(logging.WARNING)  # the exporter warns that torchvision is not installed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (images,), str(path), dynamo=True, verbose=False)
    return path


def in_onnxruntime(path: Path, images: Tensor, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: images.numpy()}
    return lambda: session.run(None, feed)[0]


def in_openvino(path: Path, images: Tensor, threads: int) -> Run:
    import openvino

    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(str(path), "CPU", settings)
    request, array = compiled.create_infer_request(), images.numpy()
    return lambda: request.infer([array])[0]


def variants(name: str, batch: int, threads: int, folder: str) -> dict[str, Run]:
    """Return a function for each program that computes the outputs of the same images."""
    torch.manual_seed(0)
    model, images = NETWORKS[name].make().eval(), NETWORKS[name].images(batch)
    path = onnx_file(model, images, folder)
    plain = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    converted, frozen = fastconv.convert(copy.deepcopy(plain)), fastconv.freeze(plain)
    last = images.to(memory_format=torch.channels_last)
    found: dict[str, Run] = {
        "PyTorch": lambda: plain(last),
        "fastconv": lambda: converted(last),
        "fastconv, frozen": lambda: frozen(last),
        "ONNX Runtime": in_onnxruntime(path, images, threads),
    }
    if find_spec("openvino") is not None:
        found["OpenVINO"] = in_openvino(path, images, threads)
    return found


def measure(name: str, batch: int, rounds: int, threads: int) -> dict[str, float]:
    """Return the median milliseconds of each program.

    Raises:
        AssertionError: if the outputs differ by more than rounding.
    """
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        runs = variants(name, batch, threads, folder)
        expected = torch.as_tensor(runs["PyTorch"]())
        for run in runs.values():
            torch.testing.assert_close(torch.as_tensor(run()), expected, rtol=1e-3, atol=1e-3)
        calls = max(1, 8 // batch)
        seconds = alternate(runs, rounds, calls, pause=PAUSE)
    return {program: statistics.median(times) * 1e3 for program, times in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    keep_pages()
    threads = torch.get_num_threads()
    found = {name: measure(name, arguments.batch, arguments.rounds, threads) for name in arguments.only}
    where = f"inference of {arguments.batch} image(s), median milliseconds of {arguments.rounds} rounds"
    table = Table(caption=f"{where}; {caption(machine())}")
    for heading in ("", *next(iter(found.values()))):
        table.add_column(heading, justify="right" if heading else "left")
    for name, milliseconds in found.items():
        table.add_row(name, *(f"{value:.3f}" for value in milliseconds.values()))
    Console(width=120).print(table)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps({"machine": machine(), "batch": arguments.batch, "milliseconds": found}))


if __name__ == "__main__":
    main()
