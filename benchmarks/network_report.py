"""Print the tables of bench_networks.py from its JSON files, as Markdown.

python benchmarks/network_report.py .benchmarks/networks.json [more.json]

Several files are the parts of one run: they have different networks or modes, and the same machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from network_checks import Record, failures
from network_variants import BASE, INFERENCE, OURS
from ratios import geometric_mean
from rich.console import Console
from rich.table import Table

from fastconv.benchmarking.machine import caption

TITLES = {
    "batch-1": "inference, batch 1",
    "batch-8": "inference, batch 8",
    "training": "training step",
}
#: A network is called slower than PyTorch below this ratio.
SLOW = 0.97

#: The title, the headings and the rows.
Cells = tuple[str, list[str], list[list[str]]]


def ratio(record: Record, variant: str) -> float:
    """Return PyTorch's time over the variant's: the median of the rounds."""
    pairs = zip(record["seconds"][BASE], record["seconds"][variant], strict=True)
    return statistics.median(theirs / its for theirs, its in pairs)


def memory_ratio(record: Record, kind: str) -> float:
    return record["megabytes"][OURS][kind] / record["megabytes"][BASE][kind]


def summary(records: Sequence[Record]) -> Cells:
    """Return fastconv's ratios of each network in all modes."""
    rows = []
    for name in dict.fromkeys(record["network"] for record in records):
        of_network = {record["mode"]: record for record in records if record["network"] == name}
        row = [name]
        for mode in TITLES:
            timed = mode in of_network and OURS in of_network[mode]["seconds"]
            row.append(f"{ratio(of_network[mode], OURS):.2f}" if timed else "")
        measured = "memory" in of_network and OURS in of_network["memory"]["megabytes"]
        rows.append([*row, f"{memory_ratio(of_network['memory'], 'all'):.2f}" if measured else ""])
    title = "PyTorch's time over fastconv's; fastconv's peak memory over PyTorch's"
    return title, ["", *TITLES.values(), "peak memory of a training step"], rows


def times(records: Sequence[Record], mode: str) -> Cells:
    """Return PyTorch's milliseconds and the ratios of all variants in one mode."""
    found = [record for record in records if record["mode"] == mode]
    variants = [name for name in INFERENCE if name != BASE and any(name in record["seconds"] for record in found)]
    rows = []
    for record in found:
        milliseconds = statistics.median(record["seconds"][BASE]) * 1e3
        ratios = [f"{ratio(record, name):.2f}" if name in record["seconds"] else "" for name in variants]
        rows.append([record["network"], f"{milliseconds:.1f}", *ratios])
    if len(found) > 1:
        rows.append(["geometric mean", "", *(mean_ratio(found, name) for name in variants)])
    return TITLES[mode], ["", f"{BASE}, ms", *variants], rows


def mean_ratio(records: Sequence[Record], variant: str) -> str:
    """Return the geometric mean. It is empty if the variant did not run for all networks."""
    if not all(variant in record["seconds"] for record in records):
        return ""
    return f"{geometric_mean([ratio(record, variant) for record in records]):.2f}"


def memory(records: Sequence[Record]) -> Cells:
    headings = ["", "torch, MB", "fastconv, MB", "ratio", "torch, step, MB", "fastconv, step, MB", "ratio, step"]
    rows = []
    for record in records:
        if OURS in record["megabytes"]:
            row = [record["network"]]
            for kind in ("all", "step"):
                row += [f"{record['megabytes'][name][kind]:.0f}" for name in (BASE, OURS)]
                row.append(f"{memory_ratio(record, kind):.2f}")
            rows.append(row)
    return "peak memory of a training step", headings, rows


def differences(records: Sequence[Record]) -> Cells:
    """Return the largest difference of each variant, over all networks."""
    rows = []
    for variant in INFERENCE:
        checks = [record["checks"][variant] for record in records if variant in record["checks"]]
        row = [variant]
        for what in ("difference", "loss", "statistics"):
            values = [check[what] for check in checks if what in check]
            row.append(f"{max(values):.0e}" if values else "")
        if any(row[1:]):
            rows.append(row)
    headings = ["", "outputs, from float64", "loss after 20 steps, from PyTorch", "running statistics after 20 steps"]
    return "largest relative differences", headings, rows


def tables(records: Sequence[Record]) -> list[Cells]:
    timed = [times(records, mode) for mode in TITLES]
    return [table for table in (summary(records), *timed, memory(records), differences(records)) if table[2]]


def slower(records: Sequence[Record]) -> str:
    """Return a sentence that names where fastconv is slower than PyTorch."""
    timed = [record for record in records if OURS in record["seconds"]]
    found = [
        f"{record['network']}, {TITLES[record['mode']]} ({value:.2f})"
        for record in timed
        if (value := ratio(record, OURS)) < SLOW
    ]
    if not found:
        return f"fastconv is nowhere slower than PyTorch by more than 3 % ({len(timed)} measurements)."
    return f"fastconv is slower than PyTorch by more than 3 % in {len(found)} of {len(timed)}: {'; '.join(found)}."


def where(info: dict[str, Any]) -> str:
    packages = "".join(f", {name} {version}" for name, version in info["packages"].items())
    return f"{caption(info)}{packages}; medians of {info['rounds']} alternating rounds"


def records_of(runs: Sequence[dict[str, Any]]) -> list[Record]:
    return [record for run in runs for record in run["networks"]]


def markdown(runs: Sequence[dict[str, Any]]) -> str:
    records, lines = records_of(runs), []
    for title, headings, rows in tables(records):
        cells = [headings, ["---"] + ["--:"] * (len(headings) - 1), *rows]
        lines += [f"**{title}**", "", *("| " + " | ".join(row) + " |" for row in cells), ""]
    return "\n".join([*lines, slower(records), "", f"{where(runs[0]['machine'])}.", ""])


def print_tables(runs: Sequence[dict[str, Any]]) -> None:
    records, console = records_of(runs), Console(width=150)
    for title, headings, rows in tables(records):
        table = Table(title=title)
        for i, heading in enumerate(headings):
            table.add_column(heading, justify="right" if i else "left", no_wrap=not i)
        for row in rows:
            table.add_row(*row)
        console.print(table)
    console.print(slower(records), highlight=False)
    console.print(where(runs[0]["machine"]), highlight=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path, nargs="+")
    runs = [json.loads(path.read_text()) for path in parser.parse_args().json]
    print(markdown(runs))
    for sentence in failures(records_of(runs)):
        print(sentence)


if __name__ == "__main__":
    main()
