"""``fastconv bench``."""

from dataclasses import dataclass
from pathlib import Path

from fastconv.classifier.cli import options
from fastconv.classifier.config import DEVICES
from fastconv.classifier.errors import UserError

_MAX_ROUNDS = 100_000  # about a day


@dataclass(frozen=True, kw_only=True)
class Bench(options.Result):
    """The options of ``fastconv bench``."""

    device: str = options.choice("--device", DEVICES, options.DEVICE_HELP, "cpu", rich_help_panel=options.COMPUTATION)
    threads: int | None = options.threads()
    rounds: int = options.number_option("--rounds", "Number of times that each variant is timed.", 20)
    png: Path | None = options.path_option("--png", "Draw the ratios in this .png file.")


def bench(given: Bench) -> None:
    """Time the blocks of a CNN and its training step with fastconv and with PyTorch. This takes half a minute.

    The ratio is PyTorch's time, in its faster memory format, divided by fastconv's time. Above 1, fastconv is faster.
    If the output is not a terminal, the table is tab-separated. --json prints all times, round by round.

    Other programs on the machine change the times. So the load is measured first and printed.
    """
    import torch

    from fastconv.benchmarking.machine import busy_cores
    from fastconv.benchmarking.processes import BenchError
    from fastconv.classifier import bench as benchmark
    from fastconv.classifier import device as devices
    from fastconv.classifier import files
    from fastconv.classifier.cli import inputs
    from fastconv.classifier.cli.printing import Printer

    if given.png is not None and given.png.suffix.lower() != ".png":
        raise UserError(f"--png must end in .png: {given.png}")
    if not 1 <= given.rounds <= _MAX_ROUNDS:
        bound = "at least 1" if given.rounds < 1 else f"at most {_MAX_ROUNDS}"
        raise UserError(f"--rounds must be {bound}, not {given.rounds}")
    devices.find(given.device, instead="compare it with PyTorch on the CPU (--device cpu)")
    inputs.set_threads(given.threads)
    if given.png is not None:
        files.check_output_folder(given.png.parent)
    printer = Printer(given.quiet, given.json)
    count = torch.get_num_threads()
    load = busy_cores()
    if load.is_busy:
        printer.aside(f"warning: other programs use {load}, so the times below vary: end them and measure again")
    with printer.console.status("measuring", refresh_per_second=1):
        try:
            rows = benchmark.measure(given.rounds, count, given.device)
        except BenchError as error:
            raise UserError(str(error)) from error
    caption = f"{benchmark.caption(given.rounds, count, given.device)}; {load} busy before"
    figures = {
        **benchmark.as_json(rows, given.rounds, count, given.device),
        "machine": caption,
        "busy_cores": load.busy,
    }
    printer.result_table(*benchmark.table(rows), figures)
    if not given.json:
        printer.result(f"{benchmark.summary(rows)}\n{caption}", None)
    if given.png is not None:
        files.write_atomically(given.png, benchmark.picture(rows, caption))
        printer.note(f"wrote {given.png}")
