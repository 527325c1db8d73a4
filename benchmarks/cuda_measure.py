"""Time functions on a GPU with CUDA events, and write the results as JSON and Markdown after each measurement.

The programs ``cuda_blocks.py`` and ``cuda_networks.py`` use this module. With ``--device cpu`` they run the same code
on the CPU, without CUDA graphs, so that tests can run it where there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from fastconv.environment import settings

Functions = Mapping[str, Callable[[], object]]

#: The name of each precision, the dtype, and whether PyTorch may use TF32.
PRECISIONS = {
    "float32": (torch.float32, False),
    "TF32": (torch.float32, True),
    "half": (torch.float16, False),
}
#: The exit status if there is no GPU.
NO_GPU = 3


def options(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the results here, and as Markdown beside it")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="cpu: to test this program")
    parser.add_argument("--rounds", type=int, default=20, help="replays of each variant, in turn (default: 20)")
    parser.add_argument("--calls", type=int, default=20, help="calls in each replay (default: 20)")
    parser.add_argument("--precision", nargs="+", default=list(PRECISIONS), choices=list(PRECISIONS))
    parser.add_argument("--tiny", action="store_true", help="one small problem of each kind")
    return parser


def need(device: str) -> None:
    """Exit with one sentence if there is no such device."""
    if device == "cuda" and not torch.cuda.is_available():
        print("There is no GPU here that torch can use, so nothing was measured.")
        raise SystemExit(NO_GPU)


def set_precision(name: str) -> torch.dtype:
    dtype, tf32 = PRECISIONS[name]
    torch.backends.cudnn.allow_tf32 = tf32  # PyTorch leaves it off for matrix products
    torch.backends.cudnn.benchmark = True
    return dtype


def machine(device: str) -> dict[str, Any]:
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    return {
        "device": name,
        "torch": torch.__version__,
        "CUDA": torch.version.cuda,
        "algorithm": settings()["FASTCONV_ALGORITHM"],
    }


def graphed(call: Callable[[], object], calls: int) -> Callable[[], object]:
    """Capture ``calls`` calls in a CUDA graph. Return the function that replays it."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # the libraries choose their algorithms during these calls
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            call()
    return graph.replay


def repeated(call: Callable[[], object], calls: int) -> Callable[[], object]:
    """Return a function that calls ``calls`` times from Python."""

    def run() -> None:
        for _ in range(calls):
            call()

    run()
    return run


def elapsed(run: Callable[[], object], device: str) -> float:
    """Return the microseconds of one run."""
    if device == "cpu":
        start = time.perf_counter()
        run()
        return (time.perf_counter() - start) * 1e6
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    run()
    last.record()
    last.synchronize()
    return float(first.elapsed_time(last)) * 1e3


def microseconds(functions: Functions, arguments: argparse.Namespace, graph: bool = True) -> dict[str, float]:
    """Return the median time of a call of each function. They run in turn.

    Args:
        functions: they keep the tensors alive that the graphs read.
        arguments: of the program: ``device``, ``rounds`` and ``calls``.
        graph: replay a CUDA graph, which excludes the time of the CPU.
    """
    prepare = graphed if graph and arguments.device == "cuda" else repeated
    runs = {name: prepare(function, arguments.calls) for name, function in functions.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(arguments.rounds):
        for name, run in runs.items():
            times[name].append(elapsed(run, arguments.device) / arguments.calls)
    return {name: round(statistics.median(values), 2) for name, values in times.items()}


class Results:
    """The measurements so far. ``add`` writes both files again, so a program that is stopped loses nothing."""

    def __init__(self, title: str, arguments: argparse.Namespace) -> None:
        self.title, self.path = title, arguments.json
        self.machine = machine(arguments.device)
        self.rows: list[dict[str, Any]] = []

    def add(self, what: str, how: str, precision: str, times: Mapping[str, float]) -> None:
        self.rows.append({"what": what, "how": how, "precision": precision, "microseconds": dict(times)})
        print(f"{what}, {how}, {precision}: {dict(times)}", flush=True)
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            content = {"title": self.title, "machine": self.machine, "rows": self.rows}
            self.path.write_text(json.dumps(content, indent=1) + "\n")
            self.path.with_suffix(".md").write_text(self.markdown())

    def markdown(self) -> str:
        variants = list(dict.fromkeys(name for row in self.rows for name in row["microseconds"]))
        lines = [f"# {self.title}", "", "; ".join(f"{k} {v}" for k, v in self.machine.items()), ""]
        lines += ["Microseconds. The ratio is the time of the best PyTorch / that of the best fastconv.", ""]
        headings = ["what", "how", "precision", *variants, "ratio"]
        lines += ["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]
        for row in self.rows:
            times = row["microseconds"]
            cells = [row["what"], row["how"], row["precision"]]
            cells += [f"{times[name]:.1f}" if name in times else "" for name in variants]
            lines.append("| " + " | ".join([*cells, ratio(times)]) + " |")
        return "\n".join(lines) + "\n"


def ratio(times: Mapping[str, float]) -> str:
    theirs = [value for name, value in times.items() if name.startswith("torch")]
    ours = [value for name, value in times.items() if name.startswith("fastconv")]
    return f"{min(theirs) / min(ours):.2f}" if theirs and ours and min(ours) > 0 else ""
