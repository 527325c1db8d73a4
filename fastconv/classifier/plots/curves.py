"""Training curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastconv.classifier.plots.style import TRAINING, VALIDATION, new_figure, png


def training_curves(history: Sequence[Mapping[str, Any]], loss: str = "cross-entropy") -> bytes:
    """Draw the loss and the accuracy of the training and validation images by epoch.

    Args:
        history: the fields of :class:`fastconv.classifier.history.EpochResult` by epoch, as in history.json. If
            ``val_loss`` is None, there are no validation images, and only the training curve is drawn.
        loss: the name of the loss, one of :data:`fastconv.classifier.config.LOSSES`.

    Returns:
        A PNG file.

    Raises:
        ValueError: if there is no epoch.
    """
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    if not history:
        raise ValueError("no epoch to draw")
    epochs = [result["epoch"] for result in history]
    # The charts are stacked, so that both are wide enough on a phone.
    figure = new_figure(5.4, 5.4)
    losses, accuracies = figure.subplots(2, 1, sharex=True)
    for axes, name in ((losses, "loss"), (accuracies, "accuracy")):
        training = [result[name] for result in history]
        axes.plot(epochs, training, "o-", color=TRAINING, markersize=5, label="training")
        if all(result[f"val_{name}"] is not None for result in history):
            held_out = [result[f"val_{name}"] for result in history]
            axes.plot(epochs, held_out, "s--", color=VALIDATION, markersize=5, label="validation")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="0.9")
        for line in axes.get_lines():
            line.set_clip_on(False)  # do not cut off markers at the edge, at a loss of 0 or an accuracy of 100 %
        axes.set_axisbelow(True)
    # The legend is above the charts, so that it hides no curve.
    figure.legend(*losses.get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    losses.set_ylabel(f"loss ({loss}, nats)" if loss == "cross-entropy" else f"loss ({loss})")
    losses.set_ylim(bottom=0)
    accuracies.set_ylabel("accuracy (% of images)")
    accuracies.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.4g}"))
    accuracies.set_xlabel("epoch")
    accuracies.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(epochs) == 1:
        accuracies.set_xlim(epochs[0] - 1, epochs[0] + 1)
        accuracies.set_xticks(epochs)
    low = min(min(line.get_ydata()) for line in accuracies.get_lines())  # type: ignore[type-var]
    # The axis ends at 100 % and spans at least 1 %, so that noise does not look large.
    accuracies.set_ylim(max(0.0, min(0.99, low - 0.08 * (1 - low))), 1.0)
    figure.align_ylabels()
    return png(figure)
