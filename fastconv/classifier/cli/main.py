"""The command ``fastconv``: its table of subcommands, and how it reports errors.

Help, completion and wrong options need no torch, which takes seconds to import. A subcommand imports it when it runs.
"""

import contextlib
import functools
import io
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any

import typer
import typer.core

from fastconv import startup
from fastconv.classifier.cli import fields
from fastconv.classifier.cli.bench import bench
from fastconv.classifier.cli.download import download
from fastconv.classifier.cli.evaluate import evaluate
from fastconv.classifier.cli.export import export
from fastconv.classifier.cli.info import info
from fastconv.classifier.cli.options import OUTPUT
from fastconv.classifier.cli.plot import plot
from fastconv.classifier.cli.predict import predict
from fastconv.classifier.cli.report import report
from fastconv.classifier.cli.train import train
from fastconv.classifier.errors import UserError, UserInterrupt, printable
from fastconv.classifier.names import suggestion
from fastconv.installation import install_command
from fastconv.version import __version__

_BUG = 1
_USAGE_ERROR = 2
_INTERRUPTED = 130
#: A shell sets this variable to ask for completions.
_COMPLETION = "_FASTCONV_COMPLETE"
# torch has no exception class for a lack of CPU memory, so its messages are matched.
_OUT_OF_MEMORY = re.compile("DefaultCPUAllocator|not enough memory|out of memory")
# The extra that installs a package. Packages that are not listed belong to the extra classifier.
_EXTRAS = {"onnx": "export", "onnxscript": "export", "safetensors": "export", "tensorboard": "tensorboard"}
# The end of a message about an option that needs a number. It depends on the version of typer.
_NOT_A_NUMBER = re.compile(r"(?<=: ).*\bvalid (integer|number|float)\b.*", re.DOTALL)
_EXPECTED = {"integer": "a whole number is expected", "number": "a number is expected", "float": "a number is expected"}
# The base class of click's usage errors. typer >= 0.26 has a copy of click under a private name.
_ClickException: type[BaseException] = typer.BadParameter.__mro__[2]


class _Group(typer.core.TyperGroup):
    """A group whose help shows no type for options without a value."""

    def get_params(self, ctx: Any) -> list[Any]:
        return _without_types(super().get_params(ctx))


class _Command(typer.core.TyperCommand):
    """A command whose help lists the options for its output last, and shows no type for options without a value."""

    def get_params(self, ctx: Any) -> list[Any]:
        found = _without_types(super().get_params(ctx))
        for parameter in found:
            if parameter.name in ("help", "traceback"):
                parameter.rich_help_panel = OUTPUT
        return sorted(found, key=lambda parameter: getattr(parameter, "rich_help_panel", None) == OUTPUT)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the words after the command's name in the usage line. typer would put braces around arguments."""
        arguments = [one for one in self.params if one.param_type_name == "argument"]
        names = [f"{one.metavar}" if one.required else f"[{one.metavar}]" for one in arguments]
        return [*([self.options_metavar] if self.options_metavar else []), *names]


def _without_types(parameters: list[Any]) -> list[Any]:
    for parameter in parameters:
        if getattr(parameter, "is_flag", False):
            parameter.metavar = ""
    return parameters


app = typer.Typer(
    name="fastconv",
    cls=_Group,
    epilog="Example: fastconv train --epochs 3",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        print(f"fastconv {__version__}")
        raise typer.Exit


def _flag(*names: str, **more: Any) -> Any:
    return typer.Option(*names, metavar="", show_default=False, **more)


@app.callback()
def root(
    version: Annotated[
        bool, _flag("--version", "-V", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
    traceback: Annotated[
        bool, _flag("--traceback", help="Print a traceback after an error.", expose_value=False)
    ] = False,
) -> None:
    """Train a small CNN on digits or other small images with fastconv's kernels, and inspect the result."""


def _computing(command: Callable[..., None]) -> Callable[..., None]:
    """Let ``command`` load torch and fastconv's operators before it runs."""
    run = fields.command(command)

    def load_and_run(**values: Any) -> None:
        try:
            import fastconv.public  # noqa: F401
        except Exception as error:
            package = startup.failed_import(error.__traceback__) or "fastconv"
            raise UserError(startup.explanation(package, error)) from error
        run(**values)

    return functools.wraps(run)(load_and_run)


for _command, _example in (
    (train, "train --recipe fast --dataset mnist --data-dir data --output runs/full"),
    (evaluate, "evaluate runs/mnist-cnn-mnist5k-1"),
    (predict, "predict runs/mnist-cnn-mnist5k-1 3 17 digit.png"),
    (plot, "plot runs/mnist-cnn-mnist5k-1 --count 15 --output predictions.png"),
    (report, "report runs/mnist-cnn-mnist5k-1 --output mnist.html"),
    (download, "download mnist --data-dir data"),
    (export, "export runs/mnist-cnn-mnist5k-1 --format onnx"),
    (bench, "bench --threads 2 --png bench.png"),
    (info, "info"),
):
    app.command(_command.__name__, cls=_Command, epilog=f"Example: fastconv {_example}")(_computing(_command))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with ``arguments``, by default the arguments of the process, and return its exit code.

    0: success. 1: a bug in fastconv, or the reader of the output has ended. 2: a mistake in the arguments, in the
    environment or in a file, reported in one line on stderr. 130: interrupted. 143: ended by SIGTERM.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    with_traceback = startup.wants_traceback(given)
    given = [argument for argument in given if argument != "--traceback"]  # before the subcommand's name or after it
    if _COMPLETION in os.environ:
        typer.main.get_command(app).main(given, prog_name="fastconv")
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
    """Build the click command. Add ``--traceback`` to each subcommand, and join the lines of its help by paragraph.

    typer joins the lines of the first paragraph only.
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
        context: Any = getattr(error, "ctx", None)
        see = f"{context.command_path if context is not None else 'fastconv'} --help"
        return f"{_usage(error)} (see {see})", _USAGE_ERROR
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


def _usage(error: Any) -> str:
    """Return the message of a usage error of click. Add a suggestion for an unknown command or option."""
    unknown = re.match("No such command '(.*?)'", str(error.format_message()), re.DOTALL)
    if unknown:
        return unknown[0] + suggestion(
            unknown[1], [command.name for command in app.registered_commands if command.name]
        )
    if not hasattr(error, "possibilities"):
        return _NOT_A_NUMBER.sub(lambda found: _EXPECTED[found[1]], str(error.format_message())).rstrip(".")
    similar = " or ".join(error.possibilities or ())
    return f"No such option: {error.option_name}" + (f"; did you mean {similar}?" if similar else "")


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
