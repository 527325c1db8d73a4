"""Read MNIST and Fashion-MNIST, which have four IDX files each.

The IDX format (http://yann.lecun.com/exdb/mnist): a big-endian header of a magic number (0, 0, type, dimensions) and
one 32-bit size per dimension, then the values. These files hold unsigned bytes.
"""

import gzip
import math
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastconv.classifier.data.dataset import CLASS_NAMES, IMAGE_SIZE, DataError, DataSet, image_tensor
from fastconv.classifier.data.places import plain_or_gz

FASHION_CLASS_NAMES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)

_UNSIGNED_BYTE = 0x08


def load_idx(name: str, folder: Path, class_names: Sequence[str] = CLASS_NAMES) -> DataSet:
    """Load the data set ``name`` from its four files in ``folder``, which :func:`find_folder` found.

    Raises:
        DataError: if a file is damaged, or does not fit the other files.
    """
    train_images, train_labels = _read_pair(folder, "train")
    test_images, test_labels = _read_pair(folder, "t10k")
    return DataSet(name, train_images, train_labels, test_images, test_labels, tuple(class_names))


def read_idx(path: Path, dimensions: int) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    """Read an IDX file of unsigned bytes with this number of dimensions, plain or gzipped (``.gz``).

    Raises:
        DataError: if the file cannot be read, has another format, is truncated, or has data after its end.
    """
    magic = _UNSIGNED_BYTE << 8 | dimensions
    header_size = 4 + 4 * dimensions
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            header = file.read(header_size)
            if len(header) < header_size:
                raise DataError(f"{path} is truncated: it ends within its header")
            found, *sizes = struct.unpack(f">{1 + dimensions}I", header)
            if found != magic:
                raise DataError(f"{path} is not the IDX file expected: magic number {found:#010x}, not {magic:#010x}")
            expected = math.prod(sizes)
            # Reading in pieces limits the memory if the header is wrong. One more byte detects data after the end.
            content = bytearray()
            while piece := file.read(min(expected + 1 - len(content), 1 << 24)):
                content += piece
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is corrupt or truncated: {error}") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    if len(content) < expected:
        raise DataError(f"{path} is truncated: {len(content)} of {expected} bytes after its header")
    if len(content) > expected:
        raise DataError(f"{path} is corrupt: it has data after its {expected} bytes")
    try:
        return np.frombuffer(content, dtype=np.uint8).reshape(sizes)
    except ValueError as error:  # one size is 0, and numpy cannot represent the other sizes
        raise DataError(f"{path} is corrupt: an array of {' x '.join(map(str, sizes))} has no values") from error


def _read_pair(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    """Read the images and labels of one part (``train`` or ``t10k``), and check that they belong together."""
    images_path = plain_or_gz(folder / f"{part}-images-idx3-ubyte")
    labels_path = plain_or_gz(folder / f"{part}-labels-idx1-ubyte")
    assert images_path is not None  # find_folder has found them
    assert labels_path is not None
    images = read_idx(images_path, dimensions=3)
    labels = read_idx(labels_path, dimensions=1)
    if images.shape[1:] != (IMAGE_SIZE, IMAGE_SIZE):
        raise DataError(f"{images_path} has images of {images.shape[1]} x {images.shape[2]} pixels, not 28 x 28")
    if len(images) != len(labels):
        raise DataError(f"{images_path} has {len(images)} images, but {labels_path} has {len(labels)} labels")
    if len(images) == 0:
        raise DataError(f"{images_path} has no images")
    if labels.max() >= len(CLASS_NAMES):
        raise DataError(f"{labels_path} has the label {labels.max()}: labels must be 0 to 9")
    return image_tensor(images), torch.from_numpy(labels.astype(np.int64))
