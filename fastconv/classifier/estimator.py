"""An image classifier with the methods compile, fit, evaluate and predict."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastconv.classifier.config import TrainingConfig, TrainingError
from fastconv.classifier.evaluation import evaluate, predict
from fastconv.classifier.fit import EpochResult, Training
from fastconv.classifier.networks import build_model

#: A function of probabilities (N, classes) and labels (N,).
Metric = Callable[[Tensor, Tensor], float]

#: Settings that compile() does not accept, under the function that accepts them.
_ELSEWHERE = {
    "fit()": ("epochs", "batch_size", "validation_split", "validation_data", "seed"),
    "Classifier()": ("model", "backend", "shape", "classes"),
}


class Classifier:
    """An image classifier that can be trained, evaluated and used for prediction.

    Args:
        model: a name, a list of layers as :func:`fastconv.builder.build_cnn` accepts it, or a module that returns
            logits (N, classes).
        shape: (C, H, W) of an image.
        classes: the number of classes.
        backend: the library of the layers, ``"fastconv"`` or ``"torch"``. It is ignored if ``model`` is a module.

    Images are tensors or arrays (N, C, H, W), or (N, H, W) with one channel. They are floats in [0, 1], or uint8
    values, which are divided by 255. Labels are integers (N,) or one-hot rows (N, classes).

    Raises:
        TrainingError: if images or labels have another shape, or a setting is out of its range.

    Example::

        >>> images, labels = torch.rand(100, 1, 28, 28), torch.arange(100) % 10
        >>> classifier = Classifier("conv8, pool, dense16").compile(optimizer="sgd", lr=0.1)
        >>> history = classifier.fit(images, labels, epochs=2, validation_split=0.2)
        >>> [result.epoch for result in history]
        [1, 2]
        >>> sorted(classifier.evaluate(images, labels))
        ['accuracy', 'loss']
        >>> classifier.predict(images).shape
        torch.Size([100, 10])
    """

    def __init__(
        self,
        model: str | nn.Module = "mnist-cnn",
        shape: tuple[int, int, int] = (1, 28, 28),
        classes: int = 10,
        backend: str = "fastconv",
    ) -> None:
        self.model = model if isinstance(model, nn.Module) else build_model(model, backend, shape, classes)
        self._shape, self._classes = shape, classes
        self._settings: dict[str, Any] = {}
        self._metrics: Mapping[str, Metric] = {}

    def compile(
        self,
        optimizer: str = "adam",
        loss: str = "cross-entropy",
        lr: float = 1e-3,
        metrics: Mapping[str, Metric] | Sequence[str] = (),
        **settings: Any,
    ) -> Classifier:
        """Choose how to train.

        Args:
            optimizer: ``"adam"``, ``"adamw"`` or ``"sgd"``.
            loss: ``"cross-entropy"`` or ``"mse"``.
            lr: the learning rate.
            metrics: functions by name, for :meth:`evaluate`. ``["accuracy"]`` is accepted, but it is always computed.
            settings: other fields of :class:`~fastconv.classifier.config.TrainingConfig`, such as schedule or augment.

        Returns:
            The classifier itself.

        Raises:
            TypeError: if a setting does not exist, or belongs to another function.
            ValueError: if a metric is unknown.
        """
        for name in settings:
            place = next((place for place, names in _ELSEWHERE.items() if name in names), None)
            if place is not None:
                raise TypeError(f"{name} is not a setting of compile(): give it to {place}")
            if name not in TrainingConfig.__dataclass_fields__:
                raise TypeError(f"compile() got an unexpected keyword argument {name!r}")
        if not isinstance(metrics, Mapping):
            unknown = [name for name in metrics if name not in ("accuracy", "loss")]
            if unknown:
                raise ValueError(f"unknown metric {unknown[0]!r}: pass {{name: function(probabilities, labels)}}")
            metrics = {}
        self._settings = {"optimizer": optimizer, "loss": loss, "lr": lr, **settings}
        self._config()
        self._metrics = metrics
        return self

    def fit(
        self,
        images: Any,
        labels: Any,
        epochs: int = 5,
        batch_size: int = 64,
        validation_split: float = 0.0,
        validation_data: tuple[Any, Any] | None = None,
        seed: int = 0,
        on_epoch: Callable[[EpochResult], None] | None = None,
    ) -> list[EpochResult]:
        """Train the network, starting from its current weights.

        Args:
            validation_split: the share of the images, from their end, that is used for validation.
            validation_data: images and labels for validation, in place of that share.
            seed: the seed of the order and of the augmentation.
            on_epoch: called after each epoch with its figures.

        Returns:
            The figures of each epoch.

        Raises:
            TypeError: if both validation_split and validation_data are given.
        """
        if validation_data is not None and validation_split:
            raise TypeError("fit() takes validation_data or validation_split, not both")
        config = self._config(epochs=epochs, batch_size=batch_size, validation_split=validation_split, seed=seed)
        held_out = None if validation_data is None else self._checked(*validation_data)
        with torch.random.fork_rng(devices=[]):  # restores the caller's random state
            training = Training(*self._checked(images, labels), config, model=self.model, held_out=held_out)
            training.run(on_epoch=on_epoch)
        return training.history

    def evaluate(self, images: Any, labels: Any) -> dict[str, float]:
        """Return the mean loss, the accuracy (between 0 and 1) and the metrics, by name."""
        images, labels = self._checked(images, labels)
        loss, accuracy = evaluate(self.model, images, labels, self._config().loss)
        figures = {"loss": loss, "accuracy": accuracy}
        if self._metrics:
            probabilities = predict(self.model, images)
            figures |= {name: metric(probabilities, labels) for name, metric in self._metrics.items()}
        return figures

    def predict(self, images: Any) -> Tensor:
        """Return the probability of each class, (N, classes)."""
        return predict(self.model, self._images(images))

    def _config(self, **more: Any) -> TrainingConfig:
        return TrainingConfig(**{**self._settings, **more})

    def _checked(self, images: Any, labels: Any) -> tuple[Tensor, Tensor]:
        images, labels = self._images(images), _tensor(labels)
        if labels.dim() == 2 and labels.shape[1] == self._classes:
            one_hot = ((labels == 0) | (labels == 1)).all() and (labels.sum(1) == 1).all()
            if not one_hot:
                raise TrainingError("labels of two dimensions must be one-hot: each row must have a single 1 and zeros")
            labels = labels.argmax(1)
        if labels.shape != images.shape[:1] or labels.is_floating_point():
            raise TrainingError(
                f"labels must be {len(images)} integers or one-hot rows, not {labels.dtype} of {tuple(labels.shape)}"
            )
        labels = labels.long()
        if len(labels) and not (labels.min() >= 0 and labels.max() < self._classes):
            raise TrainingError(f"labels must be 0 to {self._classes - 1}, not {labels.min()} to {labels.max()}")
        return images, labels

    def _images(self, images: Any) -> Tensor:
        images = _tensor(images)
        if images.dim() == 3 and self._shape[0] == 1:
            images = images.unsqueeze(1)
        if images.dim() != 4 or tuple(images.shape[1:]) != self._shape or len(images) == 0:
            wanted = " x ".join(map(str, self._shape))
            raise TrainingError(
                f"images must have the shape N x {wanted}, with N at least 1, not {tuple(images.shape)}"
            )
        if images.dtype == torch.uint8:
            return images.float() / 255
        if not images.is_floating_point():
            raise TrainingError(f"images must be floats in [0, 1] or uint8, not {images.dtype}")
        return images.to(torch.float32)


def _tensor(values: Any) -> Tensor:
    return values if isinstance(values, Tensor) else torch.as_tensor(np.asarray(values))
