"""``fastconv report``."""

from dataclasses import dataclass
from pathlib import Path

from fastconv.classifier.cli import options
from fastconv.classifier.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Report(options.Notes, options.Network, options.ChosenRun):
    """The options of ``fastconv report``."""

    output: Path | None = options.path_option(
        "--output", "The .html file to write.", show_default="report.html in the run's folder"
    )


def report(given: Report) -> None:
    """Write a page about a run: accuracy, speed, layers, settings, and plots of its training and its mistakes.

    The page is one file and needs no internet connection. The plots are also written as PNG files to the sub-folder
    plots of the run folder.
    """
    from fastconv.classifier.cli import inputs
    from fastconv.classifier.cli.printing import Printer
    from fastconv.classifier.report import write

    if given.output is not None and given.output.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--output must end in .html: {given.output}")
    printer = Printer(given.quiet)
    folder, path = inputs.find_run(given.run, printer)
    folder.read_history()
    saved = inputs.load_checkpoint(folder, path)
    network = inputs.build(saved, given)
    data = inputs.load_data_for(saved, given)
    printer.note(f"wrote {write(folder, network, data, given.output)}")
