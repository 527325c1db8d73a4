"""Training curves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastconv.classifier.history import epoch_figures
from fastconv.classifier.plots.style import figure_or_part, finished, palette

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def training_curves(
    history: Any,
    loss: str = "cross-entropy",
    title: str = "Training",
    *,
    ax: Any = None,
    path: str | Path | None = None,
) -> Figure:
    """Draw the loss and the accuracy of the training and validation images by epoch.

    Args:
        history: the result of :meth:`Classifier.fit`, its dict ``history.history``, a History of Keras, or the epochs
            of history.json. Without validation figures, only the training curve is drawn.
        loss: the name of the loss, for the axis.
        title: a line above the charts.
        ax: axes in whose place the charts are drawn, or a subfigure. ``None`` makes a new figure.
        path: a file to write, such as curves.png or curves.pdf.

    Raises:
        ValueError: if there is no epoch, or a figure is missing.

    Example::

        >>> figure = training_curves({"loss": [0.5, 0.4], "accuracy": [0.8, 0.9]})
        >>> [axes.get_ylabel() for axes in figure.axes]
        ['loss (cross-entropy, nats)', 'accuracy (%)']
    """
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    results = epoch_figures(history)
    epochs = [result["epoch"] for result in results]
    colours = palette()
    # The charts are stacked, so that both are wide enough on a phone.
    part = figure_or_part(ax, 5.4, 5.6)
    losses, accuracies = part.subplots(2, 1, sharex=True)
    for axes, name in ((losses, "loss"), (accuracies, "accuracy")):
        training = [result[name] for result in results]
        axes.plot(epochs, training, "o-", color=colours.training, markersize=5, label="training")
        if all(result[f"val_{name}"] is not None for result in results):
            held_out = [result[f"val_{name}"] for result in results]
            axes.plot(epochs, held_out, "s--", color=colours.validation, markersize=5, label="validation")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color=colours.grid)
        for line in axes.get_lines():
            line.set_clip_on(False)  # do not cut off markers at the edge, at a loss of 0 or an accuracy of 100 %
        axes.set_axisbelow(True)
    if title:
        part.suptitle(title, fontsize=12)
    # The legend is outside of the charts, so that it hides no curve.
    part.legend(*losses.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    losses.set_ylabel(f"loss ({loss}, nats)" if loss == "cross-entropy" else f"loss ({loss})")
    if min(min(line.get_ydata()) for line in losses.get_lines()) >= 0:
        losses.set_ylim(bottom=0)
    accuracies.set_ylabel("accuracy (%)")
    accuracies.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.4g}"))
    accuracies.set_xlabel("epoch")
    accuracies.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(epochs) == 1:
        accuracies.set_xlim(epochs[0] - 1, epochs[0] + 1)
        accuracies.set_xticks(epochs)
    low = min(min(line.get_ydata()) for line in accuracies.get_lines())
    # The axis ends at 100 % and spans at least 1 %, so that noise does not look large.
    accuracies.set_ylim(max(0.0, min(0.99, low - 0.08 * (1 - low))), 1.0)
    part.align_ylabels([losses, accuracies])
    return finished(part, path)
