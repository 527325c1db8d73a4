"""Pictures of a network's predictions and of its mistakes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastconv.classifier.data import CLASS_NAMES
from fastconv.classifier.plots.style import (
    FAINT,
    OTHER,
    RIGHT,
    WRONG,
    drawn,
    drawn_names,
    hide,
    new_figure,
    percent,
    png,
    show_image,
)

_COLUMNS = 3
# Up to 12 classes with names of up to 2 letters have vertical bars. Otherwise the bars are horizontal, and only the 5
# most probable classes and the true class have one.
_VERTICAL_MAX_BARS = 12
_VERTICAL_NAME_LENGTH = 2
_LIKELIEST = 5
_NAME_LENGTH = 18
_CAPTION_LENGTH = 14  # for names under an image, which are followed by a percentage


def prediction_grid(
    images: Tensor,
    labels: Tensor,
    probabilities: Tensor,
    first: int = 0,
    title: str = "",
    class_names: Sequence[str] = CLASS_NAMES,
    columns: int = _COLUMNS,
) -> bytes:
    """Draw each image with its predicted class and percentage, beside a bar chart of the probabilities.

    A correct prediction is blue. A wrong one is red; the true class follows in brackets, and its bar is blue. If there
    are more than twelve classes, or their names have more than two letters, the chart shows the five most probable
    classes and the true one.

    Args:
        images: (N, 1, H, W), drawn dark on light, or (N, 3, H, W), drawn in colour.
        labels: (N,), the true classes.
        probabilities: (N, classes).
        first: the number of the first image.
        title: a line above the grid.
        class_names: the names of the classes. Long names are shortened in the middle.
        columns: the number of images per row.

    Returns:
        A PNG file.
    """
    names = drawn_names(class_names, _NAME_LENGTH)
    captions = drawn_names(class_names, _CAPTION_LENGTH)
    vertical = len(names) <= _VERTICAL_MAX_BARS and max(map(len, names)) <= _VERTICAL_NAME_LENGTH
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    width, height, ratio = (4.2, 2.1, 1.3) if vertical else (5, 2.3, 1.0)
    figure = new_figure(width * columns, height * rows + 0.5)
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)  # type: ignore[union-attr, call-arg]
    if title:
        figure.suptitle(drawn(title))
    axes = figure.subplots(rows, 2 * columns, squeeze=False, width_ratios=[1, ratio] * columns).ravel()
    for index, (image, label, row) in enumerate(zip(images, labels.tolist(), probabilities.numpy(), strict=True)):
        picture, chart = axes[2 * index], axes[2 * index + 1]
        predicted = int(row.argmax())
        text = f"{captions[predicted]}  {100 * row[predicted]:.0f} %"
        if predicted != label:
            text += ("  " if vertical else "\n") + f"(is {captions[label]})"
        show_image(picture, image)
        picture.set_title(f"no. {first + index}", fontsize=8, color=FAINT)
        picture.set_xlabel(
            text, color=RIGHT if predicted == label else WRONG, fontsize=12 if vertical else 9, fontweight="bold"
        )
        (_vertical_bars if vertical else _horizontal_bars)(chart, row, label, names)
    hide(axes[2 * len(images) :])
    return png(figure)


def _colours(count: int, label: int, predicted: int) -> list[str]:
    colours = [OTHER] * count
    colours[predicted] = WRONG
    colours[label] = RIGHT
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
    images: Tensor,
    labels: Tensor,
    probabilities: Tensor,
    class_names: Sequence[str] = CLASS_NAMES,
    count: int = 12,
) -> bytes:
    """Draw the wrongly predicted images with the largest loss, in the order of the loss.

    Args:
        images: (N, 1, H, W) or (N, 3, H, W).
        labels: (N,), the true classes.
        probabilities: (N, classes).
        class_names: the names of the classes.
        count: the maximum number of images.

    Returns:
        A PNG file. If there is no mistake, it contains only a sentence that says so.
    """
    losses = -probabilities.gather(1, labels[:, None])[:, 0].clamp(min=1e-30).log()
    wrong = torch.nonzero(probabilities.argmax(1) != labels)[:, 0]
    worst = wrong[losses[wrong].argsort(descending=True, stable=True)][:count]
    if not len(worst):
        figure = new_figure(6.4, 1.2)
        figure.text(0.5, 0.5, f"No mistakes among {len(images)} images.", ha="center", va="center", fontsize=13)
        return png(figure)
    names = drawn_names(class_names, _CAPTION_LENGTH)
    small = max(map(len, names)) > 4
    columns = 4
    rows = math.ceil(len(worst) / columns)
    figure = new_figure(1.9 * columns, 2.45 * rows)
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)  # type: ignore[union-attr, call-arg]
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for place, index in zip(axes, worst.tolist(), strict=False):
        label, predicted = int(labels[index]), int(probabilities[index].argmax())
        show_image(place, images[index])
        place.set_title(f"no. {index}, loss {losses[index]:.2f}", fontsize=8, color=FAINT)
        # A label has only one colour, so the true class is a second label.
        text = f"{names[predicted]}  {percent(probabilities[index, predicted].item())}"
        place.set_xlabel(text, color=WRONG, fontsize=9 if small else 10, fontweight="bold", labelpad=3)
        place.annotate(
            f"is {names[label]}  {percent(probabilities[index, label].item())}",
            (0.5, 0), (0, -28), "axes fraction", "offset points", color=RIGHT, ha="center", va="bottom",
            fontsize=8 if small else 9,
        )  # fmt: skip
    hide(axes[len(worst) :])
    return png(figure)
