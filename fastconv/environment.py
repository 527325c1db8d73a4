"""The environment variables of fastconv, each checked in one place.

``csrc/environment.cpp`` reads the extension's variables once, at import. This module reads Python's.
``docs/reference/environment.md`` lists all of them.
"""

import os
from pathlib import Path

from fastconv._ops.library import _C

__all__ = ["benchmark_rounds", "data_folder", "settings", "tuning_file"]

#: The upper limit of ``FASTCONV_BENCH_ROUNDS``. Larger values are reduced to it.
MOST_ROUNDS = 1_000_000


def settings() -> dict[str, str]:
    """Return the value of each variable, or its default if it is empty or not set."""
    return {
        **_C.environment(),
        "FASTCONV_TUNING": str(tuning_file() or ""),
        "FASTCONV_DATA": str(data_folder() or ""),
        "FASTCONV_BENCH_ROUNDS": str(benchmark_rounds()),
    }


def tuning_file() -> Path | None:
    """Return the file of choices to load at import, ``FASTCONV_TUNING``. None if it is empty or not set."""
    value = os.environ.get("FASTCONV_TUNING", "").strip()
    return Path(value).expanduser() if value else None


def data_folder() -> Path | None:
    """Return the folder of the data sets, ``FASTCONV_DATA``. None if it is empty or not set."""
    value = os.environ.get("FASTCONV_DATA")
    return Path(value) if value else None


def benchmark_rounds() -> int:
    """Return the rounds of each benchmark, ``FASTCONV_BENCH_ROUNDS``. 60 if it is empty or not set.

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


benchmark_rounds()  # raises the error for an invalid value at import, not when a benchmark starts
