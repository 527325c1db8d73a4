"""Checks of bench_networks.py: do the variants compute the same, and how much memory does a training step need?"""

from __future__ import annotations

import json
import math
import multiprocessing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypedDict

import torch
from network_variants import BASE, FROZEN, NCHW, OURS, training
from torch import Tensor

from fastconv.benchmarking.alternating import set_malloc

#: The largest differences that are always allowed. "difference" is that of the outputs, from float64. Other libraries
#: only have to compute the same network.
MOST = {"difference": 1e-5, "loss": 1e-4, "statistics": 1e-5}
MOST_OF_OTHERS = 1e-3
#: Steps before the one that is measured. They create gradients and momenta, and fastconv packs weights.
_STEPS_BEFORE = 2


class Record(TypedDict):
    """The measurements of a network in one mode, by variant."""

    network: str
    mode: str
    seconds: dict[str, list[float]]  # round by round
    checks: dict[str, dict[str, float]]  # relative differences from PyTorch
    megabytes: dict[str, dict[str, float]]  # see peak_memory


def inference_checks(folder: Path, variants: Iterable[str]) -> dict[str, dict[str, float]]:
    return {name: {"difference": json.loads((folder / f"{name}, inference.json").read_text())} for name in variants}


def training_checks(folder: Path, variants: Iterable[str]) -> dict[str, dict[str, float]]:
    """Compare loss and running statistics with PyTorch's. Return nothing if the runs were too short."""
    paths = {name: folder / f"{name}, training.pt" for name in variants}
    if not all(path.exists() for path in paths.values()):
        return {}
    results = {name: torch.load(path, weights_only=True) for name, path in paths.items()}
    base = results[BASE]
    return {
        name: {
            "loss": abs(result["loss"] - base["loss"]) / base["loss"],
            "statistics": statistics_difference(result["statistics"], base["statistics"]),
        }
        for name, result in results.items()
    }


def statistics_difference(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Return the largest difference of running means, in standard deviations, or of running variances, relative."""
    differences = [0.0]
    for key in (key for key in expected if key.endswith("running_var")):
        mean, largest = key.replace("running_var", "running_mean"), expected[key].max()
        differences.append(float((actual[key] - expected[key]).abs().max() / largest))
        differences.append(float((actual[mean] - expected[mean]).abs().max() / largest.sqrt()))
    return max(differences)


def failures(records: Iterable[Record]) -> list[str]:
    """Return a sentence for each difference that is too large. NaN is too large, too."""
    return [
        f"{record['network']}, {record['mode']}, {variant}: {what} differs by {value:.1e}, more than {most:.0e}"
        for record in records
        for variant, values in record["checks"].items()
        for what, value in values.items()
        for most in [largest_allowed(record, variant, what)]
        if not value <= most
    ]


def largest_allowed(record: Record, variant: str, what: str) -> float:
    """Return the largest difference that rounding explains.

    Deep networks enlarge rounding errors. So the limit is larger if PyTorch itself is as far from the exact outputs, or
    if its two memory formats differ as much after the same training steps.
    """
    if what == "difference":
        own = record["checks"].get(BASE, {}).get(what, 0.0)
        return max(MOST[what] if variant in (BASE, OURS, FROZEN) else MOST_OF_OTHERS, 3 * own)
    if variant != OURS:  # torch.compile has other random numbers for dropout
        return math.inf
    return max(MOST[what], 10 * record["checks"].get(NCHW, {}).get(what, 0.0))


def peak_memories(name: str, folder: Path, variants: Iterable[str], threads: int) -> dict[str, dict[str, float]]:
    """Return the result of :func:`peak_memory` for each variant. Each has a process of its own."""
    context = multiprocessing.get_context("spawn")
    found = {}
    for variant in variants:
        with context.Pool(1) as pool:
            found[variant] = pool.apply(peak_memory, (name, folder, variant, threads))
    return found


def peak_memory(name: str, folder: Path, variant: str, threads: int) -> dict[str, float]:
    """Return the megabytes at the peak of a training step.

    "all" is the resident memory of the process at its peak, without the memory before the network was made. "step" is
    without the memory that the process held before the step: weights, momenta, images. The kernel records the peak,
    so memory of every library counts. malloc returns freed memory to the system, except for small pieces.
    """
    set_malloc(MMAP_THRESHOLD=1 << 16)
    torch.set_num_threads(threads)
    before = _status()["VmRSS"]
    step, model = training(name, folder, variant)
    for _ in range(_STEPS_BEFORE):
        step()
    model.zero_grad()
    held = _status()["VmRSS"]
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from the present memory
    step()
    peak = _status()["VmHWM"]
    return {"all": peak - before, "step": peak - held}


def _status() -> Mapping[str, float]:
    """Return the memory of this process in megabytes, as Linux reports it."""
    lines = [line.split() for line in Path("/proc/self/status").read_text().splitlines()]
    return {line[0].rstrip(":"): int(line[1]) * 1024 / 1e6 for line in lines if line[-1] == "kB"}
