"""Time fastconv against PyTorch on the user's machine: the three blocks of MnistCNN, and its training step.

Each variant runs in its own process, with the system's C allocator (see :mod:`fastconv.benchmarking.processes`). The
network has been trained for three epochs on real images, because the time of backward depends on how many activations
are zero.
"""

import functools
import io
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import fastconv
from fastconv.benchmarking.machine import cpu_name
from fastconv.benchmarking.processes import alternate_processes
from fastconv.benchmarking.ratios import OURS, TORCH, medians, quartiles, torch_over_ours
from fastconv.benchmarking.training_step import BATCH, adam, batches, training_step
from fastconv.classifier import data
from fastconv.classifier.checkpoint import serialized
from fastconv.classifier.networks import build_model
from fastconv.classifier.plots.style import FAINT, RIGHT, WRONG, new_figure, png

VARIANTS = (*TORCH, OURS)
_BLOCKS = {"conv1": "conv1 + ReLU + pool", "conv2": "conv2 + ReLU + pool", "conv3": "conv3 + ReLU"}
_STEPS_BEFORE = 186  # three epochs of mnist5k's training images
#: The marks of the logarithmic axis.
_TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 1.5, 2, 3, 4, 5, 7, 10, 20, 50, 100, 200, 500, 1000)
_CALLS = 5  # per turn; their median is the time of the turn


@dataclass(frozen=True)
class Row:
    """The name of what was timed, and the seconds of each variant, round by round."""

    what: str
    seconds: dict[str, list[float]]

    @property
    def medians(self) -> dict[str, float]:
        return medians(self.seconds)

    @property
    def ratio(self) -> float:
        """The time of PyTorch, in its faster memory format, over the time of fastconv: above 1, fastconv is faster."""
        return statistics.median(torch_over_ours(self.seconds))

    @property
    def quartiles(self) -> tuple[float, float]:
        return quartiles(torch_over_ours(self.seconds))


def measure(rounds: int, threads: int, device: str = "cpu") -> list[Row]:
    """Time each block and the training step ``rounds`` times, on ``threads`` threads of the CPU or on a GPU."""
    state = _trained_state()
    variants = {variant: functools.partial(_calls, variant, state, device) for variant in VARIANTS}
    seconds = alternate_processes(variants, rounds, _CALLS, threads)
    return [Row(what, by_variant) for what, by_variant in seconds.items()]


def _trained_state() -> bytes:
    """Train a network. Return its state_dict, from which all variants start."""
    torch.manual_seed(0)
    network = build_model("mnist-cnn")
    step = _digits_step(network, torch.channels_last)
    for _ in range(_STEPS_BEFORE):
        step()
    return serialized(network.state_dict())


def _calls(variant: str, trained: bytes, device: str = "cpu") -> dict[str, Callable[[], object]]:
    """Return the functions to time, by name. As in training, conv1 computes no gradient of its input, the images."""
    state = torch.load(io.BytesIO(trained), weights_only=True)
    backend, layout = variant.split()
    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    network = build_model("mnist-cnn", backend)
    network.load_state_dict(state)
    network.to(device, memory_format=memory_format)  # type: ignore[call-overload]
    images = data.load("mnist5k").train_images
    x = images.index_select(0, batches(images)[0]).to(device).contiguous(memory_format=memory_format)
    calls: dict[str, Callable[[], object]] = {}
    for name, what in _BLOCKS.items():
        block = network.get_submodule(name)
        y = block(x)
        inputs = [*block.parameters(), *([x] if x.requires_grad else [])]
        calls[f"{what}: forward"] = functools.partial(block, x)
        calls[f"{what}: forward + backward"] = functools.partial(_backward, block, x, inputs, torch.randn_like(y))
        x = y.detach().requires_grad_()
    # Training changes the weights, so use a separate network.
    in_training = build_model("mnist-cnn", backend)
    in_training.load_state_dict(state)
    calls[f"training step, batch {BATCH}"] = _digits_step(in_training, memory_format, device, backend)
    if device == "cuda":
        return {name: functools.partial(_finished, call) for name, call in calls.items()}
    return calls


def _finished(call: Callable[[], object]) -> None:
    """Run the call, and wait until the GPU has finished."""
    call()
    torch.cuda.synchronize()


def _backward(block: nn.Module, x: Tensor, inputs: list[Tensor], grad: Tensor) -> object:
    return torch.autograd.grad(block(x), inputs, grad)


def _digits_step(
    network: nn.Module, memory_format: torch.memory_format, device: str = "cpu", backend: str = "fastconv"
) -> Callable[[], float]:
    digits = data.load("mnist5k")
    network.to(device, memory_format=memory_format).train()  # type: ignore[call-overload]
    images = digits.train_images.to(device).contiguous(memory_format=memory_format)
    return training_step(network, images, digits.train_labels.to(device), adam(backend))


def caption(rounds: int, threads: int, device: str = "cpu") -> str:
    """Return the machine, the versions and the number of rounds, in a line."""
    where = f"{cpu_name()}, {threads} thread{'s' * (threads > 1)}, {fastconv._C.cpu_capability()}"
    if device == "cuda":
        where = f"{torch.cuda.get_device_name()}, CUDA {fastconv._C.build_info()['cuda']}"
    versions = f"torch {torch.__version__}, fastconv {fastconv.__version__}"
    return f"{where}; {versions}; medians of {rounds} round{'s' * (rounds > 1)}"


def summary(rows: Sequence[Row]) -> str:
    """Return the number of rows in which fastconv is faster, and the names of the other rows."""
    lost = [row.what for row in rows if row.ratio < 1]
    return f"fastconv is faster in {len(rows) - len(lost)} of {len(rows)} rows" + (
        f"; PyTorch is faster in {len(lost)}: {', '.join(lost)}" if lost else ""
    )


def table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Return headings and cells, in milliseconds. Rows in which fastconv is slower are marked."""
    headings = ["ms", *VARIANTS, "torch / fastconv", "quartiles", ""]
    return headings, [
        [
            row.what,
            *(f"{row.medians[variant] * 1e3:.2f}" for variant in VARIANTS),
            f"{row.ratio:.2f}",
            "{:.2f} to {:.2f}".format(*row.quartiles),
            "slower" if row.ratio < 1 else "",
        ]
        for row in rows
    ]


def as_json(rows: Sequence[Row], rounds: int, threads: int, device: str = "cpu") -> dict[str, Any]:
    """Return all figures as plain types."""
    return {
        "machine": caption(rounds, threads, device),
        "rounds": rounds,
        "threads": threads,
        "rows": [
            {"what": row.what, "seconds": row.seconds, "ratio": row.ratio, "quartiles": row.quartiles} for row in rows
        ],
    }


def picture(rows: Sequence[Row], title: str) -> bytes:
    """Draw each row's ratio as a bar, red where PyTorch is faster, with a line for the quartiles. Return a PNG file.

    The axis is logarithmic, so that twice as fast and half as fast have bars of the same length.
    """
    figure = new_figure(9, 0.45 * len(rows) + 1.6)
    axes = figure.subplots()
    axes.set_xscale("log")
    ratios = [row.ratio for row in rows]
    widths = [ratio - 1 for ratio in ratios]  # from 1 to the ratio
    colours = [RIGHT if ratio >= 1 else WRONG for ratio in ratios]
    axes.barh(range(len(rows)), widths, left=1, color=colours)
    axes.hlines(range(len(rows)), *zip(*(row.quartiles for row in rows), strict=True), color="black", linewidth=1.5)
    for i, row in enumerate(rows):
        # The number is at the end of the bar, outside of the line for the quartiles.
        end, side = (max(row.ratio, row.quartiles[1]), 1) if row.ratio >= 1 else (min(row.ratio, row.quartiles[0]), -1)
        axes.annotate(
            f"{row.ratio:.2f}", (end, i), (5 * side, 0), textcoords="offset points", va="center",
            ha="left" if side == 1 else "right",
        )  # fmt: skip
    axes.axvline(1, color="0.4", linewidth=1)
    low, high = min(1.0, *(row.quartiles[0] for row in rows)), max(1.0, *(row.quartiles[1] for row in rows))
    low, high = min(low, *ratios), max(high, *ratios)
    span = max(high / low, 2.0)
    axes.set(xlim=(low / span**0.12, high * span**0.12), yticks=range(len(rows)), yticklabels=[r.what for r in rows])
    ticks = [tick for tick in _TICKS if low / span**0.12 <= tick <= high * span**0.12]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("PyTorch's time, in its faster memory format / fastconv's time\n(below 1, PyTorch is faster)")
    axes.set_title(title.replace("; torch", "\ntorch"), fontsize=9, color=FAINT, loc="left")
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    return png(figure)
