"""Training and evaluation, as plain functions over tensors.

The same seed, backend and machine give the same weights, bit for bit.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastconv.nn
from fastconv import models
from fastconv.mnist import UserError

BACKENDS = ("fastconv", "torch")
_EVALUATION_BATCH = 500

_MODELS: dict[str, Callable[..., nn.Module]] = {"mnist-cnn": models.MnistCNN, "simple-cnn": models.SimpleCNN}
MODELS = tuple(_MODELS)


class TrainingError(UserError):
    """A configuration that cannot be trained with, or a training that diverged."""


@dataclass(frozen=True)
class TrainingConfig:
    """What :func:`fit` does. The defaults are the reference run.

    Raises:
        TrainingError: if a value is out of its range.
    """

    model: str = "mnist-cnn"
    backend: str = "fastconv"
    epochs: int = 5
    batch_size: int = 64
    validation_split: float = 0.2
    lr: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        _check(self.model in MODELS, f"unknown model {self.model!r}: choose one of {', '.join(MODELS)}")
        _check(self.backend in BACKENDS, f"unknown backend {self.backend!r}: choose one of {', '.join(BACKENDS)}")
        _check(self.epochs >= 1, f"epochs must be at least 1, not {self.epochs}")
        _check(1 <= self.batch_size < 2**31, f"batch size must be between 1 and 2^31 - 1, not {self.batch_size}")
        _check(
            0 <= self.validation_split < 1,
            f"validation split must be at least 0 and below 1, not {self.validation_split}",
        )
        _check(0 < self.lr < math.inf, f"learning rate must be above 0 and finite, not {self.lr}")
        _check(0 <= self.seed < 2**63, f"seed must be between 0 and 2^63 - 1, not {self.seed}")


@dataclass(frozen=True)
class EpochResult:
    """Figures of one epoch. Loss and accuracy are means over it, while the weights still change; ``val_*`` are of the
    held-out images after it (``None`` without any); ``seconds`` is the training alone, without validation."""

    epoch: int
    loss: float
    accuracy: float
    val_loss: float | None
    val_accuracy: float | None
    seconds: float
    images_per_second: float


@dataclass(frozen=True)
class Totals:
    """Sums over the images seen so far in an epoch. They stay tensors, since reading one stops the step for it."""

    images: int
    loss: Tensor
    correct: Tensor


OnStep = Callable[[int, Totals], None]
OnEpoch = Callable[[EpochResult], None]


def build_model(name: str, backend: str = "fastconv") -> nn.Module:
    """The network ``name``, one of :data:`MODELS`, on fastconv's layers or, with ``backend="torch"``, PyTorch's.

    Example::

        >>> sum(parameter.numel() for parameter in build_model("mnist-cnn").parameters())
        241546
    """
    return _MODELS[name](layers=nn if backend == "torch" else fastconv.nn)


def split_for_validation(count: int, fraction: float) -> int:
    """How many of ``count`` training images are left to train on when the last ``fraction`` is held out."""
    return count - int(count * fraction)


def fit(
    images: Tensor,
    labels: Tensor,
    config: TrainingConfig,
    on_step: OnStep | None = None,
    on_epoch: OnEpoch | None = None,
) -> tuple[nn.Module, list[EpochResult]]:
    """Build the network of ``config`` and train it with Adam on the cross-entropy.

    The last ``config.validation_split`` of the images is held out; the others are drawn in a new order each epoch.

    Args:
        images: (N, 1, 28, 28), float32 in [0, 1].
        labels: (N,), int64.
        on_step: called after each step with the epoch, counted from 1, and the sums over it so far.
        on_epoch: called after each epoch with its figures.

    Returns:
        The trained network, and the figures of each epoch.

    Raises:
        TrainingError: if the loss is no longer finite at the end of an epoch.

    Example::

        >>> images, labels = torch.rand(20, 1, 28, 28), torch.arange(20) % 10
        >>> model, history = fit(images, labels, TrainingConfig(epochs=1))
        >>> history[0].epoch
        1
    """
    count = split_for_validation(len(images), config.validation_split)
    torch.manual_seed(config.seed)
    model = build_model(config.model, config.backend)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr, fused=True)
    order = torch.Generator().manual_seed(config.seed)
    history = []
    for epoch in range(1, config.epochs + 1):
        start = time.perf_counter()
        totals = _train_epoch(model, optimizer, images[:count], labels[:count], config, epoch, order, on_step)
        seconds = time.perf_counter() - start
        val_loss, val_accuracy = None, None
        if count < len(images):
            val_loss, val_accuracy = evaluate(model, images[count:], labels[count:])
        result = EpochResult(
            epoch=epoch,
            loss=totals.loss.item() / count,
            accuracy=totals.correct.item() / count,
            val_loss=val_loss,
            val_accuracy=val_accuracy,
            seconds=seconds,
            images_per_second=count / seconds,
        )
        if not math.isfinite(result.loss) or not math.isfinite(val_loss or 0):
            raise TrainingError(f"training diverged in epoch {epoch}: try a learning rate below {config.lr:g}")
        history.append(result)
        if on_epoch is not None:
            on_epoch(result)
    return model, history


def evaluate(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """The mean cross-entropy and the accuracy (between 0 and 1) of ``model`` on these images."""
    model.eval()
    loss, correct = 0.0, 0
    with torch.inference_mode():
        for batch, target in zip(images.split(_EVALUATION_BATCH), labels.split(_EVALUATION_BATCH), strict=True):
            logits = model(batch)
            loss += F.cross_entropy(logits, target, reduction="sum").item()
            correct += int((logits.argmax(1) == target).sum().item())
    return loss / len(images), correct / len(images)


def predict(model: nn.Module, images: Tensor) -> Tensor:
    """The probabilities, (N, 10), of each class for images of shape (N, 1, 28, 28)."""
    model.eval()
    with torch.inference_mode():
        return torch.cat([model(batch).softmax(1) for batch in images.split(_EVALUATION_BATCH)])


def _train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    config: TrainingConfig,
    epoch: int,
    order: torch.Generator,
    on_step: OnStep | None,
) -> Totals:
    model.train()
    totals = Totals(0, torch.zeros(()), torch.zeros((), dtype=torch.int64))
    for index in torch.randperm(len(images), generator=order).split(config.batch_size):
        target = labels.index_select(0, index)
        logits = model(images.index_select(0, index))
        loss = F.cross_entropy(logits, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            totals = Totals(
                totals.images + len(index),
                totals.loss + loss * len(index),
                totals.correct + (logits.argmax(1) == target).sum(),
            )
        if on_step is not None:
            on_step(epoch, totals)
    return totals


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise TrainingError(message)
