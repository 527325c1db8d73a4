"""Pictures of a network's predictions and of its mistakes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fastconv.classifier.arrays import as_tensor
from fastconv.classifier.plots.style import (
    classes_of,
    colour_legend,
    drawable,
    drawn,
    drawn_names,
    figure_or_part,
    finished,
    hide,
    names_of,
    pad,
    palette,
    percent,
    probabilities_of,
    show_image,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = 3
_MOST_IMAGES = 200  # more would make a figure of several metres
# Up to 12 classes with names of up to 2 letters have vertical bars. Otherwise the bars are horizontal, and only the 5
# most probable classes and the true class have one.
_VERTICAL_MAX_BARS = 12
_VERTICAL_NAME_LENGTH = 2
_LIKELIEST = 5
_NAME_LENGTH = 18
_CAPTION_LENGTH = 14  # for names under an image, which are followed by a percentage


def prediction_grid(
    images: Any,
    labels: Any,
    probabilities: Any,
    first: int = 0,
    title: str | None = None,
    class_names: Sequence[str] | None = None,
    columns: int = _COLUMNS,
    *,
    ax: Any = None,
    path: str | Path | None = None,
) -> Figure:
    """Draw each image with its predicted class and percentage, beside a bar chart of the probabilities.

    A correct prediction is blue. A wrong one is red; the true class follows in brackets, and its bar is blue. If there
    are more than twelve classes, or their names have more than two letters, the chart shows the five most probable
    classes and the true one.

    Args:
        images: arrays or tensors (N, H, W), (N, C, H, W) or (N, H, W, C), at most 200. Grey images are drawn dark on
            light.
        labels: (N,), the true classes, or one-hot rows.
        probabilities: (N, classes), as :meth:`Classifier.predict` returns them.
        first: the number of the first image.
        title: a line above the grid. ``None`` gives the number of correct predictions.
        class_names: the names of the classes. ``None`` means their numbers. Long names are shortened in the middle.
        columns: the number of images per row.
        ax: axes in whose place the grid is drawn, or a subfigure. ``None`` makes a new figure.
        path: a file to write, such as predictions.png or predictions.pdf.

    Raises:
        ValueError: if the arguments do not fit together, or there is no image.
    """
    images, labels, rows_of, class_names = _checked(images, labels, probabilities, class_names)
    if not 1 <= len(images) <= _MOST_IMAGES:
        raise ValueError(f"1 to {_MOST_IMAGES} images can be drawn, not {len(images)}: pass a part, as images[:15]")
    names, captions = drawn_names(class_names, _NAME_LENGTH), drawn_names(class_names, _CAPTION_LENGTH)
    vertical = len(names) <= _VERTICAL_MAX_BARS and max(map(len, names)) <= _VERTICAL_NAME_LENGTH
    columns = max(1, min(columns, len(images)))
    rows = math.ceil(len(images) / columns)
    width, height, ratio = (4.2, 2.1, 1.3) if vertical else (5, 2.3, 1.0)
    figure = figure_or_part(ax, width * columns, height * rows + 0.8)
    pad(figure, 0.12, 0.1)
    colours = palette()
    if title is None:
        right = int((rows_of.argmax(1) == labels).sum())
        title = f"{right} of {len(images)} predictions are correct"
    if title:
        figure.suptitle(drawn(title))
    axes = figure.subplots(rows, 2 * columns, squeeze=False, width_ratios=[1, ratio] * columns).ravel()
    for index, (image, label, row) in enumerate(zip(images, labels.tolist(), rows_of.numpy(), strict=True)):
        picture, chart = axes[2 * index], axes[2 * index + 1]
        predicted = int(row.argmax())
        text = f"{captions[predicted]}  {100 * row[predicted]:.0f} %"
        if predicted != label:
            text += ("  " if vertical else "\n") + f"(is {captions[label]})"
        show_image(picture, image)
        picture.set_title(f"no. {first + index}", fontsize=8, color=colours.faint)
        colour = colours.right if predicted == label else colours.wrong
        picture.set_xlabel(text, color=colour, fontsize=12 if vertical else 9, fontweight="bold")
        (_vertical_bars if vertical else _horizontal_bars)(chart, row, label, names)
    hide(axes[2 * len(images) :])
    colour_legend(figure, {"correct prediction, true class": colours.right, "wrong prediction": colours.wrong})
    return finished(figure, path)


def _checked(
    images: Any, labels: Any, probabilities: Any, class_names: Sequence[str] | None
) -> tuple[Tensor, Tensor, Tensor, Sequence[str]]:
    """Convert the arguments of a plot to tensors, and check that they fit together."""
    images, labels = drawable(images), classes_of(labels)
    if len(images) != len(labels):
        raise ValueError(f"there are {len(images)} images, but {len(labels)} labels")
    values = as_tensor(probabilities)
    classes = values.shape[1] if values.dim() == 2 else 0
    rows = probabilities_of(values, len(images), len(class_names) if class_names is not None else classes)
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < rows.shape[1]:
        raise ValueError(f"labels must be 0 to {rows.shape[1] - 1}, not {int(labels.min())} to {int(labels.max())}")
    return images, labels, rows, names_of(class_names, rows.shape[1])


def _colours(count: int, label: int, predicted: int) -> list[str]:
    shown = palette()
    colours = [shown.other] * count
    colours[predicted] = shown.wrong
    colours[label] = shown.right
    return colours


def _vertical_bars(chart: Any, row: np.ndarray[Any, Any], label: int, names: Sequence[str]) -> None:
    """Draw a vertical bar for every class."""
    chart.bar(np.arange(len(row)), row, color=_colours(len(row), label, int(row.argmax())))
    chart.set(ylim=(0, 1), yticks=[0, 0.5, 1])
    chart.set_xticks(np.arange(len(row)), names)
    chart.set_yticklabels(["0", "50 %", "100 %"])
    _tidy(chart)


def _horizontal_bars(chart: Any, row: np.ndarray[Any, Any], label: int, names: Sequence[str]) -> None:
    """Draw a horizontal bar for each of the most probable classes, and for the true class."""
    shown = np.argsort(-row, kind="stable")[:_LIKELIEST].tolist()
    if label not in shown:
        shown.append(label)
    colours = _colours(len(row), label, shown[0])
    chart.barh(np.arange(len(shown)), row[shown], color=[colours[index] for index in shown], height=0.7)
    chart.set(xlim=(0, 1), xticks=[0, 0.5, 1])
    # All charts have the same number of places, so that all bars have the same height.
    chart.set_ylim(_LIKELIEST + 0.5, -0.6)
    chart.set_yticks(np.arange(len(shown)), [names[index] for index in shown])
    chart.set_xticklabels(["0", "50 %", "100 %"])
    _tidy(chart)


def _tidy(chart: Any) -> None:
    chart.tick_params(labelsize=8, length=2)
    chart.spines[["top", "right"]].set_visible(False)


def worst_mistakes(
    images: Any,
    labels: Any,
    probabilities: Any,
    class_names: Sequence[str] | None = None,
    count: int = 12,
    title: str | None = None,
    *,
    ax: Any = None,
    path: str | Path | None = None,
) -> Figure:
    """Draw the wrongly predicted images with the largest loss, in the order of the loss.

    If there is no mistake, the picture contains only a sentence that says so.

    Args:
        images, labels, probabilities, class_names, ax, path: as for :func:`prediction_grid`, for any number of images.
        count: the maximum number of images that are drawn.
        title: a line above the grid. ``None`` gives the number of mistakes.

    Raises:
        ValueError: if the arguments do not fit together.
    """
    images, labels, rows_of, class_names = _checked(images, labels, probabilities, class_names)
    losses = -rows_of.gather(1, labels[:, None])[:, 0].clamp(min=1e-30).log()
    wrong = torch.nonzero(rows_of.argmax(1) != labels)[:, 0]
    worst = wrong[losses[wrong].argsort(descending=True, stable=True)][: min(count, _MOST_IMAGES)]
    if not len(worst):
        figure = figure_or_part(ax, 6.4, 1.2)
        figure.text(0.5, 0.5, f"No mistakes among {len(images)} images.", ha="center", va="center", fontsize=13)
        return finished(figure, path)
    names = drawn_names(class_names, _CAPTION_LENGTH)
    small = max(map(len, names)) > 4
    columns = 4
    rows = math.ceil(len(worst) / columns)
    figure = figure_or_part(ax, 1.9 * columns, 2.45 * rows + 0.8)
    pad(figure, 0.08, 0.08)
    colours = palette()
    if title is None:
        title = f"The worst {len(worst)} of {len(wrong):,} mistakes among {len(images):,} images"
    if title:
        figure.suptitle(drawn(title), fontsize=11)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for place, index in zip(axes, worst.tolist(), strict=False):
        label, predicted = int(labels[index]), int(rows_of[index].argmax())
        show_image(place, images[index])
        place.set_title(f"no. {index}, loss {losses[index]:.2f}", fontsize=8, color=colours.faint)
        # A label has only one colour, so the true class is a second label.
        text = f"{names[predicted]}  {percent(rows_of[index, predicted].item())}"
        place.set_xlabel(text, color=colours.wrong, fontsize=9 if small else 10, fontweight="bold", labelpad=3)
        place.annotate(
            f"is {names[label]}  {percent(rows_of[index, label].item())}",
            (0.5, 0), (0, -28), "axes fraction", "offset points", color=colours.right, ha="center", va="bottom",
            fontsize=8 if small else 9,
        )  # fmt: skip
    hide(axes[len(worst) :])
    colour_legend(figure, {"predicted class": colours.wrong, "true class": colours.right})
    return finished(figure, path)
