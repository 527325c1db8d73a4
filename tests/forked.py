"""Run programs in new processes without waiting for torch: the processes are forked from one that has imported it.

An import of torch takes 2 seconds of a core, a fork 10 ms. fastconv is not imported, so a program can set the variables
and modules that its import depends on. A test of how Python itself starts needs helpers.run.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from helpers import ENVIRONMENT

#: Reads tasks as lines of JSON, runs each in a child, and prints the child's exit code. It ends when its input ends, so
#: it does not outlive the tests. A child ends after a number of seconds.
SERVER = """
import json, os, signal, sys, traceback
import torch

def run(task):
    signal.alarm(task["seconds"])
    for number, path in enumerate((os.devnull, *task["output"])):
        os.dup2(os.open(path, os.O_RDWR), number)
    os.environ.clear()
    os.environ.update(task["environment"])
    os.chdir(task["folder"])
    sys.argv = ["-c", *task["arguments"]]
    try:
        exec(compile(task["program"], "<string>", "exec"), {"__name__": "__main__"})
        return 0
    except SystemExit as error:
        if not isinstance(error.code, int | None):
            print(error.code, file=sys.stderr)
            return 1
        return error.code or 0
    except BaseException:
        traceback.print_exc()
        return 1

for line in sys.stdin:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = run(json.loads(line))
            sys.stdout.flush(), sys.stderr.flush()
        finally:
            os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Python:
    """Call it as ``python -c program arguments``."""

    def __init__(self, server: subprocess.Popen[str], folder: Path) -> None:
        self._server, self._folder = server, folder

    def __call__(
        self,
        program: str,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
        seconds: int = 300,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program. Return its exit code and its output.

        Args:
            environment: variables besides those of this process, or instead of them.
            folder: the current folder of the program.
            seconds: the program is killed after this time.
        """
        output = [self._folder / name for name in ("stdout", "stderr")]
        for path in output:
            path.write_text("")
        task = {
            "program": program,
            "arguments": arguments,
            "environment": {**os.environ, "PYTHONPATH": ENVIRONMENT["PYTHONPATH"], **(environment or {})},
            "folder": str(folder or Path.cwd()),
            "output": list(map(str, output)),
            "seconds": seconds,
        }
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(task) + "\n")
        self._server.stdin.flush()
        assert select.select([self._server.stdout], [], [], seconds + 30)[0], "no answer"
        code = int(self._server.stdout.readline())
        return subprocess.CompletedProcess(["-c", program], code, *(path.read_text() for path in output))


@contextmanager
def python() -> Iterator[Python]:
    """Start the process that forks. At the end, kill it and its children."""
    command = [sys.executable, "-c", SERVER]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(command, env=ENVIRONMENT, text=True, start_new_session=True, **pipes) as server,
    ):
        try:
            yield Python(server, Path(folder))
        finally:
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)


#: Runs the command in several processes, as torchrun does, and exits with the code of the last one that failed. If the
#: second argument is not empty, every process is killed a moment after a file of that name exists.
RANKS = """
import os, pathlib, random, signal, socket, sys, time

_, count, until, *arguments = sys.argv
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": count}
import fastconv.classifier.cli.run, fastconv.classifier.data, fastconv.classifier.report  # once, not in each process
from fastconv.__main__ import main
children = []
for rank in range(int(count)):
    children.append(os.fork())
    if children[-1] == 0:
        code = 1
        try:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            sys.argv = ["fastconv", *arguments]
            code = main(arguments)
            sys.stdout.flush(), sys.stderr.flush()
        finally:
            os._exit(code)
if until:
    while not pathlib.Path(until).exists():
        time.sleep(0.001)
    time.sleep(random.uniform(0, 0.05))
    for child in children:
        os.kill(child, signal.SIGKILL)
codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
sys.exit(max(codes, key=abs))
"""


def ranks(
    run: Python, arguments: Sequence[str], *, count: int = 2, killed_after: str = "", **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run the command ``fastconv`` in `count` processes, as torchrun does, without the time that torchrun takes.

    Each process would import torch. torchrun itself is tested by test_two_processes_give_the_weights_of_one.

    Args:
        killed_after: kill all processes a moment after this file exists.
        options: as those of `Python`.
    """
    return run(RANKS, str(count), killed_after, *arguments, **options)
