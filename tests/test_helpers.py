"""Processes that tests start do not outlive them."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path

import pytest
from helpers import run, running

# Starts a process in another session, as torchrun does.
PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print(child.pid, flush=True)
time.sleep(600)
"""


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="finds processes of other sessions in /proc")
def test_a_failed_test_leaves_no_process_behind() -> None:
    with contextlib.suppress(ZeroDivisionError), running([sys.executable, "-c", PARENT]) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        assert is_running(child)
        raise ZeroDivisionError
    deadline = time.monotonic() + 10
    while is_running(child):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert process.returncode is not None


def test_run_returns_the_output_and_the_exit_code() -> None:
    done = run([sys.executable, "-c", "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"])
    assert (done.stdout, done.stderr, done.returncode) == ("out\n", "err\n", 3)
