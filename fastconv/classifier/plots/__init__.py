"""Pictures of a run: training curves, predictions, mistakes, and the network's weights and feature maps.

Every function returns a PNG file. Colour-blind readers can distinguish the colours: blue and red, or blue and orange.
Colour scales have one hue, or two hues with white between them.
"""

from fastconv.classifier.plots.confusion import confusion_counts, confusion_matrix
from fastconv.classifier.plots.curves import training_curves
from fastconv.classifier.plots.network import feature_maps, filters
from fastconv.classifier.plots.predictions import prediction_grid, worst_mistakes
from fastconv.classifier.plots.style import RIGHT, WRONG

__all__ = [
    "RIGHT",
    "WRONG",
    "confusion_counts",
    "confusion_matrix",
    "feature_maps",
    "filters",
    "prediction_grid",
    "training_curves",
    "worst_mistakes",
]
