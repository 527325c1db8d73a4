"""The progress of :meth:`Classifier.fit`: a bar on a terminal and in a notebook, or a line per epoch."""

from __future__ import annotations

import sys
import time
from contextlib import AbstractContextManager
from typing import Any

from fastconv.classifier.fit import Totals
from fastconv.classifier.history import EpochResult

#: Seconds between updates of the bar. Each update reads the sums, which waits for the step to end.
_INTERVAL = 0.2


class Progress(AbstractContextManager["Progress"]):
    """Show the progress of a training on the standard output.

    Args:
        epochs: the number of epochs.
        steps: the number of steps of an epoch, or ``None`` if it is not known.
        verbose: 0 shows nothing, 1 a bar for the current epoch and a line for each finished one, 2 only the lines.
            Where a bar cannot be drawn, such as in a file, 1 means 2.

    Raises:
        ValueError: if ``verbose`` is something else.

    Example::

        >>> with Progress(epochs=1, steps=10, verbose=2) as progress:
        ...     progress.epoch_done(EpochResult(1, 0.5, 0.75, None, None, 1.0, 640.0))
        epoch 1/1  loss 0.5000  accuracy 75.00%  1.0 s  640 images/s
    """

    def __init__(self, epochs: int, steps: int | None, verbose: int | str) -> None:
        if verbose not in (0, 1, 2, "auto"):
            raise ValueError(f"verbose must be 0 (silent), 1 (a bar) or 2 (a line per epoch), not {verbose!r}")
        self._epochs, self._steps = epochs, steps
        self._lines = verbose != 0
        self._draws = verbose in (1, "auto") and _can_draw_a_bar()
        self._bar: Any = None
        self._shown = 0.0

    def __exit__(self, *_: object) -> None:
        self._close()

    def epoch_begun(self, epoch: int) -> None:
        """Draw the bar of an epoch, counted from 1."""
        if self._draws:
            from tqdm import tqdm

            # tqdm.auto would need a widget in a notebook, which saved notebooks and other front ends do not show.
            self._bar = tqdm(
                total=self._steps,
                desc=f"epoch {epoch}/{self._epochs}",
                file=sys.stdout,
                leave=False,
                ncols=None if sys.stdout.isatty() else 100,
                dynamic_ncols=sys.stdout.isatty(),
                unit="step",
            )

    def step(self, totals: Totals) -> None:
        """Move the bar by a step, and show the means so far a few times per second."""
        if self._bar is None:
            return
        now = time.perf_counter()
        if totals.own and now - self._shown >= _INTERVAL:
            self._shown = now
            loss, accuracy = totals.means()
            self._bar.set_postfix_str(f"loss {loss:.4f}, accuracy {accuracy:.2%}", refresh=False)
        self._bar.update()

    def epoch_done(self, result: EpochResult) -> None:
        """Replace the bar with a line of figures."""
        self._close()
        if self._lines:
            print(result.line(self._epochs), flush=True)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _can_draw_a_bar() -> bool:
    """Return whether the standard output is a terminal or the cell of a notebook, where a line can be overwritten."""
    if sys.stdout.isatty():
        return True
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return hasattr(shell, "kernel")
