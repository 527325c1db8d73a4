"""Time known networks in fastconv, PyTorch, ONNX Runtime and OpenVINO: inference and a training step.

python benchmarks/bench_networks.py [--only ResNet-18 MobileNetV2] [--modes batch-1 training] [--rounds 6] [--json FILE]

The networks are those of benchmarks/networks.py. Their images have 128x128 pixels, those of the CIFAR network 32x32.

batch-1, batch-8   inference in evaluation mode, under inference_mode
training           forward, cross-entropy, backward and SGD with momentum: 8 images, or 64 for the CIFAR network
memory             the peak memory of such a training step

Each variant runs in its own process. The processes take turns, with a pause after each turn, until the threads of the
library sleep. A turn has two untimed calls, then timed ones, whose median counts. A ratio is the time of PyTorch in
channels_last over the time of the variant, and the median over the rounds. Above 1, the variant is faster. Only the
processes of fastconv keep freed memory from step to step. FASTCONV_KEEP_MB=0 turns that off.

"fastconv" is fastconv.convert, "fastconv frozen" is fastconv.freeze with record_calls, both in channels_last. "torch
folded" is PyTorch with each batch norm folded into the convolution before it (torch.nn.utils.fusion). torch.compile
runs for ResNet-18 only, unless --variants names it, because it compiles each network for more than a minute. That time
does not count.

The outputs of all variants are compared with PyTorch's in float64. The loss and the running statistics after 20
training steps are compared with PyTorch's, if there are at least 6 rounds. A difference that rounding does not explain
makes the exit code 1.

With --json FILE, the tables are also written as Markdown, next to FILE. network_report.py prints them again.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from network_checks import Record, failures, inference_checks, peak_memories, training_checks
from network_report import markdown, print_tables
from network_variants import (
    BASE,
    BATCHES,
    COMPILE,
    COMPILED,
    INFERENCE,
    ONNX_RUNTIME,
    OPENVINO,
    OURS,
    PAUSES,
    TRAINING,
    make_inference,
    make_training,
    missing,
    prepare,
)
from networks import NETWORKS

from fastconv.benchmarking.machine import busy_cores, machine
from fastconv.benchmarking.processes import alternate_processes

MODES = (*BATCHES, "training", "memory")
#: The timed calls of a turn.
CALLS = {"batch-1": 8, "batch-8": 1, "training": 1}


def measure(name: str, modes: list[str], variants: list[str], rounds: int, threads: int) -> list[Record]:
    """Return the measurements of a network, one record per mode."""
    records: list[Any] = []

    def record(mode: str, **found: Any) -> None:
        records.append({"network": name, "mode": mode, "seconds": {}, "checks": {}, "megabytes": {}, **found})

    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        batches = [mode for mode in modes if mode in BATCHES]
        with_onnx = bool(batches) and not {ONNX_RUNTIME, OPENVINO}.isdisjoint(variants)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            pool.apply(prepare, (name, folder, with_onnx))
        if batches:
            makes: dict[str, Callable[[], Any]] = {
                variant: functools.partial(make_inference, name, folder, variant, batches, threads)
                for variant in variants
            }
            seconds = alternate_processes(makes, rounds, CALLS, threads, pauses=PAUSES)
            checks = inference_checks(folder, variants)
            for batch in batches:
                record(batch, checks=checks, seconds=seconds[batch])
        trained = [variant for variant in variants if variant in TRAINING]
        if "training" in modes:
            makes = {variant: functools.partial(make_training, name, folder, variant, threads) for variant in trained}
            seconds = alternate_processes(makes, rounds, CALLS, threads, pauses=PAUSES)
            record("training", checks=training_checks(folder, trained), seconds=seconds["training"])
        if "memory" in modes:
            compared = [variant for variant in (BASE, OURS) if variant in trained]
            record("memory", megabytes=peak_memories(name, folder, compared, threads))
    return records


def description(rounds: int, threads: int) -> dict[str, Any]:
    """Return the machine, the versions and the settings, for the JSON."""
    packages = {name: version(name) for name in ("onnxruntime", "openvino", "transformers")}
    packages = {name: found for name, found in packages.items() if found}
    return {**machine(), "threads": threads, "rounds": rounds, "packages": packages}


def version(package: str) -> str:
    """Return the version of an installed package, else ""."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(NETWORKS), choices=NETWORKS, metavar="NETWORK")
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=MODES)
    parser.add_argument("--variants", nargs="+", choices=INFERENCE, metavar="VARIANT")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.threads < 1:
        parser.error("--rounds and --threads must be at least 1")
    return arguments


def variants_of(name: str, variants: list[str], asked_for: bool) -> list[str]:
    """Return the variants to run for a network."""
    return [variant for variant in variants if asked_for or variant != COMPILE or name in COMPILED]


def chosen(variants: list[str]) -> tuple[list[str], dict[str, str]]:
    """Return the variants that can run here, PyTorch in channels_last first, and why the others cannot."""
    reasons = {variant: reason for variant in variants if (reason := missing(variant)) is not None}
    return [BASE, *(name for name in variants if name not in (BASE, *reasons))], reasons


def main() -> None:
    arguments = parse()
    variants, reasons = chosen(arguments.variants or list(INFERENCE))
    for variant, reason in reasons.items():
        print(f"{variant} is left out: {reason}")
    if (load := busy_cores()).is_busy:
        print(f"Other programs use {load}, so the times are too long and the ratios are not reliable.")
    records: list[Record] = []
    run = {"machine": description(arguments.rounds, arguments.threads), "missing": reasons, "networks": records}
    for name in arguments.only:
        if (package := NETWORKS[name].package) and not version(package):
            print(f"{name} is left out: {package} is not installed: pip install 'fastconv[benchmark]'")
            continue
        start = time.perf_counter()
        of_network = variants_of(name, variants, arguments.variants is not None)
        records += measure(name, arguments.modes, of_network, arguments.rounds, arguments.threads)
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
        if arguments.json:  # after each network, so that an interrupted run is not lost
            arguments.json.parent.mkdir(parents=True, exist_ok=True)
            arguments.json.write_text(json.dumps(run, indent=1))
            arguments.json.with_suffix(".md").write_text(markdown([run]))
    print_tables([run])
    if wrong := failures(records):
        raise SystemExit("\n".join(["", *wrong]))


if __name__ == "__main__":
    main()
