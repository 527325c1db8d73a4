"""The folder of a run: its results and, until the run is finished, its state.

``checkpoint.pt`` is the trained network, and ``best.pt`` is the network after the epoch with the best validation
accuracy. ``history.json`` and ``history.csv`` have the figures of each epoch. ``training.pt`` exists until the run is
finished, and ``fastconv train --resume`` continues from it. ``fastconv report`` writes ``report.html`` and ``plots``.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import signal
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from types import FrameType
from typing import Any

from fastconv.classifier import checkpoint, files
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
_LARGEST_HISTORY = 1 << 30  # bytes; a million epochs have 200 MB


class RunFolder:
    """The run in the folder ``path``.

    Within ``locked``, call ``begin`` for a new run, or ``restore`` with the state from ``interrupted``. Then call
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

    def begin(self, settings: dict[str, Any]) -> None:
        """Check that a new run may write here. Only results of the same model and data set may be replaced.

        Raises:
            OutputError: if the folder has other results or an interrupted run.
        """
        if self.training.exists():
            raise files.OutputError(
                f"{self.path} has an interrupted run: continue it with --resume, or remove {self.training}"
            )
        self._check_results(settings)
        for path in (self.best, self.history, self.table):
            if path.is_dir():
                raise files.OutputError(f"{path} is a folder: choose another --output")
        with contextlib.suppress(OSError):
            self.best.unlink()  # an earlier run's: without validation images, this run does not replace it

    def interrupted(self, given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the settings of the interrupted run, and its state for :meth:`restore`.

        Args:
            given: settings that the run must have.

        Raises:
            UserError: if there is no such run, another version of fastconv wrote it, or its settings differ.
        """
        from fastconv.classifier import schemas

        if not self.training.is_file():
            raise UserError(f"nothing to resume: there is no {self.training}")
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
            settings, state = content["settings"], content["training"]
            lacking = [name for name in settle({}) if name not in settings]
            wrong = f"its settings lack {', '.join(lacking)}" if lacking else None
        if wrong is not None:
            raise UserError(f"{self.training} is damaged: {wrong}; remove it to start anew")
        for name, value in given.items():
            before = settings.get(name)
            # The files of a known data set may have moved. A different folder of images has different images.
            if value != before and (name != "data_dir" or settings.get("dataset") == "folder"):
                option = "--" + name.replace("_", "-")
                had = f"no {option}" if before is None else f"{option} {before}"
                raise UserError(f"{option} {value} differs from the run in {self.path} ({had}): leave it out to resume")
        return {**settings, **given}, state

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder for this process. The system releases the lock if the process is killed.

        Raises:
            OutputError: if another process has locked it, or no file can be written in it.
        """
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
            _, state = self.interrupted({})
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

    def save_training(self, training: Training, settings: dict[str, Any]) -> None:
        """Save the state of ``training``, atomically."""
        content = {"format": _FORMAT, "version": _VERSION, "settings": settings, "training": training.state_dict()}
        files.write_atomically(self.training, checkpoint.serialized(content))

    def abandon(self) -> None:
        """Remove the state of a run that cannot be continued."""
        self.training.unlink(missing_ok=True)

    def write_history(self, record: dict[str, Any]) -> None:
        """Write ``record`` as history.json."""
        files.write_atomically(self.history, (json.dumps(record, indent=2) + "\n").encode())

    def finish(self, training: Training, settings: dict[str, Any], data: DataSet, record: dict[str, Any]) -> None:
        """Write the results, with ``record`` as history.json. Then remove ``training.pt``."""
        self.write_history(record)
        files.write_atomically(self.table, _csv(training.history).encode())
        self._save_network(self.checkpoint, training, settings, data, record["test_accuracy"])
        self.training.unlink(missing_ok=True)

    def _save_network(
        self, path: Path, training: Training, settings: dict[str, Any], data: DataSet, test_accuracy: float | None
    ) -> None:
        state_dict = training.model.state_dict()
        saved = checkpoint.Checkpoint(
            settings["model"], state_dict, test_accuracy, settings, data.shape, data.class_names
        )
        checkpoint.save(path, saved)

    def read_history(self) -> dict[str, Any]:
        """Return the content of history.json: config, versions, epochs, test_loss and test_accuracy.

        Raises:
            UserError: if the file is missing or damaged.
        """
        from fastconv.classifier import schemas

        if not self.path.is_dir():
            raise UserError(f"{self.path} is not the folder of a run")
        if not self.history.exists() and self.training.exists():
            raise UserError(f"the run in {self.path} is not finished: continue it with --resume")
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

    def _check_results(self, settings: dict[str, Any]) -> None:
        if self.checkpoint.exists():
            try:
                found = checkpoint.load(self.checkpoint)
            except checkpoint.CheckpointError as error:
                raise files.OutputError(f"{error}; it is not overwritten: choose another --output") from error
            before: dict[str, tuple[Any, Any]] = {"the model": (found.model, settings["model"])}
            before["the data set"] = found.config.get("dataset", settings["dataset"]), settings["dataset"]
            if settings["dataset"] == "folder":
                before["the images in"] = found.config.get("data_dir"), settings["data_dir"]
            for what, (was, now) in before.items():
                if was != now:
                    raise files.OutputError(
                        f"{self.checkpoint} is from a run with {what} {was} and is not overwritten:"
                        " choose another --output"
                    )
            return
        for path in (self.history, self.table):
            if path.exists():
                raise files.OutputError(f"{path} exists without a checkpoint: choose another --output")


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
