"""Time networks before and after fastconv.convert: a training step of 64 images, inference of 1 and of 64.

python benchmarks/converted_models.py [--only LeNet-5] [--rounds 15] [--json .benchmarks/converted_models.json]

The variants take turns, each in its own process. A training step is forward, cross-entropy, backward and SGD with
momentum; inference runs in evaluation mode under inference_mode.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Callable
from pathlib import Path

import torch
from models import NETWORKS
from ratios import Claim, geometric_mean, spread
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F

import fastconv
from fastconv.benchmarking.machine import caption, machine
from fastconv.benchmarking.processes import Make, alternate_processes
from fastconv.benchmarking.ratios import OURS, TORCH, VARIANTS, Rounds, medians

#: The number of images, and whether the job is training.
JOBS = {"training step, 64": (64, True), "inference, 64": (64, False), "inference, 1": (1, False)}


def make_step(name: str, job: str, variant: str) -> dict[str, Callable[[], object]]:
    batch, training = JOBS[job]
    torch.manual_seed(0)
    memory_format = torch.channels_last if variant.endswith("channels_last") else torch.contiguous_format
    model = NETWORKS[name].make().to(memory_format=memory_format)  # type: ignore[call-overload]
    if variant.startswith("fastconv"):
        fastconv.convert(model)
    images = NETWORKS[name].images(batch).to(memory_format=memory_format)
    if not training:
        model.eval()
        repeats = 1 if batch > 1 else 10

        def infer() -> None:
            with torch.inference_mode():
                for _ in range(repeats):
                    model(images)

        return {job: infer}
    labels = torch.randint(10, (batch,))
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return {job: step}


def claim(what: str, seconds: Rounds) -> Claim:
    """Return the ratio of the libraries' times, round by round, each in the layout with its lower median."""
    theirs = seconds[min(TORCH, key=medians(seconds).__getitem__)]
    ours = seconds[min(VARIANTS[2:], key=medians(seconds).__getitem__)]
    milliseconds = {name: value * 1e3 for name, value in medians(seconds).items()}
    return {
        "what": what,
        "unit": "ms",
        "values": milliseconds,
        **spread([a / b for a, b in zip(theirs, ours, strict=True)]),
    }


def table_of(claims: list[Claim]) -> Table:
    where = caption(machine())
    table = Table(caption=f"milliseconds (inference, 1: for ten calls); {where}")
    for heading in ("", *TORCH, VARIANTS[2], OURS, "torch's fastest / converted", "quartiles"):
        table.add_column(heading, justify="left" if not heading else "right", no_wrap=not heading)
    for each in claims:
        values = [f"{each['values'][name]:.2f}" for name in VARIANTS]
        table.add_row(each["what"], *values, f"{each['ratio']:.2f}", "{:.2f} to {:.2f}".format(*each["quartiles"]))
    for job in JOBS:
        ratios = [each["ratio"] for each in claims if each["what"].endswith(job)]
        if ratios:
            table.add_row(f"geometric mean, {job}", "", "", "", "", f"{geometric_mean(ratios):.2f}", "")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--jobs", nargs="+", default=list(JOBS), choices=JOBS)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    console = Console(width=150)
    claims = []
    for name in arguments.only:
        for job in arguments.jobs:
            makes: dict[str, Make] = {variant: functools.partial(make_step, name, job, variant) for variant in VARIANTS}
            seconds = alternate_processes(makes, arguments.rounds, 3, arguments.threads)
            claims.append(claim(f"{name}: {job}", seconds[job]))
            console.print(f"{claims[-1]['what']}: {claims[-1]['ratio']:.2f}", highlight=False)
    console.print(table_of(claims))
    if arguments.json:
        arguments.json.parent.mkdir(exist_ok=True)
        arguments.json.write_text(json.dumps({"machine": machine(), "claims": claims}, indent=1))


if __name__ == "__main__":
    main()
