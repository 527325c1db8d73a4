"""Callbacks of :meth:`Classifier.fit`: functions that it calls while it trains, with the names that Keras uses."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fastconv.classifier.config import TrainingError
from fastconv.classifier.history import EpochResult
from fastconv.classifier.names import refuse_keras

if TYPE_CHECKING:
    from fastconv.classifier.estimator import Classifier

__all__ = ["Callback", "EarlyStopping", "ModelCheckpoint"]


class Callback:
    """The base class of callbacks. Override some of its methods.

    As in Keras, epochs and batches count from 0 here. ``logs`` has the figures: loss and accuracy, and after an epoch
    also the metrics and, with validation images, the same names with ``val_`` before them. Set
    ``self.model.stop_training = True`` to end the training after the current step.

    Attributes:
        model: the classifier.
        params: ``epochs``, ``steps`` of an epoch (``None`` if not known), and ``figures``, the names in ``logs`` after
            an epoch.

    Example::

        >>> class Print(Callback):
        ...     def on_epoch_end(self, epoch, logs=None):
        ...         print(epoch, sorted(logs))
    """

    model: Classifier
    params: Mapping[str, Any]

    def on_train_begin(self, logs: Mapping[str, float] | None = None) -> None:
        """Called before the first epoch."""

    def on_train_end(self, logs: Mapping[str, float] | None = None) -> None:
        """Called after the last epoch, with its figures."""

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Called before each epoch."""

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Called after each epoch and its validation."""

    def on_train_batch_end(self, batch: int, logs: Mapping[str, float] | None = None) -> None:
        """Called after each step, with the means over the epoch so far."""


class Monitor(Callback):
    """A callback that watches one figure.

    Args:
        monitor: the name of the figure, such as ``"val_loss"`` or ``"val_accuracy"``.
        mode: ``"min"`` if lower is better, ``"max"`` if higher is better. ``"auto"`` means ``"max"`` for accuracies and
            ``"min"`` for losses.

    Raises:
        ValueError: if the mode is unknown, or ``"auto"`` cannot be decided.
    """

    def __init__(self, monitor: str, mode: str = "auto") -> None:
        if mode not in ("auto", "min", "max"):
            raise ValueError(f"mode must be auto, min or max, not {mode!r}")
        if mode == "auto":
            if not monitor.endswith(("loss", "accuracy", "acc")):
                raise ValueError(f"pass mode='min' or mode='max': {monitor!r} may be better high or low")
            mode = "min" if monitor.endswith("loss") else "max"
        self.monitor, self.mode = monitor, mode
        self.best = math.inf if mode == "min" else -math.inf

    def on_train_begin(self, logs: Mapping[str, float] | None = None) -> None:
        figures = self.params["figures"]
        if self.monitor not in figures:
            advice = ""
            if self.monitor.startswith("val_") and not any(name.startswith("val_") for name in figures):
                advice = ": pass validation_split or validation_data to fit()"
            raise TrainingError(
                f"{type(self).__name__} watches {self.monitor!r}, but there are only {', '.join(figures)}{advice}"
            )
        self.best = math.inf if self.mode == "min" else -math.inf

    def improved(self, value: float, by: float = 0.0) -> bool:
        """Return whether ``value`` is better than the best so far by more than ``by``."""
        return value < self.best - by if self.mode == "min" else value > self.best + by


class EarlyStopping(Monitor):
    """Stop when a figure has not improved for some epochs.

    Args:
        monitor, mode: as for :class:`Monitor`.
        min_delta: a smaller change is no improvement.
        patience: the number of epochs without improvement after which the training stops. 0 and 1 mean the same.
        restore_best_weights: whether the network gets its weights of the best epoch at the end.

    Attributes:
        stopped_epoch: the epoch, counted from 0, after which the training stopped. 0 if it did not stop early.

    Example::

        >>> EarlyStopping("val_accuracy", patience=3, restore_best_weights=True).mode
        'max'
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        min_delta: float = 0.0,
        patience: int = 0,
        mode: str = "auto",
        restore_best_weights: bool = False,
    ) -> None:
        super().__init__(monitor, mode)
        if patience < 0:
            raise ValueError(f"patience must be at least 0, not {patience}")
        self.min_delta, self.patience = abs(min_delta), patience
        self.restore_best_weights = restore_best_weights
        self.stopped_epoch = self._waited = 0
        self._weights: dict[str, Tensor] | None = None

    def on_train_begin(self, logs: Mapping[str, float] | None = None) -> None:
        super().on_train_begin(logs)
        self.stopped_epoch = self._waited = 0
        self._weights = None

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        value = (logs or {})[self.monitor]
        if self.improved(value, self.min_delta):
            self.best, self._waited = value, 0
            if self.restore_best_weights:
                self._weights = {name: weight.clone() for name, weight in self.model.model.state_dict().items()}
            return
        self._waited += 1
        if self._waited >= self.patience:
            self.stopped_epoch = epoch
            self.model.stop_training = True

    def on_train_end(self, logs: Mapping[str, float] | None = None) -> None:
        if self._weights is not None:
            self.model.model.load_state_dict(self._weights)
            self._weights = None


class ModelCheckpoint(Monitor):
    """Save the classifier after each epoch, or only after those in which a figure improved.

    Args:
        path: the file. It may have fields as in ``"{epoch:02d}-{val_loss:.3f}.pt"``. Here, epochs count from 1.
        monitor, mode: as for :class:`Monitor`. They matter for ``save_best_only``.
        save_best_only: whether the file is written only if the figure improved.
        save_weights_only: whether :meth:`Classifier.save_weights` writes the file. A classifier that was made from a
            module needs it, because :meth:`Classifier.save` cannot store the module.

    Raises:
        TrainingError: when the training begins, if the classifier cannot be saved or there is no such figure.
    """

    def __init__(
        self,
        path: str | Path,
        monitor: str = "val_loss",
        save_best_only: bool = False,
        mode: str = "auto",
        save_weights_only: bool = False,
    ) -> None:
        super().__init__(monitor, mode if save_best_only or mode != "auto" else "min")
        self.path, self.save_best_only, self.save_weights_only = path, save_best_only, save_weights_only

    def on_train_begin(self, logs: Mapping[str, float] | None = None) -> None:
        if self.save_best_only:
            super().on_train_begin(logs)
        if not self.save_weights_only:
            self.model.check_savable()
        self._file(0, dict.fromkeys(self.params["figures"], 0.0))

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        logs = logs or {}
        if self.save_best_only:
            if not self.improved(logs[self.monitor]):
                return
            self.best = logs[self.monitor]
        save = self.model.save_weights if self.save_weights_only else self.model.save
        save(self._file(epoch, logs))

    def _file(self, epoch: int, logs: Mapping[str, float]) -> Path:
        try:
            return Path(str(self.path).format(epoch=epoch + 1, **logs))
        except (KeyError, ValueError, IndexError) as error:
            raise TrainingError(f"the path {self.path} has a field that cannot be filled: {error}") from error


class Callbacks:
    """All callbacks of a training, as one.

    Args:
        callbacks: objects with some methods of :class:`Callback`, or functions of an :class:`EpochResult`.
        first: a function of an :class:`EpochResult`, which is called before all others.

    Raises:
        TypeError: if one is neither, or is Keras's.
    """

    def __init__(
        self, callbacks: Any, classifier: Any, params: Mapping[str, Any], first: Callable[[EpochResult], None]
    ) -> None:
        self._all: list[Any] = [first, *(callbacks if isinstance(callbacks, Iterable) else [callbacks])]
        self._objects = [one for one in self._all if _is_callback(one)]
        for one in self._all:
            refuse_keras("callback", one, "take one of fastconv.classifier, or derive yours from its Callback")
            if isinstance(one, type) or not (_is_callback(one) or callable(one)):
                raise TypeError(f"a callback must be a Callback or a function of the epoch's figures, not {one!r}")
        for one in self._objects:
            one.model, one.params = classifier, params
        self.watches_batches = any(
            getattr(type(one), "on_train_batch_end", None) not in (None, Callback.on_train_batch_end)
            for one in self._objects
        )

    def call(self, method: str, *arguments: Any) -> None:
        """Call ``method`` of all objects that have it."""
        for one in self._objects:
            function = getattr(one, method, None)
            if function is not None:
                function(*arguments)

    def epoch_end(self, result: EpochResult) -> None:
        """Call each function, and ``on_epoch_end`` of each object, in the order of the list."""
        for one in self._all:
            if not _is_callback(one):
                one(result)
            elif hasattr(one, "on_epoch_end"):
                one.on_epoch_end(result.epoch - 1, result.logs())


def _is_callback(one: Any) -> bool:
    if isinstance(one, type):
        return False
    return isinstance(one, Callback) or any(hasattr(one, name) for name in vars(Callback) if name.startswith("on_"))
