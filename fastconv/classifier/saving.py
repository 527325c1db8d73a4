"""Save and load a :class:`~fastconv.classifier.Classifier`, or only its weights, in one file."""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fastconv.classifier import checkpoint, training_state
from fastconv.classifier import device as devices
from fastconv.classifier.checkpoint import Checkpoint, CheckpointError
from fastconv.classifier.config import TrainingError
from fastconv.classifier.errors import UserError
from fastconv.classifier.files import OutputError, check_regular, write_atomically

_WEIGHTS = "fastconv-weights"
#: The entry ``compiled`` of a file that cannot store the optimizer or the loss, because it is a class or a function.
WITH_FUNCTIONS = "with functions"
_NAMES = ("optimizer", "loss")
_KEPT = ("lr", "schedule", "label_smoothing", "augment", "dtype", "patience", "device")


def config(settings: Mapping[str, Any], compiled: bool) -> dict[str, Any]:
    """Return the settings that a file keeps: the network's, and compile()'s arguments that are names or numbers."""
    kept = {name: settings[name] for name in ("model", "backend", *_NAMES, *_KEPT) if name in settings}
    if compiled and not all(name in kept for name in _NAMES):
        kept["compiled"] = WITH_FUNCTIONS
    return kept


def compile_settings(config: Mapping[str, Any], backend: str, given: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the arguments of compile() for a loaded classifier: empty if it was not compiled.

    Return ``None`` if its optimizer or its loss is missing.

    Args:
        config: the settings in the file. Its device is used only if it is here.
        backend: the library of the layers.
        given: what a file cannot keep, or ``None`` for each part that the file has.
    """
    own = {name: value for name, value in given.items() if value is not None}
    kept = {name: config[name] for name in (*_NAMES, *_KEPT) if name in config} | own
    if config.get("compiled") == WITH_FUNCTIONS and not all(name in kept for name in _NAMES):
        return None
    if "optimizer" in own and not inspect.isclass(own["optimizer"]):
        kept.pop("lr", None)  # a name or a function has a rate of its own
    try:
        devices.find(kept.get("device", "cpu"), backend)
    except UserError:
        del kept["device"]
    return kept


def name_list(class_names: Sequence[str] | None, classes: int) -> tuple[str, ...]:
    """Return the name of each class, by default its number."""
    if class_names is None:
        return tuple(map(str, range(classes)))
    if isinstance(class_names, str) or len(class_names) != classes:
        raise TrainingError(f"class_names must be {classes} names, one per class, not {class_names!r}")
    return tuple(map(str, class_names))


def on_cpu(model: nn.Module) -> dict[str, Tensor]:
    """Return the state_dict of ``model`` with tensors on the CPU."""
    return {name: value.detach().cpu() for name, value in model.state_dict().items()}


def check_savable(name: str | None) -> None:
    """Check that a network of this name can be saved. ``None`` means that a program made it."""
    if name is None:
        raise TrainingError(
            "only networks with a name or a list of layers can be saved: for your own module, use save_weights() and,"
            " later, load_weights() of a new Classifier(module), or torch.save(classifier.model, path)"
        )


def save(path: Path, content: Checkpoint, overwrite: bool) -> None:
    """Write ``content``, as :func:`fastconv.classifier.checkpoint.save` does.

    Raises:
        OutputError: if ``path`` is another file and ``overwrite`` is false, or it cannot be written.
    """
    _check_replaceable(path, overwrite)
    checkpoint.save(path, content)


def save_weights(path: Path, model: nn.Module, overwrite: bool) -> None:
    """Write the state_dict of ``model``. It has only tensors, so the file loads without running code."""
    _check_replaceable(path, overwrite)
    write_atomically(path, checkpoint.serialized({"format": _WEIGHTS, "state_dict": on_cpu(model)}))


def load_weights(path: Path, model: nn.Module) -> None:
    """Load the weights in ``path``, a file of :func:`save_weights` or :func:`save`, into ``model``.

    Raises:
        CheckpointError: if the file is damaged, or has the weights of another network. ``model`` then stays unchanged.
    """
    content = checkpoint.read(path, "file of weights")
    weights = content.get("state_dict") if isinstance(content, Mapping) else None
    if not isinstance(weights, dict):
        raise CheckpointError(f"{path} is not a file of weights")
    try:
        training_state.check_weights(model, weights)
    except ValueError as error:
        raise CheckpointError(f"{path} does not fit the network: {error}") from error
    try:
        training_state.check_finite(weights)
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    model.load_state_dict(weights)


def _check_replaceable(path: Path, overwrite: bool) -> None:
    """Check that ``path`` does not exist, or that this module or ``fastconv train`` wrote it."""
    if overwrite or not path.exists():
        return
    try:
        check_regular(path)
        content: Any = checkpoint.read(path, "checkpoint")
        ours = isinstance(content, dict) and content.get("format") in (checkpoint.FORMAT, _WEIGHTS)
    except CheckpointError:
        ours = False
    if not ours:
        raise OutputError(f"{path} exists and is not a file of fastconv: choose another path, or pass overwrite=True")
