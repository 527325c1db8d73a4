"""Fixtures that time PyTorch and fastconv in turn, so that a machine that slows down slows both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from ratios import time_claim

from fastconv.benchmarking.alternating import alternate as alternate_in_process
from fastconv.benchmarking.alternating import keep_pages as keep_pages_of_the_allocator
from fastconv.benchmarking.machine import machine
from fastconv.benchmarking.processes import Make, alternate_processes
from fastconv.benchmarking.ratios import Rounds, medians
from fastconv.environment import benchmark_rounds

ROUNDS = benchmark_rounds()
WARM_UP = 5

Variants = dict[str, Callable[[], object]]


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info["fastconv"] = {**machine(), "rounds": ROUNDS}


@pytest.fixture(scope="module")
def keep_pages() -> None:
    """Tell the C allocator to keep its pages, for the benchmarks of a module."""
    keep_pages_of_the_allocator()


@pytest.fixture
def alternate(benchmark: Any) -> Callable[..., None]:
    """Return a function that times variants in turn, ROUNDS times, in this process.

    The JSON has the median seconds of each variant in extra_info["seconds"], and the claims in extra_info["claims"].
    pytest-benchmark's own figure is the time of all rounds.
    """

    def run(variants: Variants, claim: str = "") -> None:
        for _ in range(WARM_UP):
            for variant in variants.values():
                variant()
        seconds = benchmark.pedantic(alternate_in_process, args=(variants, ROUNDS), rounds=1, iterations=1)
        benchmark.extra_info["seconds"] = medians(seconds)
        if claim:
            benchmark.extra_info["claims"] = [time_claim(claim, seconds)]

    return run


@pytest.fixture
def alternate_alone(benchmark: Any) -> Callable[..., Rounds]:
    """Return a function that times each variant in its own process, and returns the seconds of every round.

    pytest-benchmark's own figure includes the start of the processes.
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
