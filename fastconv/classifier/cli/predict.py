"""``fastconv predict``."""

from __future__ import annotations

import zipfile
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from fastconv.classifier import latest
from fastconv.classifier.cli import options
from fastconv.classifier.errors import UserError, printable

if TYPE_CHECKING:
    from torch import Tensor

    from fastconv.classifier.checkpoint import Checkpoint
    from fastconv.classifier.data import DataSet


@dataclass(frozen=True, kw_only=True)
class Predict(options.Result, options.Network):
    """The options of ``fastconv predict``."""

    arguments: list[str] = options.option(
        typer.Argument(
            help="RUN is the folder of a run or a checkpoint file, by default runs/latest. Each IMAGE is an image file,"
            " or the index of a test image, counted from 0. Write ./3 for a file that is called 3.",
            metavar="[RUN] IMAGE...",
            show_default=False,
        ),
        MISSING,
    )


def predict(given: Predict) -> None:
    """Print the most probable class of each image, and its probability.

    Image files may have any size and colour mode. They are scaled to the size of the network's images. If the network
    was trained on digits, they are prepared like MNIST: dark digits on a light background are inverted, and digits in
    files that are not 28 x 28 are scaled and centred. If the output is not a terminal, the table is tab-separated.

    If an image cannot be read, the others are still predicted, and the exit code is 2.
    """
    import torch

    from fastconv.classifier import evaluation
    from fastconv.classifier.cli import inputs
    from fastconv.classifier.cli.printing import Printer

    run, images = _split(given.arguments)
    printer = Printer(given.quiet, given.json)
    saved = inputs.load_run(run, printer).saved
    network = inputs.build(saved, given)
    data = inputs.load_data_for(saved, given) if any(map(_is_index, images)) else None
    read = [_read(name, saved, data) for name in images]
    problems = [str(image) for image in read if isinstance(image, UserError)]
    found = [image for image in read if not isinstance(image, UserError)]
    if found:
        probabilities = evaluation.predict(network, torch.cat([image for _, image, _ in found]))
        best, classes = probabilities.max(1)
        figures = [
            {"image": name, "class": saved.class_names[index], "probability": probability, "label": label}
            for (name, _, label), index, probability in zip(found, classes.tolist(), best.tolist(), strict=True)
        ]
        rows = [
            (
                printable(row["image"]),
                printable(row["class"]),
                f"{row['probability']:.4f}",
                printable(row["label"] or ""),
            )
            for row in figures
        ]
        printer.result_table(("image", "class", "probability", "label"), rows, figures)
    if problems:
        raise UserError("; ".join(problems))


def _split(arguments: list[str]) -> tuple[Path | None, list[str]]:
    """Return the run, if the first argument is one, and the images."""
    for argument in arguments:
        options.path(argument)  # refuses an empty name
    if not _is_run(arguments[0]):
        return None, arguments
    if len(arguments) == 1:
        raise UserError(f"no image is named: 'fastconv predict {arguments[0]} 0' predicts the first test image")
    return Path(arguments[0]), arguments[1:]


def _is_run(name: str) -> bool:
    """Return whether ``name`` is a folder or may be a checkpoint: a .pt file or any ZIP archive."""
    if _is_index(name):
        return False
    path = latest.followed(Path(name))
    return path.is_dir() or path.suffix == ".pt" or (path.is_file() and zipfile.is_zipfile(path))


def _read(name: str, saved: Checkpoint, data: DataSet | None) -> tuple[str, Tensor, str | None] | UserError:
    """Return the name, the image (1, C, H, W) and, for a test image, the label. Return the error if reading fails."""
    from fastconv.classifier.data.images import read_for

    try:
        if data is None or not _is_index(name):
            return name, read_for(saved.shape, saved.class_names, Path(name)), None
        index = data.checked_index(_number(name))
    except UserError as error:
        return error
    return name, data.test_images[index : index + 1], saved.class_names[int(data.test_labels[index])]


def _is_index(name: str) -> bool:
    return name.isascii() and name.isdigit()


def _number(digits: str) -> int:
    try:
        return int(digits)
    except ValueError as error:  # Python converts at most 4,300 digits
        raise UserError(f"no test image has an index of {len(digits)} digits") from error
