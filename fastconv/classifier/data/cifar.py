"""Read CIFAR-10 (Krizhevsky, 2009): six pickles of Python 2, each a dictionary with ``data`` and ``labels``.

An ordinary unpickler would run any code that a pickle contains. The unpickler here accepts arrays of bytes only.
"""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastconv.classifier.data.dataset import DataError, DataSet, image_tensor
from fastconv.classifier.errors import UserError
from fastconv.classifier.files import read_bytes

CIFAR10_CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

_SHAPE = (3, 32, 32)
_LARGEST_BATCH = 1 << 28  # bytes; the real ones have 31 MB


def load_cifar10(folder: Path) -> DataSet:
    """Load CIFAR-10 from its six files in ``folder``. The images are (N, 3, 32, 32).

    Raises:
        DataError: if a file cannot be read, or is not a batch of CIFAR-10.
    """
    batches = [_read_batch(folder / f"data_batch_{number}") for number in range(1, 6)]
    train_images, train_labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    test_images, test_labels = _read_batch(folder / "test_batch")
    return DataSet("cifar10", train_images, train_labels, test_images, test_labels, CIFAR10_CLASS_NAMES)


# This is the unpickler that is written in Python. It reads a batch in 0.02 s. The C unpickler allocates memory for any
# memo index that a damaged file contains: 32 GB for 0x7fffffff.
class _BatchUnpickler(pickle._Unpickler):
    """Reads numbers, strings, lists, dictionaries and arrays of unsigned bytes, and refuses everything else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("numpy", "dtype"):
            return _DType
        if (module, name) == ("numpy", "ndarray"):
            return _Array
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return _Array
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes for Python 2
            return _latin1
        raise pickle.UnpicklingError(f"it refers to {module}.{name}, which CIFAR-10 does not use")


class _DType:
    """Replaces numpy.dtype, whose state a file could set."""

    def __init__(self, kind: object, *_: object) -> None:
        if kind != "u1":
            raise pickle.UnpicklingError(f"it has an array of type {kind!r:.20}")

    def __setstate__(self, state: object) -> None:
        pass


class _Array:
    """Replaces numpy.ndarray, which would allocate any size that the file requests."""

    values: "np.ndarray[Any, np.dtype[np.uint8]]" = np.empty(0, np.uint8)

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, by_columns, content = state
        if not isinstance(dtype, _DType):
            raise pickle.UnpicklingError("it has an array without a type")
        content = _latin1(content) if isinstance(content, str) else content
        self.values = np.frombuffer(content, np.uint8).reshape(shape, order="F" if by_columns else "C")


def _latin1(text: str, *_: object) -> bytes:
    return text.encode("latin1")


def _read_batch(path: Path) -> tuple[Tensor, Tensor]:
    """Read the images (N, 3, 32, 32) and labels (N,) of one file."""
    try:
        content = read_bytes(path, _LARGEST_BATCH)
    except UserError as error:
        raise DataError(str(error)) from error
    try:
        batch = _BatchUnpickler(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:  # a damaged file can make the unpickler raise any exception
        raise DataError(f"{path} is not a batch of CIFAR-10, or is damaged: {error}") from error
    pixels, labels = (batch.get("data"), batch.get("labels")) if isinstance(batch, dict) else (None, None)
    if not isinstance(pixels, _Array) or not isinstance(labels, list):
        raise DataError(f"{path} is not a batch of CIFAR-10: it needs data (an array of bytes) and labels (a list)")
    pixels = pixels.values
    if pixels.ndim != 2 or pixels.shape[1] != np.prod(_SHAPE) or len(pixels) == 0:
        raise DataError(f"{path} is damaged: its data has shape {pixels.shape}, not N x 3072")
    if len(labels) != len(pixels):
        raise DataError(f"{path} is damaged: it has {len(pixels)} images, but {len(labels)} labels")
    if not all(type(label) is int and 0 <= label < len(CIFAR10_CLASS_NAMES) for label in labels):
        raise DataError(f"{path} is damaged: it has a label that is not 0 to 9")
    return image_tensor(pixels, _SHAPE), torch.tensor(labels, dtype=torch.int64)
