"""Variants that take turns, each in a process of its own, and what follows from their times.

A training step is timed as a user runs it: in a process that does nothing else. In one process with PyTorch's variants,
it would find its caches full of their activations and the C allocator's heap as they left it (MnistCNN's step: 6.9 ms
there, 4.3 alone). So that a machine that slows down slows all alike, the processes take turns of a few calls.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch

from fastconv.classifier import UserError

TORCH = ("torch NCHW", "torch channels_last")
OURS = "fastconv channels_last"

#: What is to be timed, by name. Called in the new process, and so a function of a module, since it is pickled.
Make = Callable[[], Mapping[str, Callable[[], object]]]
#: Of each variant, a number a round.
Rounds = Mapping[str, Sequence[float]]

_IDLE_CALLS = 2  # before those that are timed: the caches were another's


class BenchError(UserError):
    """A measurement that could not be made."""


def medians(rounds: Rounds) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in rounds.items()}


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    lower, upper = np.quantile(values, (0.25, 0.75)).tolist()
    return lower, upper


def torch_over_ours(seconds: Rounds) -> list[float]:
    """PyTorch's faster layout over fastconv in channels_last, each round's against the same round's.

    The faster layout is the one whose median is smaller. (The smaller of each round would be a choice between noises.)
    """
    fastest = min(TORCH, key=medians(seconds).__getitem__)
    return [theirs / ours for theirs, ours in zip(seconds[fastest], seconds[OURS], strict=True)]


def alternate_processes(
    variants: Mapping[str, Make],
    rounds: int,
    calls: int,
    threads: int | Mapping[str, int],
    environment: Mapping[str, str] | None = None,
) -> dict[str, dict[str, list[float]]]:
    """Seconds of what each variant makes, by its name and the variant's, round by round. A first round is not counted.

    Args:
        variants: they all make the same names.
        calls: in a turn, of which the median counts.
        threads: of all variants, or of each.
        environment: variables that the processes see from their start, as LD_PRELOAD and FASTCONV_CPU_CAPABILITY have
            to be seen.

    Raises:
        BenchError: if a process ended.
    """
    context = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    with ExitStack() as stack:
        with _interrupts_held_back(), environment_variables(environment or {}):
            for variant, make in variants.items():
                pipe, other_end = context.Pipe()
                count = threads if isinstance(threads, int) else threads[variant]
                arguments = (other_end, make, calls, count, environment or {})
                process = context.Process(target=_serve, args=arguments, daemon=True)
                process.start()
                other_end.close()
                stack.callback(pipe.close)
                pipes[variant] = pipe
                processes.append(process)
        try:
            names, *_ = [pipe.recv() for pipe in pipes.values()]
            seconds: dict[str, dict[str, list[float]]] = {name: {variant: [] for variant in pipes} for name in names}
            for done in range(rounds + 1):
                for name, of_name in seconds.items():
                    for variant, pipe in pipes.items():
                        pipe.send(name)
                        measured = pipe.recv()
                        if done:
                            of_name[variant].append(measured)
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            raise BenchError("a process of the measurement ended; is there too little memory?") from error
    for process in processes:  # the next measurement is not to share the machine with them
        process.join()
    return seconds


def _serve(pipe: Connection, make: Make, calls: int, threads: int, environment: Mapping[str, str]) -> None:
    """In a process of its own: send what can be timed, then time what is asked for, until nobody asks."""
    assert all(os.environ.get(name) == value for name, value in environment.items())
    if preloaded := environment.get("LD_PRELOAD"):  # the loader only warns of what it cannot find
        assert os.path.realpath(preloaded) in Path("/proc/self/maps").read_text()
    torch.set_num_threads(threads)
    made = make()
    try:
        pipe.send(list(made))
        while True:
            call, seconds = made[pipe.recv()], []
            for _ in range(_IDLE_CALLS):
                call()
            for _ in range(calls):
                start = time.perf_counter()
                call()
                seconds.append(time.perf_counter() - start)
            pipe.send(statistics.median(seconds))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


@contextmanager
def environment_variables(variables: Mapping[str, str]) -> Iterator[None]:
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


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Within it, Ctrl-C waits; processes started meanwhile never see it.

    It reaches the whole group of processes, and these are to end when the pipe is closed, without a word. A signal that
    is ignored meanwhile, rather than held back, would be lost.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # it starts with the first process, and lets signals through again when it has
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
