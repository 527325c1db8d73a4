"""The options that several commands share. This module imports neither torch nor anything that does.

A command's options are the fields of a dataclass: see ``fields``. Functions that apply options are in ``inputs``.
"""

from collections.abc import Iterable
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any

import typer

from fastconv.classifier.choices import DATASETS
from fastconv.classifier.config import BACKENDS
from fastconv.classifier.names import suggestion

#: The groups of options in the help of a command.
DATA, COMPUTATION, OUTPUT = "Data", "Computation", "Output"


def path(text: str | Path) -> Path:
    """Parse a path. An empty path would mean the current folder, so it is refused."""
    if not str(text):
        raise typer.BadParameter("a path must not be empty")
    if "\0" in str(text):
        raise typer.BadParameter("a path must not contain a NUL character")
    return Path(text)


def option(parameter: Any, default: Any) -> Any:
    """Return a field of a command's options: an option or argument of typer, and its value if it is not given."""
    return field(default=default, metadata={"parameter": parameter})


def number_option(name: str, help: str, default: int | None = None, **more: Any) -> Any:
    """Return an option whose value is a whole number."""
    return option(typer.Option(name, help=help, **more), default)


def path_option(name: str, help: str, metavar: str = "<file>", **more: Any) -> Any:
    """Return an option whose value is a path, or ``None``."""
    return option(typer.Option(name, parser=path, help=help, metavar=metavar, **{"show_default": False, **more}), None)


def flag(*names: str, help: str, **more: Any) -> Any:
    """Return an option without a value."""
    return option(typer.Option(*names, help=help, metavar="", show_default=False, **more), False)


def _choice(kind: Any, names: Iterable[str], *arguments: str, metavar: str | None = None, **more: Any) -> Any:
    known = tuple(names)

    def parse(text: str) -> str:
        if text not in known:
            raise typer.BadParameter(f"{text!r} is not one of {', '.join(known)}{suggestion(text, known)}")
        return text

    def complete(incomplete: str) -> list[str]:
        return [name for name in known if name.startswith(incomplete)]

    metavar = f"<{'|'.join(known)}>" if metavar is None else metavar
    return kind(*arguments, parser=parse, metavar=metavar, autocompletion=complete, **more)


def choice(name: str, names: Iterable[str], help: str, default: Any = None, **more: Any) -> Any:
    """Return an option whose value is one of ``names``. An unknown value gets a suggestion."""
    return option(_choice(typer.Option, names, name, help=help, **more), default)


def choice_argument(names: Iterable[str], help: str, metavar: str) -> Any:
    """Return a required argument whose value is one of ``names``."""
    help = f"{help}: {', '.join(names)}."
    return option(_choice(typer.Argument, names, help=help, show_default=False, metavar=metavar), MISSING)


BACKEND_HELP = "The operators that run the network: fastconv's or PyTorch's."
DEVICE_HELP = "The device to use: the CPU, or a GPU with CUDA."


def data_dir() -> Any:
    """Return the option ``--data-dir``."""
    return path_option(
        "--data-dir",
        "The folder that contains torchvision's folders (MNIST/raw, FashionMNIST/raw, cifar-10-batches-py)."
        " With --dataset folder: the folder of images itself.",
        "<folder>",
        show_default="$FASTCONV_DATA, the user's cache folder, /usr/share/datasets",
        rich_help_panel=DATA,
    )


def threads() -> Any:
    """Return the option ``--threads``."""
    return number_option("--threads", "Number of threads.", show_default="PyTorch's", rich_help_panel=COMPUTATION)


@dataclass(frozen=True, kw_only=True)
class Notes:
    """The option ``--quiet``, for a command that writes a file."""

    quiet: bool = flag(
        "--quiet", "-q", help="Print only the result and errors: no progress, no notes.", rich_help_panel=OUTPUT
    )


@dataclass(frozen=True, kw_only=True)
class Result(Notes):
    """The options ``--quiet`` and ``--json``, for a command that prints a result."""

    json: bool = flag(
        "--json", help="Print the result as JSON. Notes and progress go to stderr.", rich_help_panel=OUTPUT
    )


@dataclass(frozen=True, kw_only=True)
class Network:
    """The options of a command that runs a trained network on images."""

    dataset: str | None = choice(
        "--dataset",
        DATASETS,
        "The data set of the test images.",
        show_default="the data set of the training",
        rich_help_panel=DATA,
    )
    data_dir: Path | None = data_dir()
    threads: int | None = threads()
    backend: str = choice("--backend", BACKENDS, BACKEND_HELP, "fastconv", rich_help_panel=COMPUTATION)


@dataclass(frozen=True, kw_only=True)
class ChosenRun:
    """The argument ``RUN`` of a command that reads a run."""

    run: Path | None = option(
        typer.Argument(
            parser=path, help="The folder of a run, or a checkpoint file.", metavar="RUN", show_default="runs/latest"
        ),
        None,
    )
