"""The data structure of all data sets, and the error that their readers raise."""

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


@dataclass(frozen=True)
class DataSet:
    """Images (N, C, H, W), float32 in [0, 1], and labels (N,), int64, for training and for testing.

    ``class_names`` has the name of each label.
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
