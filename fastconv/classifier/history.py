"""The figures of each epoch."""

import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

#: The figures that every epoch has.
_ALWAYS = ("loss", "accuracy", "val_loss", "val_accuracy")


@dataclass(frozen=True)
class EpochResult:
    """The figures of one epoch, which is counted from 1.

    ``loss`` and ``accuracy`` are means over the epoch, during which the weights change. ``val_loss`` and
    ``val_accuracy`` are those of the validation images after the epoch, or ``None`` without validation images.
    ``seconds`` excludes the validation.
    """

    epoch: int
    loss: float
    accuracy: float
    val_loss: float | None
    val_accuracy: float | None
    seconds: float
    images_per_second: float

    def logs(self) -> dict[str, float]:
        """Return the loss, the accuracy and the metrics by name, without those that are ``None``."""
        return {name: value for name in _ALWAYS if (value := getattr(self, name)) is not None}

    def line(self, epochs: int) -> str:
        """Return the figures as a line of text. ``epochs`` is the number of epochs of the run."""
        text = f"epoch {self.epoch}/{epochs}  loss {self.loss:.4f}  accuracy {self.accuracy:.2%}"
        if self.val_loss is not None and self.val_accuracy is not None:
            text += f"  validation loss {self.val_loss:.4f}  validation accuracy {self.val_accuracy:.2%}"
        for name, value in self.logs().items():
            if name not in _ALWAYS:
                text += f"  {name.replace('val_', 'validation ')} {value:.4f}"
        return text + f"  {self.seconds:.1f} s  {self.images_per_second:,.0f} images/s"


@dataclass(frozen=True)
class MeasuredEpochResult(EpochResult):
    """The figures of one epoch with further metrics, such as ``top2`` and, of the validation images, ``val_top2``."""

    metrics: Mapping[str, float]

    def logs(self) -> dict[str, float]:
        logs = super().logs() | dict(self.metrics)
        return dict(sorted(logs.items(), key=lambda pair: pair[0].startswith("val_")))  # otherwise in the given order


class History(list[EpochResult]):
    """The figures of each epoch: a list of :class:`EpochResult` with the attributes of Keras's History.

    All plots accept it. ``pandas.DataFrame(history.history)`` makes it a table.

    Attributes:
        history: the figures of all epochs by name: loss, accuracy, the metrics and, with validation images, the same
            names after ``val_``.
        epoch: the epochs, counted from 0 as in Keras.

    Example::

        >>> history = History([EpochResult(1, 0.5, 0.8, None, None, 2.0, 600.0)])
        >>> history.history, history.epoch
        ({'loss': [0.5], 'accuracy': [0.8]}, [0])
        >>> history
        epoch    loss  accuracy  seconds
            1  0.5000   80.00 %     2.00
    """

    @property
    def history(self) -> dict[str, list[float]]:
        columns: dict[str, list[float]] = {}
        for result in self:
            for name, value in result.logs().items():
                columns.setdefault(name, []).append(value)
        return columns

    @property
    def epoch(self) -> list[int]:
        return [result.epoch - 1 for result in self]

    def __repr__(self) -> str:
        if not self:
            return "History: no epoch yet"
        rows = self._rows()
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in rows)

    def _repr_html_(self) -> str:
        if not self:
            return f"<p>{self!r}</p>"
        head, *rows = (["<td>" + html.escape(cell) + "</td>" for cell in row] for row in self._rows())
        body = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
        return f"<table><tr>{''.join(head).replace('td>', 'th>')}</tr>{body}</table>"

    def _rows(self) -> list[list[str]]:
        """Return the cells of the table, with its header."""
        figures = self.history
        rows = [["epoch", *figures, "seconds"]]
        for result in self:
            logs = result.logs()
            cells = [_cell(name, logs[name]) if name in logs else "" for name in figures]
            rows.append([str(result.epoch), *cells, f"{result.seconds:.2f}"])
        return rows


def _cell(name: str, value: float) -> str:
    return f"{100 * value:.2f} %" if name.endswith("accuracy") else f"{value:.4f}"


def epoch_figures(history: Any) -> list[dict[str, Any]]:
    """Return the figures of each epoch as dicts with at least epoch, loss, accuracy, val_loss and val_accuracy.

    Args:
        history: a :class:`History`, a list of :class:`EpochResult` or of such dicts (the epochs of history.json), the
            dict of lists of Keras's ``history.history``, or an object with such an attribute.

    Raises:
        TypeError: if it is something else.
        ValueError: if there is no epoch, or a figure is missing.

    Example::

        >>> epoch_figures({"loss": [0.5], "accuracy": [0.75]})
        [{'epoch': 1, 'val_loss': None, 'val_accuracy': None, 'loss': 0.5, 'accuracy': 0.75}]
    """
    if not isinstance(history, Mapping | Sequence):
        history = getattr(history, "history", history)  # Keras's History
    if isinstance(history, Mapping):
        names = ["accuracy" if name == "acc" else "val_accuracy" if name == "val_acc" else name for name in history]
        columns: Iterable[tuple[Any, ...]] = zip(*history.values(), strict=True)
        epochs = [dict(zip(names, values, strict=True)) for values in columns]
    elif isinstance(history, Sequence) and not isinstance(history, str):
        epochs = [asdict(one) if isinstance(one, EpochResult) else one for one in history]
    else:
        raise TypeError(f"the figures of the epochs are expected, as fit() returns them, not {history!r}")
    if not epochs:
        raise ValueError("no epoch to draw")
    defaults = {"val_loss": None, "val_accuracy": None}
    figures = [{"epoch": index + 1, **defaults, **epoch} for index, epoch in enumerate(epochs)]
    lacking = [name for name in ("loss", "accuracy") if any(name not in epoch for epoch in figures)]
    if lacking:
        raise ValueError(f"the history has no {' and no '.join(lacking)}: compile with metrics=['accuracy']")
    return figures


def speed_line(speeds: Mapping[str, float]) -> str:
    """Compare the images per second of two backends in words.

    Example::

        >>> speed_line({"fastconv": 12700.0, "torch": 6000.0})
        'fastconv 12,700 images/s, torch 6,000 images/s: fastconv is 2.1 times faster'
    """
    (slow, least), (fast, most) = sorted(speeds.items(), key=lambda pair: pair[1])
    ratio = f"{most / least:.1f}"
    verdict = f"{fast} and {slow} are equally fast" if ratio == "1.0" else f"{fast} is {ratio} times faster"
    return ", ".join(f"{name} {speed:,.0f} images/s" for name, speed in speeds.items()) + f": {verdict}"
