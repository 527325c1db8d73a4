"""The command ``fastconv``. A new command is a function here, with ``@app.command()``.

torch, and what the commands need of it, is imported inside them, so that help and mistakes in the options come at once.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fastconv.mnist import UserError, UserInterrupt

try:
    import typer
    from rich.console import Console
except ModuleNotFoundError as missing:
    raise SystemExit(f"fastconv: the command needs {missing.name}: pip install 'fastconv[mnist]'") from None

from fastconv.mnist.options import (
    Augment,
    Backend,
    BackendOption,
    CheckpointArgument,
    DataDirOption,
    DataSetName,
    DataSetOption,
    Device,
    DeviceOption,
    Downloadable,
    DType,
    Format,
    Loss,
    Optimizer,
    Recipe,
    SavedDataSetOption,
    Schedule,
    ThreadsOption,
)

if TYPE_CHECKING:
    from torch import Tensor

    from fastconv.mnist.checkpoint import Checkpoint
    from fastconv.mnist.data import DataSet

_USAGE_ERROR = 2
_INTERRUPTED = 130
_MAX_THREADS = 1024
_MAX_PLOTTED = 60
# The extra that a package belongs to; mnist, if none is named here.
_EXTRAS = {"onnx": "export", "onnxscript": "export", "safetensors": "export", "tensorboard": "tensorboard"}
# The root of the exceptions for wrong usage: click's, of which typer >= 0.26 carries a copy under a private name.
_ClickException: type[BaseException] = typer.BadParameter.__mro__[2]

app = typer.Typer(
    name="fastconv",
    help="Train a small CNN on digits or other small images with fastconv's kernels, and look at what it learned.",
    epilog="Example: fastconv train --epochs 3",
    add_completion=False,
)


def _of_recipe(name: str, help: str, **more: Any) -> Any:
    """An option of train whose default is the recipe's."""
    return typer.Option(name, help=f"{help} Default: the recipe's.", show_default=False, **more)


@app.command(
    epilog="Example: fastconv train --recipe fast --dataset mnist --data-dir data --output runs/full; should that be"
    " interrupted, the same with --resume"
)
def train(
    recipe: Annotated[
        Recipe,
        typer.Option(
            "--recipe",
            help="reference: the textbook's, 5 epochs of Adam. fast: past 99 % on all of MNIST soonest."
            " accurate: as good as it gets in 15 epochs.",
        ),
    ] = Recipe.reference,
    dataset: DataSetOption = DataSetName.mnist5k,
    data_dir: DataDirOption = None,
    image_size: Annotated[
        int | None,
        typer.Option(
            "--image-size",
            help="Height and width that the images of the data set folder are scaled to. Default: 32.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None,
        _of_recipe(
            "--model", "mnist-cnn, simple-cnn, or a list of layers, as 'conv32, conv32, pool, dropout.2, dense64'."
        ),
    ] = None,
    epochs: Annotated[int | None, _of_recipe("--epochs", "Passes over the training images.")] = None,
    batch_size: Annotated[int | None, _of_recipe("--batch-size", "Images a step.")] = None,
    validation_split: Annotated[
        float | None,
        _of_recipe("--validation-split", "Share of the training images held out, from their end: 0 to 1."),
    ] = None,
    lr: Annotated[float | None, _of_recipe("--lr", "The learning rate, the highest of the schedule.")] = None,
    schedule: Annotated[Schedule | None, _of_recipe("--schedule", "How the learning rate goes, step by step.")] = None,
    label_smoothing: Annotated[
        float | None, _of_recipe("--label-smoothing", "Share of the target spread over all classes: 0 to 1.")
    ] = None,
    augment: Annotated[
        Augment | None,
        _of_recipe(
            "--augment",
            "How images are moved at random: shift, up to 2 pixels; affine, turned and scaled too; flip, shifted and"
            " half of them mirrored, for photographs.",
        ),
    ] = None,
    optimizer: Annotated[Optimizer | None, _of_recipe("--optimizer", "sgd has Nesterov's momentum, 0.9.")] = None,
    loss: Annotated[
        Loss | None, _of_recipe("--loss", "mse: of the probabilities, against 1 for the right class.")
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
        DType, typer.Option("--dtype", help="What is computed in; bfloat16 is torch.autocast's.")
    ] = DType.float32,
    seed: Annotated[int, typer.Option("--seed", help="The same seed gives the same weights.")] = 0,
    device: DeviceOption = Device.cpu,
    threads: ThreadsOption = None,
    backend: BackendOption = Backend.fastconv,
    limit: Annotated[
        int | None, typer.Option("--limit", help="Train on the first N images only, to try things out.", metavar="N")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", help="Folder for the results. Default: runs/MODEL.", metavar="DIR", show_default=False
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with the training in the output folder that was interrupted, with the same options: the weights"
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
    from fastconv.mnist import device as devices
    from fastconv.mnist import train as training
    from fastconv.mnist.config import BACKENDS, RECIPES, TrainingConfig

    given = {
        "model": model,
        "epochs": epochs,
        "batch_size": batch_size,
        "validation_split": validation_split,
        "lr": lr,
        "schedule": schedule and schedule.value,
        "label_smoothing": label_smoothing,
        "augment": augment and augment.value,
        "optimizer": optimizer and optimizer.value,
        "loss": loss and loss.value,
    }
    chosen = {name: value for name, value in given.items() if value is not None}
    others = {
        "seed": seed,
        "backend": backend.value,
        "dtype": dtype.value,
        "device": device.value,
        "patience": patience,
    }
    config = TrainingConfig(**{**RECIPES[recipe.value], **chosen, **others})
    if limit is not None and limit < 1:
        raise UserError(f"--limit must be at least 1, not {limit}")
    for name in BACKENDS if compare else (backend.value,):
        devices.find(device.value, name)
    _set_threads(threads)
    data = _load_data(dataset, data_dir, image_size)
    # That a package is missing is said now, not at the end of training.
    if report:
        import matplotlib  # noqa: F401
    if tensorboard:
        import tensorboard as _  # noqa: F401
    # Of a folder, the name does not say which images these are.
    source = {"data_dir": str(data_dir), "image_size": data.shape[1]} if dataset is DataSetName.folder else {}
    folder = output if output is not None else Path("runs") / _folder_name(config.model)
    options = training.Options(folder, limit, resume, compare, tensorboard, report, source)
    training.run(config, data, options, Console())


@app.command(epilog="Example: fastconv evaluate runs/mnist-cnn/checkpoint.pt")
def evaluate(
    checkpoint: CheckpointArgument,
    dataset: SavedDataSetOption = None,
    data_dir: DataDirOption = None,
    threads: ThreadsOption = None,
    backend: BackendOption = Backend.fastconv,
) -> None:
    """Print the accuracy and loss of a checkpoint on the test images."""
    from fastconv.mnist import training
    from fastconv.mnist.progress import test_line

    _set_threads(threads)
    saved = _load_checkpoint(checkpoint)
    data = _load_data_for(saved, dataset, data_dir)
    network = saved.build(backend.value)
    loss, accuracy = training.evaluate(network, data.test_images, data.test_labels, saved.loss)
    print(test_line(loss, accuracy, len(data.test_images)))


@app.command(epilog="Example: fastconv predict runs/mnist-cnn/checkpoint.pt 3 17 digit.png")
def predict(
    checkpoint: CheckpointArgument,
    images: Annotated[
        list[str],
        typer.Argument(
            help="Image files, or indices of test images, counted from 0. (A file called 3 is ./3.)",
            metavar="IMAGE...",
            show_default=False,
        ),
    ],
    dataset: SavedDataSetOption = None,
    data_dir: DataDirOption = None,
    threads: ThreadsOption = None,
    backend: BackendOption = Backend.fastconv,
) -> None:
    """Print the class and its probability for image files or test images.

    Image files may have any size and mode. For a network of digits, dark digits on light are inverted, and unless the
    file is 28 x 28 the digit is scaled and centred as MNIST's are; for others the image is scaled. Without a terminal
    the table is tab-separated.
    """
    import torch

    from fastconv.mnist import training
    from fastconv.mnist.images import read_for

    _set_threads(threads)
    saved = _load_checkpoint(checkpoint)
    data = _load_data_for(saved, dataset, data_dir) if any(map(_is_index, images)) else None
    inputs: list[Tensor] = []
    labels: list[str] = []
    for name in images:
        if data is not None and _is_index(name):
            index = _checked_index(int(name), data)
            inputs.append(data.test_images[index : index + 1])
            labels.append(saved.class_names[int(data.test_labels[index])])
        else:
            inputs.append(read_for(saved, Path(name)))
            labels.append("")
    probabilities = training.predict(saved.build(backend.value), torch.cat(inputs))
    best, classes = probabilities.max(1)
    rows = [
        (_printable(name), saved.class_names[digit], f"{probability:.4f}", label)
        for name, digit, probability, label in zip(images, classes.tolist(), best.tolist(), labels, strict=True)
    ]
    _print_table(("image", "class", "probability", "label"), rows)


@app.command(epilog="Example: fastconv plot runs/mnist-cnn/checkpoint.pt --count 15 --output predictions.png")
def plot(
    checkpoint: CheckpointArgument,
    dataset: SavedDataSetOption = None,
    data_dir: DataDirOption = None,
    count: Annotated[int, typer.Option("--count", help=f"How many test images, up to {_MAX_PLOTTED}.")] = 15,
    start: Annotated[int, typer.Option("--start", help="The index of the first, counted from 0.")] = 0,
    threads: ThreadsOption = None,
    backend: BackendOption = Backend.fastconv,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", help="The .png file. Default: predictions.png beside the checkpoint.", show_default=False
        ),
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="Open it in the system's picture viewer too.")] = False,
) -> None:
    """Draw test images with the predicted label and percentage, blue when right and red when wrong, beside the
    probabilities."""
    from fastconv.mnist import files, plots, training

    if output is None:
        output = checkpoint.with_name("predictions.png")
    if output.suffix.lower() != ".png":
        raise UserError(f"--output must end in .png: {output}")
    if not 1 <= count <= _MAX_PLOTTED:
        raise UserError(f"--count must be between 1 and {_MAX_PLOTTED}, not {count}")
    _set_threads(threads)
    saved = _load_checkpoint(checkpoint)
    data = _load_data_for(saved, dataset, data_dir)
    shown = slice(_checked_index(start, data), start + count)
    images, labels = data.test_images[shown], data.test_labels[shown]
    files.check_output_folder(output.parent)
    probabilities = training.predict(saved.build(backend.value), images)
    picture = plots.prediction_grid(images, labels, probabilities, first=start, class_names=saved.class_names)
    files.write_atomically(output, picture)
    print(f"wrote {output}")
    if show:
        _show(output)


@app.command(epilog="Example: fastconv report runs/mnist-cnn --output mnist.html")
def report(
    run: Annotated[Path, typer.Argument(help="The folder that train wrote.", metavar="RUN_FOLDER", show_default=False)],
    dataset: SavedDataSetOption = None,
    data_dir: DataDirOption = None,
    threads: ThreadsOption = None,
    backend: BackendOption = Backend.fastconv,
    output: Annotated[
        Path | None,
        typer.Option("--output", help="The .html file. Default: report.html in the run's folder.", show_default=False),
    ] = None,
) -> None:
    """Write a page about a run: accuracy, speed, configuration, and plots of its training, mistakes and layers.

    The page is one file that needs no network. The plots are also written as PNG files, into the folder plots of the
    run.
    """
    from fastconv.mnist.report import write
    from fastconv.mnist.runs import RunFolder

    if output is not None and output.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--output must end in .html: {output}")
    _set_threads(threads)
    folder = RunFolder(run)
    folder.read_history()
    saved = _load_checkpoint(folder.checkpoint)
    data = _load_data_for(saved, dataset, data_dir)
    print(f"wrote {write(folder, saved.build(backend.value), data, output)}")


@app.command(epilog="Example: fastconv download mnist --data-dir data")
def download(
    name: Annotated[Downloadable, typer.Argument(help="Which data set.", show_default=False)],
    data_dir: Annotated[
        Path | None,
        typer.Option(
            "--data-dir",
            help="Where torchvision's folder, as MNIST/raw, is made. Default: $FASTCONV_DATA or the user's cache.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Fetch a data set, and check it. A download that was interrupted is gone on with.

    mnist: 12 MB; handwritten digits; Y. LeCun, C. Cortes and C. Burges, CC BY-SA 3.0.

    fashion-mnist: 31 MB; photographs of clothes; Zalando SE, MIT licence.

    cifar10: 170 MB, 186 unpacked; small photographs; A. Krizhevsky, 2009, whose page states no licence and asks to cite
    "Learning Multiple Layers of Features from Tiny Images".
    """
    from fastconv.mnist.data import download

    print(f"{name.value} is in {download.download(name.value, data_dir)}")


@app.command(epilog="Example: fastconv export runs/mnist-cnn/checkpoint.pt --format onnx")
def export(
    checkpoint: CheckpointArgument,
    format: Annotated[
        Format,
        typer.Option(
            "--format",
            help="safetensors, torch: weights alone, the latter as torch.save writes a state_dict. pt2, onnx: the"
            " network itself, for torch.export.load and for ONNX runtimes.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            help="The file. Default: model.safetensors, .pt, .pt2 or .onnx beside the checkpoint.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that is no export in this format.")] = False,
) -> None:
    """Write a checkpoint's network as a file that other programs read, without fastconv."""
    from fastconv.mnist.export import SUFFIXES, write

    saved = _load_checkpoint(checkpoint)
    if output is None:
        output = checkpoint.with_name(f"model{SUFFIXES[format.value]}")
    if output.exists() and output.samefile(checkpoint):
        raise UserError(f"--output is the checkpoint itself: {output}")
    size = write(saved, format.value, output, force)
    print(f"wrote {output}, {size:,} bytes")


@app.command(epilog="Example: fastconv bench --threads 2 --png bench.png")
def bench(
    device: DeviceOption = Device.cpu,
    threads: ThreadsOption = None,
    rounds: Annotated[int, typer.Option("--rounds", help="How often each is timed, in turn.")] = 20,
    json: Annotated[
        Path | None, typer.Option("--json", help="Write all times to this .json file.", show_default=False)
    ] = None,
    png: Annotated[
        Path | None, typer.Option("--png", help="Draw the ratios into this .png file.", show_default=False)
    ] = None,
) -> None:
    """Time fastconv against PyTorch on this machine: the blocks of a CNN, and its training step, in half a minute.

    A ratio above 1 says that fastconv is faster than PyTorch is in the better of its layouts; below 1, slower. Without
    a terminal the table is tab-separated.
    """
    from json import dumps

    import torch

    from fastconv.mnist import bench as benchmark
    from fastconv.mnist import device as devices
    from fastconv.mnist import files

    for path, suffix in ((json, ".json"), (png, ".png")):
        if path is not None and path.suffix.lower() != suffix:
            raise UserError(f"--{suffix[1:]} must end in {suffix}: {path}")
    if rounds < 1:
        raise UserError(f"--rounds must be at least 1, not {rounds}")
    devices.find(device.value)
    _set_threads(threads)
    for path in filter(None, (json, png)):
        files.check_output_folder(path.parent)
    count = torch.get_num_threads()
    with Console(stderr=True).status("measuring", refresh_per_second=1):
        rows = benchmark.measure(rounds, count, device.value)
    caption = benchmark.caption(rounds, count, device.value)
    _print_table(*benchmark.table(rows))
    print(f"{benchmark.summary(rows)}\n{caption}")
    if json is not None:
        files.write_atomically(json, dumps(benchmark.as_json(rows, rounds, count, device.value), indent=1).encode())
        print(f"wrote {json}")
    if png is not None:
        files.write_atomically(png, benchmark.picture(rows, caption))
        print(f"wrote {png}")


@app.command(epilog="Example: fastconv info")
def info() -> None:
    """Print versions, the instruction set in use, threads and how the extension was built."""
    import fastconv

    print(fastconv.show_config())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with ``arguments``, by default those of the process, and return its exit code.

    0: done; 2: a mistake in the arguments or in a file they name, told in one line on stderr; 130: interrupted.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    command = typer.main.get_command(app)
    try:
        # Not command.main(): that prints mistakes in a box, or over several lines, as typer's version has it.
        with command.make_context("fastconv", given or ["--help"]) as context:
            command.invoke(context)
    except typer.Exit as done:
        return done.exit_code
    except UserError as error:
        return _fail(str(error))
    except ModuleNotFoundError as error:
        package = (error.name or "fastconv").split(".")[0]
        if package == "fastconv":
            raise
        return _fail(f"this command needs {error.name}: pip install 'fastconv[{_EXTRAS.get(package, 'mnist')}]'")
    except UserInterrupt as error:
        return _fail(str(error), _INTERRUPTED)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", _INTERRUPTED)
    except BrokenPipeError:
        # Who read the output has gone (| head). Python's own flush at exit must not fail for it once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _fail(str(error))
    except _ClickException as error:
        return _fail(f"{error.format_message()} (see --help)")  # type: ignore[attr-defined]
    return 0


def _fail(message: str, code: int = _USAGE_ERROR) -> int:
    print(f"fastconv: {_printable(' '.join(message.split()))}", file=sys.stderr)
    return code


def _set_threads(threads: int | None) -> None:
    import torch

    if threads is None:
        return
    if not 1 <= threads <= _MAX_THREADS:
        raise UserError(f"--threads must be between 1 and {_MAX_THREADS}, not {threads}")
    torch.set_num_threads(threads)


def _load_data(
    dataset: DataSetName, data_dir: Path | None, size: int | None = None, channels: int | None = None
) -> "DataSet":
    from fastconv.mnist import data

    return data.load(dataset.value, data_dir, size, channels)


def _load_checkpoint(path: Path) -> "Checkpoint":
    from fastconv.mnist import checkpoint

    return checkpoint.load(path)


def _load_data_for(saved: "Checkpoint", dataset: DataSetName | None, data_dir: Path | None) -> "DataSet":
    """The data set ``dataset``, or the one that the checkpoint was trained on. Its images must fit the network."""
    if dataset is None:
        before = saved.config.get("dataset")
        dataset = DataSetName(before) if before in [name.value for name in DataSetName] else DataSetName.mnist5k
        if dataset is DataSetName.folder and data_dir is None:
            data_dir = Path(str(saved.config.get("data_dir", ".")))
    if dataset is DataSetName.folder:
        data = _load_data(dataset, data_dir, saved.shape[1], saved.shape[0])
    else:
        data = _load_data(dataset, data_dir)
    if (data.shape, len(data.class_names)) != (saved.shape, len(saved.class_names)):
        needs, has = (" x ".join(map(str, shape)) for shape in (saved.shape, data.shape))
        raise UserError(
            f"the checkpoint is of images of {needs} in {len(saved.class_names)} classes, not of {data.name}:"
            f" {has} in {len(data.class_names)}"
        )
    if data.class_names != saved.class_names:
        others = zip(saved.class_names, data.class_names, strict=True)
        was, now = next((was, now) for was, now in others if was != now)
        raise UserError(f"the checkpoint has other classes than {data.name}: {was} where that has {now}")
    return data


def _folder_name(model: str) -> str:
    """A model's name, or its list of layers, as a folder is called."""
    return "-".join(model.replace(",", " ").split())


def _show(picture: Path) -> None:
    """Open the picture in the system's viewer.

    Raises:
        UserError: if there is none, or no display.
    """
    from PIL import Image, ImageShow

    no_display = sys.platform.startswith("linux") and not (
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )
    with Image.open(picture) as image:
        # What Image.show() calls; that does not say whether anything was shown.
        if no_display or not ImageShow.show(image, picture.name):
            raise UserError(f"no display or picture viewer to --show {picture} with")


def _is_index(name: str) -> bool:
    return name.isascii() and name.isdigit()


def _checked_index(index: int, data: "DataSet") -> int:
    if not 0 <= index < len(data.test_images):
        raise UserError(f"no test image {index}: {data.name} has 0 to {len(data.test_images) - 1}")
    return index


def _print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table for people on a terminal; tab-separated lines for programs elsewhere."""
    console = Console()
    if not console.is_terminal:
        for row in (header, *rows):
            print(*row, sep="\t")
        return
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for index, title in enumerate(header):
        table.add_column(title, justify="right" if index else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)


def _printable(text: str) -> str:
    """``text`` without the escapes by which Python carries file names that are not UTF-8; printing those fails."""
    return text.encode(errors="replace").decode()
