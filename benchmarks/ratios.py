"""Compute the claims of the report from the times of all rounds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TypedDict

from fastconv.benchmarking.ratios import OURS, VARIANTS, Rounds, medians, quartiles, torch_over_ours


class Claim(TypedDict, total=False):
    """A row of the report's second table, as it is in the JSON."""

    what: str
    missing: str  # why there are no figures
    unit: str  # "ms", "s", "MB", "x" (a speed-up)
    values: dict[str, float]  # of each variant, the median of its rounds
    by_round: list[float]
    ratio: float  # the median of by_round
    quartiles: tuple[float, float]


def ratios(seconds: Mapping[str, float]) -> tuple[float, float]:
    """Return PyTorch's faster layout over fastconv in channels_last, and NCHW over NCHW. Above 1, fastconv wins."""
    torch_nchw, torch_last, nchw, last = (seconds[variant] for variant in VARIANTS)
    return min(torch_nchw, torch_last) / last, torch_nchw / nchw


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def spread(by_round: list[float]) -> Claim:
    return {"by_round": by_round, "ratio": statistics.median(by_round), "quartiles": quartiles(by_round)}


def time_claim(what: str, seconds: Rounds) -> Claim:
    """Return the ratio of PyTorch's faster layout to fastconv in channels_last, round by round."""
    milliseconds = {name: value * 1e3 for name, value in medians(seconds).items()}
    return {"what": what, "unit": "ms", "values": milliseconds, **spread(torch_over_ours(seconds))}


def speed_up_claim(what: str, before: Rounds, after: Rounds) -> Claim:
    """Return the speed-up of each variant. Ratio and quartiles are those of fastconv in channels_last."""
    by_round = {name: [slow / fast for slow, fast in zip(before[name], after[name], strict=True)] for name in VARIANTS}
    return {"what": what, "unit": "x", "values": medians(by_round), **spread(by_round[OURS])}


def size_claim(what: str, sizes: Mapping[str, int]) -> Claim:
    megabytes = {name: size / 1e6 for name, size in sizes.items()}
    return {"what": what, "unit": "MB", "values": megabytes, "ratio": ratios(sizes)[0]}
