"""The data structure of all data sets, and the error that their readers raise."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastconv.classifier.errors import UserError

#: The classes and the image size of MNIST, which are the defaults of this package.
CLASS_NAMES = tuple("0123456789")
IMAGE_SIZE = 28


class DataError(UserError):
    """A data set is missing, or one of its files is wrong."""


class ArgumentError(DataError):
    """An argument of :func:`fastconv.classifier.data.load` does not fit. The command names its option instead.

    The message is ``before``, ``argument`` and ``after``.
    """

    def __init__(self, before: str, argument: str, after: str = "") -> None:
        super().__init__(before + argument + after)
        self.before, self.argument, self.after = before, argument, after


@dataclass(frozen=True, repr=False)
class DataSet:
    """Images (N, C, H, W), float32 in [0, 1], and labels (N,), int64, for training and for testing.

    ``class_names`` has the name of each label.

    Example::

        >>> part = torch.zeros(2, 1, 28, 28), torch.arange(2)
        >>> DataSet("two", *part, *part)
        DataSet 'two', 10 classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9
          train: 2 images (1, 28, 28), float32
          test: 2 images (1, 28, 28), float32
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    class_names: tuple[str, ...] = CLASS_NAMES

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        _, C, H, W = self.train_images.shape
        return C, H, W

    def __repr__(self) -> str:
        parts = (("train", self.train_images), ("test", self.test_images))
        lines = [f"DataSet {self.name!r}, {len(self.class_names)} classes: {_shortened(self.class_names)}"]
        for part, images in parts:
            lines.append(
                f"  {part}: {len(images):,} images {tuple(images.shape[1:])}, {images.dtype}".replace("torch.", "")
            )
        return "\n".join(lines)

    def checked_index(self, index: int) -> int:
        """Return ``index``, the index of a test image.

        Raises:
            DataError: if there is no such test image.
        """
        if not 0 <= index < len(self.test_images):
            raise DataError(f"no test image {index}: {self.name} has 0 to {len(self.test_images) - 1}")
        return index


def image_tensor(pixels: NDArray[np.uint8], shape: tuple[int, int, int] = (1, IMAGE_SIZE, IMAGE_SIZE)) -> Tensor:
    """Convert the bytes of images of ``shape`` (C, H, W) to (N, C, H, W), float32 in [0, 1]."""
    return torch.from_numpy(pixels.astype(np.float32)).div_(255).reshape(-1, *shape)


def _shortened(names: Sequence[str], count: int = 10) -> str:
    """Return the first names in a line."""
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")
