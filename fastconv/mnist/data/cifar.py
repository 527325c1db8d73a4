"""CIFAR-10 (Krizhevsky, 2009): six pickles, written by Python 2, of a dictionary with ``data`` and ``labels``.

A pickle can run any code when it is read. These are read by an unpickler that knows nothing but arrays of bytes.
"""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastconv.mnist.data.dataset import DataError, DataSet, image_tensor

CIFAR10_CLASS_NAMES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)

_SHAPE = (3, 32, 32)


def load_cifar10(folder: Path) -> DataSet:
    """CIFAR-10, whose six files are in ``folder``: images (N, 3, 32, 32).

    Raises:
        DataError: if a file cannot be read, or is not such a batch.
    """
    batches = [_read_batch(folder / f"data_batch_{number}") for number in range(1, 6)]
    train_images, train_labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    test_images, test_labels = _read_batch(folder / "test_batch")
    return DataSet("cifar10", train_images, train_labels, test_images, test_labels, CIFAR10_CLASS_NAMES)


class _BatchUnpickler(pickle.Unpickler):
    """Reads numbers, strings, lists, dictionaries and arrays of unsigned bytes; refuses all else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("numpy", "dtype"):
            return _unsigned_bytes
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return np.empty(0).__reduce__()[0]  # that function, wherever this version of numpy keeps it
        raise pickle.UnpicklingError(f"{module}.{name} has no place in it")


def _unsigned_bytes(*_: object) -> "np.dtype[np.uint8]":
    # Not numpy.dtype with the arguments of the file, which numpy 2.4 warns of; a copy, since a state is set on it.
    return np.dtype("u1", False, True)


def _read_batch(path: Path) -> tuple[Tensor, Tensor]:
    """The images (N, 3, 32, 32) and labels (N,) of one file."""
    try:
        with path.open("rb") as file:
            batch = _BatchUnpickler(file, encoding="latin1").load()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # an unpickler raises whatever a damaged file leads to
        raise DataError(f"{path} is not a batch of CIFAR-10, or a damaged one: {error}") from error
    pixels, labels = (batch.get("data"), batch.get("labels")) if isinstance(batch, dict) else (None, None)
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or not isinstance(labels, list):
        raise DataError(f"{path} is not a batch of CIFAR-10: it lacks data, as bytes, or labels, as a list")
    if pixels.ndim != 2 or pixels.shape[1] != np.prod(_SHAPE) or len(pixels) == 0:
        raise DataError(f"{path} is damaged: its data has shape {pixels.shape}, not N x 3072")
    if len(labels) != len(pixels):
        raise DataError(f"{path} is damaged: it has {len(pixels)} images, but {len(labels)} labels")
    if not all(isinstance(label, int) and 0 <= label < len(CIFAR10_CLASS_NAMES) for label in labels):
        raise DataError(f"{path} is damaged: it has a label that is not 0 to 9")
    return image_tensor(pixels, _SHAPE), torch.tensor(labels, dtype=torch.int64)
