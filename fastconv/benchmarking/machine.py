"""Description of the machine and of the software, for the captions of measurements."""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import fastconv
from fastconv.processor import cpu_name

__all__ = ["Load", "busy_cores", "caption", "cpu_name", "machine"]


@dataclass(frozen=True)
class Load:
    """How many of a machine's cores are busy. ``str`` gives "0.1 of 2 cores"."""

    busy: float
    cores: int

    @property
    def is_busy(self) -> bool:
        """True if other programs use more than a quarter of a core and more than a tenth of all cores."""
        return self.busy > max(0.25, 0.1 * self.cores)

    def __str__(self) -> str:
        return f"{self.busy:.1f} of {self.cores} core{'s' * (self.cores != 1)}"


def busy_cores(seconds: float = 0.5) -> Load:
    """Measure for ``seconds`` how many cores other programs use.

    Linux counts the time that its cores work. Elsewhere, the load of the last minute is used. Windows has no such
    figure, so 0 is returned.
    """
    cores = os.cpu_count() or 1
    before = _working_seconds()
    if before is None:
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
        return Load(min(load, cores), cores)
    start = time.perf_counter()
    time.sleep(seconds)
    after = _working_seconds() or before
    return Load(min(max(after - before, 0.0) / (time.perf_counter() - start), cores), cores)


def _working_seconds() -> float | None:
    """Return the seconds that all cores together have worked since the start, from /proc/stat. None without it."""
    try:
        first = Path("/proc/stat").read_text().splitlines()[0].split()
        user, nice, system, _, _, irq, softirq, stolen = map(int, first[1:9])  # without idle and waiting for the disk
    except (OSError, ValueError, IndexError):
        return None
    return (user + nice + system + irq + softirq + stolen) / os.sysconf("SC_CLK_TCK")


def machine() -> dict[str, Any]:
    """Return the processor, the number of threads and the versions."""
    return {
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "fastconv": fastconv.__version__,
        "level": fastconv._C.cpu_capability(),
        "compiler": fastconv._C.build_info()["compiler"],
        "preloaded": os.environ.get("LD_PRELOAD", ""),
    }


def caption(info: dict[str, Any]) -> str:
    """Format the result of :func:`machine` as one line."""
    preloaded = f", {Path(info['preloaded']).name} preloaded" if info["preloaded"] else ""
    return (
        f"{info['cpu']}, {info['threads']} threads, {info['level']}{preloaded}; torch {info['torch']}, "
        f"fastconv {info['fastconv']}, {info['compiler']}"
    )
