"""Turns the JSON of a benchmark run into the tables of the README: the operators, and what is claimed.

python benchmarks/report.py .benchmarks/{operators,blocks,training_step,accuracy}.json [--markdown]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from machine import caption
from ratios import VARIANTS, Claim, geometric_mean, ratios
from rich.console import Console
from rich.table import Table

from fastconv.mnist.alternate import OURS, TORCH

OPERATORS = ["", *VARIANTS, "torch's fastest / fastconv", "NCHW / NCHW"]
CLAIMS = ["", *TORCH, OURS, "torch's fastest / fastconv", "quartiles"]


def operator_rows(benchmarks: list[dict[str, Any]]) -> list[list[str]]:
    rows = []
    both: list[tuple[float, float]] = []
    for benchmark in benchmarks:
        seconds = benchmark["extra_info"]["seconds"]
        best, nchw = ratios(seconds)
        both.append((best, nchw))
        name = benchmark["name"].removeprefix("test_").replace("[", " ").rstrip("]")
        rows.append([name, *(f"{seconds[v] * 1e3:.3f}" for v in VARIANTS), f"{best:.2f}", f"{nchw:.2f}"])
    if both:
        best_mean, nchw_mean = (geometric_mean(column) for column in zip(*both, strict=True))
        rows.append(["geometric mean of the operators", "", "", "", "", f"{best_mean:.2f}", f"{nchw_mean:.2f}"])
    return rows


def claim_row(claim: Claim) -> list[str]:
    if "missing" in claim:
        return [f"{claim['what']}: {claim['missing']}", "", "", "", "", ""]
    values = claim.get("values", {})
    form = {"ms": "{:.2f}", "s": "{:.2f} s", "MB": "{:.2f} MB", "x": "x {:.2f}"}[claim.get("unit", "ms")]
    columns = [form.format(values[variant]) if variant in values else "" for variant in (*TORCH, OURS)]
    quartiles = "{:.2f} to {:.2f}".format(*claim["quartiles"]) if "quartiles" in claim else ""
    # A speed-up is not PyTorch's over ours: it stands with its variant, and the quartiles are fastconv's.
    ratio = "" if claim.get("unit") == "x" else f"{claim['ratio']:.2f}"
    return [claim["what"], *columns, ratio, quartiles]


def tables(runs: list[dict[str, Any]]) -> list[tuple[list[str], list[list[str]], str]]:
    """Headings, rows and caption of each."""
    timed = [run for run in runs if "benchmarks" in run]
    benchmarks = [benchmark for run in timed for benchmark in run["benchmarks"]]
    claims = [claim for benchmark in benchmarks for claim in benchmark["extra_info"].get("claims", [])]
    claims += [claim for run in runs for claim in run.get("claims", [])]
    info = timed[0]["machine_info"]["fastconv"]
    where = f"{caption(info)}; median of {info['rounds']} alternating rounds"
    of_claims = f"{where}; ratios and quartiles of the rounds' pairs, torch's layout the one with the lower median"
    return [
        (OPERATORS, operator_rows([b for b in benchmarks if "claims" not in b["extra_info"]]), where),
        (CLAIMS, [claim_row(claim) for claim in claims], of_claims),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path, nargs="+")
    parser.add_argument("--markdown", action="store_true", help="for the README")
    arguments = parser.parse_args()
    for headings, rows, where in tables([json.loads(path.read_text()) for path in arguments.json]):
        if not rows:
            continue
        if arguments.markdown:
            lines = [headings, ["---"] + ["--:"] * (len(headings) - 1), *rows]
            print("\n".join("| " + " | ".join(line) + " |" for line in lines))
            print(f"\nMilliseconds, unless another unit is named. {where}.\n")
            continue
        table = Table(title="milliseconds, unless another unit is named", caption=where)
        for i, heading in enumerate(headings):
            table.add_column(heading, justify="left" if i == 0 else "right", no_wrap=i == 0)
        for row in rows:
            table.add_row(*row)
        Console(width=150).print(table)


if __name__ == "__main__":
    main()
