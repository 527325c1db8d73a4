"""Train ResNet-20 on Fashion-MNIST with and without fastconv.convert: test accuracy and time.

python benchmarks/train_resnet20.py [--seeds 3] [--epochs 3] [--images 60000] [--dataset mnist] [--json FILE]

ResNet-20 is the network for CIFAR, with one input channel. It trains with SGD, momentum, weight decay and a one-cycle
learning rate, on batches of 128 images of 28x28 pixels, half of them mirrored, in channels_last. With the same seed,
both variants start from the same weights and see the same images. Each training has its own process, and the variants
take turns, seed by seed. The seconds exclude set-up and evaluation. Batch norm is in evaluation mode for the accuracy.

Three epochs of 60,000 images for three seeds take less than 30 minutes on two cores. With other programs on the
machine, use --images 20000 --epochs 2.

On Debian, `apt install dataset-fashion-mnist` provides the images. Elsewhere, `fastconv download fashion-mnist` does.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from networks import resnet20
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

import fastconv
from fastconv.benchmarking.machine import caption, machine
from fastconv.classifier import data

TORCH, OURS = "torch", "fastconv"
BATCH = 128
HIGHEST_RATE = 0.2

#: One training: the variant, the seed, its seconds, the accuracy on the test images, and the loss of each epoch.
Run = dict[str, Any]


def train(variant: str, seed: int, arguments: argparse.Namespace) -> Run:
    torch.set_num_threads(arguments.threads)
    loaded = data.load(arguments.dataset)
    images, labels = loaded.train_images[: arguments.images], loaded.train_labels[: arguments.images]
    mean, deviation = images.mean(), images.std()
    images, test_images = (images - mean) / deviation, (loaded.test_images - mean) / deviation
    torch.manual_seed(seed)
    model = resnet20(channels=1).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if variant == OURS:
        fastconv.convert(model)
    optimizer = torch.optim.SGD(model.parameters(), HIGHEST_RATE, momentum=0.9, weight_decay=5e-4, nesterov=True)
    steps = arguments.epochs * (len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, HIGHEST_RATE, steps)
    seconds, losses = 0.0, []
    for _ in range(arguments.epochs):
        start = time.perf_counter()
        losses.append(train_epoch(model, images, labels, optimizer, schedule))
        seconds += time.perf_counter() - start
    accuracy = evaluate(model, test_images, loaded.test_labels)
    return {"variant": variant, "seed": seed, "seconds": seconds, "accuracy": accuracy, "losses": losses}


def train_epoch(model: nn.Module, images: Tensor, labels: Tensor, optimizer: Any, schedule: Any) -> float:
    """Return the mean loss."""
    model.train()
    total, batches = 0.0, torch.randperm(len(images)).split(BATCH)
    batches = batches[: len(images) // BATCH]  # without an incomplete one
    for batch in batches:
        mirrored = torch.rand(len(batch), 1, 1, 1) < 0.5
        x = images[batch]
        x = torch.where(mirrored, x.flip(3), x).contiguous(memory_format=torch.channels_last)
        loss = F.cross_entropy(model(x), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        total += loss.item()
    return total / len(batches)


def evaluate(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share of images that the model classifies correctly."""
    model.eval()
    with torch.inference_mode():
        right = sum(
            int((model(x.contiguous(memory_format=torch.channels_last)).argmax(1) == y).sum())
            for x, y in zip(images.split(500), labels.split(500), strict=True)
        )
    return right / len(images)


def table_of(runs: list[Run]) -> Table:
    table = Table(caption=caption(machine()))
    for heading in ("seed", "torch, s", "fastconv, s", "ratio", "torch, accuracy", "fastconv, accuracy"):
        table.add_column(heading, justify="right")
    pairs = [[run for run in runs if run["seed"] == seed] for seed in dict.fromkeys(run["seed"] for run in runs)]
    for theirs, ours in pairs:
        times = [f"{run['seconds']:.1f}" for run in (theirs, ours)]
        accuracies = [f"{run['accuracy']:.2%}" for run in (theirs, ours)]
        table.add_row(str(theirs["seed"]), *times, f"{theirs['seconds'] / ours['seconds']:.2f}", *accuracies)
    return table


def summary(runs: list[Run]) -> str:
    """Return the mean accuracies, with the standard deviation of the seeds, and the median ratio of the times."""
    parts = []
    for variant in (TORCH, OURS):
        accuracies = [run["accuracy"] for run in runs if run["variant"] == variant]
        deviation = f" +- {statistics.stdev(accuracies):.2%}" if len(accuracies) > 1 else ""
        parts.append(f"{variant} {statistics.mean(accuracies):.2%}{deviation}")
    theirs, ours = ([run["seconds"] for run in runs if run["variant"] == name] for name in (TORCH, OURS))
    ratio = statistics.median(a / b for a, b in zip(theirs, ours, strict=True))
    return f"accuracy: {', '.join(parts)}; PyTorch's time over fastconv's: {ratio:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--images", type=int, default=60_000, help="use only this number of training images")
    parser.add_argument("--dataset", choices=("fashion-mnist", "mnist"), default="fashion-mnist")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if min(arguments.seeds, arguments.epochs, arguments.threads) < 1 or arguments.images < BATCH:
        parser.error(f"--seeds, --epochs and --threads must be at least 1, and --images at least {BATCH}")
    try:
        data.find_folder(name=arguments.dataset)
    except data.DataError as error:
        parser.error(str(error))
    runs: list[Run] = []
    context = multiprocessing.get_context("spawn")
    for seed in range(arguments.seeds):
        for variant in (TORCH, OURS):
            with context.Pool(1) as pool:
                runs.append(pool.apply(train, (variant, seed, arguments)))
            print(f"seed {seed}, {variant}: {runs[-1]['seconds']:.1f} s, {runs[-1]['accuracy']:.2%}", flush=True)
        if arguments.json:  # after each seed, so that an interrupted run is not lost
            arguments.json.parent.mkdir(parents=True, exist_ok=True)
            settings = {key: value for key, value in vars(arguments).items() if key != "json"}
            arguments.json.write_text(json.dumps({"machine": machine(), "settings": settings, "runs": runs}, indent=1))
    Console(width=120).print(table_of(runs))
    print(summary(runs))


if __name__ == "__main__":
    main()
