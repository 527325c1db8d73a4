"""What several commands do."""

from __future__ import annotations

from pathlib import Path

import torch

from fastconv.classifier import UserError, data
from fastconv.classifier.checkpoint import Checkpoint
from fastconv.classifier.data import DataSet
from fastconv.classifier.options import DataSetName

_MAX_THREADS = 1024


def set_threads(threads: int | None) -> None:
    if threads is None:
        return
    if not 1 <= threads <= _MAX_THREADS:
        raise UserError(f"--threads must be between 1 and {_MAX_THREADS}, not {threads}")
    torch.set_num_threads(threads)


def load_data_for(saved: Checkpoint, dataset: DataSetName | None, data_dir: Path | None) -> DataSet:
    """The data set ``dataset``, or the one that the checkpoint was trained on. Its images must fit the network."""
    if dataset is None:
        before = saved.config.get("dataset")
        dataset = DataSetName(before) if before in [name.value for name in DataSetName] else DataSetName.mnist5k
        if data_dir is None and saved.config.get("data_dir") is not None:
            data_dir = Path(str(saved.config["data_dir"]))
    if dataset is DataSetName.folder:
        found = data.load(dataset.value, data_dir, saved.shape[1], saved.shape[0])
    else:
        found = data.load(dataset.value, data_dir)
    if (found.shape, len(found.class_names)) != (saved.shape, len(saved.class_names)):
        needs, has = (" x ".join(map(str, shape)) for shape in (saved.shape, found.shape))
        raise UserError(
            f"the checkpoint is of images of {needs} in {len(saved.class_names)} classes, not of {found.name}:"
            f" {has} in {len(found.class_names)}"
        )
    if found.class_names != saved.class_names:
        others = zip(saved.class_names, found.class_names, strict=True)
        was, now = next((was, now) for was, now in others if was != now)
        raise UserError(f"the checkpoint has other classes than {found.name}: {was} where that has {now}")
    return found
