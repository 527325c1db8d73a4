"""The options that several commands have, and what can be chosen.

The names are those of the tables elsewhere (config, data, augment, export); a test compares them. They are written out
again since typer wants classes.
"""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer


class DataSetName(str, Enum):
    mnist5k = "mnist5k"
    mnist = "mnist"
    fashion_mnist = "fashion-mnist"
    cifar10 = "cifar10"
    folder = "folder"


class Downloadable(str, Enum):
    mnist = "mnist"
    fashion_mnist = "fashion-mnist"
    cifar10 = "cifar10"


class Backend(str, Enum):
    fastconv = "fastconv"
    torch = "torch"


class Recipe(str, Enum):
    reference = "reference"
    fast = "fast"
    accurate = "accurate"


class Schedule(str, Enum):
    constant = "constant"
    cosine = "cosine"
    one_cycle = "one-cycle"


class Optimizer(str, Enum):
    adam = "adam"
    adamw = "adamw"
    sgd = "sgd"


class Loss(str, Enum):
    cross_entropy = "cross-entropy"
    mse = "mse"


class DType(str, Enum):
    float32 = "float32"
    float64 = "float64"
    bfloat16 = "bfloat16"


class Device(str, Enum):
    cpu = "cpu"
    cuda = "cuda"


class Augment(str, Enum):
    none = "none"
    shift = "shift"
    affine = "affine"
    flip = "flip"


class Format(str, Enum):
    safetensors = "safetensors"
    torch = "torch"
    pt2 = "pt2"
    onnx = "onnx"


def path(text: str) -> Path:
    """For options that take a path. An empty one would be the current folder, which nobody asked for."""
    if not text or "\0" in text:
        raise typer.BadParameter("a path must not be empty")
    return Path(text)


CheckpointArgument = Annotated[
    Path, typer.Argument(parser=path, help="The checkpoint that train wrote.", show_default=False)
]
DataDirOption = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        parser=path,
        help="Where torchvision's folders are: MNIST/raw, FashionMNIST/raw, cifar-10-batches-py. Else $FASTCONV_DATA,"
        " the user's cache and /usr/share/datasets. For the data set folder: the folder itself.",
        show_default=False,
    ),
]
SavedDataSetOption = Annotated[
    DataSetName | None,
    typer.Option("--dataset", help="Default: the data set that it was trained on.", show_default=False),
]
BackendOption = Annotated[
    Backend, typer.Option("--backend", help="Whose operators run the network: fastconv's or PyTorch's own.")
]
DeviceOption = Annotated[Device, typer.Option("--device", help="Where: on the CPU, or on the GPU, by CUDA.")]
ThreadsOption = Annotated[
    int | None, typer.Option("--threads", help="Number of threads. Default: what PyTorch chooses.", show_default=False)
]
