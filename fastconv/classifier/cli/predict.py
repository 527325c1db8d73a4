"""``fastconv predict``."""

from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from fastconv.classifier import evaluation
from fastconv.classifier.checkpoint import load
from fastconv.classifier.cli import options
from fastconv.classifier.cli.table import print_table
from fastconv.classifier.data.images import read_for
from fastconv.classifier.errors import UserError, printable


def predict(
    checkpoint: options.CheckpointArgument,
    images: Annotated[
        list[str],
        typer.Argument(
            help="Image files, or indices of test images, counted from 0. Write ./3 for a file that is called 3.",
            metavar="IMAGE...",
            show_default=False,
        ),
    ],
    dataset: options.SavedDataSetOption = None,
    data_dir: options.DataDirOption = None,
    threads: options.ThreadsOption = None,
    backend: options.BackendOption = options.Backend.fastconv,
) -> None:
    """Print the most probable class of each image, and its probability.

    Image files may have any size and colour mode. They are scaled to the size of the network's images. If the network
    was trained on digits, they are prepared like MNIST: dark digits on a light background are inverted, and digits in
    files that are not 28 x 28 are scaled and centred. If the output is not a terminal, the table is tab-separated.
    """
    options.set_threads(threads)
    if "" in images:
        raise UserError("the name of an image file must not be empty")
    saved = load(checkpoint)
    data = options.load_data_for(saved, dataset, data_dir) if any(map(_is_index, images)) else None
    inputs: list[Tensor] = []
    labels: list[str] = []
    for name in images:
        if data is not None and _is_index(name):
            index = data.checked_index(_number(name))
            inputs.append(data.test_images[index : index + 1])
            labels.append(saved.class_names[int(data.test_labels[index])])
        else:
            inputs.append(read_for(saved.shape, saved.class_names, Path(name)))
            labels.append("")
    probabilities = evaluation.predict(saved.build(backend.value), torch.cat(inputs))
    best, classes = probabilities.max(1)
    rows = [
        (printable(name), printable(saved.class_names[found]), f"{probability:.4f}", printable(label))
        for name, found, probability, label in zip(images, classes.tolist(), best.tolist(), labels, strict=True)
    ]
    print_table(("image", "class", "probability", "label"), rows)


def _is_index(name: str) -> bool:
    return name.isascii() and name.isdigit()


def _number(digits: str) -> int:
    try:
        return int(digits)
    except ValueError as error:  # Python converts at most 4,300 digits
        raise UserError(f"no test image has an index of {len(digits)} digits") from error
