"""Pictures of what a network predicts."""

import io
import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from fastconv.mnist.data import CLASS_NAMES

RIGHT = "tab:blue"
WRONG = "tab:red"
_OTHER = "0.65"
_COLUMNS = 3


def prediction_grid(
    images: Tensor,
    labels: Tensor,
    probabilities: Tensor,
    first: int = 0,
    title: str = "",
    class_names: Sequence[str] = CLASS_NAMES,
) -> bytes:
    """Draw each image with its predicted label and percentage, beside a bar chart of the probabilities.

    The prediction is blue when it is right; when it is wrong it is red, and the right class is added in brackets, its
    bar in blue.

    Args:
        images: (N, 1, H, W), drawn dark on light, or (N, 3, H, W), in their colours.
        labels: (N,), the right classes.
        probabilities: (N, classes).
        first: the index of the first image, to number them by.
        title: a line above the grid.
        class_names: of the labels.

    Returns:
        A PNG file.
    """
    # Figure and FigureCanvasAgg rather than pyplot: no global state, and no window system, whatever the user has set.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(_COLUMNS, len(images))
    rows = math.ceil(len(images) / columns)
    figure = Figure(figsize=(4.2 * columns, 2.1 * rows + 0.5), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)  # type: ignore[union-attr, call-arg]
    if title:
        figure.suptitle(title)
    axes = figure.subplots(rows, 2 * columns, squeeze=False, width_ratios=[1, 1.3] * columns).ravel()
    for index, (image, label, row) in enumerate(
        zip(images.numpy(), labels.tolist(), probabilities.numpy(), strict=True)
    ):
        picture, chart = axes[2 * index], axes[2 * index + 1]
        predicted = int(row.argmax())
        colour = RIGHT if predicted == label else WRONG
        text = f"{class_names[predicted]}  {row[predicted]:.0%}"
        if predicted != label:
            text += f"  (is {class_names[label]})"
        if len(image) == 1:
            picture.imshow(image[0], cmap="gray_r", vmin=0, vmax=1)
        else:
            picture.imshow(image.transpose(1, 2, 0))
        picture.set(xticks=[], yticks=[])
        picture.set_title(f"no. {first + index}", fontsize=8, color="0.4")
        picture.set_xlabel(text, color=colour, fontsize=12, fontweight="bold", parse_math=False)
        colours = [_OTHER] * len(row)
        colours[label] = RIGHT
        colours[predicted] = colour
        chart.bar(np.arange(len(row)), row, color=colours)
        chart.set(ylim=(0, 1), xticks=np.arange(len(row)), yticks=[0, 0.5, 1])
        # Names longer than a digit would overlap; a $ in one of a user's own is no formula.
        chart.set_xticklabels(class_names, rotation=90 if max(map(len, class_names)) > 2 else 0, parse_math=False)
        chart.set_yticklabels(["0", "50 %", "100 %"])
        chart.tick_params(labelsize=8, length=2)
        chart.spines[["top", "right"]].set_visible(False)
    for unused in axes[2 * len(images) :]:
        unused.set_axis_off()
    file = io.BytesIO()
    canvas.print_png(file)
    return file.getvalue()
