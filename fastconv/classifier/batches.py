"""The batches of an epoch: parts of tensors in memory, or what a DataLoader yields."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from fastconv.classifier.config import TrainingError

Batch = tuple[Tensor, Tensor]
#: Images per step without gradients. The results do not depend on it.
BATCH = 500


class Batches(Protocol):
    """Batches of images (N, C, H, W) and labels (N,).

    Attributes:
        images: the number of images of an epoch, for images in memory.
        steps: the number of batches of an epoch. ``None`` if it is not known.
    """

    images: int | None
    steps: int | None

    def epoch(self, seed: int, first: int = 0) -> Iterator[Batch]:
        """Iterate over the batches of an epoch from batch ``first``. ``seed`` decides the order."""
        ...


class TensorBatches:
    """Batches of tensors in memory.

    Args:
        images: (N, C, H, W).
        labels: (N,), integers.
        shuffle: whether each epoch has another order.

    Attributes:
        device: where the tensors are.

    Example::

        >>> batches = TensorBatches(torch.rand(5, 1, 8, 8), torch.arange(5), batch_size=2, shuffle=False)
        >>> [labels.tolist() for _, labels in batches.epoch(seed=0)]
        [[0, 1], [2, 3], [4]]
    """

    def __init__(self, images: Tensor, labels: Tensor, batch_size: int, shuffle: bool = True) -> None:
        self._tensors = images, labels
        self._batch_size, self._shuffle = batch_size, shuffle
        self.device = images.device
        self.images: int | None = len(images)
        self.steps: int | None = -(-len(images) // batch_size)

    def epoch(self, seed: int, first: int = 0) -> Iterator[Batch]:
        if self._shuffle:
            yield from (self.gather(chosen) for (chosen,) in self.choices(seed, first))
            return
        images, labels = (values.split(self._batch_size) for values in self._tensors)
        yield from list(zip(images, labels, strict=True))[first:]

    def choices(self, seed: int, first: int = 0) -> Iterator[tuple[Tensor]]:
        """Iterate over the indices of the images of each batch. ``gather`` turns them into the batch."""
        images, _ = self._tensors
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(images), generator=generator) if self._shuffle else torch.arange(len(images))
        # One copy for the epoch. A copy in each step would wait for the GPU to finish the step before.
        yield from ((chosen,) for chosen in order.to(images.device).split(self._batch_size)[first:])

    def gather(self, chosen: Tensor) -> Batch:
        """Return the images with these indices, and their labels."""
        images, labels = self._tensors
        return images.index_select(0, chosen), labels.index_select(0, chosen)


def in_order(images: Tensor, labels: Tensor, batch_size: int = BATCH) -> TensorBatches:
    """Return the batches of images and labels for validation or evaluation."""
    return TensorBatches(images, labels, batch_size, shuffle=False)


class LoaderBatches:
    """Batches of a DataLoader. Each epoch iterates over it anew, so that its random transforms act.

    Args:
        loader: yields pairs of images and labels.
        convert: checks a pair, and returns it as tensors (N, C, H, W) and (N,).
        generator: the generator of the loader's order, if fit() made the loader.
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        convert: Callable[[Any, Any], Batch],
        generator: torch.Generator | None = None,
    ) -> None:
        self._loader, self._convert, self._generator = loader, convert, generator
        self.images: int | None = None
        self.steps = _length(loader)

    def epoch(self, seed: int, first: int = 0) -> Iterator[Batch]:
        if self._generator is not None:
            self._generator.manual_seed(seed)
        for batch in itertools.islice(self._loader, first, None):
            if not isinstance(batch, tuple | list) or len(batch) != 2:
                raise TrainingError(f"a batch must be a pair of images and labels, not {_described(batch)}")
            yield self._convert(*batch)


def _length(sized: Any) -> int | None:
    try:
        return len(sized)
    except (TypeError, NotImplementedError):  # an IterableDataset need not have a length
        return None


def _described(batch: object) -> str:
    if isinstance(batch, tuple | list):
        return f"a {type(batch).__name__} of {len(batch)}"
    return f"a tensor {tuple(batch.shape)}" if isinstance(batch, Tensor) else type(batch).__name__
