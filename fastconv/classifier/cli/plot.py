"""``fastconv plot``."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from fastconv.classifier.cli import options
from fastconv.classifier.errors import UserError

_MAX_PLOTTED = 60


@dataclass(frozen=True, kw_only=True)
class Plot(options.Notes, options.Network, options.ChosenRun):
    """The options of ``fastconv plot``."""

    count: int = options.number_option("--count", f"Number of test images, at most {_MAX_PLOTTED}.", 15)
    start: int = options.number_option("--start", "Index of the first image, counted from 0.", 0)
    output: Path | None = options.path_option(
        "--output", "The .png file to write.", show_default="predictions.png beside the checkpoint"
    )
    show: bool = options.flag("--show", help="Also open the picture in the system's viewer.")


def plot(given: Plot) -> None:
    """Draw test images with their predicted classes and probabilities. Correct predictions are blue, wrong ones red."""
    from fastconv.classifier import evaluation, files, plots
    from fastconv.classifier.cli import inputs
    from fastconv.classifier.cli.printing import Printer

    if given.output is not None and given.output.suffix.lower() != ".png":
        raise UserError(f"--output must end in .png: {given.output}")
    if not 1 <= given.count <= _MAX_PLOTTED:
        raise UserError(f"--count must be between 1 and {_MAX_PLOTTED}, not {given.count}")
    printer = Printer(given.quiet)
    found = inputs.load_run(given.run, printer)
    output = found.path.parent / "predictions.png" if given.output is None else given.output
    network = inputs.build(found.saved, given)
    data = inputs.load_data_for(found.saved, given)
    shown = slice(data.checked_index(given.start), given.start + given.count)
    images, labels = data.test_images[shown], data.test_labels[shown]
    files.check_output_folder(output.parent)
    probabilities = evaluation.predict(network, images)
    names = found.saved.class_names
    picture = plots.prediction_grid(images, labels, probabilities, first=given.start, class_names=names)
    files.write_atomically(output, plots.png(picture))
    printer.note(f"wrote {output}")
    if given.show:
        _show(output)


def _show(picture: Path) -> None:
    """Open the picture in the system's viewer."""
    from PIL import Image, ImageShow

    no_display = sys.platform.startswith("linux") and not (
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )
    with Image.open(picture) as image:
        # Image.show() calls this function, but does not return whether a viewer was found.
        if no_display or not ImageShow.show(image, picture.name):
            raise UserError(f"cannot show {picture}: no display or no picture viewer was found")
