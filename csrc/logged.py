"""Run a command of the set-up, write its output to a log file, and show its progress.

    python csrc/logged.py build/log "compiling the extension" python setup.py build_ext --inplace

The progress is pip's steps and ninja's counter. A terminal shows it in one line that changes. Elsewhere, a line is
printed at most every 5 seconds. If the command fails, its complete output is printed, and its exit code is returned.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

#: A step of pip, or ninja's counter and the file that it compiles.
PIP = re.compile(r"\s*((?:Collecting|Downloading|Building|Installing|Successfully installed|Obtaining) .*)")
NINJA = re.compile(r"(\[\d+/\d+\]).* -o \S*?([^/\s]+?)\.o\b|(\[\d+/\d+\])")
INTERVAL = 5.0  # seconds between lines without a terminal
WIDTH = 76


def step(line: str) -> str | None:
    """Return the short form of a line of output that shows progress. Return None for other lines.

    Example:
        >>> step("[3/27] c++ -O3 -c -c /src/csrc/cpu/plan.cpp -o /build/csrc/cpu/plan.o -std=c++20")
        '[3/27] plan'
        >>> step("  Downloading torch-2.13.0-cp311-cp311-manylinux_2_28_x86_64.whl (180.0 MB)")
        'Downloading torch-2.13.0-cp311-cp311-manylinux_2_28_x86_64.whl (180.0 MB)'
        >>> step("warning: this is for the log")
    """
    if found := NINJA.match(line):
        return found[3] or f"{found[1]} {found[2]}"
    found = PIP.match(line)
    return found[1].rstrip() if found else None


def run(log: Path, title: str, command: list[str]) -> int:
    """Run ``command``, and return its exit code."""
    terminal = sys.stdout.isatty()
    print(title, flush=True)
    started = shown = time.monotonic()
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        log.open("w") as file,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            file.write(line)
            text = step(line)
            if text is None:
                continue
            text = text if len(text) <= WIDTH else text[: WIDTH - 1] + "…"
            if terminal:
                print(f"\r  {text:<{WIDTH}}", end="", flush=True)
            elif time.monotonic() - shown >= INTERVAL:
                shown = time.monotonic()
                print(f"  {text}", flush=True)
    if terminal:
        print(f"\r{' ' * (WIDTH + 2)}\r", end="")
    if process.returncode != 0:
        print(log.read_text(), end="")
        print(f"{title}: failed with exit code {process.returncode} ({log})")
        return process.returncode
    print(f"  done in {time.monotonic() - started:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1]), sys.argv[2], sys.argv[3:]))
