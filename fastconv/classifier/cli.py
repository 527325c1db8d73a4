"""The command ``fastconv``: its commands, and what becomes of errors. A new command is a line of the table here.

torch comes with the package fastconv, and so even --help waits for it.
"""

import contextlib
import io
import os
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import Annotated

from fastconv import startup
from fastconv.classifier import UserError, UserInterrupt, printable
from fastconv.version import __version__

try:
    import typer

    from fastconv.classifier.commands import network, tools
    from fastconv.classifier.commands.train import train
except ModuleNotFoundError as missing:
    if (missing.name or "fastconv").startswith("fastconv"):
        raise
    raise SystemExit(f"fastconv: the command needs {missing.name}: pip install 'fastconv[classifier]'") from None

_BUG = 1
_USAGE_ERROR = 2
_INTERRUPTED = 130
# torch's allocators have no exception of their own on the CPU.
_OUT_OF_MEMORY = re.compile("DefaultCPUAllocator|not enough memory|out of memory")
# The extra that a package belongs to; classifier, if none is named here.
_EXTRAS = {"onnx": "export", "onnxscript": "export", "safetensors": "export", "tensorboard": "tensorboard"}
# The root of the exceptions for wrong usage: click's, of which typer >= 0.26 carries a copy under a private name.
_ClickException: type[BaseException] = typer.BadParameter.__mro__[2]

app = typer.Typer(
    name="fastconv",
    epilog="Example: fastconv train --epochs 3",
    add_completion=False,
)


def _version(asked: bool) -> None:
    if asked:
        print(f"fastconv {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
    traceback: Annotated[
        bool, typer.Option("--traceback", help="After an error, print where in the program it happened.")
    ] = False,
) -> None:
    """Train a small CNN on digits or other small images with fastconv's kernels, and look at what it learned."""


for _command, _example in (
    (train, "train --recipe fast --dataset mnist --data-dir data --output runs/full"),
    (network.evaluate, "evaluate runs/mnist-cnn-mnist5k/checkpoint.pt"),
    (network.predict, "predict runs/mnist-cnn-mnist5k/checkpoint.pt 3 17 digit.png"),
    (network.plot, "plot runs/mnist-cnn-mnist5k/checkpoint.pt --count 15 --output predictions.png"),
    (network.report, "report runs/mnist-cnn-mnist5k --output mnist.html"),
    (tools.download, "download mnist --data-dir data"),
    (tools.export, "export runs/mnist-cnn-mnist5k/checkpoint.pt --format onnx"),
    (tools.bench, "bench --threads 2 --png bench.png"),
    (tools.info, "info"),
):
    app.command(epilog=f"Example: fastconv {_example}")(_command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with ``arguments``, by default those of the process, and return its exit code.

    0: done; 1: a bug of fastconv's; 2: a mistake in the arguments, in the environment or in a file they name, told in
    one line on stderr; 130: interrupted; 143: ended by SIGTERM.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    with_traceback = startup.wants_traceback(given)
    given = [argument for argument in given if argument != "--traceback"]  # before the command's name or after it
    try:
        with _any_text_printed():
            code = _run(given)
            try:
                sys.stdout.flush()
            except OSError:  # a full disk
                _drop_output()
                raise
            return code
    except BrokenPipeError:  # who read the output has gone (| head)
        _drop_output()
        return 1
    except Exception as error:
        if with_traceback:
            traceback.print_exception(error)
        return _fail(*_explained(error))
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", _INTERRUPTED)


def _drop_output() -> None:
    """What stdout still holds goes nowhere: Python's own flush at exit must not fail for it once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(given: list[str]) -> int:
    command = typer.main.get_command(app)
    try:
        # Not command.main(): that prints mistakes in a box, or over several lines, as typer's version has it.
        with command.make_context("fastconv", given or ["--help"]) as context:
            command.invoke(context)
    except typer.Exit as done:
        return done.exit_code
    return 0


def _explained(error: Exception) -> tuple[str, int]:
    """What is said of an error, and the exit code."""
    if isinstance(error, UserError):
        return str(error), _USAGE_ERROR
    if isinstance(error, UserInterrupt):
        return str(error), error.exit_code
    if isinstance(error, typer.Abort):
        return "interrupted", _INTERRUPTED
    if isinstance(error, _ClickException):
        return f"{error.format_message()} (see --help)", _USAGE_ERROR  # type: ignore[attr-defined]
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "fastconv").split(".")[0]
        if package != "fastconv":
            extra = _EXTRAS.get(package, "classifier")
            return f"this command needs {error.name}: pip install 'fastconv[{extra}]'", _USAGE_ERROR
    elif isinstance(error, OSError):
        return str(error), _USAGE_ERROR
    elif isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(str(error)):
        return "not enough memory: take smaller images, a smaller model or a smaller batch", _USAGE_ERROR
    importing = startup.failed_import(error.__traceback__)
    if importing is not None and importing != "fastconv":
        return startup.explanation(importing, error), _USAGE_ERROR
    message = f"unexpected {type(error).__name__}: {error}"
    return f"{message} (a bug: please report it, with what the same command prints with --traceback)", _BUG


@contextlib.contextmanager
def _any_text_printed() -> Iterator[None]:
    """Within it, stdout prints "?" for letters that it has not, and for what is not UTF-8 in a file's name."""
    if sys.stdout is None:  # closed before the program started
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            yield
    elif isinstance(sys.stdout, io.TextIOWrapper):
        before = sys.stdout
        errors = before.errors or "strict"
        before.reconfigure(errors="replace")
        try:
            yield
        finally:
            before.reconfigure(errors=errors)
    else:
        yield


def _fail(message: str, code: int = _USAGE_ERROR) -> int:
    print(f"fastconv: {printable(' '.join(message.split()))}", file=sys.stderr)
    return code
