"""The progress of a run: a live bar on a terminal, and one line for each epoch."""

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from fastconv.classifier.fit import Totals
from fastconv.classifier.history import EpochResult

# Seconds between updates of the bar, and between lines without a terminal. An update reads the sums of loss and
# accuracy from the device, and so waits until the step is finished.
_INTERVAL = 0.2
_LINE_INTERVAL = 30.0


def test_line(loss: float, accuracy: float, count: int) -> str:
    """Describe the results on ``count`` test images in a line."""
    return f"test accuracy {accuracy:.2%} ({round(accuracy * count)} of {count}), loss {loss:.4f}"


class TrainingProgress:
    """Show the progress that :func:`fastconv.classifier.fit.fit` reports to ``step`` and ``epoch_done``.

    Example::

        with TrainingProgress(Console(), epochs=5, images=3200) as progress:
            fit(images, labels, config, progress.step, progress.epoch_done)
    """

    def __init__(self, console: Console, epochs: int, images: int, epochs_done: int = 0) -> None:
        self._console = console
        self._epochs = epochs
        self._images = images
        self._epochs_done = epochs_done
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}  {task.fields[figures]}"),
            TimeRemainingColumn(compact=True),
            console=console,
            transient=True,
        )
        self._task: TaskID | None = None
        self._started = self._shown = 0.0

    def __enter__(self) -> "TrainingProgress":
        if self._console.is_terminal:
            self._bar.start()
        self._start_epoch(self._epochs_done + 1)
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:  # before rich 14, stop() prints an empty line even if the bar never started
            self._bar.stop()

    def step(self, epoch: int, totals: Totals) -> None:
        """Update the bar, a few times per second. Without a terminal, print a line every half minute."""
        now = time.perf_counter()
        interval = _INTERVAL if self._console.is_terminal else _LINE_INTERVAL
        if self._task is None or self._console.quiet or now - self._shown < interval:
            return
        self._shown = now
        loss, accuracy = totals.means()
        speed = totals.images / (now - self._started)
        if self._console.is_terminal:
            figures = f"loss {loss:.4f}  acc {accuracy:.2%}  {speed:,.0f} images/s"
            self._bar.update(self._task, completed=totals.images, figures=figures)
            return
        left = (self._images - totals.images) / speed
        self._print(
            f"epoch {epoch}/{self._epochs}  {totals.images:,} of {self._images:,} images  loss {loss:.4f}"
            f"  accuracy {accuracy:.2%}  {speed:,.0f} images/s  {left:,.0f} s left in this epoch"
        )

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)
        self._console.file.flush()

    def epoch_done(self, result: EpochResult) -> None:
        """Print the epoch's line, and start the bar of the next epoch."""
        self._print(result.line(self._epochs))
        self._start_epoch(result.epoch + 1)

    def _start_epoch(self, epoch: int) -> None:
        if self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None
        if epoch <= self._epochs:
            self._task = self._bar.add_task("", total=self._images, epoch=f"{epoch}/{self._epochs}", figures="")
        self._started = self._shown = time.perf_counter()
