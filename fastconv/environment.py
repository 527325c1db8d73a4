"""The environment variables of fastconv, each checked in one place.

The extension's are read once, at import, in ``csrc/environment.cpp``. Python's are read here. ``docs/environment.md``
lists all of them.
"""

from __future__ import annotations

import os
from pathlib import Path

from fastconv._ops.library import _C

__all__ = ["benchmark_rounds", "data_folder", "settings"]

#: More rounds than anybody waits for: larger values of ``FASTCONV_BENCH_ROUNDS`` mean this.
MOST_ROUNDS = 1_000_000


def settings() -> dict[str, str]:
    """Settings in force: the value of each variable, or what stands for it where it is empty or not set."""
    return {
        **_C.environment(),
        "FASTCONV_DATA": str(data_folder() or ""),
        "FASTCONV_BENCH_ROUNDS": str(benchmark_rounds()),
    }


def data_folder() -> Path | None:
    """Folder of the data sets, ``FASTCONV_DATA``; None if that is empty or not set."""
    value = os.environ.get("FASTCONV_DATA")
    return Path(value) if value else None


def benchmark_rounds() -> int:
    """Rounds of each benchmark, ``FASTCONV_BENCH_ROUNDS``: 60 if that is empty or not set.

    Raises:
        ValueError: The value is not a whole number, 1 or more.
    """
    value = os.environ.get("FASTCONV_BENCH_ROUNDS", "").strip()
    if not value:
        return 60
    digits = value.lstrip("0") if value.isascii() and value.isdigit() else ""
    if not digits:
        raise ValueError(
            f"fastconv: FASTCONV_BENCH_ROUNDS: {value[:60]!r} is not a whole number, 1 or more (empty or unset: 60)"
        )
    return MOST_ROUNDS if len(digits) > len(str(MOST_ROUNDS)) else min(int(digits), MOST_ROUNDS)


benchmark_rounds()  # refuses a value now, not when a benchmark starts
