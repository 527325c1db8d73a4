"""``fastconv plot``."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from fastconv.classifier import evaluation, files, plots
from fastconv.classifier.checkpoint import load
from fastconv.classifier.cli import options
from fastconv.classifier.errors import UserError

_MAX_PLOTTED = 60


def plot(
    checkpoint: options.CheckpointArgument,
    dataset: options.SavedDataSetOption = None,
    data_dir: options.DataDirOption = None,
    count: Annotated[int, typer.Option("--count", help=f"Number of test images, at most {_MAX_PLOTTED}.")] = 15,
    start: Annotated[int, typer.Option("--start", help="Index of the first image, counted from 0.")] = 0,
    threads: options.ThreadsOption = None,
    backend: options.BackendOption = options.Backend.fastconv,
    output: Annotated[
        Path | None,
        options.path_option("--output", "The .png file to write. Default: predictions.png beside the checkpoint."),
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="Also open the picture in the system's viewer.")] = False,
) -> None:
    """Draw test images with their predicted classes and probabilities. Correct predictions are blue, wrong ones red."""
    if output is None:
        output = checkpoint.parent / "predictions.png"
    if output.suffix.lower() != ".png":
        raise UserError(f"--output must end in .png: {output}")
    if not 1 <= count <= _MAX_PLOTTED:
        raise UserError(f"--count must be between 1 and {_MAX_PLOTTED}, not {count}")
    options.set_threads(threads)
    saved = load(checkpoint)
    data = options.load_data_for(saved, dataset, data_dir)
    shown = slice(data.checked_index(start), start + count)
    images, labels = data.test_images[shown], data.test_labels[shown]
    files.check_output_folder(output.parent)
    probabilities = evaluation.predict(saved.build(backend.value), images)
    picture = plots.prediction_grid(images, labels, probabilities, first=start, class_names=saved.class_names)
    files.write_atomically(output, plots.png(picture))
    print(f"wrote {output}")
    if show:
        _show(output)


def _show(picture: Path) -> None:
    """Open the picture in the system's viewer.

    Raises:
        UserError: if there is no viewer or no display.
    """
    from PIL import Image, ImageShow

    no_display = sys.platform.startswith("linux") and not (
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )
    with Image.open(picture) as image:
        # Image.show() calls this function, but does not return whether a viewer was found.
        if no_display or not ImageShow.show(image, picture.name):
            raise UserError(f"cannot show {picture}: no display or no picture viewer was found")
