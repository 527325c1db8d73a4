"""``fastconv train``: one run, from the data to the results in the run folder."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import fastconv
from fastconv.classifier import data, runs
from fastconv.classifier import device as devices
from fastconv.classifier.cli import train_options as options
from fastconv.classifier.cli.options import DataDirOption, ThreadsOption, load_data, set_threads
from fastconv.classifier.cli.progress import TrainingProgress, test_line
from fastconv.classifier.cli.table import print_table
from fastconv.classifier.config import BACKENDS, Diverged, TrainingConfig, settle
from fastconv.classifier.data import DataSet
from fastconv.classifier.distributed import alone, process_group
from fastconv.classifier.errors import UserError, UserInterrupt, printable
from fastconv.classifier.evaluation import evaluate
from fastconv.classifier.fit import Training
from fastconv.classifier.history import EpochResult
from fastconv.classifier.inputs import split_for_validation


def train(
    recipe: options.Recipe = None,
    dataset: options.DataSet = None,
    data_dir: DataDirOption = None,
    image_size: options.ImageSize = None,
    model: options.Model = None,
    epochs: options.Epochs = None,
    batch_size: options.BatchSize = None,
    validation_split: options.ValidationSplit = None,
    lr: options.LearningRate = None,
    schedule: options.Schedule = None,
    label_smoothing: options.LabelSmoothing = None,
    augment: options.Augment = None,
    optimizer: options.Optimizer = None,
    loss: options.Loss = None,
    patience: options.Patience = None,
    dtype: options.DType = None,
    seed: options.Seed = None,
    device: options.Device = None,
    threads: ThreadsOption = None,
    backend: options.Backend = None,
    limit: options.Limit = None,
    output: options.Output = None,
    resume: options.Resume = False,
    compare: options.Compare = False,
    tensorboard: options.TensorBoard = False,
    report: options.Report = False,
) -> None:
    """Train a network, write checkpoint.pt and history.json, and print the accuracy on the test images.

    best.pt is the network after the epoch with the best validation accuracy. training.pt is the state of the run: it is
    saved after every epoch and on Ctrl-C, and --resume continues from it.

    Several processes can share the work: torchrun --nproc-per-node 2 -m fastconv train ...
    """
    given = _given_settings(locals())
    if limit is not None and limit < 1:
        raise UserError(f"--limit must be at least 1, not {limit}")
    settings, state = settle(given), None
    set_threads(threads)
    if output is None:
        output = _default_folder(settings)
    folder = runs.RunFolder(output)
    if resume:
        settings, state = folder.interrupted(given)
        data_dir = data_dir or (settings["data_dir"] and Path(settings["data_dir"]))
    for name in BACKENDS if compare else (settings["backend"],):
        devices.find(settings["device"], name, "use --backend torch" + " without --compare" * compare)
    images = load_data(settings["dataset"], data_dir, settings["image_size"])
    extras = Extras(compare, tensorboard, report)
    extras.check_packages(output)
    Run(folder, settings, state, images, extras, Console()).run()


def _given_settings(options: Mapping[str, Any]) -> dict[str, Any]:
    """Select the options that are settings of a run and that the user gave. Return their plain values."""
    settings = {name: options[name] for name in settle({}) if options[name] is not None}
    if "data_dir" in settings:
        settings["data_dir"] = os.path.realpath(settings["data_dir"])
    return {name: value.value if isinstance(value, Enum) else value for name, value in settings.items()}


def _default_folder(settings: Mapping[str, Any]) -> Path:
    """Return runs/MODEL-DATASET."""
    words = f"{settings['model']} {data.display_name(settings['dataset'], settings['data_dir'])}"
    return Path("runs", "-".join(words.replace(",", " ").split()))


@dataclass(frozen=True)
class Extras:
    """The options of ``fastconv train`` that do not change the weights."""

    compare: bool = False
    tensorboard: bool = False
    report: bool = False

    def check_packages(self, output: Path) -> None:
        """Check now, and not after the training, that the optional packages are installed."""
        if self.report:
            import matplotlib  # noqa: F401
        if self.tensorboard:
            import tensorboard  # noqa: F401

            if printable(str(output)) != str(output):
                raise UserError(
                    f"--tensorboard needs a folder with a name in UTF-8, not {output}: choose another --output"
                )


class Run:
    """A run that reports its progress on ``console``. Under torchrun, only the first process reports and writes.

    Args:
        folder: where the results are written.
        settings: as :func:`~fastconv.classifier.config.settle` returns them.
        state: the state of the interrupted run to continue, as
            :meth:`~fastconv.classifier.runs.RunFolder.interrupted` returns it. ``None`` starts a new run.
        data: the training and test images.
        extras: additional work that does not change the weights.
        console: where progress is printed.
    """

    def __init__(
        self,
        folder: runs.RunFolder,
        settings: dict[str, Any],
        state: dict[str, Any] | None,
        data: DataSet,
        extras: Extras,
        console: Console,
    ) -> None:
        self._folder, self._settings, self._state = folder, settings, state
        self._data, self._extras, self._console = data, extras, console
        self._config = TrainingConfig.of(settings)
        self._images = len(data.train_images[: settings["limit"]])
        self._count = split_for_validation(self._images, self._config.validation_split)

    def run(self) -> None:
        """Train, and write the results.

        Raises:
            UserError: if a file cannot be written, or the training diverged.
            UserInterrupt: if the user stopped the run. ``training.pt`` then holds its state.
        """
        with process_group() as rank:
            if rank == 0:
                with self._folder.locked():
                    self._run_first()
            else:
                self._run_other()

    def _run_other(self) -> None:
        """Take part in the training without printing or writing."""
        training = self._training()
        if self._state is not None:
            self._folder.restore(training, self._state)
        with contextlib.suppress(Diverged):  # the first process reports it
            training.run()
            if self._extras.compare:
                self._training(self._other_backend).run()

    def _run_first(self) -> None:
        # Check for mistakes of the user before the training starts.
        if self._state is None:
            self._folder.begin(self._settings)
        validation = self._images - self._count
        self._print(
            f"{self._config.model} on {self._data.name}: {self._count} training images, {validation} validation images"
        )
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
            kept = f"{self._folder.checkpoint} holds the network after epoch {len(training.history)}"
            raise Diverged(f"{diverged}; {kept}") from diverged
        if self._extras.compare:
            self._folder.write_history(record | {"compare": self._compare(training.history)})
        if self._extras.report:
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
        """Train to the end. If the training diverges, restore its last good epoch and return the error."""
        with contextlib.ExitStack() as stack:
            log = stack.enter_context(_tensorboard(self._folder.path)) if self._extras.tensorboard else None
            # With several processes, one must not stop after a step: the others would wait for it in the next step.
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
            resume = f"fastconv train --output {self._folder.path} --resume"
            raise UserInterrupt(f"interrupted; to continue: {resume}", interrupted[0])
        if len(training.history) < self._config.epochs:
            epochs = f"{self._config.patience} epoch{'s' * (self._config.patience != 1)}"
            self._print(f"stopped early: the validation loss has not fallen for {epochs}")
        return None

    def _test(self, training: Training) -> dict[str, Any]:
        """Evaluate the network on the test images. Return the results of the run for history.json."""
        images, labels = self._data.test_images, self._data.test_labels
        loss, accuracy = evaluate(training.model, images, labels, self._config.loss)
        self._print(test_line(loss, accuracy, len(images)))
        epochs = [asdict(result) for result in training.history]
        return {"epochs": epochs, "test_loss": loss, "test_accuracy": accuracy}

    def _compare(self, ours: list[EpochResult]) -> dict[str, Any]:
        """Train again on the other backend, and print both results. Return the figures. The weights are not kept."""
        other = self._other_backend
        self._print(f"training again on the backend {other}:")
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
def _tensorboard(folder: Path) -> Iterator[Callable[[EpochResult], None]]:
    """Yield a function that writes the figures of an epoch for TensorBoard."""
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
    """Describe the software and the machine for history.json."""
    return {
        "fastconv": fastconv.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "configuration": fastconv.show_config().splitlines(),
    }
