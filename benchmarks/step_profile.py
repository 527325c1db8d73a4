"""Profile the stages of a training step of PyTorch and of fastconv in channels_last, as a table and a picture.

Each library has its own process. They take turns of 20 steps. The clock is read between the stages of forward. In
backward, a hook on each block's output reads the clock right before the block's own backward. The time of Python and
autograd counts for the stage in which it occurs. conv1's backward ends when backward() returns. "rest" is the loss's
.item() and the clock. The results are means over the middle half of the steps, so that the stages add up.

python benchmarks/step_profile.py [--png docs/performance/step_profile.png]
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from bench_training_step import save_trained, trained_model
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from fastconv.benchmarking.machine import caption, machine
from fastconv.benchmarking.training_step import adam, batches
from fastconv.environment import benchmark_rounds

VARIANTS = {"torch channels_last": "PyTorch", "fastconv channels_last": "fastconv"}
TURNS, STEPS = max(2, benchmark_rounds() // 6), 20
LAYERS = ("conv1", "conv2", "conv3", "dense1", "dense2")
NAMES = {
    "conv1": "conv1, ReLU, pool",
    "conv2": "conv2, ReLU, pool",
    "conv3": "conv3, ReLU",
    "dense1": "flatten, dense1, ReLU",
    "dense2": "dense2, loss",
}

Seconds = dict[str, list[float]]


class Step:
    """A training step with a clock, in the variant's process."""

    def __init__(self, variant: str, path: Path) -> None:
        self.model, digits, memory_format = trained_model(variant, path)
        self.images, self.labels = digits.train_images.to(memory_format=memory_format), digits.train_labels
        self.optimizer = adam(variant.partition(" ")[0])(self.model.parameters(), fused=True)
        self.order = batches(self.images)
        self.steps = 0
        self.seconds: Seconds = {}
        self.last = 0.0

    def mark(self, stage: str) -> None:
        """Add the time since the last mark to ``stage``."""
        now = time.perf_counter()
        self.seconds.setdefault(stage, []).append(now - self.last)
        self.last = now

    def mark_backward(self, output: Tensor, stage: str) -> Tensor:
        """End ``stage`` when the gradient of ``output`` has been computed."""
        output.register_hook(lambda _: self.mark(stage))
        return output

    def run(self) -> None:
        model, mark, at = self.model, self.mark, self.mark_backward
        batch = self.order[self.steps % len(self.order)]
        self.steps += 1
        start = self.last = time.perf_counter()
        images, labels = self.images.index_select(0, batch), self.labels.index_select(0, batch)
        mark("gather")
        x = at(model.conv1(images), "conv2 backward")
        mark("conv1")
        x = at(model.conv2(x), "conv3 backward")
        mark("conv2")
        x = at(model.conv3(x), "dense1 backward")
        mark("conv3")
        x = at(F.relu(model.dense1(x.flatten(1))), "dense2 backward")
        mark("dense1")
        loss = F.cross_entropy(model.dense2(x), labels)
        mark("dense2")
        self.optimizer.zero_grad()
        mark("zero_grad")
        loss.backward()
        mark("conv1 backward")
        self.optimizer.step()
        mark("Adam")
        loss.item()
        self.seconds.setdefault("step", []).append(time.perf_counter() - start)


_step: Step


def start(variant: str, path: Path, threads: int) -> None:
    global _step
    torch.set_num_threads(threads)
    _step = Step(variant, path)
    for _ in range(STEPS):
        _step.run()


def turn() -> Seconds:
    """Return the seconds of STEPS steps, after two untimed steps that wake up the threads."""
    _step.run()
    _step.run()
    _step.seconds = {}
    for _ in range(STEPS):
        _step.run()
    return _step.seconds


def measure() -> dict[str, dict[str, float]]:
    """Return the milliseconds of each variant and stage."""
    seconds: dict[str, Seconds] = {variant: {} for variant in VARIANTS}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "state.pt")
        save_trained(path)
        context = multiprocessing.get_context("spawn")
        processes = {
            variant: ProcessPoolExecutor(1, context, start, (variant, path, torch.get_num_threads()))
            for variant in VARIANTS
        }
        for process in processes.values():  # start both before the first is timed
            process.submit(turn).result()
        for _ in range(TURNS):
            for variant, process in processes.items():
                for stage, of_stage in process.submit(turn).result().items():
                    seconds[variant].setdefault(stage, []).extend(of_stage)
        for process in processes.values():
            process.shutdown()
    return {variant: middle_half(of_variant) for variant, of_variant in seconds.items()}


def middle_half(seconds: Seconds) -> dict[str, float]:
    """Return the mean milliseconds of each stage, without the fastest and the slowest quarter of the steps."""
    steps = seconds["step"]
    by_time = sorted(range(len(steps)), key=steps.__getitem__)
    middle = by_time[len(steps) // 4 : len(steps) - len(steps) // 4]
    means = {stage: statistics.fmean(of_stage[i] for i in middle) * 1e3 for stage, of_stage in seconds.items()}
    step = means.pop("step")
    return {**means, "rest": step - sum(means.values()), "step": step}


ORDER = (
    "gather", *LAYERS, "zero_grad", *(f"{layer} backward" for layer in reversed(LAYERS)), "Adam", "rest",
)  # fmt: skip


def describe(stage: str) -> str:
    layer, _, backward = stage.partition(" ")
    return f"{NAMES.get(layer, layer)}{': backward' if backward else ''}"


def plot(results: dict[str, dict[str, float]], path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    colors: dict[str, Any] = dict(zip(LAYERS, ("#4477aa", "#ee7733", "#228833", "#aa3377", "#bbaa22"), strict=True))
    colors |= {"gather": "#999999", "zero_grad": "#444444", "Adam": "#777777", "rest": "#cccccc"}
    figure, axes = pyplot.subplots(figsize=(12, 5.2))
    longest = max(stages["step"] for stages in results.values())
    heights = range(len(results) - 1, -1, -1)
    for y, stages in zip(heights, results.values(), strict=True):
        left = 0.0
        for stage in ORDER:
            width = stages[stage]
            layer, _, backward = stage.partition(" ")
            axes.barh(
                y, width, left=left, height=0.62, color=colors[layer], edgecolor="white", linewidth=0.8,
                alpha=0.62 if backward else 1.0, hatch="////" if backward else None,
                label=describe(stage) if y == 0 else None,
            )  # fmt: skip
            if width > 0.028 * longest:
                box = {"facecolor": "white", "alpha": 0.85, "edgecolor": "none", "boxstyle": "round,pad=0.15"}
                named = width > (0.08 if backward else 0.042) * longest
                text = f"{stage.replace(' ', chr(10))}\n{width:.2f}" if named else f"{width:.2f}"
                axes.text(left + width / 2, y, text, ha="center", va="center", fontsize=8, bbox=box)
            left += width
        axes.text(left + 0.008 * longest, y, f"{stages['step']:.2f} ms", va="center", fontsize=11, weight="bold")
    axes.set_yticks(list(heights), [VARIANTS[variant] for variant in results], fontsize=11)
    axes.set_xlim(0, longest * 1.1)
    axes.set_xlabel("milliseconds")
    axes.set_title("A training step of MnistCNN, batch 64, float32, channels_last", fontsize=12)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.legend(loc="lower center", bbox_to_anchor=(0.5, 0.055), ncols=4, fontsize=9, frameon=False)
    figure.text(0.5, 0.02, f"{caption(machine())}; hatched: backward", ha="center", fontsize=8, color="#444444")
    figure.subplots_adjust(left=0.08, right=0.98, top=0.93, bottom=0.39)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--png", type=Path, default=Path(__file__).parents[1] / "docs" / "step_profile.png")
    arguments = parser.parse_args()
    results = measure()
    table = Table(title="a training step, milliseconds", caption=caption(machine()))
    table.add_column("")
    for variant in VARIANTS:
        table.add_column(variant, justify="right")
    for stage in (*ORDER, "step"):
        table.add_row(describe(stage), *(f"{stages[stage]:.2f}" for stages in results.values()))
    Console(width=120).print(table)
    plot(results, arguments.png)


if __name__ == "__main__":
    main()
