"""The confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastconv.classifier.arrays import as_tensor
from fastconv.classifier.plots.style import (
    axes_or_new,
    classes_of,
    colour_map,
    drawn,
    drawn_names,
    finished,
    names_of,
    palette,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MAX_COUNTED = 30  # with more classes, the numbers in the cells would be too small to read
_NAME_LENGTH = 16


def confusion_counts(labels: Tensor, predictions: Tensor, classes: int) -> Tensor:
    """Count the images of each true class (row) and predicted class (column).

    Shape:
        (N,), (N,) -> (classes, classes), int64.

    Example::

        >>> confusion_counts(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), 2)
        tensor([[1, 1],
                [0, 1]])
    """
    return torch.bincount(labels * classes + predictions, minlength=classes**2).reshape(classes, classes)


def confusion_matrix(
    labels: Any,
    predictions: Any,
    class_names: Sequence[str] | None = None,
    title: str | None = None,
    *,
    ax: Any = None,
    path: str | Path | None = None,
) -> Figure:
    """Draw the number of images of each true class (row) and predicted class (column).

    The colour shows the share of the row's images. Its scale is a square root, so that a share of 1 % is visible beside
    the diagonal.

    Args:
        labels: (N,), the true classes, or one-hot rows (N, classes).
        predictions: (N,), the predicted classes, or probabilities (N, classes).
        class_names: the names of the classes. ``None`` means their numbers. Above 30 classes, cells have no numbers.
        title: a line above the matrix. ``None`` gives the number of correct predictions.
        ax: axes to draw into, or a subfigure. ``None`` makes a new figure.
        path: a file to write, such as confusion.png or confusion.pdf.

    Raises:
        ValueError: if a class has no name, or there are more labels than predictions or fewer.
    """
    from matplotlib.colors import PowerNorm

    rows = max((values.shape[1] for values in map(as_tensor, (labels, predictions)) if values.dim() == 2), default=1)
    labels, predictions = classes_of(labels), classes_of(predictions)
    if len(labels) != len(predictions):
        raise ValueError(f"there are {len(labels)} labels, but {len(predictions)} predictions")
    highest = int(torch.cat([labels, predictions]).max()) + 1 if len(labels) else 1
    class_names = names_of(class_names, max(rows, highest))
    classes = len(class_names)
    if highest > classes:
        raise ValueError(f"class {highest - 1} has no name: class_names has {classes} names")
    counts = confusion_counts(labels, predictions, classes)
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    names = drawn_names(class_names, _NAME_LENGTH)
    longest = max(map(len, names))
    cells = min(max(3.4, 0.42 * classes), 12.8)  # inches
    size = cells + 1 + (0.07 * longest if longest > 3 else 0)
    axes = axes_or_new(ax, size + 0.8, size + 0.3)
    figure = axes.figure
    if title is None:
        title = f"Confusion matrix: {int(counts.diagonal().sum()):,} of {len(labels):,} correct"
    if title:
        axes.set_title(drawn(title), fontsize=11)
    colours = palette()
    image = axes.imshow(shares.numpy(), cmap=colour_map(colours.sequential), norm=PowerNorm(0.5, 0, 1))
    bar = figure.colorbar(image, ax=axes, shrink=0.8, ticks=[0, 0.01, 0.05, 0.2, 0.5, 1])
    bar.ax.set_yticklabels(["0", "1", "5", "20", "50", "100"])
    bar.set_label("share of the row's images (%)")
    every = range(0, classes, -(-classes // 50))
    small = 9 if classes <= 20 else 7
    axes.set_xticks(every, [names[index] for index in every], fontsize=small, rotation=90 if longest > 3 else 0)
    axes.set_yticks(every, [names[index] for index in every], fontsize=small)
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.tick_params(length=0)
    # Thin lines between the cells.
    axes.set_xticks([edge - 0.5 for edge in range(1, classes)], minor=True)
    axes.set_yticks([edge - 0.5 for edge in range(1, classes)], minor=True)
    axes.tick_params(which="minor", length=0)
    axes.grid(which="minor", color=colours.gap, linewidth=1 if classes <= _MAX_COUNTED else 0.3)
    if classes <= _MAX_COUNTED:
        _write_counts(axes, counts, shares, cells)
    return finished(figure, path)


def _write_counts(axes: Any, counts: Tensor, shares: Tensor, cells: float) -> None:
    """Write the number of images into each cell of the matrix, which is ``cells`` inches wide."""
    # The width of a digit is 0.64 of the font size. The factor 0.8 allows for the axes around the matrix.
    digits = len(str(int(counts.max())))
    fitting = min(10.0, 0.8 * 72 * cells / len(counts) / (0.64 * digits))
    low, high, none = palette().on_sequential
    for row, line in enumerate(counts.tolist()):
        for column, count in enumerate(line):
            share = shares[row, column].item()
            colour = high if share > 0.35 else none if count == 0 else low
            axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=fitting)
