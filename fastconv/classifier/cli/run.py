"""One run of ``fastconv train``, from the data to the results in the run folder."""

import contextlib
import datetime
import platform
import shlex
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

import fastconv
from fastconv.benchmarking.machine import cpu_name
from fastconv.classifier import latest, runs
from fastconv.classifier.cli.printing import Printer, print_table, test_line
from fastconv.classifier.cli.train_options import Train
from fastconv.classifier.config import Diverged, TrainingConfig
from fastconv.classifier.data import DataSet
from fastconv.classifier.distributed import alone, process_group
from fastconv.classifier.errors import UserError, UserInterrupt, printable
from fastconv.classifier.evaluation import evaluate
from fastconv.classifier.files import OutputError
from fastconv.classifier.fit import Training
from fastconv.classifier.history import EpochResult, speed_line
from fastconv.classifier.inputs import split_for_validation
from fastconv.classifier.progress import Progress


def check_packages(options: Train, output: str) -> None:
    """Check now, and not after the training, that the optional packages are installed."""
    if options.report:
        import matplotlib  # noqa: F401
    if options.tensorboard:
        import tensorboard  # noqa: F401

        if printable(output) != output:
            raise UserError(f"--tensorboard needs a folder with a name in UTF-8, not {output}: choose another --output")


class TrainingRun:
    """A run that reports its progress on ``printer``. Under torchrun, only the first process reports and writes.

    Args:
        folder: returns the folder for the results. Only the first process calls it.
        settings: as :func:`~fastconv.classifier.config.settle` returns them.
        state: the state of the run to continue, which :meth:`~fastconv.classifier.runs.RunFolder.read_for_resume`
            returns. ``None`` starts a new run.
        data: the training and test images.
        options: those that do not change the weights are used here: compare, tensorboard, report, threads, overwrite.
    """

    def __init__(
        self,
        folder: Callable[[], Path],
        settings: dict[str, Any],
        state: dict[str, Any] | None,
        data: DataSet,
        options: Train,
        printer: Printer,
    ) -> None:
        self._choose_folder, self._settings, self._state = folder, settings, state
        self._data, self._options, self._printer = data, options, printer
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
            training = self._training()  # first: a mistake in the settings must leave no folder
            if rank != 0:
                self._run_other(training)
                return
            self._folder = runs.RunFolder(self._choose_folder())
            with self._folder.locked():
                self._run_first(training)

    def _run_other(self, training: Training) -> None:
        """Take part in the training without printing or writing."""
        if self._state is not None:
            training.load_state_dict(self._state)
        with contextlib.suppress(Diverged):  # the first process reports it
            training.run()
            if self._options.compare:
                self._training(self._other_backend).run()

    def _run_first(self, training: Training) -> None:
        # Check for mistakes of the user before the training starts.
        if self._state is None:
            self._folder.begin(self._options.overwrite)
        validation = self._images - self._count
        self._printer.note(
            f"{self._config.model} on {self._data.name}: {self._count} training images, {validation} validation images"
        )
        before = self._point_to_folder()
        if self._state is None:
            self._folder.save_training(training, self._settings)
        else:
            self._folder.restore(training, self._state)
            self._printer.note(f"resumed after {len(training.history)} of {self._config.epochs} epochs")
        diverged = self._train(training, before)
        record = {"config": self._settings, "versions": versions(), "date": now(), **self._test(training)}
        self._folder.finish(training, self._settings, self._data, record)
        if diverged is not None:
            self._folder.remove_state()  # the training would diverge again
            kept = f"{self._folder.checkpoint} holds the network after epoch {len(training.history)}"
            raise Diverged(f"{diverged}; {kept}") from diverged
        self._printer.note(f"wrote {self._folder.checkpoint} and {self._folder.history}")
        if self._options.compare:
            record |= {"compare": self._compare(training.history)}
            self._folder.write_history(record)
        if self._options.report:
            from fastconv.classifier.report import write

            self._printer.note(f"wrote {write(self._folder, training.model, self._data)}")
        self._finish(record)

    def _point_to_folder(self) -> Path | None:
        """Let ``runs/latest`` point to the run. A failure stops a run in ``runs``. Other runs go on, with a note."""
        try:
            return latest.point_to(self._folder.path)
        except OutputError as error:
            if self._folder.path.parent == latest.RUNS:
                with contextlib.suppress(OSError):
                    self._folder.path.rmdir()  # it is still empty
                raise
            self._printer.note(f"{error}; name the run in other commands")
            return None

    def _finish(self, record: dict[str, Any]) -> None:
        """Print the result, and the commands that a user may want to type next."""
        paths = {"run": str(self._folder.path), "checkpoint": str(self._folder.checkpoint)}
        if self._printer.json:
            self._printer.result("", paths | record)
            return
        if not self._options.report:
            self._printer.note(f"next: {shlex.join(['fastconv', 'report', paths['run']])}")
        self._printer.note(f"next: {shlex.join(['fastconv', 'predict', paths['run'], '0', '1', '2'])}")

    def _training(self, backend: str | None = None) -> Training:
        data, limit = self._data, self._settings["limit"]
        config = self._config if backend is None else replace(self._config, backend=backend)
        return Training(data.train_images[:limit], data.train_labels[:limit], config, len(data.class_names))

    @property
    def _other_backend(self) -> str:
        return "torch" if self._config.backend == "fastconv" else "fastconv"

    def _train(self, training: Training, before: Path | None) -> Diverged | None:
        """Train to the end. If the training diverges, restore the last good epoch and return the error.

        If no epoch was good, remove the run, let ``runs/latest`` point to the run ``before``, and raise the error.
        """
        with contextlib.ExitStack() as stack:
            log = stack.enter_context(_tensorboard(self._folder.tensorboard)) if self._options.tensorboard else None
            # With several processes, one must not stop after a step: the others would wait for it in the next step.
            signals = stack.enter_context(runs.stopped_by_interrupt(training)) if alone() else []

            def epoch_done(result: EpochResult) -> None:
                self._folder.save_epoch(training, self._settings, self._data)
                if log is not None:
                    log(result)

            try:
                self._show_progress(training, epoch_done)
            except Diverged as error:
                if not training.history:
                    self._folder.remove_state()
                    latest.forget(self._folder.path, before)
                    raise
                self._folder.restore(training)
                return error
        if signals:
            self._folder.save_training(training, self._settings)
            resume = self._folder.resume_command(*self._repeated_options())
            raise UserInterrupt(f"interrupted; to continue: {resume}", signals[0])
        if len(training.history) < self._config.epochs:
            epochs = f"{self._config.patience} epoch{'s' * (self._config.patience != 1)}"
            self._printer.note(f"stopped early: the validation loss has not fallen for {epochs}")
        return None

    def _repeated_options(self) -> list[str]:
        """Return the options that the run does not store, as typed, for the command that continues it."""
        flags = [f"--{name}" for name in ("compare", "tensorboard", "report") if getattr(self._options, name)]
        threads = self._options.threads
        return [*flags, *(["--threads", str(threads)] if threads is not None else [])]

    def _test(self, training: Training) -> dict[str, Any]:
        """Evaluate the network on the test images. Return the results of the run for history.json."""
        images, labels = self._data.test_images, self._data.test_labels
        loss, accuracy = evaluate(training.model, images, labels, self._config.loss)
        self._result(test_line(loss, accuracy, len(images)))
        epochs = [asdict(result) for result in training.history]
        return {"epochs": epochs, "test_loss": loss, "test_accuracy": accuracy}

    def _result(self, line: str) -> None:
        """Print a line of the result. With ``--json``, print it as a note: the JSON at the end is the result."""
        if self._printer.json:
            self._printer.note(line)
        else:
            self._printer.result(line, None)

    def _compare(self, ours: list[EpochResult]) -> dict[str, Any]:
        """Train again on the other backend, and print both results. Return the figures. The weights are not kept."""
        other = self._other_backend
        self._printer.note(f"training again on the backend {other}:")
        training = self._training(other)
        self._show_progress(training, lambda result: None)
        figures = self._test(training)
        histories = {self._config.backend: ours, other: training.history}
        header = ("epoch", *(f"{name}: {what}" for name in histories for what in ("loss", "accuracy", "seconds")))
        rows = []
        for results in zip(*histories.values(), strict=False):  # early stopping may end one before the other
            cells = [(f"{r.loss:.4f}", f"{r.accuracy:.2%}", f"{r.seconds:.1f}") for r in results]
            rows.append((str(results[0].epoch), *(cell for three in cells for cell in three)))
        print_table(header, rows, self._printer.console)
        self._result(
            speed_line({name: median(r.images_per_second for r in found) for name, found in histories.items()})
        )
        return {"backend": other, **figures}

    def _show_progress(self, training: Training, on_epoch: Callable[[EpochResult], None]) -> None:
        """Train, and show the progress. Call ``on_epoch`` before the line of each epoch is printed."""
        console = self._printer.console
        bar = console.is_terminal and not console.quiet
        with Progress(self._config.epochs, None, self._count, console.file, bar, not console.quiet) as progress:

            def epoch_done(result: EpochResult) -> None:
                on_epoch(result)
                progress.epoch_done(result)
                if not training.done:
                    progress.epoch_begun(result.epoch + 1)

            progress.epoch_begun(len(training.history) + 1)
            training.run(progress.step, epoch_done)


@contextlib.contextmanager
def _tensorboard(folder: Path) -> Iterator[Callable[[EpochResult], None]]:
    """Yield a function that writes the figures of an epoch for TensorBoard."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(folder)  # type: ignore[no-untyped-call]

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
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "configuration": fastconv.show_config().splitlines(),
    }


def now() -> str:
    """Return the date and the time in the format of ISO 8601, with the offset from UTC."""
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")
