"""Turns the JSON of a benchmark run into the table of the README.

python benchmarks/report.py .benchmarks/operators.json .benchmarks/training_step.json [--markdown]
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

VARIANTS = ("torch NCHW", "torch channels_last", "fastconv NCHW", "fastconv channels_last")


def ratios(seconds: dict[str, float]) -> tuple[float, float]:
    """PyTorch's faster layout over our faster layout, and NCHW over NCHW. Above 1, fastconv is faster."""
    torch_nchw, torch_last, nchw, last = (seconds[variant] for variant in VARIANTS)
    return min(torch_nchw, torch_last) / last, torch_nchw / nchw


def rows(run: dict[str, Any]) -> list[tuple[str, dict[str, float]]]:
    return [
        (benchmark["name"].removeprefix("test_").replace("[", " ").rstrip("]"), benchmark["extra_info"]["seconds"])
        for benchmark in run["benchmarks"]
    ]


def geometric_mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def caption(run: dict[str, Any]) -> str:
    info = run["machine_info"]["fastconv"]
    preloaded = f", {Path(info['preloaded']).name} preloaded" if info["preloaded"] else ""
    return (
        f"{info['cpu']}, {info['threads']} threads, {info['level']}{preloaded}; torch {info['torch']}, "
        f"fastconv {info['fastconv']}, {info['compiler']}; median of {info['rounds']} alternating rounds"
    )


def table_rows(run: dict[str, Any]) -> list[list[str]]:
    table = []
    operators: list[tuple[float, float]] = []
    for name, seconds in rows(run):
        best, nchw = ratios(seconds)
        if name != "training_step":
            operators.append((best, nchw))
        table.append([name, *(f"{seconds[v] * 1e3:.3f}" for v in VARIANTS), f"{best:.2f}", f"{nchw:.2f}"])
    if operators:
        best_mean, nchw_mean = (geometric_mean(list(column)) for column in zip(*operators, strict=True))
        table.append(["geometric mean of the operators", "", "", "", "", f"{best_mean:.2f}", f"{nchw_mean:.2f}"])
    return table


HEADINGS = ["", *VARIANTS, "torch's fastest / fastconv", "NCHW / NCHW"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path, nargs="+")
    parser.add_argument("--markdown", action="store_true", help="for the README")
    arguments = parser.parse_args()
    runs = [json.loads(path.read_text()) for path in arguments.json]
    run = {**runs[0], "benchmarks": [benchmark for run in runs for benchmark in run["benchmarks"]]}
    if arguments.markdown:
        lines = [HEADINGS, ["---"] + ["--:"] * (len(HEADINGS) - 1), *table_rows(run)]
        print("\n".join("| " + " | ".join(line) + " |" for line in lines))
        print(f"\nMilliseconds. {caption(run)}.")
        return
    table = Table(title="milliseconds", caption=caption(run))
    for i, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="left" if i == 0 else "right")
    for row in table_rows(run):
        table.add_row(*row)
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
