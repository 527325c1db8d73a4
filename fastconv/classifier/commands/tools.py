"""The commands that are not about one network: ``fastconv download``, ``export``, ``bench`` and ``info``."""

from json import dumps
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

import fastconv
from fastconv.classifier import UserError, files
from fastconv.classifier import bench as benchmark
from fastconv.classifier import device as devices
from fastconv.classifier.checkpoint import load
from fastconv.classifier.commands.shared import set_threads
from fastconv.classifier.data import download as downloads
from fastconv.classifier.export import SUFFIXES, write
from fastconv.classifier.options import (
    CheckpointArgument,
    Device,
    DeviceOption,
    Downloadable,
    Format,
    ThreadsOption,
    path,
)
from fastconv.classifier.table import print_table

_MAX_ROUNDS = 100_000  # a day


def download(
    name: Annotated[Downloadable, typer.Argument(help="Which data set.", show_default=False)],
    data_dir: Annotated[
        Path | None,
        typer.Option(
            "--data-dir",
            parser=path,
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
    print(f"{name.value} is in {downloads.download(name.value, data_dir)}")


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
            parser=path,
            help="The file. Default: model.safetensors, .pt, .pt2 or .onnx beside the checkpoint.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that is no export in this format.")] = False,
) -> None:
    """Write a checkpoint's network as a file that other programs read, without fastconv."""
    saved = load(checkpoint)
    if output is None:
        output = checkpoint.with_name(f"model{SUFFIXES[format.value]}")
    if output.exists() and output.samefile(checkpoint):
        raise UserError(f"--output is the checkpoint itself: {output}")
    size = write(saved, format.value, output, force)
    print(f"wrote {output}, {size:,} bytes")


def bench(
    device: DeviceOption = Device.cpu,
    threads: ThreadsOption = None,
    rounds: Annotated[int, typer.Option("--rounds", help="How often each is timed, in turn.")] = 20,
    json: Annotated[
        Path | None,
        typer.Option("--json", parser=path, help="Write all times to this .json file.", show_default=False),
    ] = None,
    png: Annotated[
        Path | None, typer.Option("--png", parser=path, help="Draw the ratios into this .png file.", show_default=False)
    ] = None,
) -> None:
    """Time fastconv against PyTorch on this machine: the blocks of a CNN, and its training step, in half a minute.

    A ratio above 1 says that fastconv is faster than PyTorch is in the better of its layouts; below 1, slower. Without
    a terminal the table is tab-separated.
    """
    for file, suffix in ((json, ".json"), (png, ".png")):
        if file is not None and file.suffix.lower() != suffix:
            raise UserError(f"--{suffix[1:]} must end in {suffix}: {file}")
    if not 1 <= rounds <= _MAX_ROUNDS:
        bound = "at least 1" if rounds < 1 else f"at most {_MAX_ROUNDS}"
        raise UserError(f"--rounds must be {bound}, not {rounds}")
    devices.find(device.value)
    set_threads(threads)
    for file in filter(None, (json, png)):
        files.check_output_folder(file.parent)
    count = torch.get_num_threads()
    with Console(stderr=True).status("measuring", refresh_per_second=1):
        rows = benchmark.measure(rounds, count, device.value)
    caption = benchmark.caption(rounds, count, device.value)
    print_table(*benchmark.table(rows))
    print(f"{benchmark.summary(rows)}\n{caption}")
    if json is not None:
        figures = benchmark.as_json(rows, rounds, count, device.value)
        files.write_atomically(json, dumps(figures, indent=1).encode())
        print(f"wrote {json}")
    if png is not None:
        files.write_atomically(png, benchmark.picture(rows, caption))
        print(f"wrote {png}")


def info() -> None:
    """Print versions, the instruction set in use, threads and how the extension was built."""
    print(fastconv.show_config())
