"""What a trained network is asked: ``fastconv evaluate``, ``predict``, ``plot`` and ``report``."""

import os
import sys
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from fastconv.classifier import UserError, files, plots, printable, training
from fastconv.classifier.checkpoint import load
from fastconv.classifier.commands.shared import load_data_for, set_threads
from fastconv.classifier.data import DataSet
from fastconv.classifier.images import read_for
from fastconv.classifier.options import (
    Backend,
    BackendOption,
    CheckpointArgument,
    DataDirOption,
    SavedDataSetOption,
    ThreadsOption,
    path,
)
from fastconv.classifier.progress import test_line
from fastconv.classifier.report import write
from fastconv.classifier.runs import RunFolder
from fastconv.classifier.table import print_table

_MAX_PLOTTED = 60


def evaluate(
    checkpoint: CheckpointArgument,
    dataset: SavedDataSetOption = None,
    data_dir: DataDirOption = None,
    threads: ThreadsOption = None,
    backend: BackendOption = Backend.fastconv,
) -> None:
    """Print the accuracy and loss of a checkpoint on the test images."""
    set_threads(threads)
    saved = load(checkpoint)
    data = load_data_for(saved, dataset, data_dir)
    network = saved.build(backend.value)
    loss, accuracy = training.evaluate(network, data.test_images, data.test_labels, saved.loss)
    print(test_line(loss, accuracy, len(data.test_images)))


def predict(
    checkpoint: CheckpointArgument,
    images: Annotated[
        list[str],
        typer.Argument(
            help="Image files, or indices of test images, counted from 0. (A file called 3 is ./3.)",
            metavar="IMAGE...",
            show_default=False,
        ),
    ],
    dataset: SavedDataSetOption = None,
    data_dir: DataDirOption = None,
    threads: ThreadsOption = None,
    backend: BackendOption = Backend.fastconv,
) -> None:
    """Print the class and its probability for image files or test images.

    Image files may have any size and mode. For a network of digits, dark digits on light are inverted, and unless the
    file is 28 x 28 the digit is scaled and centred as MNIST's are; for others the image is scaled. Without a terminal
    the table is tab-separated.
    """
    set_threads(threads)
    if "" in images:
        raise UserError("the name of an image file must not be empty")
    saved = load(checkpoint)
    data = load_data_for(saved, dataset, data_dir) if any(map(_is_index, images)) else None
    inputs: list[Tensor] = []
    labels: list[str] = []
    for name in images:
        if data is not None and _is_index(name):
            index = _checked_index(_number(name), data)
            inputs.append(data.test_images[index : index + 1])
            labels.append(saved.class_names[int(data.test_labels[index])])
        else:
            inputs.append(read_for(saved, Path(name)))
            labels.append("")
    probabilities = training.predict(saved.build(backend.value), torch.cat(inputs))
    best, classes = probabilities.max(1)
    rows = [
        (printable(name), printable(saved.class_names[digit]), f"{probability:.4f}", printable(label))
        for name, digit, probability, label in zip(images, classes.tolist(), best.tolist(), labels, strict=True)
    ]
    print_table(("image", "class", "probability", "label"), rows)


def plot(
    checkpoint: CheckpointArgument,
    dataset: SavedDataSetOption = None,
    data_dir: DataDirOption = None,
    count: Annotated[int, typer.Option("--count", help=f"How many test images, up to {_MAX_PLOTTED}.")] = 15,
    start: Annotated[int, typer.Option("--start", help="The index of the first, counted from 0.")] = 0,
    threads: ThreadsOption = None,
    backend: BackendOption = Backend.fastconv,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            parser=path,
            help="The .png file. Default: predictions.png beside the checkpoint.",
            show_default=False,
        ),
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="Open it in the system's picture viewer too.")] = False,
) -> None:
    """Draw test images with the predicted label and percentage, blue when right and red when wrong, beside the
    probabilities."""
    if output is None:
        output = checkpoint.parent / "predictions.png"
    if output.suffix.lower() != ".png":
        raise UserError(f"--output must end in .png: {output}")
    if not 1 <= count <= _MAX_PLOTTED:
        raise UserError(f"--count must be between 1 and {_MAX_PLOTTED}, not {count}")
    set_threads(threads)
    saved = load(checkpoint)
    data = load_data_for(saved, dataset, data_dir)
    shown = slice(_checked_index(start, data), start + count)
    images, labels = data.test_images[shown], data.test_labels[shown]
    files.check_output_folder(output.parent)
    probabilities = training.predict(saved.build(backend.value), images)
    picture = plots.prediction_grid(images, labels, probabilities, first=start, class_names=saved.class_names)
    files.write_atomically(output, picture)
    print(f"wrote {output}")
    if show:
        _show(output)


def report(
    run: Annotated[
        Path,
        typer.Argument(parser=path, help="The folder that train wrote.", metavar="RUN_FOLDER", show_default=False),
    ],
    dataset: SavedDataSetOption = None,
    data_dir: DataDirOption = None,
    threads: ThreadsOption = None,
    backend: BackendOption = Backend.fastconv,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            parser=path,
            help="The .html file. Default: report.html in the run's folder.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write a page about a run: accuracy, speed, configuration, and plots of its training, mistakes and layers.

    The page is one file that needs no network. The plots are also written as PNG files, into the folder plots of the
    run.
    """
    if output is not None and output.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--output must end in .html: {output}")
    set_threads(threads)
    folder = RunFolder(run)
    folder.read_history()
    saved = load(folder.checkpoint)
    data = load_data_for(saved, dataset, data_dir)
    print(f"wrote {write(folder, saved.build(backend.value), data, output)}")


def _show(picture: Path) -> None:
    """Open the picture in the system's viewer.

    Raises:
        UserError: if there is none, or no display.
    """
    from PIL import Image, ImageShow

    no_display = sys.platform.startswith("linux") and not (
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )
    with Image.open(picture) as image:
        # What Image.show() calls; that does not say whether anything was shown.
        if no_display or not ImageShow.show(image, picture.name):
            raise UserError(f"no display or picture viewer to --show {picture} with")


def _is_index(name: str) -> bool:
    return name.isascii() and name.isdigit()


def _number(digits: str) -> int:
    try:
        return int(digits)
    except ValueError as error:  # Python reads no more than 4,300 digits
        raise UserError(f"no test image has a number of {len(digits)} digits") from error


def _checked_index(index: int, data: DataSet) -> int:
    if not 0 <= index < len(data.test_images):
        raise UserError(f"no test image {index}: {data.name} has 0 to {len(data.test_images) - 1}")
    return index
