"""The folder of a run: its results, and, while it is under way, where it stands.

``checkpoint.pt`` is the trained network, and ``best.pt`` the one of the epoch that did best on the held-out images.
``history.json`` and ``history.csv`` are what it cost and how well it did, epoch by epoch. ``training.pt`` is what
``fastconv train --resume`` goes on from; it is there while training is under way. ``report.html`` and ``plots`` are
what ``fastconv report`` makes of the others.
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
from fastconv.classifier.fit import EpochResult, Training

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]

_FORMAT = "fastconv-training"
_VERSION = 3
_LARGEST_HISTORY = 1 << 30  # bytes; a million epochs have 200 MB


class RunFolder:
    """The run in the folder ``path``.

    While it is ``locked``: ``begin``, or ``restore`` what was ``interrupted``; ``save_training`` as often as liked;
    ``finish``.
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
        """See that a new run may write here: over nothing but results of the same model and data set.

        Raises:
            OutputError: if not, or if an interrupted run is here.
        """
        if self.training.exists():
            raise files.OutputError(
                f"{self.path} has a training that was interrupted: --resume goes on with it, or remove {self.training}"
            )
        self._check_results(settings)
        for path in (self.best, self.history, self.table):
            if path.is_dir():
                raise files.OutputError(f"{path} is a folder: choose another --output")
        with contextlib.suppress(OSError):
            self.best.unlink()  # of the run before: this one may hold nothing out

    def interrupted(self, given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The settings of the interrupted run, and its state, for :meth:`restore`.

        Args:
            given: settings that it must have.

        Raises:
            UserError: if there is none, or none of this version of fastconv, or one with other settings.
        """
        from fastconv.classifier import schemas

        if not self.training.is_file():
            raise UserError(f"nothing to resume: there is no {self.training}")
        content = checkpoint.read(self.training, "training")
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise UserError(f"{self.training} is not a training of fastconv")
        if content.get("version") != _VERSION:
            raise UserError(
                f"{self.training} has format {content.get('version')}: this fastconv goes on with {_VERSION} only"
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
            # The files of a known data set may be elsewhere by now; another folder has other images.
            if value != before and (name != "data_dir" or settings.get("dataset") == "folder"):
                option = "--" + name.replace("_", "-")
                had = f"no {option}" if before is None else f"{option} {before}"
                raise UserError(f"the training in {self.path} has {had}, not {value}: --resume alone goes on with it")
        return {**settings, **given}, state

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Within it, this process alone writes here. The system lets go of the lock of a process that was killed.

        Raises:
            OutputError: if another does, or the folder cannot be written into.
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
                        f"another training is under way in {self.path}: wait for its end, or choose another --output"
                    ) from error
                except OSError:
                    pass  # a file system without locks
            for path in (self.training, self.best, self.history, self.table, self.checkpoint):
                files.remove_leftovers(path)
            yield

    def restore(self, training: Training, state: dict[str, Any] | None = None) -> None:
        """Bring ``training`` to ``state``, by default what :meth:`save_training` kept last."""
        if state is None:
            _, state = self.interrupted({})
        try:
            training.load_state_dict(state)
        except (ValueError, RuntimeError) as error:  # RuntimeError: torch's, of random numbers' states
            raise UserError(f"{self.training} is damaged: {error}; remove it to start anew") from error

    def save_epoch(self, training: Training, settings: dict[str, Any], data: DataSet) -> None:
        """After an epoch: keep where ``training`` stands, and the network if it did better than all before.

        ``best.pt`` is written first: a run that is killed in between does the epoch, and this, again.
        """
        accuracies = [result.val_accuracy for result in training.history if result.val_accuracy is not None]
        if accuracies and accuracies[-1] > max(accuracies[:-1], default=-1.0):
            self._save_network(self.best, training, settings, data, test_accuracy=None)
        self.save_training(training, settings)

    def save_training(self, training: Training, settings: dict[str, Any]) -> None:
        """Keep where ``training`` stands; the older state is replaced by a whole new one, or not at all."""
        content = {"format": _FORMAT, "version": _VERSION, "settings": settings, "training": training.state_dict()}
        files.write_atomically(self.training, checkpoint.serialized(content))

    def abandon(self) -> None:
        """The training leads nowhere: a new one may begin here."""
        self.training.unlink(missing_ok=True)

    def write_history(self, record: dict[str, Any]) -> None:
        """Write ``record`` as history.json."""
        files.write_atomically(self.history, (json.dumps(record, indent=2) + "\n").encode())

    def finish(self, training: Training, settings: dict[str, Any], data: DataSet, record: dict[str, Any]) -> None:
        """Write the results, ``record`` as history.json. Only when all are there does ``training.pt`` go."""
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
        """What :meth:`finish` wrote as history.json: config, versions, epochs, test_loss and test_accuracy.

        Raises:
            UserError: if it is not there, or is not that.
        """
        from fastconv.classifier import schemas

        if not self.path.is_dir():
            raise UserError(f"{self.path} is not the folder of a run")
        if not self.history.exists() and self.training.exists():
            raise UserError(f"the training in {self.path} is not done: --resume goes on with it")
        content = files.read_bytes(self.history, _LARGEST_HISTORY)
        damaged = f"{self.history} is not the history of a training, or a damaged one"
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
            before: dict[str, tuple[Any, Any]] = {"": (found.model, settings["model"])}
            before["the data set "] = found.config.get("dataset", settings["dataset"]), settings["dataset"]
            if settings["dataset"] == "folder":
                before["the images in "] = found.config.get("data_dir"), settings["data_dir"]
            for what, (was, now) in before.items():
                if was != now:
                    raise files.OutputError(
                        f"{self.checkpoint} is of {what}{was} and is not overwritten: choose another --output"
                    )
            return
        for path in (self.history, self.table):
            if path.exists():
                raise files.OutputError(f"{path} is there without a checkpoint: choose another --output")


def _csv(history: list[EpochResult]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(EpochResult)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(result) for result in history)
    return text.getvalue()


@contextlib.contextmanager
def stopped_by_interrupt(training: Training) -> Iterator[list[int]]:
    """Within it, Ctrl-C or SIGTERM stops ``training`` after the step under way; the list then has the signal's number.

    A second Ctrl-C is Python's again: it ends the program at once.
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
