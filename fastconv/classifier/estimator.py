"""An image classifier with the methods compile, fit, evaluate and predict."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastconv.classifier import checkpoint, continuing, evaluation, saving, summary
from fastconv.classifier import device as devices
from fastconv.classifier.callbacks import Callbacks
from fastconv.classifier.checkpoint import Checkpoint
from fastconv.classifier.config import TrainingConfig, TrainingError
from fastconv.classifier.data import CLASS_NAMES
from fastconv.classifier.fit import Training
from fastconv.classifier.history import EpochResult, History
from fastconv.classifier.inputs import Inputs, gives_tensors
from fastconv.classifier.networks import build_model
from fastconv.classifier.objective import Choice, Objective, check_names
from fastconv.classifier.progress import Progress
from fastconv.classifier.watched import run


class Classifier:
    """An image classifier that can be trained, evaluated and used for prediction.

    Args:
        model: a name, a list of layers as :func:`fastconv.builder.build_cnn` accepts it, or a module that returns
            logits (N, classes).
        shape: (C, H, W) of an image.
        classes: the number of classes. ``None`` means one for each of ``class_names``, or 10.
        backend: the library of the layers, ``"fastconv"`` or ``"torch"``. It is ignored if ``model`` is a module.
        class_names: the name of each class. By default, its number.

    Images and labels are arrays, tensors or lists. Images have the shape (N, C, H, W), (N, H, W, C) or, with one
    channel, (N, H, W). uint8 values are divided by 255. Floats are not scaled, so they should be in [0, 1]. Labels are
    integers (N,) or (N, 1), or one-hot rows (N, classes). In place of images and labels, you can pass a Dataset or a
    DataLoader of torch.utils.data, whose items are pairs of images and labels in these forms.

    Attributes:
        model: the network, a module.
        optimizer: the optimizer that :meth:`compile` made. ``None`` before.
        history: the result of the last :meth:`fit`, also if it was interrupted.

    Raises:
        TrainingError: if images or labels have another shape, or a setting is out of its range.

    Example::

        >>> images, labels = torch.rand(100, 28, 28), torch.arange(100) % 10
        >>> classifier = Classifier("conv8, pool, dense16").compile(optimizer="sgd", loss="categorical_crossentropy")
        >>> history = classifier.fit(images, labels, epochs=2, validation_split=0.2, verbose=0)
        >>> sorted(history.history)
        ['accuracy', 'loss', 'val_accuracy', 'val_loss']
        >>> loss, accuracy = classifier.evaluate(images, labels)
        >>> classifier.predict(images.numpy()).argmax(1).shape
        (100,)
    """

    def __init__(
        self,
        model: str | nn.Module = "mnist-cnn",
        shape: tuple[int, int, int] = (1, 28, 28),
        classes: int | None = None,
        backend: str = "fastconv",
        class_names: Sequence[str] | None = None,
    ) -> None:
        if classes is None:
            classes = len(CLASS_NAMES if class_names is None else class_names)
        self.class_names = saving.name_list(class_names, classes)
        C, H, W = shape
        self._shape, self._classes = (C, H, W), classes
        self._inputs = Inputs(self._shape, classes)
        self._name = None if isinstance(model, nn.Module) else model
        self._title = type(model).__name__ if isinstance(model, nn.Module) else model
        self._backend = backend
        self.model = model if isinstance(model, nn.Module) else build_model(model, backend, self._shape, classes)
        self._settings: dict[str, Any] = {}
        self._objective: Objective | None = None
        self._epochs_done = 0  # since compile()
        self._must_compile = False  # because it was loaded without its functions
        self.stop_training = False  # callbacks may set it
        self.history = History()

    @property
    def optimizer(self) -> torch.optim.Optimizer | None:
        return None if self._objective is None else self._objective.optimizer

    def compile(
        self,
        optimizer: Any = "adam",
        loss: Any = "cross-entropy",
        *,
        metrics: Any = (),
        lr: float | None = None,
        **settings: Any,
    ) -> Classifier:
        """Choose how to train. A new optimizer starts without the state of an earlier one.

        Names may be written in any case, with "_" or "-". If an argument is wrong, nothing changes.

        Args:
            optimizer: ``"adam"``, ``"adamw"``, ``"sgd"`` (with Nesterov momentum of 0.9) or ``"rmsprop"``; a class of
                torch.optim; an optimizer over the parameters of :attr:`model`; or a function of the parameters that
                returns one.
            loss: ``"cross-entropy"`` (also ``"categorical_crossentropy"`` and ``"sparse_categorical_crossentropy"``) or
                ``"mse"``; a loss of torch.nn; or a function. Losses and functions are called with logits (N, classes)
                and integer labels (N,), except ``nn.MSELoss``, which means ``"mse"``.
            metrics: functions of probabilities (N, classes) and labels (N,), as a list or by name. They are called once
                with all images. In :meth:`fit`, the probabilities of the training images are those during the epoch.
                The history has ``name`` and ``val_name``. ``"accuracy"`` is always computed.
            lr: the learning rate. ``None`` means the default: 1e-2 for sgd, 1e-3 for the other names, and PyTorch's
                default for a class of torch.optim.
            settings: other fields of :class:`~fastconv.classifier.config.TrainingConfig`, such as schedule or augment.

        Returns:
            The classifier itself.

        Raises:
            TypeError: if a setting does not exist, or belongs to another function.
            ValueError: if a name is unknown.
            TrainingError: if a setting is out of its range.
        """
        check_names(settings)
        choice = Choice(optimizer, loss, metrics, lr, returns_logits=self._name is not None)
        given = choice.settings | settings
        self._objective = choice.objective(self._config(given), self.model)
        self._settings, self._epochs_done, self._must_compile = given, 0, False
        return self

    def fit(
        self,
        images: Any,
        labels: Any = None,
        *,
        epochs: int = 5,
        batch_size: int | None = None,
        validation_split: float = 0.0,
        validation_data: Any = None,
        seed: int = 0,
        shuffle: bool = True,
        verbose: int | str = 1,
        callbacks: Any = (),
    ) -> History:
        """Train the network, starting from its current weights and the state of its optimizer.

        Args:
            images, labels: see :class:`Classifier`. A DataLoader is iterated anew in each epoch.
            batch_size: the number of images per step. ``None`` means 64, or the batch size of the DataLoader.
            validation_split: the share of the images, from their end, that is used for validation.
            validation_data: for validation, in place of that share: a pair of images and labels, a Dataset or a
                DataLoader.
            seed: the seed of the order and of the augmentation.
            shuffle: whether each epoch has another order. A DataLoader decides itself.
            verbose: 0 prints nothing, 1 shows a bar for each epoch and then a line, 2 prints only the lines. A bar
                needs a terminal or a notebook.
            callbacks: a list of :class:`~fastconv.classifier.callbacks.Callback`, or of functions, which are called
                with the :class:`~fastconv.classifier.history.EpochResult` of each epoch.

        Returns:
            The figures of each epoch.

        Raises:
            TypeError: if arguments do not go together, such as validation_data and validation_split.
            TrainingError: if images, labels or settings are wrong, or the training diverges.
        """
        if validation_data is not None and validation_split:
            raise TypeError("fit() takes validation_data or validation_split, not both")
        objective = self._compiled()
        size = 64 if batch_size is None else batch_size
        given = {"epochs": epochs, "batch_size": size, "validation_split": validation_split, "seed": seed}
        config = self._config(self._settings | given)
        device = devices.find(config.device, config.backend)
        batches, held_out = self._inputs.training(images, labels, batch_size, validation_split, shuffle, device)
        if validation_data is not None:
            held_out = self._inputs.evaluation(validation_data)
        if config.patience is not None and held_out is None:
            raise TrainingError("patience needs validation images: pass validation_split or validation_data")
        params = {"epochs": epochs, "steps": batches.steps, "figures": objective.figures(held_out is not None)}
        watching = Callbacks(callbacks, self, params, self._count_epoch)
        with torch.random.fork_rng(devices=[]), Progress.for_fit(epochs, batches.steps, verbose) as progress:
            training = Training(
                batches, None, config, model=self.model, held_out=held_out, objective=objective,
                epochs_before=self._epochs_done,
            )  # fmt: skip
            self.history, self.stop_training = training.history, False
            try:
                run(training, watching, progress, lambda: self.stop_training)
            finally:
                training.restore_rates()
        return training.history

    def _count_epoch(self, result: EpochResult) -> None:
        self._epochs_done += 1

    def evaluate(
        self,
        images: Any,
        labels: Any = None,
        *,
        batch_size: int | None = None,
        verbose: int | str = 0,
        return_dict: bool = False,
    ) -> Any:
        """Return the loss (without label smoothing), the accuracy and the metrics: numbers that also have names.

        Args:
            images, labels: see :class:`Classifier`.
            batch_size: the number of images per step. The result does not depend on it.
            verbose: 0 prints nothing. Other values print the result.
            return_dict: whether to return a dict.

        Example::

            >>> classifier = Classifier("conv4, pool")
            >>> scores = classifier.evaluate(torch.rand(10, 28, 28), torch.arange(10))
            >>> loss, accuracy = scores
            >>> (scores.loss, scores["accuracy"]) == (loss, accuracy)
            True
        """
        objective = self._compiled()
        batches = self._inputs.evaluation(images if labels is None else (images, labels), batch_size)
        scores = evaluation.measure(self.model, batches.epoch(0), objective.evaluation_loss, objective.metrics)
        if verbose not in (0, "auto"):
            print("  ".join(f"{name} {value:.4f}" for name, value in scores.items()), flush=True)
        return dict(scores.items()) if return_dict else scores

    def predict(self, images: Any, *, batch_size: int | None = None, verbose: int | str = 0) -> Any:
        """Return the probability of each class, (N, classes): a tensor for tensors, an array for arrays and lists.

        Args:
            images: see :class:`Classifier`. For a Dataset or a DataLoader, labels are ignored, and the result is a
                tensor.
            batch_size: the number of images per step. The result does not depend on it.
            verbose: accepted, because Keras has it. Nothing is printed.
        """
        probabilities = evaluation.predict_batches(self.model, self._inputs.images(images, batch_size))
        return probabilities if gives_tensors(images) else probabilities.numpy()

    def summary(self) -> None:
        """Print the layers with the shapes of their outputs and their numbers of parameters."""
        print(summary.text(self._title, self.model, self._shape))

    def save(self, path: str | Path, overwrite: bool = False, include_optimizer: bool = True) -> None:
        """Write the classifier to one file: layers, weights, class names, settings and the state of the optimizer.

        After :meth:`load`, :meth:`fit` continues as without the interruption. The commands of ``fastconv`` accept the
        file. An earlier file of fastconv is replaced.

        Args:
            overwrite: whether any other file is replaced, too.
            include_optimizer: whether the file has the state of the optimizer, which is about twice as large as the
                weights. Without it, training starts with a new optimizer.

        Raises:
            TrainingError: if the network is a module of your own: see :meth:`save_weights`.
            OutputError: if the file cannot be written, or must not be replaced.
        """
        self.check_savable()
        assert self._name is not None
        settings, training = self._settings | {"backend": self._backend, "model": self._name}, None
        if include_optimizer and self._objective is not None:
            training = continuing.state_of(self._objective, self.model, self._settings, self._epochs_done)
        config, weights = saving.config(settings, self._objective is not None), saving.on_cpu(self.model)
        content = Checkpoint(self._name, weights, None, config, self._shape, self.class_names, training)
        saving.save(Path(path), content, overwrite)

    def check_savable(self) -> None:
        """Raise TrainingError if :meth:`save` cannot store the network, because a program made it."""
        saving.check_savable(self._name)

    @classmethod
    def load(
        cls, path: str | Path, backend: str | None = None, *, optimizer: Any = None, loss: Any = None, metrics: Any = ()
    ) -> Classifier:
        """Load a classifier that :meth:`save` or ``fastconv train`` wrote. It is compiled as it was.

        The optimizer has its state, and :meth:`fit` continues with the next epoch. For a file of ``fastconv train``,
        or one without that state, the optimizer starts anew. If the file names a GPU that is not here, the CPU is used.

        Args:
            backend: the library of the layers. ``None`` means the one that the file names.
            optimizer, loss, metrics: the classes and functions that :meth:`compile` got. The file has only names. If
                the optimizer or the loss is missing, call :meth:`compile` before :meth:`fit` or :meth:`evaluate`.

        Raises:
            CheckpointError: if the file is damaged or no checkpoint, or has the state of another optimizer.

        Example::

            >>> import tempfile
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     Classifier("conv4, pool", class_names=("cat", "dog")).save(Path(folder, "model.pt"))
            ...     Classifier.load(Path(folder, "model.pt"))
            Classifier(conv4, pool: images (1, 28, 28), 2 classes, 1,394 parameters)
        """
        saved = checkpoint.load(Path(path))
        config = saved.config
        library = backend or config.get("backend", "fastconv")
        classifier = cls(saved.model, saved.shape, backend=library, class_names=saved.class_names)
        classifier.model.to(next(iter(saved.state_dict.values())).dtype)
        classifier.model.load_state_dict(saved.state_dict)
        given = {"optimizer": optimizer, "loss": loss, "metrics": metrics or None}
        settings = saving.compile_settings(config, library, given)
        if settings:
            objective = classifier.compile(**settings)._compiled()
            if saved.training is not None:
                used = classifier._settings
                classifier._epochs_done = continuing.restore(saved.training, objective, classifier.model, used)
        classifier._must_compile = settings is None
        return classifier

    def save_weights(self, path: str | Path, overwrite: bool = False) -> None:
        """Write the weights to a file, also for a module of your own. See :meth:`save` for ``overwrite``."""
        saving.save_weights(Path(path), self.model, overwrite)

    def load_weights(self, path: str | Path) -> None:
        """Load weights that :meth:`save_weights` or :meth:`save` wrote for the same network.

        Raises:
            CheckpointError: if the file is damaged or does not fit. The network then stays unchanged.
        """
        saving.load_weights(Path(path), self.model)

    def __repr__(self) -> str:
        return f"Classifier({summary.line(self._title, self.model, self._shape, self._classes, self._settings)})"

    def _repr_html_(self) -> str:
        return summary.unfolding(repr(self), summary.text(self._title, self.model, self._shape))

    def _compiled(self) -> Objective:
        """Return what :meth:`compile` chose. Without a call, the defaults are chosen."""
        if self._must_compile:
            raise TrainingError(
                "call compile() first, or pass load() what compile() got: it was a function or a class of torch, which"
                " is not in the file"
            )
        if self._objective is None:
            self.compile()
        assert self._objective is not None
        return self._objective

    def _config(self, given: dict[str, Any]) -> TrainingConfig:
        # The layers of a module of the user's need no CUDA build of fastconv.
        backend = "torch" if self._name is None and given.get("device") == "cuda" else self._backend
        return TrainingConfig(**{"validation_split": 0.0, "backend": backend, **given})
