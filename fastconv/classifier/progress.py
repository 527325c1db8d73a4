"""The progress of a training: a bar on a terminal and in a notebook, lines elsewhere, and a line for each epoch."""

from __future__ import annotations

import sys
import time
from contextlib import AbstractContextManager
from typing import IO, Any

from fastconv.classifier.fit import Totals
from fastconv.classifier.history import EpochResult

#: Seconds between updates of the bar, and between lines. Each reads the sums, which waits for the step to end.
_INTERVAL = 0.2
_LINE_INTERVAL = 30.0


class Progress(AbstractContextManager["Progress"]):
    """Show the progress of a training.

    Args:
        epochs: the number of epochs.
        steps: the number of steps of an epoch, if it is known.
        images: the number of images of an epoch. If it is given, the bar counts them. Without a bar, a line is printed
            every 30 s.
        file: the stream. ``None`` means the standard output.
        bar: whether to draw a bar for the current epoch.
        lines: whether to print anything else.

    Example::

        >>> with Progress(epochs=1, steps=10) as progress:
        ...     progress.epoch_done(EpochResult(1, 0.5, 0.75, None, None, 1.0, 640.0))
        epoch 1/1  loss 0.5000  accuracy 75.00%  1.0 s  640 images/s
    """

    def __init__(
        self,
        epochs: int,
        steps: int | None = None,
        images: int | None = None,
        file: IO[str] | None = None,
        bar: bool = False,
        lines: bool = True,
    ) -> None:
        self._epochs, self._steps, self._images = epochs, steps, images
        self._file, self._draws, self._lines = file or sys.stdout, bar, lines
        self._bar: Any = None
        self._started = self._shown = 0.0

    @classmethod
    def for_fit(cls, epochs: int, steps: int | None, verbose: int | str) -> Progress:
        """Create what ``verbose`` of :meth:`Classifier.fit` means: 0 nothing, 1 a bar and lines, 2 only the lines.

        Where a bar cannot be drawn, such as in a file, 1 means 2.

        Raises:
            ValueError: if ``verbose`` is something else.
        """
        if verbose not in (0, 1, 2, "auto"):
            raise ValueError(f"verbose must be 0 (silent), 1 (a bar) or 2 (a line per epoch), not {verbose!r}")
        return cls(epochs, steps, bar=verbose in (1, "auto") and _can_draw_a_bar(), lines=verbose != 0)

    def __exit__(self, *_: object) -> None:
        self._close()

    def epoch_begun(self, epoch: int) -> None:
        """Draw the bar of an epoch, counted from 1."""
        self._started = self._shown = time.perf_counter()
        if self._draws:
            from tqdm import tqdm

            # tqdm.auto would need a widget in a notebook, which saved notebooks and other front ends do not show.
            self._bar = tqdm(
                total=self._steps if self._images is None else self._images,
                desc=f"epoch {epoch}/{self._epochs}",
                file=self._file,
                leave=False,
                ncols=None if self._file.isatty() else 100,
                dynamic_ncols=self._file.isatty(),
                unit="step" if self._images is None else "image",
            )

    def step(self, epoch: int, totals: Totals) -> None:
        """Move the bar, and show the means so far a few times per second. Without a bar, print a line now and then."""
        now = time.perf_counter()
        is_due = now - self._shown >= (_LINE_INTERVAL if self._bar is None else _INTERVAL) and totals.own > 0
        if is_due:
            self._shown = now
        if self._bar is not None:
            if is_due:
                self._bar.set_postfix_str(_means(totals), refresh=False)
            self._bar.update(1 if self._images is None else totals.images - self._bar.n)
        elif is_due and self._lines and self._images is not None:
            speed = totals.images / (now - self._started)
            left = (self._images - totals.images) / speed
            self._print(
                f"epoch {epoch}/{self._epochs}  {totals.images:,} of {self._images:,} images  {_means(totals)}"
                f"  {speed:,.0f} images/s  {left:,.0f} s left in this epoch"
            )

    def epoch_done(self, result: EpochResult) -> None:
        """Replace the bar with a line of figures."""
        self._close()
        if self._lines:
            self._print(result.line(self._epochs))

    def _print(self, line: str) -> None:
        print(line, file=self._file, flush=True)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _means(totals: Totals) -> str:
    loss, accuracy = totals.means()
    return f"loss {loss:.4f}  accuracy {accuracy:.2%}"


def _can_draw_a_bar() -> bool:
    """Return whether the standard output is a terminal or the cell of a notebook, where a line can be overwritten."""
    if sys.stdout.isatty():
        return True
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return hasattr(shell, "kernel")
