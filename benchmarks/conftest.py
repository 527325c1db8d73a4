"""How everything here is timed: PyTorch and fastconv in turn, so that a machine that slows down slows both."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import fastconv

ROUNDS = int(os.environ.get("FASTCONV_BENCH_ROUNDS", "60"))
WARM_UP = 5

Variants = dict[str, Callable[[], object]]


def cpu_name() -> str:
    """The processor's name as the system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info["fastconv"] = {
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "fastconv": fastconv.__version__,
        "level": fastconv._C.cpu_capability(),
        "compiler": fastconv._C.build_info()["compiler"],
        "preloaded": os.environ.get("LD_PRELOAD", ""),
        "rounds": ROUNDS,
    }


@pytest.fixture
def alternate(benchmark: Any) -> Callable[[Variants], None]:
    """Times the variants in turn, ROUNDS times; the last is the one that pytest-benchmark itself reports.

    The median seconds of each go to the JSON, under extra_info["seconds"].
    """

    def run(variants: Variants) -> None:
        seconds: dict[str, list[float]] = {name: [] for name in variants}
        *others, last = variants

        def timed(name: str) -> None:
            start = time.perf_counter()
            variants[name]()
            seconds[name].append(time.perf_counter() - start)

        def before_each_round() -> None:
            for name in others:
                timed(name)

        for _ in range(WARM_UP):
            for variant in variants.values():
                variant()
        benchmark.pedantic(timed, args=(last,), setup=before_each_round, rounds=ROUNDS, iterations=1)
        benchmark.extra_info["seconds"] = {name: statistics.median(times) for name, times in seconds.items()}

    return run
