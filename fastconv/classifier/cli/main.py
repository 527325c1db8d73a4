"""The command ``fastconv``: its table of subcommands, and how it reports errors.

Importing the package fastconv imports torch, so even ``--help`` waits for torch.
"""

import contextlib
import io
import os
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import typer

import fastconv
from fastconv import startup
from fastconv.classifier.cli.bench import bench
from fastconv.classifier.cli.download import download
from fastconv.classifier.cli.evaluate import evaluate
from fastconv.classifier.cli.export import export
from fastconv.classifier.cli.plot import plot
from fastconv.classifier.cli.predict import predict
from fastconv.classifier.cli.report import report
from fastconv.classifier.cli.train import train
from fastconv.classifier.errors import UserError, UserInterrupt, printable
from fastconv.installation import install_command
from fastconv.version import __version__

_BUG = 1
_USAGE_ERROR = 2
_INTERRUPTED = 130
# torch has no exception class for a lack of CPU memory, so its messages are matched.
_OUT_OF_MEMORY = re.compile("DefaultCPUAllocator|not enough memory|out of memory")
# The extra that installs a package. Packages that are not listed belong to the extra classifier.
_EXTRAS = {"onnx": "export", "onnxscript": "export", "safetensors": "export", "tensorboard": "tensorboard"}
# The base class of click's usage errors. typer >= 0.26 has a copy of click under a private name.
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
        bool, typer.Option("--traceback", help="Print a traceback after an error.", expose_value=False)
    ] = False,
) -> None:
    """Train a small CNN on digits or other small images with fastconv's kernels, and inspect the result."""


def info() -> None:
    """Print the versions, the CPU's instruction set in use, the threads, and how the extension was built."""
    print(fastconv.show_config())


for _command, _example in (
    (train, "train --recipe fast --dataset mnist --data-dir data --output runs/full"),
    (evaluate, "evaluate runs/mnist-cnn-mnist5k/checkpoint.pt"),
    (predict, "predict runs/mnist-cnn-mnist5k/checkpoint.pt 3 17 digit.png"),
    (plot, "plot runs/mnist-cnn-mnist5k/checkpoint.pt --count 15 --output predictions.png"),
    (report, "report runs/mnist-cnn-mnist5k --output mnist.html"),
    (download, "download mnist --data-dir data"),
    (export, "export runs/mnist-cnn-mnist5k/checkpoint.pt --format onnx"),
    (bench, "bench --threads 2 --png bench.png"),
    (info, "info"),
):
    app.command(epilog=f"Example: fastconv {_example}")(_command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with ``arguments``, by default those of the process, and return its exit code.

    0: success. 1: a bug in fastconv. 2: a mistake in the arguments, in the environment or in a named file, reported in
    one line on stderr. 130: interrupted. 143: ended by SIGTERM.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    with_traceback = startup.wants_traceback(given)
    given = [argument for argument in given if argument != "--traceback"]  # before the subcommand's name or after it
    try:
        with _any_text_printed():
            code = _run(given)
            try:
                sys.stdout.flush()
            except OSError:  # a full disk
                _drop_output()
                raise
            return code
    except BrokenPipeError:  # the reader of the output has ended, as in `fastconv ... | head`
        _drop_output()
        return 1
    except Exception as error:
        if with_traceback:
            traceback.print_exception(error)
        return _fail(*_explained(error))
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", _INTERRUPTED)


def _drop_output() -> None:
    """Discard what stdout has buffered. Otherwise Python's flush at exit would fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _click_command() -> Any:
    """Build the click command. Each subcommand lists ``--traceback``, and its help has no line breaks in paragraphs.

    typer removes those of the first paragraph only.
    """
    command: Any = typer.main.get_command(app)
    (option,) = [parameter for parameter in command.params if parameter.name == "traceback"]
    for subcommand in command.commands.values():
        subcommand.params.append(option)
        paragraphs = (subcommand.help or "").split("\n\n")  # python -OO removes docstrings
        subcommand.help = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
    return command


def _run(given: list[str]) -> int:
    command = _click_command()
    try:
        # command.main() would print usage errors in a box or over several lines, depending on typer's version.
        with command.make_context("fastconv", given or ["--help"]) as context:
            command.invoke(context)
    except typer.Exit as done:
        return done.exit_code
    return 0


def _explained(error: Exception) -> tuple[str, int]:
    """Return the message and the exit code for an error."""
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
            return f"this command needs {error.name}: {install_command(extra)}", _USAGE_ERROR
    elif isinstance(error, OSError):
        return str(error), _USAGE_ERROR
    elif isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(str(error)):
        return "not enough memory: use smaller images, a smaller model or a smaller batch", _USAGE_ERROR
    importing = startup.failed_import(error.__traceback__)
    if importing is not None and importing != "fastconv":
        return startup.explanation(importing, error), _USAGE_ERROR
    message = f"unexpected {type(error).__name__}: {error}"
    return f"{message} (a bug: please report it with the output of the same command with --traceback)", _BUG


@contextlib.contextmanager
def _any_text_printed() -> Iterator[None]:
    """Let stdout print "?" for characters that its encoding lacks and for bytes of file names that are not UTF-8."""
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
