"""``fastconv train``, without its options: one training, from the data to the results in the run folder."""

from __future__ import annotations

import contextlib
import platform
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import fastconv
from fastconv.classifier import UserInterrupt, runs
from fastconv.classifier.config import Diverged, TrainingConfig
from fastconv.classifier.data import DataSet
from fastconv.classifier.distributed import alone, process_group
from fastconv.classifier.progress import TrainingProgress, test_line
from fastconv.classifier.table import print_table
from fastconv.classifier.training import EpochResult, Training, evaluate, split_for_validation


@dataclass(frozen=True)
class Options:
    """What ``fastconv train`` is told besides what decides the weights: see its help."""

    compare: bool = False
    tensorboard: bool = False
    report: bool = False


class Run:
    """One training, that tells of itself on ``console``. Of several processes (torchrun) the first tells and writes.

    Args:
        folder: where the results go.
        settings: as :func:`~fastconv.classifier.config.settle` gives them.
        state: of the interrupted training to go on with, as :meth:`~fastconv.classifier.runs.RunFolder.interrupted` gives
            it; ``None`` for a new one.
        data: with the images to train on and to test with.
        options: what is to be done besides.
        console: written on.
    """

    def __init__(
        self,
        folder: runs.RunFolder,
        settings: dict[str, Any],
        state: dict[str, Any] | None,
        data: DataSet,
        options: Options,
        console: Console,
    ) -> None:
        self._folder, self._settings, self._state = folder, settings, state
        self._data, self._options, self._console = data, options, console
        self._config = TrainingConfig.of(settings)
        self._images = len(data.train_images[: settings["limit"]])
        self._count = split_for_validation(self._images, self._config.validation_split)

    def run(self) -> None:
        """Train, and write the results.

        Raises:
            UserError: where something cannot be written, or the training diverged.
            UserInterrupt: if the user stopped it; ``training.pt`` then says where it stands.
        """
        with process_group() as rank:
            if rank == 0:
                with self._folder.locked():
                    self._first()
            else:
                self._other()

    def _other(self) -> None:
        """What the processes besides the first do: as much of the training, and not a word."""
        training = self._training()
        if self._state is not None:
            self._folder.restore(training, self._state)
        with contextlib.suppress(Diverged):  # the first process says so
            training.run()
            if self._options.compare:
                self._training(self._other_backend).run()

    def _first(self) -> None:
        # All that could fail for the user's fault fails before the long part begins.
        if self._state is None:
            self._folder.begin(self._settings)
        held_out = self._images - self._count
        self._print(f"{self._config.model} on {self._data.name}: {self._count} training images, {held_out} held out")
        training = self._training()
        if self._state is None:
            self._folder.save_training(training, self._settings)
        else:
            self._folder.restore(training, self._state)
            self._print(f"resumed after {len(training.history)} of {self._config.epochs} epochs")
        diverged = self._train(training)
        record = {"config": self._settings, "versions": versions(), **self._test(training)}
        self._folder.finish(training, self._settings, self._data, record)
        self._print(f"wrote {self._folder.checkpoint} and {self._folder.history}")
        if diverged is not None:
            raise Diverged(f"{diverged}; {self._folder.checkpoint} is of epoch {len(training.history)}") from diverged
        if self._options.compare:
            self._folder.write_history(record | {"compare": self._compare(training.history)})
        if self._options.report:
            from fastconv.classifier.report import write

            self._print(f"wrote {write(self._folder, training.model, self._data)}")

    def _training(self, backend: str | None = None) -> Training:
        data, limit = self._data, self._settings["limit"]
        config = self._config if backend is None else replace(self._config, backend=backend)
        return Training(data.train_images[:limit], data.train_labels[:limit], config, len(data.class_names))

    @property
    def _other_backend(self) -> str:
        return "torch" if self._config.backend == "fastconv" else "fastconv"

    def _train(self, training: Training) -> Diverged | None:
        """If it diverged, how; it is then brought back to the last epoch that was good."""
        with contextlib.ExitStack() as stack:
            log = stack.enter_context(_tensorboard(self._folder.path)) if self._options.tensorboard else None
            # Of several processes one cannot stop after a step: the others would wait for it in the next.
            interrupted = stack.enter_context(runs.stopped_by_interrupt(training)) if alone() else []
            progress = stack.enter_context(self._progress(len(training.history)))

            def epoch_done(result: EpochResult) -> None:
                self._folder.save_epoch(training, self._settings, self._data)
                progress.epoch_done(result)
                if log is not None:
                    log(result)

            try:
                training.run(progress.step, epoch_done)
            except Diverged as error:
                self._folder.restore(training)
                if not training.history:
                    self._folder.abandon()
                    raise
                return error
        if interrupted:
            self._folder.save_training(training, self._settings)
            resume = f"--output {self._folder.path} --resume"
            raise UserInterrupt(f"interrupted; {resume} goes on from here", interrupted[0])
        if len(training.history) < self._config.epochs:
            self._print(f"ended early: the held-out loss has not fallen for {self._config.patience} epochs")
        return None

    def _test(self, training: Training) -> dict[str, Any]:
        """What a training came to, for history.json."""
        images, labels = self._data.test_images, self._data.test_labels
        loss, accuracy = evaluate(training.model, images, labels, self._config.loss)
        self._print(test_line(loss, accuracy, len(images)))
        epochs = [asdict(result) for result in training.history]
        return {"epochs": epochs, "test_loss": loss, "test_accuracy": accuracy}

    def _compare(self, ours: list[EpochResult]) -> dict[str, Any]:
        """The same training on the other backend; it is told of, and kept in the history, but its weights are not."""
        other = self._other_backend
        self._print(f"the same on {other}'s operators:")
        training = self._training(other)
        with self._progress(0) as progress:
            training.run(progress.step, progress.epoch_done)
        figures = self._test(training)
        histories = {self._config.backend: ours, other: training.history}
        header = ("epoch", *(f"{name}: {what}" for name in histories for what in ("loss", "accuracy", "seconds")))
        rows = []
        for results in zip(*histories.values(), strict=False):  # early stopping may end one before the other
            cells = [(f"{r.loss:.4f}", f"{r.accuracy:.2%}", f"{r.seconds:.1f}") for r in results]
            rows.append((str(results[0].epoch), *(cell for three in cells for cell in three)))
        print_table(header, rows, self._console)
        speeds = {name: sum(r.images_per_second for r in history) / len(history) for name, history in histories.items()}
        self._print(", ".join(f"{name} {speed:,.0f} images/s" for name, speed in speeds.items()))
        return {"backend": other, **figures}

    def _progress(self, epochs_done: int) -> TrainingProgress:
        return TrainingProgress(self._console, self._config.epochs, self._count, epochs_done)

    def _print(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)
        self._console.file.flush()


@contextlib.contextmanager
def _tensorboard(folder: Path) -> Any:
    """A function that writes an epoch's figures for TensorBoard."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(folder / "tensorboard")  # type: ignore[no-untyped-call]

    def log(result: EpochResult) -> None:
        figures = {name: value for name, value in asdict(result).items() if name != "epoch" and value is not None}
        for name, value in figures.items():
            writer.add_scalar(name, value, result.epoch)  # type: ignore[no-untyped-call]
        writer.flush()  # type: ignore[no-untyped-call]

    try:
        yield log
    finally:
        writer.close()  # type: ignore[no-untyped-call]


def versions() -> dict[str, Any]:
    """What ran, for the record."""
    return {
        "fastconv": fastconv.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "configuration": fastconv.show_config().splitlines(),
    }
