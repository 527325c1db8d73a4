"""Timing of variants that take turns in one process, so that a machine that slows down affects all of them alike."""

import ctypes
import sys
import time
from collections.abc import Callable, Mapping

import torch

from fastconv import functional as FF

#: The numbers of these settings in malloc.h.
_NUMBERS = {"TRIM_THRESHOLD": -1, "MMAP_THRESHOLD": -3}


def set_malloc(**settings: int) -> None:
    """Change settings of glibc's malloc. Do nothing if the C library is another one.

    fastconv changes the same settings in its first convolutions. They run here first.

    Args:
        settings: the values of TRIM_THRESHOLD and MMAP_THRESHOLD.
    """
    if sys.platform != "linux":
        return
    x = torch.ones(1, 1, 3, 3, requires_grad=True)
    FF.conv2d(x, x).sum().backward()
    for name, value in settings.items():
        ctypes.CDLL(None).mallopt(_NUMBERS[name], value)


def keep_pages() -> None:
    """Tell the C allocator to keep its pages.

    By default, glibc returns pages to the system and requests them again, which takes up to 1.5 ms for 5 MB. In each
    run, another variant loses this time.
    """
    set_malloc(TRIM_THRESHOLD=1 << 30, MMAP_THRESHOLD=1 << 30)


def alternate(
    variants: Mapping[str, Callable[[], object]],
    rounds: int,
    calls: int = 1,
    clock: Callable[[], float] = time.perf_counter,
    pause: float = 0,
) -> dict[str, list[float]]:
    """Return the seconds per call of each variant, round by round.

    Args:
        calls: the number of calls per round that are timed together.
        pause: seconds to wait before each turn, until the threads of the variant before it have stopped spinning.

    Example::

        >>> seconds = alternate({"sum": lambda: sum(range(10)), "max": lambda: max(range(10))}, rounds=3, calls=5)
        >>> {name: len(values) for name, values in seconds.items()}
        {'sum': 3, 'max': 3}
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, variant in variants.items():
            if pause:
                time.sleep(pause)
            start = clock()
            for _ in range(calls):
                variant()
            seconds[name].append((clock() - start) / calls)
    return seconds
