"""What every data set is, and the error that all of them raise."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastconv.classifier import UserError

#: MNIST's: most of this package was made for digits, and takes them unless told otherwise.
CLASS_NAMES = tuple("0123456789")
IMAGE_SIZE = 28


class DataError(UserError):
    """A data set that is not there, or a file of it that is not what it should be."""


@dataclass(frozen=True)
class DataSet:
    """Images (N, C, H, W), float32 in [0, 1], and labels (N,), int64, for training and for the test.

    ``class_names`` says what each label is called.
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


def image_tensor(pixels: NDArray[np.uint8], shape: tuple[int, int, int] = (1, IMAGE_SIZE, IMAGE_SIZE)) -> Tensor:
    """Bytes of images of ``shape`` (C, H, W) as (N, C, H, W), float32 in [0, 1]."""
    return torch.from_numpy(pixels.astype(np.float32)).div_(255).reshape(-1, *shape)
