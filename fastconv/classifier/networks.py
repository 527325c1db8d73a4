"""Build a network from its name or from a list of layers."""

from torch import nn

import fastconv.nn
from fastconv.builder import build_cnn
from fastconv.classifier.config import MODELS, TrainingError


def build_model(
    name: str, backend: str = "fastconv", shape: tuple[int, int, int] = (1, 28, 28), classes: int = 10
) -> nn.Module:
    """Build the network ``name`` with the layers of ``backend``.

    Args:
        name: one of :data:`~fastconv.classifier.config.MODELS`, or a list of layers as
            :func:`fastconv.builder.build_cnn` accepts it.
        backend: one of :data:`~fastconv.classifier.config.BACKENDS`.
        shape: (C, H, W) of an image.
        classes: the number of classes.

    Raises:
        TrainingError: if the images are too small for the network, or the network does not fit in memory.

    Example::

        >>> sum(parameter.numel() for parameter in build_model("mnist-cnn").parameters())
        241546
    """
    try:
        return build_cnn(MODELS.get(name, name), shape, classes, layers=nn if backend == "torch" else fastconv.nn)
    except ValueError as error:
        raise TrainingError(str(error)) from error
    except RuntimeError as error:  # torch's allocator; its message has many lines
        raise TrainingError(f"no memory for {name!r}: use fewer channels or units, or smaller images") from error
