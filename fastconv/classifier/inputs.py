"""Conversion of the arguments of fit, evaluate and predict: images and labels, a Dataset or a DataLoader."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from fastconv.classifier import arrays
from fastconv.classifier import device as devices
from fastconv.classifier.batches import BATCH, Batches, LoaderBatches, TensorBatches, in_order
from fastconv.classifier.config import TrainingError


class Inputs:
    """Converts what a program passes into tensors or batches.

    Args:
        shape: (C, H, W) of an image.
        classes: the number of classes.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        self._shape, self._classes = shape, classes

    def pair(self, images: Any, labels: Any) -> tuple[Tensor, Tensor]:
        """Return images (N, C, H, W), float32, and labels (N,), int64."""
        images = arrays.as_images(images, self._shape)
        return images, arrays.as_labels(labels, len(images), self._classes)

    def training(
        self, images: Any, labels: Any, batch_size: int | None, split: float, shuffle: bool, device: torch.device
    ) -> tuple[Batches, Batches | None]:
        """Return the batches of an epoch, and the last ``split`` of the images for validation.

        Raises:
            TypeError: if the labels are missing, or given twice, or ``images`` is a DataLoader and cannot be split.
        """
        if _is_source(images):
            if labels is not None:
                raise TypeError(f"a {type(images).__name__} has its own labels: leave out labels")
            held_out = None
            if split:
                images, rest = _split(images, split)
                held_out = self._batches(rest, batch_size)
            return self._batches(images, batch_size, shuffle), held_out
        if labels is None:
            raise TypeError("labels are missing: pass images and labels, a Dataset or a DataLoader")
        images, labels = devices.place(*self.pair(images, labels), device, torch.float32)
        count = split_for_validation(len(images), split)
        batches = TensorBatches(images[:count], labels[:count], 64 if batch_size is None else batch_size, shuffle)
        return batches, in_order(images[count:], labels[count:]) if count < len(images) else None

    def evaluation(self, data: Any, batch_size: int | None = None) -> Batches:
        """Return the batches of ``data``: a pair of images and labels, a Dataset or a DataLoader."""
        if _is_source(data):
            return self._batches(data, batch_size)
        if not isinstance(data, tuple | list) or len(data) != 2:
            raise TypeError("a pair of images and labels, a Dataset or a DataLoader is expected")
        return in_order(*self.pair(*data), _checked(batch_size) or BATCH)

    def images(self, data: Any, batch_size: int | None = None) -> Iterator[Tensor]:
        """Iterate over batches of images. Labels of a Dataset or a DataLoader are ignored."""
        size = _checked(batch_size) or BATCH
        if not _is_source(data):
            yield from arrays.as_images(data, self._shape).split(size)
            return
        for batch in data if isinstance(data, DataLoader) else DataLoader(data, batch_size=size):
            yield arrays.as_images(batch[0] if isinstance(batch, tuple | list) else batch, self._shape)

    def _batches(self, source: Any, batch_size: int | None, shuffle: bool = False) -> LoaderBatches:
        if isinstance(source, DataLoader):
            if batch_size is not None:
                raise TypeError("a DataLoader has its own batch size: leave out batch_size")
            return LoaderBatches(source, self.pair)
        generator = torch.Generator()
        shuffle = shuffle and not isinstance(source, IterableDataset)
        loader = DataLoader(source, _checked(batch_size) or 64, shuffle, generator=generator)
        return LoaderBatches(loader, self.pair, generator)


def gives_tensors(images: Any) -> bool:
    """Return whether predict returns a tensor for ``images``, and not an array."""
    first = images[0] if isinstance(images, list | tuple) and len(images) else images
    return isinstance(first, Tensor) or _is_source(images)


def split_for_validation(count: int, fraction: float) -> int:
    """Return how many of ``count`` images are used for training if the last ``fraction`` is used for validation."""
    return count - int(count * fraction)


def _is_source(images: object) -> bool:
    return isinstance(images, Dataset | DataLoader)


def _split(source: Any, fraction: float) -> tuple[Any, Any]:
    if isinstance(source, DataLoader | IterableDataset):
        raise TypeError(
            f"validation_split needs items with an index, which this {type(source).__name__} does not have:"
            " pass validation_data"
        )
    count = split_for_validation(len(source), fraction)
    return Subset(source, range(count)), Subset(source, range(count, len(source)))


def _checked(batch_size: int | None) -> int | None:
    if batch_size is not None and batch_size < 1:
        raise TrainingError(f"batch size must be at least 1, not {batch_size}")
    return batch_size
