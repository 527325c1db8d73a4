"""Time training to 99 % test accuracy on the full MNIST: `fastconv train --recipe fast`, on both backends.

PyTorch trains with the same recipe, and also with batches of 64 at half the learning rate, in case the recipe's batches
of 128 suit only fastconv. Each training has its own process, and the variants take turns, seed by seed. Both backends
train in channels_last, PyTorch's faster layout. The seconds exclude set-up and evaluation.

python benchmarks/seconds_to_99.py [--seeds 3] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
from pathlib import Path
from typing import Any

from ratios import Claim, spread

from fastconv.classifier import data
from fastconv.classifier.config import RECIPES, TrainingConfig
from fastconv.classifier.evaluation import evaluate
from fastconv.classifier.fit import fit

WHAT = "seconds to 99 % on MNIST, recipe fast"
GOAL = 0.99
OURS = "fastconv"
VARIANTS: dict[str, dict[str, Any]] = {
    OURS: {},
    "the same recipe": {"backend": "torch"},
    "batches of 64": {"backend": "torch", "batch_size": 64, "lr": RECIPES["fast"]["lr"] / 2},
}

Runs = dict[str, list[tuple[float, float]]]  # of each variant, seed by seed: seconds, test accuracy


def train(variant: str, seed: int) -> tuple[float, float]:
    mnist = data.load("mnist")
    config = TrainingConfig(**{**RECIPES["fast"], **VARIANTS[variant], "seed": seed})
    model, history = fit(mnist.train_images, mnist.train_labels, config)
    return sum(epoch.seconds for epoch in history), evaluate(model, mnist.test_images, mnist.test_labels)[1]


def claim(runs: Runs, variant: str) -> Claim:
    """Return the ratio of PyTorch's ``variant`` to fastconv, or the variant that misses the goal."""
    what = f"{WHAT}, PyTorch with {variant}"
    for name in (OURS, variant):
        accuracy = statistics.mean(accuracy for _, accuracy in runs[name])
        if accuracy < GOAL:
            return {"what": what, "missing": f"{name} reaches only {accuracy:.2%}"}
    theirs, ours = ([seconds for seconds, _ in runs[name]] for name in (variant, OURS))
    values = {"torch channels_last": statistics.median(theirs), "fastconv channels_last": statistics.median(ours)}
    return {"what": what, "unit": "s", "values": values, **spread([a / b for a, b in zip(theirs, ours, strict=True)])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    try:
        data.find_folder()
    except data.DataError as error:
        claims: list[Claim] = [{"what": WHAT, "missing": str(error)}]
    else:
        runs: Runs = {variant: [] for variant in VARIANTS}
        context = multiprocessing.get_context("spawn")
        for seed in range(arguments.seeds):
            for variant, results in runs.items():
                with context.Pool(1) as pool:
                    results.append(pool.apply(train, (variant, seed)))
                print(f"seed {seed}, {variant}: {results[-1][0]:.2f} s, {results[-1][1]:.2%}", flush=True)
        claims = [claim(runs, variant) for variant in VARIANTS if variant != OURS]
    for result in claims:
        print(result["what"], result.get("missing") or f"{result['ratio']:.2f}", sep=": ")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"claims": claims}))


if __name__ == "__main__":
    main()
