"""The objective of a training: the optimizer, the loss and the metrics that compile() chooses."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from fastconv.classifier import device as devices
from fastconv.classifier import evaluation, losses, optimizers
from fastconv.classifier import metrics as measures
from fastconv.classifier.batches import Batches
from fastconv.classifier.config import TrainingConfig
from fastconv.classifier.history import EpochResult, MeasuredEpochResult
from fastconv.classifier.losses import Loss
from fastconv.classifier.metrics import Metric, Outputs
from fastconv.classifier.names import suggestion

#: Settings that compile() does not accept, under the function that accepts them.
_ELSEWHERE = {
    "fit()": ("epochs", "batch_size", "validation_split", "validation_data", "seed", "callbacks", "verbose", "shuffle"),
    "Classifier()": ("model", "backend", "shape", "classes", "class_names"),
}


@dataclass(frozen=True)
class Objective:
    """The optimizer over the network's parameters, the losses and the metrics.

    ``evaluation_loss`` is the loss without label smoothing. ``obstacle`` says why a CUDA graph cannot record a step, if
    a program passes its own functions, or if the outputs are kept for metrics.
    """

    optimizer: torch.optim.Optimizer
    loss: Loss
    evaluation_loss: Loss
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    obstacle: str = ""

    def figures(self, validated: bool) -> list[str]:
        """Return the names of the figures of an epoch. ``validated``: there are validation images."""
        names = ["loss", "accuracy", *self.metrics]
        return names + [f"val_{name}" for name in names] if validated else names

    def result(
        self, model: nn.Module, held_out: Batches | None, figures: Mapping[str, Any], outputs: Outputs
    ) -> EpochResult:
        """Return the result of an epoch.

        Args:
            figures: the figures of the epoch except the metrics.
            held_out: the validation images, which are measured now.
            outputs: the outputs for the training images during the epoch.
        """
        metrics = outputs.values()
        validated: dict[str, Any] = {"val_loss": None, "val_accuracy": None}
        if held_out is not None:
            scores = evaluation.measure(model, held_out.epoch(0), self.evaluation_loss, self.metrics)
            metrics |= {f"val_{name}": scores[name] for name in self.metrics}
            validated = {"val_loss": scores.loss, "val_accuracy": scores.accuracy}
        if not metrics:
            return EpochResult(**figures, **validated)
        return MeasuredEpochResult(**figures, **validated, metrics=metrics)


class Choice:
    """The optimizer, the loss and the metrics that a program passes to compile(). Nothing is built yet.

    Args:
        optimizer, loss, metrics, lr: as for :meth:`Classifier.compile`.
        returns_logits: whether the network is known to return logits.

    Attributes:
        settings: the fields of :class:`~fastconv.classifier.config.TrainingConfig` that the names give.

    Raises:
        ValueError: if a name is unknown.
        TypeError: if something else is neither a name nor can be called.
    """

    def __init__(self, optimizer: Any, loss: Any, metrics: Any, lr: float | None, returns_logits: bool) -> None:
        self._optimizer, self._loss = optimizers.find(optimizer), losses.find(loss, returns_logits)
        self._metrics, self._lr = measures.find(metrics), lr
        names = {"optimizer": self._optimizer, "loss": self._loss}
        self.settings: dict[str, Any] = {name: value for name, value in names.items() if isinstance(value, str)}
        if lr is not None:
            self.settings["lr"] = lr
        elif isinstance(self._optimizer, str):
            self.settings["lr"] = optimizers.DEFAULT_RATES[self._optimizer]

    def objective(self, config: TrainingConfig, model: nn.Module) -> Objective:
        """Build the optimizer of ``model``, which is moved to the device of ``config``.

        Raises:
            ValueError, TypeError: if an argument is wrong. ``model`` is then back on its device.
        """
        named = isinstance(self._loss, str)
        if config.label_smoothing and not named:
            raise ValueError("label_smoothing belongs to the losses with a name: leave it out, or put it into the loss")
        if isinstance(self._loss, str):
            loss, evaluation_loss = losses.named(self._loss, config.label_smoothing), losses.named(self._loss)
        else:
            loss = evaluation_loss = self._loss
        device, dtype = devices.find(config.device, config.backend), devices.DTYPES[config.dtype]
        before = next(model.parameters(), None)
        if before is None:
            raise ValueError("the network has no parameters that could be trained")
        before_device, before_dtype = before.device, before.dtype
        devices.prepare(model, device, dtype)
        try:
            optimizer = (
                optimizers.named(self._optimizer, model, config.lr, config.backend)
                if isinstance(self._optimizer, str)
                else optimizers.build(self._optimizer, model, self._lr)
            )
        except BaseException:
            devices.prepare(model, before_device, before_dtype)
            raise
        obstacles = {
            "the loss is not given by its name": not named,
            "the optimizer is not given by its name": not isinstance(self._optimizer, str),
            "the metrics need the outputs of each step": bool(self._metrics),
        }
        obstacle = next((reason for reason, applies in obstacles.items() if applies), "")
        return Objective(optimizer, loss, evaluation_loss, self._metrics, obstacle)


def check_names(settings: dict[str, Any]) -> None:
    """Check that compile() accepts settings of these names."""
    for name in settings:
        place = next((place for place, names in _ELSEWHERE.items() if name in names), None)
        if place is not None:
            raise TypeError(f"{name} is not a setting of compile(): give it to {place}")
        if name not in TrainingConfig.__dataclass_fields__:
            hint = suggestion(name, TrainingConfig.__dataclass_fields__)
            raise TypeError(f"compile() got an unexpected keyword argument {name!r}{hint}")
