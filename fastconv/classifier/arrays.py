"""Images and labels as programs have them: arrays, tensors and lists in the usual layouts.

Images have the layout (N, C, H, W), (N, H, W, C) or, with one channel, (N, H, W). uint8 values are divided by 255.
Floats are not scaled, so they should be in [0, 1]. Labels are integers (N,) or (N, 1), or one-hot rows (N, classes) of
any type of number.
"""

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastconv.classifier.config import TrainingError

#: Floats above this are probably not divided by 255. Augmented or interpolated images can be slightly above 1.
_HIGHEST = 1.5


def as_tensor(values: Any) -> Tensor:
    """Return ``values``, an array, a tensor, a list of numbers or of arrays, or a pandas Series, as a tensor."""
    if isinstance(values, Tensor):
        return values.detach()
    if isinstance(values, list | tuple) and values and all(isinstance(value, Tensor) for value in values):
        try:
            return torch.stack([value.detach() for value in values])
        except RuntimeError as error:
            raise TrainingError(f"these tensors do not have the same shape and type: {error}") from error
    try:
        array = np.asarray(values)
        # torch accepts neither an array of negative strides nor one that must not be written.
        usable = array.flags.writeable and all(stride >= 0 for stride in array.strides)
        return torch.as_tensor(array if usable else array.copy())
    except (TypeError, ValueError) as error:
        raise TrainingError(f"numbers are expected, all rows with the same shape: {error}") from error


def as_images(images: Any, shape: tuple[int, int, int]) -> Tensor:
    """Return ``images`` as a tensor (N, C, H, W), float32.

    Args:
        images: in a layout of this module. An image that could be (C, H, W) or (H, W, C) is read as (C, H, W).
        shape: (C, H, W) of an image.

    Raises:
        TrainingError: if the images have another shape, are integers other than uint8, or are not finite.

    Example::

        >>> as_images(np.full((2, 28, 28), 255, dtype=np.uint8), (1, 28, 28)).max(), as_images(
        ...     np.zeros((2, 32, 32, 3), dtype=np.float32), (3, 32, 32)).shape
        (tensor(1.), torch.Size([2, 3, 32, 32]))
    """
    images = as_tensor(images)
    C, H, W = shape
    found = tuple(images.shape[1:])
    if found == (H, W) and C == 1:
        images = images.unsqueeze(1)
    elif found == (H, W, C) and found != shape:
        images = images.permute(0, 3, 1, 2)
    elif found != shape:
        raise TrainingError(f"{_expected(shape)}, not {_dimensions(tuple(images.shape))}{_advice(found, shape)}")
    if len(images) == 0:
        raise TrainingError(f"{_expected(shape)}, with N at least 1, not {_dimensions(tuple(images.shape))}")
    return _scaled(images)


def _scaled(images: Tensor) -> Tensor:
    if images.dtype == torch.uint8:
        return images.float() / 255
    if not images.is_floating_point():
        raise TrainingError(f"images must be floats in [0, 1] or uint8, not {images.dtype}")
    low, high = (value.item() for value in images.detach().aminmax())
    if not np.isfinite(low) or not np.isfinite(high):
        raise TrainingError("images must be finite: some values are infinite or NaN")
    if high > _HIGHEST:
        warnings.warn(
            f"the images have floats up to {high:g}, but should be in [0, 1]: divide them by 255, or pass uint8",
            UserWarning,
            stacklevel=2,
        )
    return images.to(torch.float32)


def _expected(shape: tuple[int, int, int]) -> str:
    C, H, W = shape
    layouts = [(C, H, W), (H, W)] if C == 1 else [(C, H, W)]
    if shape != (H, W, C):
        layouts.append((H, W, C))
    return f"images must have the shape {' or '.join(_dimensions(('N', *layout)) for layout in layouts)}"


def _dimensions(shape: tuple[Any, ...]) -> str:
    return f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"


def _advice(found: tuple[int, ...], shape: tuple[int, int, int]) -> str:
    """Return what to do about images of the shape ``found``."""
    if found == () or len(found) > 3:
        return ""
    if len(found) == 1 and found[0] == int(np.prod(shape)):
        return f": reshape them to {_dimensions(('N', *shape))}"
    if shape[0] == 1 and found in (shape[1:2], (shape[2], 1)):
        return ": for a single image, add a dimension with images[None]"
    return ": if the images are right, pass Classifier(shape=(C, H, W))"


def as_labels(labels: Any, count: int, classes: int) -> Tensor:
    """Return ``labels`` as a tensor (N,), int64.

    Args:
        labels: in one of the forms of this module.
        count: the number of images.
        classes: the number of classes.

    Raises:
        TrainingError: if there is another number of labels, a row is not one-hot, or a label is out of range.

    Example::

        >>> as_labels([[0, 1], [1, 0]], 2, 2), as_labels(np.array([[1], [0]], dtype=np.uint8), 2, 2)
        (tensor([1, 0]), tensor([1, 0]))
    """
    labels = as_tensor(labels)
    if labels.dim() == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dim() == 2 and labels.shape[1] == classes:
        one_hot = ((labels == 0) | (labels == 1)).all() and (labels.sum(1) == 1).all()
        if not one_hot:
            raise TrainingError("labels of two dimensions must be one-hot: each row must have a single 1 and zeros")
        labels = labels.to(torch.uint8).argmax(1)
    if labels.shape != (count,) or labels.is_floating_point() or labels.is_complex():
        raise TrainingError(
            f"labels must be {count} integers or one-hot rows of {classes}, not {labels.dtype} of {tuple(labels.shape)}"
        )
    labels = labels.long()
    if count and not (labels.min() >= 0 and labels.max() < classes):
        raise TrainingError(f"labels must be 0 to {classes - 1}, not {labels.min()} to {labels.max()}")
    return labels
