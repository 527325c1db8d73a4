"""The options that several commands share. This module imports neither torch nor anything that does.

A command's options are the fields of a dataclass: see ``fields``. Functions that apply options are in ``inputs``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from fastconv.classifier.choices import DATASETS
from fastconv.classifier.config import BACKENDS, DEVICES
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


def path_option(name: str, help: str, metavar: str = "<file>", **more: Any) -> Any:
    """Return an option whose value is a path, or ``None``."""
    return typer.Option(name, parser=path, help=help, metavar=metavar, **{"show_default": False, **more})


def flag(*names: str, help: str, **more: Any) -> Any:
    """Return an option without a value."""
    return typer.Option(*names, help=help, metavar="", show_default=False, **more)


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


def choice(name: str, names: Iterable[str], help: str, **more: Any) -> Any:
    """Return an option whose value is one of ``names``. An unknown value gets a suggestion."""
    return _choice(typer.Option, names, name, help=help, **more)


def choice_argument(names: Iterable[str], help: str, metavar: str) -> Any:
    """Return an argument whose value is one of ``names``."""
    help = f"{help}: {', '.join(names)}."
    return _choice(typer.Argument, names, help=help, show_default=False, metavar=metavar)


Quiet = Annotated[
    bool, flag("--quiet", "-q", help="Print only the result and errors: no progress, no notes.", rich_help_panel=OUTPUT)
]
Json = Annotated[
    bool, flag("--json", help="Print the result as JSON. Notes and progress go to stderr.", rich_help_panel=OUTPUT)
]
DataDir = Annotated[
    Path | None,
    path_option(
        "--data-dir",
        "The folder that contains torchvision's folders (MNIST/raw, FashionMNIST/raw, cifar-10-batches-py)."
        " With --dataset folder: the folder of images itself.",
        "<folder>",
        show_default="$FASTCONV_DATA, the user's cache folder, /usr/share/datasets",
        rich_help_panel=DATA,
    ),
]
Threads = Annotated[
    int | None,
    typer.Option("--threads", help="Number of threads.", show_default="PyTorch's", rich_help_panel=COMPUTATION),
]
BACKEND_HELP = "The operators that run the network: fastconv's or PyTorch's."
DEVICE_HELP = "The device to use: the CPU, or a GPU with CUDA."
Backend = Annotated[str, choice("--backend", BACKENDS, BACKEND_HELP, rich_help_panel=COMPUTATION)]
Device = Annotated[str, choice("--device", DEVICES, DEVICE_HELP, rich_help_panel=COMPUTATION)]
RunArgument = Annotated[
    Path | None,
    typer.Argument(
        parser=path,
        help="The folder of a run, or a checkpoint file.",
        metavar="RUN",
        show_default="runs/latest",
    ),
]


@dataclass(frozen=True, kw_only=True)
class Notes:
    """The option ``--quiet``, for a command that writes a file."""

    quiet: Quiet = False


@dataclass(frozen=True, kw_only=True)
class Result(Notes):
    """The options ``--quiet`` and ``--json``, for a command that prints a result."""

    json: Json = False


@dataclass(frozen=True, kw_only=True)
class Network:
    """The options of a command that runs a trained network on images."""

    dataset: Annotated[
        str | None,
        choice(
            "--dataset",
            DATASETS,
            "The data set of the test images.",
            show_default="that of the training",
            rich_help_panel=DATA,
        ),
    ] = None
    data_dir: DataDir = None
    threads: Threads = None
    backend: Backend = "fastconv"


@dataclass(frozen=True, kw_only=True)
class ChosenRun:
    """The argument ``RUN`` of a command that reads a run."""

    run: RunArgument = None
