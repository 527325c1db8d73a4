"""What a measurement has to name: the processor, the threads, the versions."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

import fastconv
from fastconv.classifier.bench import cpu_name


def machine() -> dict[str, Any]:
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
    preloaded = f", {Path(info['preloaded']).name} preloaded" if info["preloaded"] else ""
    return (
        f"{info['cpu']}, {info['threads']} threads, {info['level']}{preloaded}; torch {info['torch']}, "
        f"fastconv {info['fastconv']}, {info['compiler']}"
    )
