"""A folder of one's own images, sorted into one sub-folder per class, as torchvision's ImageFolder has it."""

from __future__ import annotations

import contextlib
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from fastconv.classifier import UserError
from fastconv.classifier.config import MAX_IMAGE_SIZE
from fastconv.classifier.data.dataset import DataError, DataSet

DEFAULT_SIZE = 32
MAX_SIZE = MAX_IMAGE_SIZE

_VALIDATION = ("val", "valid", "validation")  # beside train: not classes
_EVERY = 5  # the share of the test where the folder does not set it: each fifth image of a class
_THREADS = 8  # Pillow decodes outside Python's lock


def load_folder(folder: Path, size: int | None = None, channels: int | None = None) -> DataSet:
    """The images below ``folder``, scaled to ``size`` x ``size``: the sub-folders' names, sorted, are the classes.

    If ``folder`` has sub-folders ``train`` and ``test``, the classes are below each of them. If not, every fifth image
    of each class, in the order of their names, is for the test. A class's images may be in folders of their own below
    it. Names that begin with a dot, and files whose ending is not one of an image, are passed over.

    Args:
        size: from 1 to 1024; 32 if ``None``.
        channels: 1 for grey, 3 for colours; if ``None``, 3 unless every file is a grey one.

    Returns:
        Images (N, C, size, size), the classes mixed evenly, so that each stretch of them is as balanced as the whole.

    Raises:
        DataError: if there are fewer than two classes, a class has no images, or an image cannot be read.
    """
    size = DEFAULT_SIZE if size is None else size
    if not 1 <= size <= MAX_SIZE:
        raise DataError(f"the image size must be between 1 and {MAX_SIZE}, not {size}")
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder")
    if (folder / "train").is_dir() and (folder / "test").is_dir():
        train, test = _list_classes(folder / "train"), _list_classes(folder / "test")
        if train.keys() != test.keys():
            odd = ", ".join(sorted(train.keys() ^ test.keys()))
            raise DataError(f"{folder}/train and {folder}/test have different classes: only one of them has {odd}")
    elif (folder / "train").is_dir() and any((folder / name).is_dir() for name in _VALIDATION):
        raise DataError(f"{folder} has train, but no test beside it: rename the folder of validation images to test")
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
    """The image files of each class, both in the order of their names."""
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
        raise DataError(f"{folder} has one class only, {classes[0]}: it needs at least two sub-folders of images")
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
                f"{folder / name} has {len(images)} of the at least {_EVERY} images of which every fifth is for the"
                f" test: add some, or sort them into {folder}/train and {folder}/test"
            )
    test = {name: images[_EVERY - 1 :: _EVERY] for name, images in classes.items()}
    train = {
        name: [path for index, path in enumerate(images) if index % _EVERY != _EVERY - 1]
        for name, images in classes.items()
    }
    return train, test


def _is_grey(path: Path) -> bool:
    from PIL import Image

    with contextlib.suppress(Exception), Image.open(path) as file:  # reads the header only
        return file.mode in ("1", "L", "LA") or file.mode.startswith(("I", "F"))
    return False  # what is wrong with it is said when it is read


def _read_part(classes: dict[str, list[Path]], shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """The images (N, C, H, W) of a part, training or test, and their labels (N,)."""
    from fastconv.classifier.images import read_picture

    # Each image at its share of the way through its own class: classes of any sizes are then mixed evenly.
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
            pictures = pool.map(partial(read_picture, shape=shape), [path for _, _, path in places])
            for index, picture in enumerate(pictures):
                images[index] = picture[0]
    except UserError as error:
        raise DataError(str(error)) from error
    return images, torch.tensor([label for _, label, _ in places])
