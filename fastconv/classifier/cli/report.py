"""``fastconv report``."""

from pathlib import Path
from typing import Annotated

import typer

from fastconv.classifier.checkpoint import load
from fastconv.classifier.cli import options
from fastconv.classifier.errors import UserError
from fastconv.classifier.report import write
from fastconv.classifier.runs import RunFolder


def report(
    run: Annotated[
        Path,
        typer.Argument(
            parser=options.path, help="The folder that train wrote.", metavar="RUN_FOLDER", show_default=False
        ),
    ],
    dataset: options.SavedDataSetOption = None,
    data_dir: options.DataDirOption = None,
    threads: options.ThreadsOption = None,
    backend: options.BackendOption = options.Backend.fastconv,
    output: Annotated[
        Path | None,
        options.path_option("--output", "The .html file to write. Default: report.html in the run's folder."),
    ] = None,
) -> None:
    """Write a page about a run: accuracy, speed, configuration, and plots of its training, mistakes and layers.

    The page is one file and needs no internet connection. The plots are also written as PNG files to the sub-folder
    plots of the run folder.
    """
    if output is not None and output.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--output must end in .html: {output}")
    options.set_threads(threads)
    folder = RunFolder(run)
    folder.read_history()
    saved = load(folder.checkpoint)
    data = options.load_data_for(saved, dataset, data_dir)
    print(f"wrote {write(folder, saved.build(backend.value), data, output)}")
