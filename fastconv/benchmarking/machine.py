"""Description of the machine and of the software, for the captions of measurements."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch

import fastconv


def cpu_name() -> str:
    """Return the processor's name as the system reports it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


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
