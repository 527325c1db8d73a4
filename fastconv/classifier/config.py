"""The settings of a run, and the recipes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from numbers import Real
from typing import Any

from fastconv.classifier.choices import AUGMENTATIONS, DATASETS, MAX_IMAGE_SIZE
from fastconv.classifier.errors import UserError
from fastconv.classifier.names import suggestion

BACKENDS = ("fastconv", "torch")
OPTIMIZERS = ("adam", "adamw", "sgd", "rmsprop")
LOSSES = ("cross-entropy", "mse")
#: bfloat16 uses torch.autocast, and the weights stay in float32.
DTYPES = ("float32", "float64", "bfloat16")
DEVICES = ("cpu", "cuda")
#: Larger values are rejected, because they are probably typos.
MAX_EPOCHS = 1_000_000
MAX_LIMIT = 1_000_000_000

#: The networks that have a name, as lists of layers for :func:`fastconv.builder.build_cnn`.
MODELS = {
    "mnist-cnn": "conv32, pool, conv64, pool, conv128, dense128",
    "simple-cnn": "conv32, pool, conv64, pool, dense64",
}

#: Each function returns the factor of the learning rate. Its argument is the share of the steps done, 0 to 1.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
    # It rises for a fifth of the steps, then falls: Smith and Topin, "Super-convergence" (2017). Momentum is constant.
    "one-cycle": lambda done: min(0.1 + 0.9 * done / 0.2, (1 - done) / 0.8),
}

#: The fields of :class:`TrainingConfig` that each recipe sets. Other fields keep their defaults.
#: docs/howto/recipes.md has the test accuracies, and describes the other settings that were tried.
RECIPES: dict[str, dict[str, Any]] = {
    "reference": {},
    "fast": {
        "epochs": 1,
        "batch_size": 128,
        "validation_split": 0.0,
        "lr": 8e-3,
        "schedule": "one-cycle",
        "label_smoothing": 0.1,
    },
    "accurate": {
        "epochs": 15,
        "batch_size": 128,
        "validation_split": 0.0,
        "lr": 3e-3,
        "schedule": "one-cycle",
        "label_smoothing": 0.1,
        "augment": "affine",
    },
}


_NUMBERS = {"validation_split": "validation split", "label_smoothing": "label smoothing", "lr": "learning rate"}
_CHOICES: dict[str, Iterable[str]] = {
    "backend": BACKENDS,
    "schedule": SCHEDULES,
    "augment": AUGMENTATIONS,
    "optimizer": OPTIMIZERS,
    "loss": LOSSES,
    "dtype": DTYPES,
    "device": DEVICES,
}


class TrainingError(UserError):
    """A setting, an image or a label cannot be used for training."""


class Diverged(TrainingError):
    """The training loss or the validation loss is no longer finite."""


@dataclass(frozen=True)
class TrainingConfig:
    """The settings of :func:`fastconv.classifier.fit.fit`. The defaults are the recipe ``reference``.

    ``TrainingConfig(**RECIPES["fast"])`` gives the settings of another recipe.

    Args:
        model: one of :data:`MODELS`, or a list of layers as :func:`fastconv.builder.build_cnn` accepts it.
        backend: the library that runs the layers, one of :data:`BACKENDS`.
        epochs: passes over the training images.
        batch_size: number of images per step.
        validation_split: share of the images, from their end, that is used for validation.
        lr: the highest learning rate of the schedule.
        seed: the seed of the weights, the order and the augmentation.
        schedule: how the learning rate changes from step to step, one of :data:`SCHEDULES`.
        label_smoothing: the share of the target that is spread over all classes (Szegedy et al., 2015).
        augment: the random changes of the images, one of :data:`~fastconv.classifier.augment.AUGMENTATIONS`.
        optimizer: one of :data:`OPTIMIZERS`. sgd has Nesterov momentum of 0.9, rmsprop a decay of 0.9.
        loss: one of :data:`LOSSES`. mse compares the probabilities with 1 for the true class and 0 for the others.
        patience: stop when the validation loss has not fallen for this number of epochs. ``None`` never stops early.
        dtype: the data type of the computation, one of :data:`DTYPES`.
        device: the device, one of :data:`DEVICES`.

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
    schedule: str = "constant"
    label_smoothing: float = 0.0
    augment: str = "none"
    optimizer: str = "adam"
    loss: str = "cross-entropy"
    patience: int | None = None
    dtype: str = "float32"
    device: str = "cpu"

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> TrainingConfig:
        """Build the configuration from the result of :func:`settle`. Ignore settings that are not fields."""
        return cls(**{field.name: settings[field.name] for field in fields(cls)})

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "seed", "patience"):
            value = getattr(self, name)
            whole = _is_whole(value) or (name == "patience" and value is None)
            _check(whole, f"{name.replace('_', ' ')} must be a whole number, not {value!r}")
        for name, called in _NUMBERS.items():
            value = getattr(self, name)
            _check(isinstance(value, Real) and not isinstance(value, bool), f"{called} must be a number, not {value!r}")
        _check_model(self.model)
        for name, known in _CHOICES.items():
            _check_choice("augmentation" if name == "augment" else name, getattr(self, name), known)
        if self.patience is not None:
            _check_range("patience", self.patience, MAX_EPOCHS)
        for name in ("label_smoothing", "validation_split"):
            share = getattr(self, name)
            _check(0 <= share < 1, f"{_NUMBERS[name]} must be at least 0 and below 1, not {share}")
        _check_range("epochs", self.epochs, MAX_EPOCHS)
        _check(1 <= self.batch_size < 2**31, f"batch size must be between 1 and 2^31 - 1, not {self.batch_size}")
        _check(0 < self.lr < math.inf, f"learning rate must be above 0 and finite, not {self.lr}")
        _check(0 <= self.seed < 2**63, f"seed must be between 0 and 2^63 - 1, not {self.seed}")


#: Settings of a run that change its weights but are not fields of :class:`TrainingConfig`, with their defaults.
_OTHER_SETTINGS: dict[str, Any] = {
    "recipe": "reference",
    "dataset": "mnist5k",
    "data_dir": None,
    "image_size": None,
    "limit": None,
}


def settle(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return all settings of a new run: the given value of each, else the recipe's, else the default.

    Example::

        >>> settings = settle({"recipe": "fast", "lr": 0.01})
        >>> settings["lr"], settings["epochs"], settings["seed"], settings["dataset"]
        (0.01, 1, 0, 'mnist5k')
    """
    others = {name: given.get(name, default) for name, default in _OTHER_SETTINGS.items()}
    _check_choice("recipe", others["recipe"], RECIPES)
    chosen = {name: value for name, value in given.items() if name not in others}
    settings = {**asdict(TrainingConfig(**{**RECIPES[others["recipe"]], **chosen})), **others}
    check_settings(settings)
    return settings


def check_settings(settings: Mapping[str, Any]) -> None:
    """Check the settings of a run. Settings that were read from a file may be incomplete.

    Example::

        >>> check_settings({"epochs": 3, "dataset": "photographs"})
        Traceback (most recent call last):
        fastconv.classifier.config.TrainingError: unknown data set 'photographs': choose one of mnist5k, mnist, ...
    """
    TrainingConfig(**{field.name: settings[field.name] for field in fields(TrainingConfig) if field.name in settings})
    _check_choice("recipe", settings.get("recipe", "reference"), RECIPES)
    _check_choice("data set", settings.get("dataset", "mnist5k"), DATASETS)
    folder, size, limit = (settings.get(name) for name in ("data_dir", "image_size", "limit"))
    _check(folder is None or isinstance(folder, str), f"data dir must be a path, not {folder!r}")
    for called, value, high in (("image size", size, MAX_IMAGE_SIZE), ("limit", limit, MAX_LIMIT)):
        if value is not None:
            _check(_is_whole(value), f"{called} must be a whole number, not {value!r}")
            _check_range(called, value, high)


def _check_model(model: object) -> None:
    if not isinstance(model, str):
        raise TrainingError(f"model must be a name or a list of layers, not {model!r}")
    from fastconv.builder import parse  # it imports torch, for which the command's help must not wait

    try:
        parse(MODELS.get(model, model))
    except ValueError as error:
        known = ", ".join(MODELS)
        meant = suggestion(model, MODELS) or f"; {error}"
        raise TrainingError(f"unknown model {model!r}: choose one of {known}, or list its layers{meant}") from error


def _check_choice(what: str, name: object, choices: Iterable[str]) -> None:
    known = isinstance(name, str) and name in choices
    _check(known, f"unknown {what} {name!r}: choose one of {', '.join(choices)}{suggestion(str(name), choices)}")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_range(what: str, value: int, high: int) -> None:
    _check(value >= 1, f"{what} must be at least 1, not {value}")
    _check(value <= high, f"{what} must be at most {high}, not {value}")


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise TrainingError(message)
