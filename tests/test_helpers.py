"""Processes that tests start do not outlive them."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from pathlib import Path

import forked
import pytest
from forked import Python
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


def test_a_forked_program_gets_arguments_variables_and_a_folder(python: Python, tmp_path: Path) -> None:
    program = "import os, sys; print(sys.argv, os.environ['COLOUR'], os.getcwd(), 'torch' in sys.modules)"
    done = python(program, "a", environment={"COLOUR": "blau ü"}, folder=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"['-c', 'a'] blau ü {tmp_path} True\n", "")


@pytest.mark.parametrize(
    ("program", "code", "error"),
    [
        ("raise SystemExit(3)", 3, ""),
        ("raise SystemExit('no')", 1, "no"),
        ("1 / 0", 1, "ZeroDivisionError: division by zero"),
        ("import os; os.kill(os.getpid(), 9)", -9, ""),
        ("import os; print('lost'); os._exit(7)", 7, ""),
    ],
)
def test_a_forked_program_returns_its_exit_code_and_its_error(
    program: str, code: int, error: str, python: Python
) -> None:
    done = python(program)
    assert done.returncode == code
    assert (done.stderr.splitlines() or [""])[-1] == error
    assert python("print('next')").stdout == "next\n"


def test_a_forked_program_that_hangs_is_killed(python: Python) -> None:
    assert python("import time; time.sleep(60)", seconds=1).returncode == -signal.SIGALRM


def test_the_process_that_forks_ends_when_its_input_ends() -> None:
    """So it does not outlive the tests, even if these are killed."""
    with forked.python() as run:
        server = run._server
        assert server.stdin is not None
        server.stdin.close()
        assert server.wait(timeout=300) == 0
