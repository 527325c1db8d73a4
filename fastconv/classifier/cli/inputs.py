"""Apply the shared options: find the run, load its network and its images, set the threads."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from fastconv.classifier import checkpoint, data, latest
from fastconv.classifier.checkpoint import Checkpoint
from fastconv.classifier.cli import options
from fastconv.classifier.cli.printing import Printer
from fastconv.classifier.data import DataSet
from fastconv.classifier.errors import UserError
from fastconv.classifier.runs import RunFolder

_MAX_THREADS = 1024
_OPTIONS = {"data_dir": "--data-dir", "size": "--image-size"}  # by argument of data.load


@dataclass(frozen=True)
class Found:
    """A run's folder, its checkpoint file, and the file's content."""

    folder: RunFolder
    path: Path
    saved: Checkpoint


def find_run(run: Path | None, printer: Printer) -> tuple[RunFolder, Path]:
    """Return the folder and the checkpoint file of a run.

    Args:
        run: the folder or a checkpoint in it. ``None`` means the last run.
    """
    if run is None:
        run = latest.folder()
        printer.aside(f"the last run: {run}")
    run = latest.followed(run)
    if not run.exists():
        raise UserError(f"cannot read {run}: No such file or directory")
    return (RunFolder(run), RunFolder(run).checkpoint) if run.is_dir() else (RunFolder(run.parent), run)


def load_checkpoint(folder: RunFolder, path: Path) -> Checkpoint:
    """Load the checkpoint ``path``."""
    if path.exists():
        return checkpoint.load(path)
    if folder.training.exists():
        raise UserError(f"the run in {folder.path} is not finished; to continue: {folder.resume_command()}")
    raise UserError(f"{folder.path} is not the folder of a run: it has no {path.name}")


def load_run(run: Path | None, printer: Printer) -> Found:
    """Find ``run`` as :func:`find_run` does, and load its checkpoint."""
    folder, path = find_run(run, printer)
    return Found(folder, path, load_checkpoint(folder, path))


def build(saved: Checkpoint, given: options.Network) -> nn.Module:
    """Apply ``--threads``, and build the network of a checkpoint with the operators of ``--backend``."""
    set_threads(given.threads)
    return saved.build(given.backend)


def set_threads(threads: int | None) -> None:
    """Apply ``--threads``."""
    if threads is None:
        return
    if not 1 <= threads <= _MAX_THREADS:
        raise UserError(f"--threads must be between 1 and {_MAX_THREADS}, not {threads}")
    torch.set_num_threads(threads)


def load_data(name: str, data_dir: Path | None, size: int | None = None, channels: int | None = None) -> DataSet:
    """Call :func:`fastconv.classifier.data.load`. Its errors name the command's options in place of its arguments."""
    try:
        return data.load(name, data_dir, size, channels)
    except data.ArgumentError as error:
        raise UserError(f"{error.before}{_OPTIONS[error.argument]}{error.after}") from error


def load_data_for(saved: Checkpoint, given: options.Network) -> DataSet:
    """Load ``--dataset``, by default the data set that the checkpoint was trained on."""
    dataset, data_dir = given.dataset, given.data_dir
    if dataset is None:
        before = saved.config.get("dataset")
        dataset = before if before in data.NAMES else "mnist5k"
        if data_dir is None and saved.config.get("data_dir") is not None:
            data_dir = Path(str(saved.config["data_dir"]))
    if dataset == "folder":
        found = load_data(dataset, data_dir, saved.shape[1], saved.shape[0])
    else:
        found = load_data(dataset, data_dir)
    if (found.shape, len(found.class_names)) != (saved.shape, len(saved.class_names)):
        needs, has = (" x ".join(map(str, shape)) for shape in (saved.shape, found.shape))
        raise UserError(
            f"the checkpoint needs images of {needs} in {len(saved.class_names)} classes, but {found.name} has images"
            f" of {has} in {len(found.class_names)} classes"
        )
    for expected, name in zip(saved.class_names, found.class_names, strict=True):
        if name != expected:
            raise UserError(f"the classes of {found.name} differ from the checkpoint's: {name} in place of {expected}")
    return found
