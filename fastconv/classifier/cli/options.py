"""Options that several subcommands share, and the functions that apply them.

typer requires an Enum for each option with choices. A test checks that each has the names of the table that it repeats,
which is in config, data, augment or export.
"""

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from fastconv.classifier import data
from fastconv.classifier.checkpoint import Checkpoint
from fastconv.classifier.data import DataSet
from fastconv.classifier.errors import UserError

_MAX_THREADS = 1024
_OPTIONS = {"data_dir": "--data-dir", "size": "--image-size"}  # by the arguments of data.load

DataSetName = Enum(
    "DataSetName",
    {
        "mnist5k": "mnist5k",
        "mnist": "mnist",
        "fashion_mnist": "fashion-mnist",
        "cifar10": "cifar10",
        "folder": "folder",
    },
    type=str,
)
Downloadable = Enum(
    "Downloadable", {"mnist": "mnist", "fashion_mnist": "fashion-mnist", "cifar10": "cifar10"}, type=str
)
Backend = Enum("Backend", {"fastconv": "fastconv", "torch": "torch"}, type=str)
Recipe = Enum("Recipe", {"reference": "reference", "fast": "fast", "accurate": "accurate"}, type=str)
Schedule = Enum("Schedule", {"constant": "constant", "cosine": "cosine", "one_cycle": "one-cycle"}, type=str)
Optimizer = Enum("Optimizer", {"adam": "adam", "adamw": "adamw", "sgd": "sgd", "rmsprop": "rmsprop"}, type=str)
Loss = Enum("Loss", {"cross_entropy": "cross-entropy", "mse": "mse"}, type=str)
DType = Enum("DType", {"float32": "float32", "float64": "float64", "bfloat16": "bfloat16"}, type=str)
Device = Enum("Device", {"cpu": "cpu", "cuda": "cuda"}, type=str)
Augment = Enum("Augment", {"none": "none", "shift": "shift", "affine": "affine", "flip": "flip"}, type=str)
Format = Enum("Format", {"safetensors": "safetensors", "torch": "torch", "pt2": "pt2", "onnx": "onnx"}, type=str)


def path(text: str) -> Path:
    """Parse a path. An empty path would mean the current folder, so it is refused."""
    if not text:
        raise typer.BadParameter("a path must not be empty")
    if "\0" in text:
        raise typer.BadParameter("a path must not contain a NUL character")
    return Path(text)


def path_option(name: str, help: str, **more: Any) -> Any:
    """Return an option whose value is a path. Its default is ``None``, which ``help`` explains."""
    return typer.Option(name, parser=path, help=help, show_default=False, **more)


CheckpointArgument = Annotated[
    Path, typer.Argument(parser=path, help="The checkpoint that train wrote.", show_default=False)
]
DataDirOption = Annotated[
    Path | None,
    path_option(
        "--data-dir",
        "The folder that contains torchvision's folders (MNIST/raw, FashionMNIST/raw, cifar-10-batches-py)."
        " Default: $FASTCONV_DATA, then the user's cache folder, then /usr/share/datasets."
        " With --dataset folder: the folder of images itself.",
    ),
]
SavedDataSetOption = Annotated[
    DataSetName | None,
    typer.Option(
        "--dataset", help="The data set of the test images. Default: that of the training.", show_default=False
    ),
]
BackendOption = Annotated[
    Backend, typer.Option("--backend", help="The operators that run the network: fastconv's or PyTorch's.")
]
DeviceOption = Annotated[Device, typer.Option("--device", help="The device to use: the CPU, or a GPU with CUDA.")]
ThreadsOption = Annotated[
    int | None, typer.Option("--threads", help="Number of threads. Default: PyTorch's choice.", show_default=False)
]


def set_threads(threads: int | None) -> None:
    """Apply ``--threads``."""
    if threads is None:
        return
    if not 1 <= threads <= _MAX_THREADS:
        raise UserError(f"--threads must be between 1 and {_MAX_THREADS}, not {threads}")
    torch.set_num_threads(threads)


def load_data(name: str, data_dir: Path | None, size: int | None = None, channels: int | None = None) -> DataSet:
    """Call :func:`fastconv.classifier.data.load`. Its errors name the command's options in place of its arguments."""
    try:
        return data.load(name, data_dir, size, channels)
    except data.ArgumentError as error:
        raise UserError(f"{error.before}{_OPTIONS[error.argument]}{error.after}") from error


def load_data_for(saved: Checkpoint, dataset: DataSetName | None, data_dir: Path | None) -> DataSet:
    """Load ``dataset``, by default the data set that the checkpoint was trained on.

    Raises:
        UserError: if its images or classes do not fit the checkpoint.
    """
    if dataset is None:
        before = saved.config.get("dataset")
        dataset = DataSetName(before) if before in data.NAMES else DataSetName.mnist5k
        if data_dir is None and saved.config.get("data_dir") is not None:
            data_dir = Path(str(saved.config["data_dir"]))
    if dataset is DataSetName.folder:
        found = load_data(dataset.value, data_dir, saved.shape[1], saved.shape[0])
    else:
        found = load_data(dataset.value, data_dir)
    if (found.shape, len(found.class_names)) != (saved.shape, len(saved.class_names)):
        needs, has = (" x ".join(map(str, shape)) for shape in (saved.shape, found.shape))
        raise UserError(
            f"the checkpoint needs images of {needs} in {len(saved.class_names)} classes, but {found.name} has images"
            f" of {has} in {len(found.class_names)} classes"
        )
    for expected, name in zip(saved.class_names, found.class_names, strict=True):
        if name != expected:
            raise UserError(f"the classes of {found.name} differ from the checkpoint's: {name} in place of {expected}")
    return found
