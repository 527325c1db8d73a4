"""Keep the figures of a run of `make bench` for the documentation, which renders its tables from them.

python benchmarks/publish.py .benchmarks/{operators,blocks,training_step,accuracy,seconds_to_99}.json \
    --cpu 'AMD EPYC (Zen 4)' --date 2026-11-28 --output docs/data/zen4.json
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from report import read, tables

from fastconv.classifier.errors import UserError, printable

#: The fields of a claim that the tables show. `by_round` is left out.
SHOWN = ("what", "missing", "unit", "values", "ratio", "quartiles")


def rounded(value: Any) -> Any:
    """Round the numbers within ``value`` to five digits."""
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(one) for one in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def shown(claims: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: rounded(claim[name]) for name in SHOWN if name in claim} for claim in claims]


def published(run: dict[str, Any], cpu: str) -> dict[str, Any]:
    """Return a run in the form that it had, with the name of the processor and without what the tables do not show."""
    if "benchmarks" not in run:
        return {"claims": shown(run["claims"])}
    machine = {**run["machine_info"]["fastconv"], "cpu": cpu}
    benchmarks = []
    for benchmark in run["benchmarks"]:
        extra = benchmark["extra_info"]
        info: dict[str, Any] = {"seconds": rounded(extra["seconds"])} if "seconds" in extra else {}
        if "claims" in extra:
            info = {"claims": shown(extra["claims"])}
        benchmarks.append({"name": benchmark["name"], "extra_info": info})
    return {"machine_info": {"fastconv": machine}, "benchmarks": benchmarks}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path, nargs="+")
    parser.add_argument("--cpu", required=True, help="the processor with its generation, such as 'AMD EPYC (Zen 4)'")
    parser.add_argument("--date", required=True, help="the day of the measurement, such as 2026-11-28")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    try:
        runs = [published(read(path), arguments.cpu) for path in arguments.json]
        tables(runs)  # raises an error if there is no timed benchmark
    except UserError as error:
        print(f"publish.py: {printable(str(error))}", file=sys.stderr)
        raise SystemExit(2) from None
    arguments.output.write_text(json.dumps({"date": arguments.date, "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
