"""Read a folder of images with one sub-folder per class, the layout of torchvision's ImageFolder."""

import contextlib
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from fastconv.classifier.choices import MAX_IMAGE_SIZE
from fastconv.classifier.data.dataset import DataError, DataSet
from fastconv.classifier.data.images import read_scaled
from fastconv.classifier.errors import UserError

DEFAULT_SIZE = 32

_VALIDATION = ("val", "valid", "validation")  # names of validation folders beside train, which are not classes
_EVERY = 5  # without a folder test, every fifth image of a class is a test image
_THREADS = 8  # Pillow releases Python's lock while it decodes


def load_folder(folder: Path, size: int | None = None, channels: int | None = None) -> DataSet:
    """Load the images below ``folder``, scaled to ``size`` x ``size``. The classes are the sub-folders, sorted.

    If ``folder`` has sub-folders ``train`` and ``test``, each of them contains the classes. Otherwise every fifth image
    of each class, in the order of the file names, is a test image. The folder of a class may have sub-folders. Names
    that begin with a dot are ignored, and so are files without the ending of an image format.

    Args:
        size: from 1 to 1024. ``None`` means 32.
        channels: 1 for grey, 3 for colours. ``None`` means 1 if every file is grey, else 3.

    Returns:
        Images (N, C, size, size). The classes are interleaved, so that any range of images contains all of them.

    Raises:
        DataError: if there are fewer than two classes, a class has no images, or an image cannot be read.
    """
    size = DEFAULT_SIZE if size is None else size
    if not 1 <= size <= MAX_IMAGE_SIZE:
        raise DataError(f"the image size must be between 1 and {MAX_IMAGE_SIZE}, not {size}")
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder")
    if (folder / "train").is_dir() and (folder / "test").is_dir():
        train, test = _list_classes(folder / "train"), _list_classes(folder / "test")
        if train.keys() != test.keys():
            odd = ", ".join(sorted(train.keys() ^ test.keys()))
            raise DataError(f"{folder}/train and {folder}/test have different classes: only one of them has {odd}")
    elif (folder / "train").is_dir() and any((folder / name).is_dir() for name in _VALIDATION):
        raise DataError(f"{folder} has train, but not test: rename the folder of validation images to test")
    else:
        train, test = _split(folder, _list_classes(folder))
    if channels is None:
        paths = [path for part in (train, test) for images in part.values() for path in images]
        channels = 1 if all(map(_is_grey, paths)) else 3
    shape = (channels, size, size)
    return DataSet(
        os.path.basename(os.path.realpath(folder)),
        *_read_part(train, shape),
        *_read_part(test, shape),
        class_names=tuple(train),
    )


def _list_classes(folder: Path) -> dict[str, list[Path]]:
    """List the image files of each class. Classes and files are sorted by name."""
    from PIL import Image

    endings = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    try:
        classes = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
        found = {name: _list_images(folder / name, endings) for name in classes}
    except OSError as error:
        raise DataError(f"cannot read {error.filename or folder}: {error.strerror or error}") from error
    if not found:
        raise DataError(f"{folder} has no classes: it needs one sub-folder of images per class")
    if len(found) == 1:
        raise DataError(f"{folder} has only one class, {classes[0]}: it needs at least two sub-folders of images")
    for name, images in found.items():
        if not images:
            raise DataError(f"{folder / name} has no images")
    return found


def _list_images(folder: Path, endings: set[str]) -> list[Path]:
    paths = [path.relative_to(folder) for path in folder.rglob("*")]
    shown = [path for path in paths if not any(part.startswith(".") for part in path.parts)]
    chosen = sorted((path for path in shown if path.suffix.lower() in endings), key=lambda path: path.as_posix())
    return [folder / path for path in chosen if (folder / path).is_file()]


def _split(folder: Path, classes: dict[str, list[Path]]) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
    for name, images in classes.items():
        if len(images) < _EVERY:
            raise DataError(
                f"{folder / name} has {len(images)} images, but needs {_EVERY}, because every fifth is a test image:"
                f" add images, or sort them into {folder}/train and {folder}/test"
            )
    test = {name: images[_EVERY - 1 :: _EVERY] for name, images in classes.items()}
    train = {
        name: [path for index, path in enumerate(images) if index % _EVERY != _EVERY - 1]
        for name, images in classes.items()
    }
    return train, test


def _is_grey(path: Path) -> bool:
    from PIL import Image

    with contextlib.suppress(Exception), Image.open(path) as file:  # reads only the header
        return file.mode in ("1", "L", "LA") or file.mode.startswith(("I", "F"))
    return False  # a damaged file is reported when it is read


def _read_part(classes: dict[str, list[Path]], shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Read the images (N, C, H, W) of a part, training or test, and their labels (N,)."""
    # Sort the images by their relative position in their class. This interleaves classes of different sizes evenly.
    places = sorted(
        ((index + 0.5) / len(paths), label, path)
        for label, paths in enumerate(classes.values())
        for index, path in enumerate(paths)
    )
    try:
        images = torch.empty(len(places), *shape)
    except RuntimeError as error:
        raise DataError(f"no memory for {len(places)} images of {' x '.join(map(str, shape))}") from error
    try:
        with ThreadPoolExecutor(_THREADS) as pool:
            pictures = pool.map(partial(read_scaled, shape=shape), [path for _, _, path in places])
            for index, picture in enumerate(pictures):
                images[index] = picture[0]
    except UserError as error:
        raise DataError(str(error)) from error
    return images, torch.tensor([label for _, label, _ in places])
