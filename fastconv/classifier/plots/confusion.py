"""The confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastconv.classifier.data import CLASS_NAMES
from fastconv.classifier.plots.style import drawn_names, new_figure, png

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


def confusion_matrix(labels: Tensor, predictions: Tensor, class_names: Sequence[str] = CLASS_NAMES) -> bytes:
    """Draw the number of images of each true class (row) and predicted class (column).

    The colour shows the share of the row's images, on a square-root scale, so that 1 % is visible beside the diagonal.

    Args:
        labels: (N,), the true classes.
        predictions: (N,), the predicted classes.
        class_names: the names of the classes. Above 30 classes, the cells have no numbers.

    Returns:
        A PNG file.
    """
    from matplotlib.colors import PowerNorm

    classes = len(class_names)
    counts = confusion_counts(labels, predictions, classes)
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    names = drawn_names(class_names, _NAME_LENGTH)
    longest = max(map(len, names))
    cells = min(max(3.4, 0.42 * classes), 12.8)  # inches
    size = cells + 1 + (0.07 * longest if longest > 3 else 0)
    figure = new_figure(size + 0.8, size)
    axes = figure.subplots()
    image = axes.imshow(shares.numpy(), cmap="Blues", norm=PowerNorm(0.5, 0, 1))
    bar = figure.colorbar(image, ax=axes, shrink=0.8, ticks=[0, 0.01, 0.05, 0.2, 0.5, 1])
    bar.ax.set_yticklabels(["0", "1", "5", "20", "50", "100"])
    bar.set_label("share of the row's images (%)")
    every = range(0, classes, -(-classes // 50))
    small = 9 if classes <= 20 else 7
    axes.set_xticks(every, [names[index] for index in every], fontsize=small, rotation=90 if longest > 3 else 0)
    axes.set_yticks(every, [names[index] for index in every], fontsize=small)
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.tick_params(length=0)
    # Thin white lines between the cells.
    axes.set_xticks([edge - 0.5 for edge in range(1, classes)], minor=True)
    axes.set_yticks([edge - 0.5 for edge in range(1, classes)], minor=True)
    axes.tick_params(which="minor", length=0)
    axes.grid(which="minor", color="white", linewidth=1 if classes <= _MAX_COUNTED else 0.3)
    if classes <= _MAX_COUNTED:
        # The width of a digit is 0.64 of the font size. The factor 0.8 allows for the axes around the matrix.
        digits = len(str(int(counts.max())))
        fitting = min(10.0, 0.8 * 72 * cells / classes / (0.64 * digits))
        for row, line in enumerate(counts.tolist()):
            for column, count in enumerate(line):
                share = shares[row, column].item()
                colour = "white" if share > 0.35 else "0.75" if count == 0 else "0.1"
                axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=fitting)
    return png(figure)
