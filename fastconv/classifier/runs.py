"""The folder of a run: its results and its state.

``checkpoint.pt`` is the trained network, and ``best.pt`` is the network after the epoch with the best validation
accuracy. ``history.json`` and ``history.csv`` have the figures of each epoch. ``fastconv train --resume`` continues
from ``training.pt``, which says whether the run is finished. ``fastconv report`` writes ``report.html`` and ``plots``.
"""

import contextlib
import csv
import io
import json
import os
import shlex
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from types import FrameType
from typing import Any

from fastconv.classifier import checkpoint, files
from fastconv.classifier.choices import SUFFIXES
from fastconv.classifier.config import settle
from fastconv.classifier.data import DataSet
from fastconv.classifier.errors import UserError
from fastconv.classifier.fit import Training
from fastconv.classifier.history import EpochResult

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]

_FORMAT = "fastconv-training"
_VERSION = 3
#: The names of a report's pictures, without the ending .png.
PLOTS = ("training_curves", "predictions", "confusion_matrix", "worst_mistakes", "filters", "feature_maps")
_LARGEST_HISTORY = 1 << 30  # bytes; a million epochs have 200 MB


class RunFolder:
    """The run in the folder ``path``.

    Within ``locked``, call ``begin`` for a new run, or ``restore`` with the state from ``read_for_resume``. Then call
    ``save_epoch`` or ``save_training`` any number of times, and ``finish``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoint = path / "checkpoint.pt"
        self.best = path / "best.pt"
        self.history = path / "history.json"
        self.table = path / "history.csv"
        self.training = path / "training.pt"
        self.report = path / "report.html"
        self.plots = path / "plots"
        self.predictions = path / "predictions.png"
        self.tensorboard = path / "tensorboard"

    def begin(self, overwrite: bool = False) -> None:
        """Check that a new run may write here: the folder has no run yet, or ``overwrite`` is set.

        With ``overwrite``, all files of the earlier run are removed, so that they cannot be confused with the new ones.

        Raises:
            OutputError: if the folder has a run, or has files with a run's names that fastconv did not write.
        """
        results = (self.checkpoint, self.best, self.history, self.table, self.training)
        found = [path for path in results if os.path.lexists(path)]
        for path in found:
            if path.is_dir():
                raise files.OutputError(f"{path} is a folder: choose another --output")
        if not found:
            return
        if not overwrite:
            remedy = "choose another --output, or replace the run with --overwrite"
            if self.training.exists() and not self.checkpoint.exists():
                remedy = f"--overwrite replaces it; to continue: {self.resume_command()}"
                raise files.OutputError(f"{self.path} has an interrupted run: {remedy}")
            raise files.OutputError(f"{self.path} has another run: {remedy}")
        self._check_own(found)
        self.remove_products()
        self._remove(*found, *self.tensorboard.glob("events.out.tfevents.*"))

    def read_for_resume(self, given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the settings of the run to continue, and its state for :meth:`restore`.

        Args:
            given: settings that the run must have. A higher number of epochs continues a finished run, and a higher
                patience one that stopped early.

        Raises:
            UserError: if there is no such run, it is finished, another version of fastconv wrote it, or its settings
                differ.
        """
        content = self._read_training()
        settings, state = content["settings"], content["training"]
        for name, value in given.items():
            before = settings.get(name)
            # The files of a known data set may have moved. A different folder of images has different images.
            may_change = name == "epochs" or (name == "data_dir" and settings.get("dataset") != "folder")
            may_change = may_change or (name == "patience" and bool(content.get("finished")))
            if value != before and not may_change:
                option = "--" + name.replace("_", "-")
                had = f"no {option}" if before is None else f"{option} {before}"
                raise UserError(f"{option} {value} differs from the run in {self.path} ({had}): leave it out to resume")
        merged = {**settings, **given}
        self._check_epochs(merged, settings, len(state["history"]), bool(content.get("finished")))
        return merged, state

    def _check_epochs(self, wanted: dict[str, Any], before: dict[str, Any], done: int, finished: bool) -> None:
        """Check that something is left to train, after ``done`` epochs."""
        epochs = f"{done} epoch{'s' * (done != 1)}"
        if not finished and wanted["epochs"] <= done < before["epochs"]:
            raise UserError(f"the run in {self.path} has done {epochs}: --epochs must be above {done}")
        if not finished:
            return
        if done < before["epochs"] and wanted["patience"] <= before["patience"]:
            raise UserError(
                f"the run in {self.path} stopped early after {epochs}; to continue, with N above {before['patience']}:"
                f" {self.resume_command('--patience', 'N')}"
            )
        if wanted["epochs"] <= done:
            raise UserError(
                f"the run in {self.path} is finished after {epochs}; to continue, with N above {done}:"
                f" {self.resume_command('--epochs', 'N')}"
            )

    def _read_training(self) -> dict[str, Any]:
        """Return the checked content of training.pt."""
        from fastconv.classifier import schemas

        if not self.training.is_file():
            finished = "it is finished, and its training state was not kept; " if self.checkpoint.is_file() else ""
            raise UserError(f"nothing to resume: {finished}there is no {self.training}")
        content = checkpoint.read(self.training, "training state")
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise UserError(f"{self.training} is not a training state of fastconv")
        if content.get("version") != _VERSION:
            raise UserError(
                f"{self.training} has format {content.get('version')}: this version of fastconv resumes"
                f" format {_VERSION} only"
            )
        wrong = schemas.problem(schemas.Training, content)
        if wrong is None:
            lacking = [name for name in settle({}) if name not in content["settings"]]
            wrong = f"its settings lack {', '.join(lacking)}" if lacking else None
        if wrong is not None:
            raise UserError(f"{self.training} is damaged: {wrong}; remove it to start anew")
        return content

    def resume_command(self, *more: str) -> str:
        """Return the command that continues the run, with ``more`` options, ready for a shell."""
        return shlex.join(["fastconv", "train", "--output", str(self.path), "--resume", *more])

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder for this process. The system releases the lock if the process is killed."""
        files.check_output_folder(self.path)
        with contextlib.ExitStack() as stack:
            if fcntl is not None:
                descriptor = os.open(self.path, os.O_RDONLY)
                stack.callback(os.close, descriptor)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise files.OutputError(
                        f"another process is training in {self.path}: wait until it ends, or choose another --output"
                    ) from error
                except OSError:
                    pass  # a file system without locks
            for path in (self.training, self.best, self.history, self.table, self.checkpoint):
                files.remove_leftovers(path)
            yield

    def restore(self, training: Training, state: dict[str, Any] | None = None) -> None:
        """Load ``state`` into ``training``. By default, load the state in ``training.pt``."""
        if state is None:
            state = self._read_training()["training"]
        try:
            training.load_state_dict(state)
        except (ValueError, RuntimeError) as error:  # torch raises RuntimeError for a wrong random state
            raise UserError(f"{self.training} is damaged: {error}; remove it to start anew") from error

    def save_epoch(self, training: Training, settings: dict[str, Any], data: DataSet) -> None:
        """Save the state after an epoch, and also the network if its validation accuracy is the best so far.

        ``best.pt`` is written first. If the run is killed before ``training.pt`` is written, ``--resume`` repeats the
        epoch and writes both.
        """
        accuracies = [result.val_accuracy for result in training.history if result.val_accuracy is not None]
        if accuracies and accuracies[-1] > max(accuracies[:-1], default=-1.0):
            self._save_network(self.best, training, settings, data, test_accuracy=None)
        self.save_training(training, settings)

    def save_training(self, training: Training, settings: dict[str, Any], finished: bool = False) -> None:
        """Save the state of ``training``, atomically. ``finished``: nothing is left to do."""
        state = training.state_dict()
        content = {
            "format": _FORMAT,
            "version": _VERSION,
            "finished": finished,
            "settings": settings,
            "training": state,
        }
        files.write_atomically(self.training, checkpoint.serialized(content))

    def remove_state(self) -> None:
        """Remove the state of a run that cannot be continued."""
        self.training.unlink(missing_ok=True)

    def write_history(self, record: dict[str, Any]) -> None:
        """Write ``record`` as history.json."""
        files.write_atomically(self.history, (json.dumps(record, indent=2) + "\n").encode())

    def finish(self, training: Training, settings: dict[str, Any], data: DataSet, record: dict[str, Any]) -> None:
        """Write the results, with ``record`` as history.json. Then mark the run as finished."""
        self.remove_products()  # a run that was continued has products of the earlier network
        self.write_history(record)
        files.write_atomically(self.table, _csv(training.history).encode())
        self._save_network(self.checkpoint, training, settings, data, record["test_accuracy"])
        self.save_training(training, settings, finished=True)

    def remove_products(self) -> None:
        """Remove the report, the pictures and the exports of an earlier network of this run."""
        pictures = [self.plots / f"{name}.png" for name in PLOTS]
        self._remove(self.report, self.predictions, *pictures, *self._exports())
        with contextlib.suppress(OSError):  # the user has files in it, or it does not exist
            self.plots.rmdir()

    def _remove(self, *paths: Path) -> None:
        for path in paths:
            with contextlib.suppress(OSError):
                path.unlink()

    def _exports(self) -> list[Path]:
        from fastconv.classifier.export import is_export

        exports = {format: self.path / f"model{suffix}" for format, suffix in SUFFIXES.items()}
        return [path for format, path in exports.items() if path.is_file() and is_export(path, format)]

    def _save_network(
        self, path: Path, training: Training, settings: dict[str, Any], data: DataSet, test_accuracy: float | None
    ) -> None:
        state_dict = training.model.state_dict()
        saved = checkpoint.Checkpoint(
            settings["model"], state_dict, test_accuracy, settings, data.shape, data.class_names
        )
        checkpoint.save(path, saved)

    def read_history(self) -> dict[str, Any]:
        """Return the content of history.json: config, versions, epochs, test_loss and test_accuracy."""
        from fastconv.classifier import schemas

        if not self.path.is_dir():
            raise UserError(f"{self.path} is not the folder of a run")
        if not self.history.exists() and self.training.exists():
            raise UserError(f"the run in {self.path} is not finished; to continue: {self.resume_command()}")
        if not self.history.exists():
            raise UserError(f"{self.path} is not the folder of a run: it has no {self.history.name}")
        content = files.read_bytes(self.history, _LARGEST_HISTORY)
        damaged = f"{self.history} is not the history of a run, or is damaged"
        try:
            record = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{damaged}: {error}") from error
        wrong = schemas.problem(schemas.History, record)
        if wrong is not None:
            raise UserError(f"{damaged}: {wrong}")
        return record

    def _check_own(self, found: list[Path]) -> None:
        """Check that fastconv wrote the checkpoints, the history and the training state in ``found``."""
        readers: dict[Path, Callable[[Path], object]] = {
            self.checkpoint: checkpoint.load,
            self.best: checkpoint.load,
            self.history: lambda path: self.read_history(),
            self.training: lambda path: self._read_training(),
        }
        written = False
        for path in found:
            if path not in readers:
                continue
            try:
                readers[path](path)
                written = True
            except UserError as error:
                # A damaged training.pt may be replaced if another file is fastconv's.
                if path != self.training or not written:
                    raise files.OutputError(f"{error}; it is not overwritten: choose another --output") from error
        if not written:
            raise files.OutputError(f"{found[0]} exists without a checkpoint: choose another --output")


def _csv(history: list[EpochResult]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(EpochResult)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(result) for result in history)
    return text.getvalue()


@contextlib.contextmanager
def stopped_by_interrupt(training: Training) -> Iterator[list[int]]:
    """Let Ctrl-C and SIGTERM stop ``training`` after the current step. The yielded list then holds the signal's number.

    A second Ctrl-C ends the program at once.
    """
    received: list[int] = []
    before: dict[int, Any] = {}
    numbers: list[int] = [signal.SIGINT, signal.SIGTERM]

    def stop(number: int, frame: FrameType | None) -> None:
        received.append(number)
        training.stop()
        signal.signal(number, before[number])

    for number in numbers:
        before[number] = signal.signal(number, stop)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
