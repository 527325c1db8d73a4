"""Checkpoints: files with a network's name, weights, training settings and test accuracy.

torch.save writes the file. It contains only plain types and tensors, so it loads with ``weights_only=True`` and cannot
run code.
"""

import io
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastconv.classifier import training_state
from fastconv.classifier.config import LOSSES, TrainingError
from fastconv.classifier.data import CLASS_NAMES
from fastconv.classifier.errors import UserError
from fastconv.classifier.files import check_regular, write_atomically
from fastconv.classifier.networks import build_model

FORMAT = "fastconv-mnist"  # identifies the files; renaming it would make earlier checkpoints unreadable
_VERSION = 2


class CheckpointError(UserError):
    """A file is not a checkpoint, or this version of fastconv cannot use it."""


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint file: the network, and the shape and the classes of its images.

    ``config`` has the settings of the run. Commands use its data set and loss as defaults. ``training`` is the state of
    the training, which :mod:`fastconv.classifier.continuing` makes and restores.
    """

    model: str
    state_dict: dict[str, torch.Tensor]
    test_accuracy: float | None  # None if the network was not tested
    config: dict[str, Any] = field(default_factory=dict)
    shape: tuple[int, int, int] = (1, 28, 28)
    class_names: tuple[str, ...] = CLASS_NAMES
    training: dict[str, Any] | None = None

    @property
    def loss(self) -> str:
        """The loss function of the run, one of :data:`~fastconv.classifier.config.LOSSES`."""
        loss = self.config.get("loss")
        return loss if loss in LOSSES else "cross-entropy"

    def build(self, backend: str = "fastconv") -> nn.Module:
        """Build the network with these weights, in evaluation mode."""
        network = build_model(self.model, backend, self.shape, len(self.class_names))
        network.to(next(iter(self.state_dict.values())).dtype)
        network.load_state_dict(self.state_dict)
        return network.eval()


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write ``checkpoint`` to ``path``. If writing fails, an earlier file stays unchanged."""
    content = {
        "format": FORMAT,
        "version": _VERSION,
        "model": checkpoint.model,
        "state_dict": dict(checkpoint.state_dict),
        "test_accuracy": checkpoint.test_accuracy,
        "config": checkpoint.config,
        "shape": checkpoint.shape,
        "class_names": checkpoint.class_names,
        **({} if checkpoint.training is None else {"training": checkpoint.training}),
    }
    write_atomically(path, serialized(content))


def load(path: Path) -> Checkpoint:
    """Read the checkpoint at ``path``.

    Raises:
        CheckpointError: if the file does not exist, is damaged, is not a checkpoint of fastconv, was written by a later
            version, or has weights that do not fit its model.
    """
    return _checked(path, read(path, "checkpoint"))


def serialized(content: object) -> bytes:
    """Return the bytes that torch.save writes for ``content``, and that :func:`read` reads."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def read(path: Path, kind: str) -> object:
    """Read a file of plain types and tensors that torch.save wrote. ``kind`` names the expected content in errors.

    Raises:
        CheckpointError: if the file cannot be read, or torch.save did not write it.
    """
    try:
        check_regular(path)
        with path.open("rb") as file:
            if not zipfile.is_zipfile(file):
                raise CheckpointError(f"{path} is not a {kind}, or is truncated")
            with zipfile.ZipFile(file) as archive:  # torch.load does not check the checksums
                # torch.save does not compress. A small file with compressed entries could fill the memory.
                if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
                    raise CheckpointError(f"{path} is damaged: its entries are larger than the file")
                damaged = archive.testzip()
            if damaged is not None:
                raise CheckpointError(f"{path} is damaged: the checksum of its {damaged} is wrong")
            file.seek(0)
            return torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    except CheckpointError:
        raise
    except UserError as error:
        raise CheckpointError(str(error)) from error
    except Exception as error:  # torch.load raises RuntimeError, UnpicklingError, KeyError and others
        raise CheckpointError(f"{path} is not a {kind}, or is damaged") from error


def _checked(path: Path, content: object) -> Checkpoint:
    """Check ``content``, which was read from ``path``, and return it as a checkpoint."""
    from fastconv.classifier import schemas

    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of fastconv")
    version = content.get("version")
    if type(version) is int and version > _VERSION:
        raise CheckpointError(
            f"{path} was written by a later version of fastconv (format {version}; this version reads {_VERSION})"
        )
    wrong = schemas.problem(schemas.Checkpoint, content)
    if wrong is not None:
        if wrong.startswith(("shape", "class_names")):
            wrong = f"the description of its images is wrong: {wrong}"
        raise CheckpointError(f"{path} is damaged: {wrong}")
    model, weights = content["model"], content["state_dict"]
    # Version 1 supported digits only.
    shape, class_names = content.get("shape", (1, 28, 28)), content.get("class_names", CLASS_NAMES)
    try:
        with torch.device("meta"):  # a damaged file may name huge layers, so allocate nothing yet
            network = build_model(model, shape=shape, classes=len(class_names))
    except TrainingError as error:
        raise CheckpointError(f"{path} has a model that cannot be built, {model!r}: {error}") from error
    first = next(iter(weights.values()), None) if isinstance(weights, dict) else None
    if getattr(first, "dtype", None) is torch.float64:  # fastconv train --dtype float64
        network.double()
    try:
        training_state.check_weights(network, weights, model)
        training_state.check_finite(weights)
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    training = content.get("training")
    return Checkpoint(model, weights, content["test_accuracy"], content["config"], shape, class_names, training)
