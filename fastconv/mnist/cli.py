"""The command ``fastconv``: its commands, and what becomes of errors. A new command is a line of the table here.

torch comes with the package fastconv, and so even --help waits for it.
"""

import os
import sys
from collections.abc import Sequence
from typing import Annotated

from fastconv.mnist import UserError, UserInterrupt
from fastconv.version import __version__

try:
    import typer

    from fastconv.mnist.commands import network, tools
    from fastconv.mnist.commands.shared import printable
    from fastconv.mnist.commands.train import train
except ModuleNotFoundError as missing:
    if (missing.name or "fastconv").startswith("fastconv"):
        raise
    raise SystemExit(f"fastconv: the command needs {missing.name}: pip install 'fastconv[mnist]'") from None

_USAGE_ERROR = 2
_INTERRUPTED = 130
# The extra that a package belongs to; mnist, if none is named here.
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

    0: done; 2: a mistake in the arguments or in a file they name, told in one line on stderr; 130: interrupted; 143:
    ended by SIGTERM.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    command = typer.main.get_command(app)
    try:
        # Not command.main(): that prints mistakes in a box, or over several lines, as typer's version has it.
        with command.make_context("fastconv", given or ["--help"]) as context:
            command.invoke(context)
    except typer.Exit as done:
        return done.exit_code
    except UserError as error:
        return _fail(str(error))
    except ModuleNotFoundError as error:
        package = (error.name or "fastconv").split(".")[0]
        if package == "fastconv":
            raise
        return _fail(f"this command needs {error.name}: pip install 'fastconv[{_EXTRAS.get(package, 'mnist')}]'")
    except UserInterrupt as error:
        return _fail(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", _INTERRUPTED)
    except BrokenPipeError:
        # Who read the output has gone (| head). Python's own flush at exit must not fail for it once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _fail(str(error))
    except _ClickException as error:
        return _fail(f"{error.format_message()} (see --help)")  # type: ignore[attr-defined]
    return 0


def _fail(message: str, code: int = _USAGE_ERROR) -> int:
    print(f"fastconv: {printable(' '.join(message.split()))}", file=sys.stderr)
    return code
