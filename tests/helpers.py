"""Helpers for tests of the command line and of other processes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from sweep import FULL
from torch.library import opcheck

import fastconv

ROOT = Path(fastconv.__file__).parents[1]
#: Tests change the current folder, so a new process needs the path of the package, installed or not.
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
COMMAND = [sys.executable, "-m", "fastconv"]
#: `running` sets this environment variable to find the processes that a test has started.
_TAG = "FASTCONV_TEST_PROCESS"


@contextlib.contextmanager
def running(command: Sequence[Any], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Start a command in a session of its own. At the end, kill it and every process that it has started."""
    tag = uuid.uuid4().hex
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": ENVIRONMENT, **options}
    options["env"] = {**options["env"], _TAG: tag}
    with subprocess.Popen(list(map(str, command)), start_new_session=True, **options) as process:
        try:
            yield process
        finally:
            _kill_all(process, tag)


def run(command: Sequence[Any], timeout: float | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command as ``subprocess.run(capture_output=True)`` does, but leave no process behind."""
    with running(command, **options) as process:
        output, errors = process.communicate(timeout=timeout)
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def _kill_all(process: subprocess.Popen[str], tag: str) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    # torchrun gives its processes sessions of their own. On Linux, the variable identifies them. While one search kills
    # processes, the others may start new ones. So search until a search finds none.
    while sum(_kill_tagged(folder, tag) for folder in Path("/proc").glob("[0-9]*")):
        time.sleep(0.001)


def _kill_tagged(folder: Path, tag: str) -> bool:
    """Kill the process if it has the tag. Return False if it has no tag, or is dead."""
    with contextlib.suppress(OSError):
        environment = (folder / "environ").read_bytes()
        if f"{_TAG}={tag}".encode() in environment:
            os.kill(int(folder.name), signal.SIGKILL)
            return True
        if not environment:
            (folder / "exe").readlink()  # fails for a dead process or a thread of the kernel
            # During exec, the environment is empty and its addresses are 0 (fields 50 and 51 in proc_pid_stat(5)).
            start, end = (folder / "stat").read_text().rpartition(")")[2].split()[47:49]
            return end == "0" or start != end
    return False


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file of a folder and its bytes."""
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def check_operator(operator: Any, arguments: Sequence[Any], compiled: bool = True) -> None:
    """Run ``torch.library.opcheck``.

    Args:
        compiled: False leaves out the check that compiles the operator for symbolic sizes, which takes nearly all of
            the time. ``make test-all`` does not leave it out.
    """
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    opcheck(
        operator, tuple(arguments), test_utils=(*checks, "test_aot_dispatch_dynamic") if compiled or FULL else checks
    )


def complaint(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return what the command prints for a mistake: one line on stderr, with exit code 2, and no change to any file."""
    from fastconv.__main__ import main

    before = contents(Path()), sorted(map(str, Path().rglob("*")))
    capsys.readouterr()
    assert main(arguments) == 2, arguments
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("fastconv: ")
    assert output.err.count("\n") == 1
    assert output.err.endswith("\n")
    assert (contents(Path()), sorted(map(str, Path().rglob("*")))) == before
    return output.err
