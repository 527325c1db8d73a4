"""Checkpoints: a network's name and weights, how it was trained, and how well it does, in one file.

The file is torch.save's, of plain types and tensors, so that it loads with ``weights_only=True`` and runs no code.
"""

import io
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastconv.classifier.config import LOSSES, TrainingError
from fastconv.classifier.data import CLASS_NAMES
from fastconv.classifier.errors import UserError
from fastconv.classifier.files import check_regular, write_atomically
from fastconv.classifier.networks import build_model

_FORMAT = "fastconv-mnist"
_VERSION = 2


class CheckpointError(UserError):
    """A file that is not a checkpoint, or not one that this version of fastconv can use."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds: the network, and the images and classes it is for.

    ``config`` is for the reader, and for what a command takes where it is not told otherwise: data set and loss.
    """

    model: str
    state_dict: dict[str, torch.Tensor]
    test_accuracy: float | None  # None: not tested
    config: dict[str, Any] = field(default_factory=dict)
    shape: tuple[int, int, int] = (1, 28, 28)
    class_names: tuple[str, ...] = CLASS_NAMES

    @property
    def loss(self) -> str:
        """What it was trained on, one of :data:`~fastconv.classifier.config.LOSSES`."""
        loss = self.config.get("loss")
        return loss if loss in LOSSES else "cross-entropy"

    def build(self, backend: str = "fastconv") -> nn.Module:
        """The network with these weights, ready to predict."""
        network = build_model(self.model, backend, self.shape, len(self.class_names))
        network.to(next(iter(self.state_dict.values())).dtype)
        network.load_state_dict(self.state_dict)
        return network.eval()


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write ``checkpoint`` to ``path``: wholly, or, if something fails on the way, not at all."""
    content = {
        "format": _FORMAT,
        "version": _VERSION,
        "model": checkpoint.model,
        "state_dict": dict(checkpoint.state_dict),
        "test_accuracy": checkpoint.test_accuracy,
        "config": checkpoint.config,
        "shape": checkpoint.shape,
        "class_names": checkpoint.class_names,
    }
    write_atomically(path, serialized(content))


def load(path: Path) -> Checkpoint:
    """Read the checkpoint at ``path``.

    Raises:
        CheckpointError: if there is no file, or it is damaged, not of fastconv's, or of a later version, or its weights
            do not fit its model.
    """
    return _checked(path, read(path, "checkpoint"))


def serialized(content: object) -> bytes:
    """What torch.save makes of ``content``, and :func:`read` reads."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def read(path: Path, kind: str) -> object:
    """What torch.save wrote to ``path``, of plain types and tensors. ``kind`` is what the file should be, for errors.

    Raises:
        CheckpointError: if it cannot be read, or is not such a file.
    """
    try:
        check_regular(path)
        with path.open("rb") as file:
            if not zipfile.is_zipfile(file):
                raise CheckpointError(f"{path} is not a {kind}, or a truncated one")
            with zipfile.ZipFile(file) as archive:  # torch.load does not look at the checksums
                # torch.save packs nothing. A small file of packed entries could fill the memory.
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
    except Exception as error:  # torch.load raises whatever its reader met: RuntimeError, UnpicklingError, KeyError...
        raise CheckpointError(f"{path} is not a {kind}, or a damaged one") from error


def _checked(path: Path, content: object) -> Checkpoint:
    """The checkpoint in what torch.load returned for ``path``."""
    from fastconv.classifier import schemas

    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of fastconv")
    version = content.get("version")
    if type(version) is int and version > _VERSION:
        raise CheckpointError(f"{path} comes from a later fastconv (format {version}; this one reads {_VERSION})")
    wrong = schemas.problem(schemas.Checkpoint, content)
    if wrong is not None:
        if wrong.startswith(("shape", "class_names")):
            wrong = f"it does not say which images it is for: {wrong}"
        raise CheckpointError(f"{path} is damaged: {wrong}")
    model, weights = content["model"], content["state_dict"]
    # Version 1 knew digits only.
    shape, class_names = content.get("shape", (1, 28, 28)), content.get("class_names", CLASS_NAMES)
    try:
        with torch.device("meta"):  # a name can ask for any size: no memory before the weights are seen to have it
            expected = build_model(model, shape=shape, classes=len(class_names)).state_dict()
    except TrainingError as error:
        raise CheckpointError(f"{path} is of another model, {model!r}: {error}") from error
    if not isinstance(weights, dict) or weights.keys() != expected.keys():
        raise CheckpointError(f"{path} is damaged: its weights are not those of {model}")
    # float64 is what train --dtype float64 leaves.
    dtype = torch.float64 if getattr(next(iter(weights.values())), "dtype", None) is torch.float64 else torch.float32
    for key, tensor in expected.items():
        found = weights[key]
        plain = isinstance(found, torch.Tensor) and found.is_cpu and found.layout is torch.strided
        if not plain or found.shape != tensor.shape or found.dtype != dtype:
            raise CheckpointError(f"{path} is damaged: {key} is not {dtype} of shape {tuple(tensor.shape)}")
        if not found.isfinite().all():
            raise CheckpointError(f"{path} is damaged: {key} has values that are not finite")
    return Checkpoint(model, weights, content["test_accuracy"], content["config"], shape, class_names)
