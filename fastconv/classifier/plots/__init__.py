"""Pictures of a run: training curves, predictions, mistakes, and the network's weights and feature maps.

Every function accepts arrays and tensors, and returns a figure of matplotlib, which a notebook shows. ``path=`` writes
it to a file, and ``ax=`` draws it in the place of axes of your own figure. :func:`png` returns it as a PNG file.

Colour-blind readers can distinguish the colours: blue and red, or blue and orange. Colour scales have one hue, or two
hues with a neutral colour between them. In a dark style of matplotlib, or within :func:`dark`, colours are brighter.
"""

from fastconv.classifier.plots.confusion import confusion_counts, confusion_matrix
from fastconv.classifier.plots.curves import training_curves
from fastconv.classifier.plots.network import feature_maps, filters
from fastconv.classifier.plots.predictions import prediction_grid, worst_mistakes
from fastconv.classifier.plots.style import RIGHT, WRONG, dark, png

__all__ = [
    "RIGHT",
    "WRONG",
    "confusion_counts",
    "confusion_matrix",
    "dark",
    "feature_maps",
    "filters",
    "png",
    "prediction_grid",
    "training_curves",
    "worst_mistakes",
]
