"""fastconv against PyTorch on the user's machine: the three blocks of MnistCNN, and its whole training step.

Each variant has a process of its own, with the C allocator as installed (see ``alternate``). The network is one that
has trained a little on real images: how long backward takes depends on how many of its activations are zero.
"""

import functools
import io
import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastconv
from fastconv.classifier import alternate, data
from fastconv.classifier.checkpoint import serialized
from fastconv.classifier.plots.style import FAINT, RIGHT, WRONG, new_figure, png
from fastconv.classifier.training import build_model

VARIANTS = (*alternate.TORCH, alternate.OURS)
BATCH = 64
_BLOCKS = {"conv1": "conv1 + ReLU + pool", "conv2": "conv2 + ReLU + pool", "conv3": "conv3 + ReLU"}
_STEPS_BEFORE = 186  # three epochs of mnist5k's training images
_CALLS = 5  # in a turn, of which the median counts


@dataclass(frozen=True)
class Row:
    """What was timed, the seconds of each variant round by round, and what follows from them."""

    what: str
    seconds: dict[str, list[float]]

    @property
    def medians(self) -> dict[str, float]:
        return alternate.medians(self.seconds)

    @property
    def ratio(self) -> float:
        """PyTorch's faster layout over fastconv. Above 1, fastconv is faster."""
        return statistics.median(alternate.torch_over_ours(self.seconds))

    @property
    def quartiles(self) -> tuple[float, float]:
        return alternate.quartiles(alternate.torch_over_ours(self.seconds))


def measure(rounds: int, threads: int, device: str = "cpu") -> list[Row]:
    """Time everything, ``rounds`` times, on ``threads`` threads, or on a GPU.

    Raises:
        BenchError: if a process with a variant ended.
    """
    state = _trained_state()
    variants = {variant: functools.partial(_calls, variant, state, device) for variant in VARIANTS}
    seconds = alternate.alternate_processes(variants, rounds, _CALLS, threads)
    return [Row(what, of_what) for what, of_what in seconds.items()]


def _trained_state() -> bytes:
    """The state_dict of a network that all variants start from."""
    torch.manual_seed(0)
    network = build_model("mnist-cnn")
    step = _digits_step(network, torch.channels_last)
    for _ in range(_STEPS_BEFORE):
        step()
    return serialized(network.state_dict())


def _calls(variant: str, trained: bytes, device: str = "cpu") -> dict[str, Callable[[], object]]:
    """What is timed of a variant. The images have no gradient, and so conv1 has none to its input."""
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
    # A network of its own: this one's weights are to stay.
    in_training = build_model("mnist-cnn", backend)
    in_training.load_state_dict(state)
    calls[f"training step, batch {BATCH}"] = _digits_step(in_training, memory_format, device, backend)
    if device == "cuda":
        return {name: functools.partial(_finished, call) for name, call in calls.items()}
    return calls


def _finished(call: Callable[[], object]) -> None:
    """The call, and what it asked of the GPU."""
    call()
    torch.cuda.synchronize()


def batches(images: Tensor) -> Sequence[Tensor]:
    """The indices of each batch, the same for all variants."""
    return torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).split(BATCH)[:-1]


def _backward(block: nn.Module, x: Tensor, inputs: list[Tensor], grad: Tensor) -> object:
    return torch.autograd.grad(block(x), inputs, grad)


def adam(backend: str) -> type[torch.optim.Adam]:
    """fastconv's for its layers, and PyTorch's for PyTorch's."""
    return torch.optim.Adam if backend == "torch" else fastconv.optim.Adam


def training_step(
    network: nn.Module, images: Tensor, labels: Tensor, kind: type[torch.optim.Adam] = torch.optim.Adam
) -> Callable[[], float]:
    """A function that gathers the next batch, does a step of Adam on it, and gives the loss.

    Args:
        network: gives logits (N, classes).
        images: (N, C, H, W), on the network's device.
        labels: (N,), int64, there too.
        kind: whose Adam.

    Example::

        >>> step = training_step(build_model("simple-cnn"), torch.rand(200, 1, 28, 28), torch.arange(200) % 10)
        >>> step() > 0
        True
    """
    optimizer = kind(network.parameters(), fused=True)
    order = [batch.to(images.device) for batch in batches(images)]
    steps = 0

    def step() -> float:
        nonlocal steps
        batch = order[steps % len(order)]
        steps += 1
        loss = F.cross_entropy(network(images.index_select(0, batch)), labels.index_select(0, batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def _digits_step(
    network: nn.Module, memory_format: torch.memory_format, device: str = "cpu", backend: str = "fastconv"
) -> Callable[[], float]:
    digits = data.load("mnist5k")
    network.to(device, memory_format=memory_format).train()  # type: ignore[call-overload]
    images = digits.train_images.to(device).contiguous(memory_format=memory_format)
    return training_step(network, images, digits.train_labels.to(device), adam(backend))


def cpu_name() -> str:
    """The processor's name as the system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def caption(rounds: int, threads: int, device: str = "cpu") -> str:
    """Where and how the figures came about, in a line."""
    where = f"{cpu_name()}, {threads} thread{'s' * (threads > 1)}, {fastconv._C.cpu_capability()}"
    if device == "cuda":
        where = f"{torch.cuda.get_device_name()}, CUDA {fastconv._C.build_info()['cuda']}"
    return (
        f"{where};"
        f" torch {torch.__version__}, fastconv {fastconv.__version__};"
        f" medians of {rounds} round{'s' * (rounds > 1)}"
    )


def summary(rows: Sequence[Row]) -> str:
    """How many rows fastconv wins, and which it loses."""
    lost = [row.what for row in rows if row.ratio < 1]
    return f"fastconv is faster in {len(rows) - len(lost)} of {len(rows)}" + (
        f"; PyTorch is faster in {len(lost)}: {', '.join(lost)}" if lost else ""
    )


def table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows, in milliseconds. A row that fastconv loses is marked."""
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
    """All that was measured, as plain types."""
    return {
        "machine": caption(rounds, threads, device),
        "rounds": rounds,
        "threads": threads,
        "rows": [
            {"what": row.what, "seconds": row.seconds, "ratio": row.ratio, "quartiles": row.quartiles} for row in rows
        ],
    }


def picture(rows: Sequence[Row], title: str) -> bytes:
    """A PNG with a bar a row, the ratio, and a line for its quartiles; red where PyTorch is faster."""
    figure = new_figure(9, 0.45 * len(rows) + 1.6)
    axes = figure.subplots()
    ratios = [row.ratio for row in rows]
    axes.barh(range(len(rows)), ratios, color=[RIGHT if ratio >= 1 else WRONG for ratio in ratios])
    axes.hlines(range(len(rows)), *zip(*(row.quartiles for row in rows), strict=True), color="black", linewidth=1.5)
    ends = [max(1, row.ratio, row.quartiles[1]) for row in rows]  # a label across the dashed line is hard to read
    for i, (ratio, end) in enumerate(zip(ratios, ends, strict=True)):
        axes.annotate(f"{ratio:.2f}", (end, i), (5, 0), textcoords="offset points", va="center")
    axes.axvline(1, color="0.4", linewidth=1, linestyle="--")
    axes.set(xlim=(0, 1.12 * max(ends)), yticks=range(len(rows)), yticklabels=[row.what for row in rows])
    axes.set_xlabel("times as fast as PyTorch's faster layout (left of the dashed line, PyTorch is faster)")
    axes.set_title(title.replace("; torch", "\ntorch"), fontsize=9, color=FAINT, loc="left")
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    return png(figure)
