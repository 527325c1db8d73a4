"""CIFAR-10 (Krizhevsky, 2009): six pickles, written by Python 2, of a dictionary with ``data`` and ``labels``.

A pickle can run any code when it is read. These are read by an unpickler that knows nothing but arrays of bytes.
"""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastconv.classifier import UserError
from fastconv.classifier.data.dataset import DataError, DataSet, image_tensor
from fastconv.classifier.files import read_bytes

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
_LARGEST_BATCH = 1 << 28  # bytes; they have 31 MB


def load_cifar10(folder: Path) -> DataSet:
    """CIFAR-10, whose six files are in ``folder``: images (N, 3, 32, 32).

    Raises:
        DataError: if a file cannot be read, or is not such a batch.
    """
    batches = [_read_batch(folder / f"data_batch_{number}") for number in range(1, 6)]
    train_images, train_labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    test_images, test_labels = _read_batch(folder / "test_batch")
    return DataSet("cifar10", train_images, train_labels, test_images, test_labels, CIFAR10_CLASS_NAMES)


# The one in Python: the one in C allocates and fills as many gigabytes as a damaged file asks for (0x7fffffff as the
# place of a value takes 32). A batch takes 0.02 s.
class _BatchUnpickler(pickle._Unpickler):
    """Reads numbers, strings, lists, dictionaries and arrays of unsigned bytes; refuses all else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("numpy", "dtype"):
            return _DType
        if (module, name) == ("numpy", "ndarray"):
            return _Array
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return _Array
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes for Python 2
            return _latin1
        raise pickle.UnpicklingError(f"{module}.{name} has no place in it")


class _DType:
    """Stands in for numpy.dtype, of which the file may not set what it likes."""

    def __init__(self, kind: object, *_: object) -> None:
        if kind != "u1":
            raise pickle.UnpicklingError(f"it has an array of {kind!r:.20}")

    def __setstate__(self, state: object) -> None:
        pass


class _Array:
    """Stands in for numpy.ndarray, which would allocate any size that the file asks for."""

    values: "np.ndarray[Any, np.dtype[np.uint8]]" = np.empty(0, np.uint8)

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, by_columns, content = state
        if not isinstance(dtype, _DType):
            raise pickle.UnpicklingError("it has an array of no type")
        content = _latin1(content) if isinstance(content, str) else content
        self.values = np.frombuffer(content, np.uint8).reshape(shape, order="F" if by_columns else "C")


def _latin1(text: str, *_: object) -> bytes:
    return text.encode("latin1")


def _read_batch(path: Path) -> tuple[Tensor, Tensor]:
    """The images (N, 3, 32, 32) and labels (N,) of one file."""
    try:
        content = read_bytes(path, _LARGEST_BATCH)
    except UserError as error:
        raise DataError(str(error)) from error
    try:
        batch = _BatchUnpickler(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:  # an unpickler raises whatever a damaged file leads to
        raise DataError(f"{path} is not a batch of CIFAR-10, or a damaged one: {error}") from error
    pixels, labels = (batch.get("data"), batch.get("labels")) if isinstance(batch, dict) else (None, None)
    if not isinstance(pixels, _Array) or not isinstance(labels, list):
        raise DataError(f"{path} is not a batch of CIFAR-10: it lacks data, as bytes, or labels, as a list")
    pixels = pixels.values
    if pixels.ndim != 2 or pixels.shape[1] != np.prod(_SHAPE) or len(pixels) == 0:
        raise DataError(f"{path} is damaged: its data has shape {pixels.shape}, not N x 3072")
    if len(labels) != len(pixels):
        raise DataError(f"{path} is damaged: it has {len(pixels)} images, but {len(labels)} labels")
    if not all(type(label) is int and 0 <= label < len(CIFAR10_CLASS_NAMES) for label in labels):
        raise DataError(f"{path} is damaged: it has a label that is not 0 to 9")
    return image_tensor(pixels, _SHAPE), torch.tensor(labels, dtype=torch.int64)
