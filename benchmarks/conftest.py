"""How everything here is timed: PyTorch and fastconv in turn, so that a machine that slows down slows both."""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
from machine import machine
from ratios import time_claim

from fastconv.classifier.alternate import Make, Rounds, alternate_processes, medians
from fastconv.environment import benchmark_rounds

ROUNDS = benchmark_rounds()
WARM_UP = 5

Variants = dict[str, Callable[[], object]]


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info["fastconv"] = {**machine(), "rounds": ROUNDS}


@pytest.fixture(scope="module")
def keep_pages() -> None:
    """Tells the C allocator to keep its pages.

    As installed, glibc gives some back and asks for them again, and which of the variants pays for that (up to 1.5 ms
    for 5 MB) is a lottery that falls out differently in every run.
    """
    if sys.platform == "linux":
        trim_threshold, mmap_threshold = -1, -3  # of malloc.h
        for setting in (trim_threshold, mmap_threshold):
            ctypes.CDLL(None).mallopt(setting, 1 << 30)


@pytest.fixture
def alternate(benchmark: Any) -> Callable[..., None]:
    """Times the variants in turn, ROUNDS times; the last is the one that pytest-benchmark itself reports.

    The median seconds of each go to the JSON, under extra_info["seconds"]; what is claimed, under extra_info["claims"].
    """

    def run(variants: Variants, claim: str = "") -> None:
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
        benchmark.extra_info["seconds"] = medians(seconds)
        if claim:
            benchmark.extra_info["claims"] = [time_claim(claim, seconds)]

    return run


@pytest.fixture
def alternate_alone(benchmark: Any) -> Callable[..., Rounds]:
    """The same with a process for each variant, and the seconds of every round as the result.

    What pytest-benchmark reports is all of it, the start of the processes too.
    """

    def run(
        variants: dict[str, Make], threads: int | dict[str, int], steps: int, environment: dict[str, str] | None = None
    ) -> Rounds:
        arguments = (variants, ROUNDS, steps, threads, environment)
        (seconds,) = benchmark.pedantic(alternate_processes, args=arguments, rounds=1, iterations=1).values()
        benchmark.extra_info["seconds"] = medians(seconds)
        benchmark.extra_info["seconds_by_round"] = seconds
        benchmark.extra_info["environment"] = environment or {}
        return seconds

    return run
