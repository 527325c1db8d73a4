"""Timing of variants that take turns, each in a process of its own.

A training step is timed as a user runs it: in a process that does nothing else. In a process that also runs PyTorch's
variants, their activations fill the caches and fragment the heap: MnistCNN's step takes 6.9 ms there and 4.3 ms alone.
The processes take turns of a few calls, so that a machine that slows down affects all of them.
"""

import multiprocessing
import os
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path

import torch

#: Returns the functions to time, by name. It runs in the new process. It is pickled, so define it at the top level of a
#: module.
Make = Callable[[], Mapping[str, Callable[[], object]]]
#: Seconds by the function's name, then by the variant's name, round by round.
Seconds = dict[str, dict[str, list[float]]]

_UNTIMED_CALLS = 2  # at the start of each turn, to fill the caches again


class BenchError(RuntimeError):
    """A measurement failed."""


def alternate_processes(
    variants: Mapping[str, Make],
    rounds: int,
    calls: int | Mapping[str, int],
    threads: int | Mapping[str, int],
    environment: Mapping[str, str] | None = None,
    pauses: Mapping[str, float] | None = None,
) -> Seconds:
    """Time the functions of each variant, and return the seconds. An additional first round is discarded.

    Args:
        variants: each must return functions of the same names.
        calls: calls per turn, of all functions or of each. Their median is the time of the turn.
        threads: the number of threads of all variants, or of each.
        environment: variables that the processes have from their start. LD_PRELOAD and FASTCONV_CPU_CAPABILITY have no
            effect later.
        pauses: seconds to wait after a turn of these variants, because some libraries' threads spin after a call.

    Raises:
        BenchError: if a process ended.
    """
    context = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    with ExitStack() as stack:
        with _interrupts_held_back(), _environment_variables(environment or {}):
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
            seconds = _take_turns(pipes, rounds, pauses or {})
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            raise BenchError("a process that measures has ended, perhaps because memory ran out") from error
    for process in processes:  # so that they do not disturb the next measurement
        process.join()
    return seconds


def _take_turns(pipes: Mapping[str, Connection], rounds: int, pauses: Mapping[str, float]) -> Seconds:
    """Request one measurement at a time from the processes. Discard the first round."""
    names, *_ = [pipe.recv() for pipe in pipes.values()]
    seconds: Seconds = {name: {variant: [] for variant in pipes} for name in names}
    for done in range(rounds + 1):
        for name, by_variant in seconds.items():
            for variant, pipe in pipes.items():
                pipe.send(name)
                measured = pipe.recv()
                if done:
                    by_variant[variant].append(measured)
                time.sleep(pauses.get(variant, 0.0))
    return seconds


def _serve(
    pipe: Connection, make: Make, calls: int | Mapping[str, int], threads: int, environment: Mapping[str, str]
) -> None:
    """Run in the process of a variant: send the names of its functions, then time each that is requested."""
    assert all(os.environ.get(name) == value for name, value in environment.items())
    if preloaded := environment.get("LD_PRELOAD"):  # the loader only warns if it does not find the library
        assert os.path.realpath(preloaded) in Path("/proc/self/maps").read_text()
    torch.set_num_threads(threads)
    made = make()
    try:
        pipe.send(list(made))
        while True:
            name = pipe.recv()
            call, seconds = made[name], []
            for _ in range(_UNTIMED_CALLS):
                call()
            for _ in range(calls if isinstance(calls, int) else calls[name]):
                start = time.perf_counter()
                call()
                seconds.append(time.perf_counter() - start)
            pipe.send(statistics.median(seconds))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


@contextmanager
def _environment_variables(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for the processes that start within this context."""
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
    """Block SIGINT within this context. Processes that start within it never receive SIGINT.

    Ctrl-C reaches all processes of the group. The started processes must end silently when their pipe closes. SIGINT is
    blocked and not ignored, because an ignored signal would be lost.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # otherwise it starts with the first process and unblocks the signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
