"""``fastconv train``, without its options: one training, from the data to the results in the run folder."""

from __future__ import annotations

import contextlib
import platform
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import fastconv
from fastconv.mnist import UserInterrupt, runs
from fastconv.mnist.config import TrainingConfig
from fastconv.mnist.data import DataSet
from fastconv.mnist.distributed import process_group
from fastconv.mnist.progress import TrainingProgress, test_line
from fastconv.mnist.training import EpochResult, Training, evaluate, split_for_validation


@dataclass(frozen=True)
class Options:
    """What ``fastconv train`` is told besides the training's own settings: see its help."""

    output: Path
    limit: int | None = None
    resume: bool = False
    compare: bool = False
    tensorboard: bool = False
    report: bool = False
    source: dict[str, Any] = field(default_factory=dict)  # what else is to be recorded of the data


def run(config: TrainingConfig, data: DataSet, options: Options, console: Console) -> None:
    """Train, tell of it on ``console``, and write the results.

    Of several processes (torchrun) the first tells and writes.

    Raises:
        UserError: where something cannot be written, or there is nothing to resume.
        UserInterrupt: if the user stopped it; ``training.pt`` then says where it stands.
    """
    with process_group() as rank:
        if rank == 0:
            _Run(config, data, options, console).run()
        else:
            training = _training(config, data, options.limit)
            if options.resume:
                folder = runs.RunFolder(options.output)
                folder.restore(training, folder.resume(_settings(config, data, options)))
            training.run()


def _training(config: TrainingConfig, data: DataSet, limit: int | None) -> Training:
    return Training(data.train_images[:limit], data.train_labels[:limit], config, len(data.class_names))


def _settings(config: TrainingConfig, data: DataSet, options: Options) -> dict[str, Any]:
    return {**asdict(config), "dataset": data.name, "limit": options.limit, **options.source}


class _Run:
    def __init__(self, config: TrainingConfig, data: DataSet, options: Options, console: Console) -> None:
        self._config, self._data, self._options, self._console = config, data, options, console
        self._settings = _settings(config, data, options)
        self._folder = runs.RunFolder(options.output)
        self._images = len(data.train_images[: options.limit])
        self._count = split_for_validation(self._images, config.validation_split)

    def run(self) -> None:
        # All that could fail for the user's fault fails before the long part begins.
        state = None
        if self._options.resume:
            state = self._folder.resume(self._settings)
        else:
            self._folder.begin(self._settings)
        held_out = self._images - self._count
        self._print(f"{self._config.model} on {self._data.name}: {self._count} training images, {held_out} held out")
        training = _training(self._config, self._data, self._options.limit)
        if state is None:
            self._folder.save_training(training, self._settings)
        else:
            self._folder.restore(training, state)
            self._print(f"resumed after {len(training.history)} of {self._config.epochs} epochs")
        self._train(training)
        record = {"config": self._settings, "versions": versions(), **self._test(training)}
        if self._options.compare:
            record["compare"] = self._compare(training.history)
        self._folder.finish(training, self._settings, self._data, record)
        self._print(f"wrote {self._folder.checkpoint} and {self._folder.history}")
        if self._options.report:
            from fastconv.mnist.report import write

            self._print(f"wrote {write(self._folder, training.model, self._data)}")

    def _train(self, training: Training) -> None:
        with contextlib.ExitStack() as stack:
            log = stack.enter_context(_tensorboard(self._folder.path)) if self._options.tensorboard else None
            interrupted = stack.enter_context(runs.stopped_by_interrupt(training))
            progress = stack.enter_context(self._progress(len(training.history)))

            def epoch_done(result: EpochResult) -> None:
                self._folder.save_epoch(training, self._settings, self._data)
                progress.epoch_done(result)
                if log is not None:
                    log(result)

            training.run(progress.step, epoch_done)
        if interrupted:
            self._folder.save_training(training, self._settings)
            raise UserInterrupt(f"interrupted; --output {self._folder.path} --resume goes on from here")
        if len(training.history) < self._config.epochs:
            self._print(f"ended early: the held-out loss has not fallen for {self._config.patience} epochs")

    def _test(self, training: Training) -> dict[str, Any]:
        """What a training came to, for history.json."""
        images, labels = self._data.test_images, self._data.test_labels
        loss, accuracy = evaluate(training.model, images, labels, self._config.loss)
        self._print(test_line(loss, accuracy, len(images)))
        epochs = [asdict(result) for result in training.history]
        return {"epochs": epochs, "test_loss": loss, "test_accuracy": accuracy}

    def _compare(self, ours: list[EpochResult]) -> dict[str, Any]:
        """The same training on the other backend; it is told of, and kept in the history, but its weights are not."""
        other = "torch" if self._config.backend == "fastconv" else "fastconv"
        self._print(f"the same on {other}'s operators:")
        training = _training(replace(self._config, backend=other), self._data, self._options.limit)
        with self._progress(0) as progress:
            training.run(progress.step, progress.epoch_done)
        figures = self._test(training)
        self._print_comparison({self._config.backend: ours, other: training.history})
        return {"backend": other, **figures}

    def _print_comparison(self, histories: dict[str, list[EpochResult]]) -> None:
        table = Table("epoch", *(f"{name}: {what}" for name in histories for what in ("loss", "accuracy", "seconds")))
        for results in zip(*histories.values(), strict=False):  # early stopping may end one before the other
            cells = [(f"{r.loss:.4f}", f"{r.accuracy:.2%}", f"{r.seconds:.1f}") for r in results]
            table.add_row(str(results[0].epoch), *(cell for three in cells for cell in three))
        self._console.print(table)
        speeds = {name: sum(r.images_per_second for r in history) / len(history) for name, history in histories.items()}
        self._print(", ".join(f"{name} {speed:,.0f} images/s" for name, speed in speeds.items()))

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
