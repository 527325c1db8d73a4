"""Variants that take turns, each in a process of its own.

A training step is timed as a user runs it: in a process that does nothing else. In one process with PyTorch's variants,
it would find its caches full of their activations and the C allocator's heap as they left it (MnistCNN's step: 6.9 ms
there, 4.3 alone). So that a machine that slows down slows all alike, the processes take turns of a few steps.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

#: Makes what is to be timed: called in the new process.
Make = Callable[[], Callable[[], object]]


@contextmanager
def environment_variables(variables: dict[str, str]) -> Iterator[None]:
    """For the processes that start meanwhile."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _serve(connection: Connection, make: Make, threads: int, environment: dict[str, str], cpu_time: bool) -> None:
    import torch

    assert all(os.environ.get(name) == value for name, value in environment.items())
    if preloaded := environment.get("LD_PRELOAD"):  # the loader only warns of what it cannot find
        assert os.path.realpath(preloaded) in Path("/proc/self/maps").read_text()
    torch.set_num_threads(threads)
    clock = time.process_time if cpu_time else time.perf_counter
    run = make()
    connection.send(None)
    while (steps := connection.recv()) is not None:
        run()  # waking up, not timed
        run()
        seconds = []
        for _ in range(steps):
            start = clock()
            run()
            seconds.append(clock() - start)
        connection.send(statistics.median(seconds))


def alternate_processes(
    variants: dict[str, Make],
    rounds: int,
    steps: int,
    threads: int | dict[str, int],
    environment: dict[str, str] | None = None,
    cpu_time: bool = False,
) -> dict[str, list[float]]:
    """Seconds of each variant, round by round: the median of ``steps`` runs. A first round is not counted.

    Args:
        variants: functions of a module, since they are pickled.
        threads: of all variants, or of each.
        environment: variables that the processes see from their start, as LD_PRELOAD and FASTCONV_CPU_CAPABILITY have
            to be seen.
        cpu_time: of the process, which other programs on the machine disturb less; for one thread.
    """
    context = multiprocessing.get_context("spawn")
    workers = []
    with environment_variables(environment or {}):
        for name, make in variants.items():
            connection, other_end = context.Pipe()
            count = threads if isinstance(threads, int) else threads[name]
            arguments = (other_end, make, count, environment or {}, cpu_time)
            process = context.Process(target=_serve, args=arguments, daemon=True)
            process.start()
            other_end.close()
            workers.append((name, process, connection))
    for _, _, connection in workers:
        connection.recv()
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds + 1):
        for name, _, connection in workers:
            connection.send(steps)
            seconds[name].append(connection.recv())
    for _, process, connection in workers:
        connection.send(None)
        process.join()
    return {name: of_variant[1:] for name, of_variant in seconds.items()}
