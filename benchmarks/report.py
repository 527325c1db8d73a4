"""Print two tables, one of operators and one of claims, from the JSON files of a benchmark run.

python benchmarks/report.py .benchmarks/{operators,blocks,training_step,accuracy,seconds_to_99}.json [--markdown]
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from ratios import Claim, geometric_mean, ratios
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastconv.benchmarking.machine import caption
from fastconv.benchmarking.ratios import OURS, TORCH, VARIANTS
from fastconv.classifier import files, schemas
from fastconv.classifier.errors import UserError, printable

OPERATORS = ["", *VARIANTS, "torch's fastest / fastconv", "NCHW / NCHW"]
CLAIMS = ["", *TORCH, OURS, "torch's fastest / fastconv", "quartiles"]


_LARGEST = 1 << 28  # bytes

Positive = Annotated[float, Field(gt=0)]


class _Record(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class _Claim(_Record):
    """A :class:`ratios.Claim`: figures, or the reason why there are none."""

    what: str
    missing: str | None = None
    unit: Literal["ms", "s", "MB", "x"] = "ms"
    values: dict[str, float] = {}
    ratio: float | None = None
    quartiles: Annotated[list[float], Field(min_length=2, max_length=2)] = [1.0, 1.0]

    @model_validator(mode="after")
    def _has_a_ratio(self) -> _Claim:
        if self.missing is None and self.unit != "x" and self.ratio is None:
            raise ValueError("ratio is missing")
        return self


class _ExtraInfo(_Record):
    """The seconds of each variant, or claims. With claims, `seconds` may have any keys."""

    seconds: dict[str, Positive] = {}
    claims: list[_Claim] = []

    @model_validator(mode="after")
    def _has_figures(self) -> _ExtraInfo:
        if "claims" not in self.model_fields_set and set(self.seconds) != set(VARIANTS):
            raise ValueError(f"seconds must have the keys {', '.join(VARIANTS)}")
        return self


class _Benchmark(_Record):
    name: str
    extra_info: _ExtraInfo


class _Machine(_Record):
    cpu: str
    threads: int
    level: str
    preloaded: str
    torch: str
    fastconv: str
    compiler: str
    rounds: int


class _MachineInfo(_Record):
    fastconv: _Machine


class _Timed(_Record):
    """The JSON that pytest-benchmark writes."""

    machine_info: _MachineInfo
    benchmarks: list[_Benchmark]


class _Claims(_Record):
    """The JSON that accuracy.py and seconds_to_99.py write."""

    claims: list[_Claim]


def read(path: Path) -> dict[str, Any]:
    """Return the results of a run.

    Raises:
        UserError: if the file cannot be read, or is not a valid benchmark result.
    """
    content = files.read_bytes(path, _LARGEST)
    try:
        run = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error
    timed = isinstance(run, dict) and "benchmarks" in run
    wrong = schemas.problem(_Timed if timed else _Claims, run)
    if wrong is not None:
        raise UserError(f"{path} is not a valid benchmark result: {wrong}")
    return run


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
    # A speed-up does not compare PyTorch with fastconv, so the ratio's column is empty. The quartiles are fastconv's.
    ratio = "" if claim.get("unit") == "x" else f"{claim['ratio']:.2f}"
    return [claim["what"], *columns, ratio, quartiles]


def tables(runs: list[dict[str, Any]]) -> list[tuple[list[str], list[list[str]], str]]:
    """Return headings, rows and caption of each table."""
    timed = [run for run in runs if "benchmarks" in run]
    benchmarks = [benchmark for run in timed for benchmark in run["benchmarks"]]
    claims = [claim for benchmark in benchmarks for claim in benchmark["extra_info"].get("claims", [])]
    claims += [claim for run in runs if "benchmarks" not in run for claim in run["claims"]]
    if not timed:
        raise UserError("no file has timed benchmarks: name at least one such as operators.json")
    info = timed[0]["machine_info"]["fastconv"]
    where = f"{caption(info)}; median of {info['rounds']} alternating rounds"
    of_claims = f"{where}; each round gives one ratio, with torch's faster layout"
    return [
        (OPERATORS, operator_rows([b for b in benchmarks if "claims" not in b["extra_info"]]), where),
        (CLAIMS, [claim_row(claim) for claim in claims], of_claims),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path, nargs="+")
    parser.add_argument("--markdown", action="store_true", help="print Markdown")
    arguments = parser.parse_args()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    try:
        found = tables([read(path) for path in arguments.json])
    except UserError as error:
        print(f"report.py: {printable(str(error))}", file=sys.stderr)
        raise SystemExit(2) from None
    for headings, rows, where in found:
        if not rows:
            continue
        if arguments.markdown:
            lines = [headings, ["---"] + ["--:"] * (len(headings) - 1), *rows]
            print("\n".join("| " + " | ".join(line) + " |" for line in lines))
            print(f"\nMilliseconds, unless another unit is named. {where}.\n")
            continue
        table = Table(title="milliseconds, unless another unit is named", caption=Text(where))
        for i, heading in enumerate(headings):
            table.add_column(heading, justify="left" if i == 0 else "right", no_wrap=i == 0)
        for row in rows:
            table.add_row(*map(Text, row))
        Console(width=150).print(table)


if __name__ == "__main__":
    main()
