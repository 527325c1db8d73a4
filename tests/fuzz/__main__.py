"""``make fuzz ARGS='--cases 100000 --seed 1 --start 0'``: exit code 1 if a case fails."""

from __future__ import annotations

import argparse
import sys
import time
import traceback
import warnings
from collections import Counter

import torch

from fuzz import errors, normalization, operators, programs
from fuzz.draw import Draw

#: The share of each kind of case, in percent.
KINDS = {"convolution": 58, "pool": 10, "relu": 8, "errors": 6, "programs": 12, "batch norm": 6}
DRAWS = {
    "convolution": operators.convolution,
    "pool": operators.pool,
    "relu": operators.relu,
    "errors": errors.draw_case,
    "programs": programs.draw_case,
    "batch norm": normalization.batch_norm,
}


def kind_of(draw: Draw, kinds: list[str]) -> str:
    """Draw the kind of a case. This is the first choice of every case."""
    return draw.pick([kind for kind in kinds for _ in range(KINDS[kind])])


def run_case(seed: int, number: int, kinds: list[str]) -> tuple[str, object, BaseException | None]:
    """Return the kind of a case, the case, and the error that it raised, if any."""
    draw = Draw(seed, number)
    kind = kind_of(draw, kinds)
    case: object = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            case = DRAWS[kind](draw)
            case.check()  # type: ignore[attr-defined]
    except Exception as error:
        return kind, case, error
    return kind, case, None


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=10000, help="the number of cases (10000)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--start", type=int, default=0, help="the index of the first case, for example to resume a run")
    parser.add_argument("--kinds", default=",".join(KINDS), help=f"the kinds of cases, out of {','.join(KINDS)}")
    parser.add_argument("--most-failures", type=int, default=20, help="stop after this number of failures (20)")
    parser.add_argument("--verbose", action="store_true", help="print every case and the tracebacks of failures")
    options = parser.parse_args(arguments)
    kinds = options.kinds.split(",")
    torch.set_num_threads(1)  # for the reference; each case sets its own number for fastconv
    begun, failures, counts = time.monotonic(), 0, Counter[str]()
    for number in range(options.start, options.start + options.cases):
        kind, case, error = run_case(options.seed, number, kinds)
        counts[kind] += 1
        if options.verbose:
            print(number, kind, describe(case), flush=True)
        if error is not None:
            failures += 1
            repeat = f"--seed {options.seed} --start {number} --cases 1"
            if kinds != list(KINDS):
                repeat += f" --kinds {options.kinds}"
            print(
                f"FAILED make fuzz ARGS='{repeat}'  # {kind}: {type(error).__name__}: {str(error).splitlines()[:1]}",
                flush=True,
            )
            if options.verbose:
                traceback.print_exception(error)
            if failures >= options.most_failures:
                print(f"stopped; continue with --start {number + 1}")
                break
        if (number + 1) % 5000 == 0:
            print(
                f"{number + 1 - options.start} cases, {failures} failures, {time.monotonic() - begun:.0f} s", flush=True
            )
    print(f"{sum(counts.values())} cases of seed {options.seed}: {dict(counts)}; {failures} failures")
    return 1 if failures else 0


def describe(value: object) -> str:
    """A case in one line. Tensors are described by dtype, shape and strides."""
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}strides{list(value.stride())}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {describe(v)}" for k, v in value.items()) + "}"
    fields = getattr(value, "__dataclass_fields__", None)
    if fields:
        return type(value).__name__ + describe({name: getattr(value, name) for name in fields})
    return repr(value)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
