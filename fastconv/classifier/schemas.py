"""The schemas of the files that fastconv writes and reads, and the messages about files that violate them.

A schema sees one file only. The readers of the files check the rest, such as the shapes of a network's weights.

Importing pydantic takes 0.1 s. Import this module in the functions that read files, so that ``fastconv --help`` does
not wait.
"""

from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from fastconv.classifier.config import TrainingError, check_settings


class _Record(BaseModel):
    """Types are strict: no string is converted to a number. Numbers must be finite. Additional fields are allowed."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)


def _settings(settings: dict[str, Any]) -> dict[str, Any]:
    try:
        check_settings(settings)
    except TrainingError as error:
        raise ValueError(str(error)) from error
    return settings


Positive = Annotated[int, Field(ge=1, lt=2**31)]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Amount = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, StringConstraints(min_length=1)]
#: Settings may be missing, because earlier versions of fastconv had fewer. Those that are present must be valid.
Settings = Annotated[dict[str, Any], AfterValidator(_settings)]
Tensors = dict[str, torch.Tensor]
Side = Annotated[int, Field(ge=1, lt=2**15)]


def _shown(settings: dict[str, Any]) -> dict[str, Any]:
    """Check the settings in history.json. Their model may be any string, because it is only displayed."""
    if not isinstance(settings.get("model", ""), str):
        raise ValueError(f"model must be a string, not {settings['model']!r}")
    return _settings({name: value for name, value in settings.items() if name != "model"})


class Epoch(_Record):
    """The fields of :class:`fastconv.classifier.history.EpochResult`."""

    model_config = ConfigDict(extra="forbid")

    epoch: Positive
    loss: Amount
    accuracy: Share
    val_loss: Amount | None
    val_accuracy: Share | None
    seconds: Amount
    images_per_second: Amount


def _epochs(epochs: list[Epoch]) -> list[Epoch]:
    if [epoch.epoch for epoch in epochs] != list(range(1, len(epochs) + 1)):
        raise ValueError("the epochs must be numbered 1, 2, 3...")
    held_out = {value is not None for epoch in epochs for value in (epoch.val_loss, epoch.val_accuracy)}
    if len(held_out) > 1:
        raise ValueError("validation figures must be present in all epochs or in none")
    return epochs


Epochs = Annotated[list[Epoch], AfterValidator(_epochs)]
SomeEpochs = Annotated[Epochs, Field(min_length=1)]


class Compared(_Record):
    """The figures of the same run on the other backend, which ``--compare`` adds to history.json."""

    backend: Name
    epochs: SomeEpochs
    test_accuracy: Share
    test_loss: Amount | None = None


class History(_Record):
    """The content of history.json."""

    config: Annotated[dict[str, Any], AfterValidator(_shown)]
    versions: dict[str, Any]
    epochs: SomeEpochs
    test_accuracy: Share | None = None
    test_loss: Amount | None = None
    compare: Compared | None = None


class Optimizer(_Record):
    """The state_dict() of an optimizer of torch.optim."""

    state: dict[Count, dict[str, Any]]
    param_groups: list[dict[str, Any]]


class TrainingState(_Record):
    """The result of :meth:`fastconv.classifier.fit.Training.state_dict`."""

    model: Tensors
    optimizer: Optimizer
    history: Epochs
    steps: Count
    seconds: Amount
    totals: Annotated[list[Any], Field(min_length=4, max_length=4)]
    rng: torch.Tensor
    rng_cuda: torch.Tensor | None


class Training(_Record):
    """The content of training.pt."""

    settings: Settings
    training: TrainingState
    finished: bool = False  # the key is missing in files of earlier versions, which removed them at the end


class SavedTraining(_Record):
    """How far the training of a saved classifier is: see :func:`fastconv.classifier.continuing.state_of`."""

    optimizer: Name
    weights: list[str]
    frozen: list[str]
    state: dict[Count, dict[str, Any]]
    rates: list[Amount] | None
    epochs: Count


class Checkpoint(_Record):
    """The content of checkpoint.pt and best.pt. Version 1, for digits only, had neither shape nor class names."""

    version: Literal[1, 2]
    model: Name
    state_dict: Any
    test_accuracy: Share | None
    config: Settings
    shape: tuple[Side, Side, Side] = (1, 28, 28)
    class_names: Annotated[tuple[str, ...], Field(min_length=1)] = ("",)
    training: SavedTraining | None = None


def problem(schema: type[BaseModel], content: object) -> str | None:
    """Describe what is wrong with ``content`` in a few words. Return ``None`` if it follows the schema.

    Example::

        >>> problem(Optimizer, {"state": {}, "param_groups": 3})
        'param_groups: a list is expected, not 3'
    """
    try:
        schema.model_validate(content)
    except ValidationError as error:
        lacking = sorted(
            str(one["loc"][0]) for one in error.errors() if one["type"] == "missing" and len(one["loc"]) == 1
        )
        if lacking:
            return f"it lacks {', '.join(lacking)}"
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        return f"{where}: {_said(first)}" if where else _said(first)
    except RecursionError:
        return "its lists and tables are nested too deeply"
    return None


def _said(error: Any) -> str:
    """Rephrase a message of pydantic, such as "Input should be a valid list"."""
    if error["type"] == "missing":
        return "it is missing"
    message = str(error["msg"]).removeprefix("Value error, ")
    wanted = message.removeprefix("Input should be ")
    if wanted == message:
        return message
    wanted = wanted.replace("a valid ", "a ").replace("a integer", "an integer")
    return f"{wanted} is expected, not {_short(error['input'])}"


def _short(value: object) -> str:
    """Return ``value`` shortened to fit into a line."""
    if isinstance(value, torch.Tensor):
        return "a tensor"
    if isinstance(value, dict | list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, int) and value.bit_length() > 200:
        return "a huge number"
    text = repr(value)
    return text if len(text) <= 40 else text[:40] + "..."
