"""Save and load a :class:`~fastconv.classifier.Classifier`, or only its weights, in one file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastconv.classifier import checkpoint, training_state
from fastconv.classifier.checkpoint import Checkpoint, CheckpointError
from fastconv.classifier.config import TrainingError
from fastconv.classifier.files import OutputError, check_regular, write_atomically

_WEIGHTS = "fastconv-weights"
#: How a classifier was compiled if a file cannot keep all of it.
WITH_FUNCTIONS = "with functions"
_NAMES = ("optimizer", "loss")
_KEPT = ("lr", "schedule", "label_smoothing", "augment", "dtype")


def config(settings: Mapping[str, Any], compiled: bool) -> dict[str, Any]:
    """Return the settings that a file keeps: those of the network, and those of compile() that are names or numbers."""
    kept = {name: settings[name] for name in ("model", "backend", *_NAMES, *_KEPT) if name in settings}
    if compiled and not all(name in kept for name in _NAMES):
        kept["compiled"] = WITH_FUNCTIONS
    return kept


def compile_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of compile() in a file's settings. Empty if its optimizer or its loss is missing."""
    if not all(name in config for name in _NAMES):
        return {}
    return {name: config[name] for name in (*_NAMES, *_KEPT) if name in config}


def check_savable(name: str | None) -> None:
    """Check that a network of this name can be saved. ``None`` means that a program made it.

    Raises:
        TrainingError: if it cannot.
    """
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
    weights = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    write_atomically(path, checkpoint.serialized({"format": _WEIGHTS, "state_dict": weights}))


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
    for name, value in weights.items():
        if not torch.isfinite(value).all():
            raise CheckpointError(f"{path} is damaged: {name} has values that are not finite")
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
