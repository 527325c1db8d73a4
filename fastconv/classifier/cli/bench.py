"""``fastconv bench``."""

from json import dumps
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from fastconv.benchmarking.processes import BenchError
from fastconv.classifier import bench as benchmark
from fastconv.classifier import device as devices
from fastconv.classifier import files
from fastconv.classifier.cli.options import Device, DeviceOption, ThreadsOption, path_option, set_threads
from fastconv.classifier.cli.table import print_table
from fastconv.classifier.errors import UserError

_MAX_ROUNDS = 100_000  # about a day


def bench(
    device: DeviceOption = Device.cpu,
    threads: ThreadsOption = None,
    rounds: Annotated[int, typer.Option("--rounds", help="Number of times that each variant is timed.")] = 20,
    json: Annotated[Path | None, path_option("--json", "Write all times to this .json file.")] = None,
    png: Annotated[Path | None, path_option("--png", "Draw the ratios in this .png file.")] = None,
) -> None:
    """Time the blocks of a CNN and its training step with fastconv and with PyTorch. This takes half a minute.

    The ratio is PyTorch's time, in its faster memory format, divided by fastconv's time. Above 1, fastconv is faster.
    If the output is not a terminal, the table is tab-separated.
    """
    for file, suffix in ((json, ".json"), (png, ".png")):
        if file is not None and file.suffix.lower() != suffix:
            raise UserError(f"--{suffix[1:]} must end in {suffix}: {file}")
    if not 1 <= rounds <= _MAX_ROUNDS:
        bound = "at least 1" if rounds < 1 else f"at most {_MAX_ROUNDS}"
        raise UserError(f"--rounds must be {bound}, not {rounds}")
    devices.find(device.value, instead="compare it with PyTorch on the CPU (--device cpu)")
    set_threads(threads)
    for file in filter(None, (json, png)):
        files.check_output_folder(file.parent)
    count = torch.get_num_threads()
    with Console(stderr=True).status("measuring", refresh_per_second=1):
        try:
            rows = benchmark.measure(rounds, count, device.value)
        except BenchError as error:
            raise UserError(str(error)) from error
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
