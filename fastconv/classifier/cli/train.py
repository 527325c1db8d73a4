"""``fastconv train``: resolve its options, and start the run."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastconv.classifier.cli.train_options import SETTINGS, Train
from fastconv.classifier.errors import UserError

if TYPE_CHECKING:
    from fastconv.classifier.cli.printing import Printer


def train(options: Train) -> None:
    """Train a network, write its results to runs/MODEL-DATASET-N, and print the accuracy on the test images.

    checkpoint.pt is the network, and history.json has the figures of each epoch. best.pt is the network after the epoch
    with the best validation accuracy. training.pt is the state of the run: it is saved after every epoch and on Ctrl-C,
    and --resume continues from it.

    Several processes can share the work: torchrun --nproc-per-node 2 -m fastconv train ...
    """
    from fastconv.classifier.cli import inputs
    from fastconv.classifier.cli.printing import Printer
    from fastconv.classifier.cli.run import TrainingRun, check_packages
    from fastconv.classifier.config import settle

    printer = Printer(options.quiet, options.json)
    if options.config is not None:
        options = with_config(options, options.config)
    given = _given_settings(options)
    if options.limit is not None and options.limit < 1:
        raise UserError(f"--limit must be at least 1, not {options.limit}")
    settings, state = settle(given), None
    inputs.set_threads(options.threads)
    output = options.output
    if options.resume:
        if options.overwrite:
            raise UserError("--resume continues a run, and --overwrite replaces it: leave out one of them")
        output, settings, state = _resumed(options, given, printer)
    data_dir = options.data_dir or (settings["data_dir"] and Path(settings["data_dir"]))
    _check_device(settings, options.compare)
    images = inputs.load_data(settings["dataset"], data_dir, settings["image_size"])
    name = _name(settings)
    check_packages(options, str(output or name))
    TrainingRun(lambda: _folder(output, name), settings, state, images, options, printer).run()


def with_config(options: Train, path: Path) -> Train:
    """Return ``options``. Those that were not given get the values in the file ``path``."""
    from fastconv.classifier.cli.config_file import read

    values = read(path)
    return replace(options, **{name: value for name, value in values.items() if getattr(options, name) is None})


def _given_settings(options: Train) -> dict[str, Any]:
    """Select the options that are settings of a run and that the user gave."""
    settings = {name: value for name in SETTINGS if (value := getattr(options, name)) is not None}
    if "data_dir" in settings:
        settings["data_dir"] = os.path.realpath(settings["data_dir"])
    return settings


def _resumed(options: Train, given: dict[str, Any], printer: Printer) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """Return the folder, the settings and the state of the run that ``--resume`` continues."""
    from fastconv.classifier import latest
    from fastconv.classifier.runs import RunFolder

    if options.output is None:
        output = latest.folder()
        if os.environ.get("RANK", "0") == "0":  # under torchrun, one process prints
            printer.aside(f"the last run: {output}")
    else:
        output = latest.followed(options.output)
    return output, *RunFolder(output).read_for_resume(given)


def _check_device(settings: dict[str, Any], compare: bool) -> None:
    from fastconv.classifier import device
    from fastconv.classifier.config import BACKENDS

    for name in BACKENDS if compare else (settings["backend"],):
        device.find(settings["device"], name, "use --backend torch" + " without --compare" * compare)


def _name(settings: dict[str, Any]) -> str:
    """Return MODEL-DATASET, the name of the run's folder without its number."""
    from fastconv.classifier import data

    words = f"{settings['model']} {data.display_name(settings['dataset'], settings['data_dir'])}"
    return "-".join(words.replace(",", " ").split())


def _folder(output: Path | None, name: str) -> Path:
    from fastconv.classifier import latest

    return latest.new_folder(name) if output is None else latest.followed(output)
