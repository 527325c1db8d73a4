"""Statistics of the times of several variants: medians, quartiles and ratios."""

import statistics
from collections.abc import Mapping, Sequence

import numpy as np

TORCH = ("torch NCHW", "torch channels_last")
OURS = "fastconv channels_last"
#: Each library in each memory format.
VARIANTS = (*TORCH, "fastconv NCHW", OURS)

#: One number per round, by variant.
Rounds = Mapping[str, Sequence[float]]


def medians(rounds: Rounds) -> dict[str, float]:
    """Return the median of each variant."""
    return {name: statistics.median(values) for name, values in rounds.items()}


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """Return the lower and the upper quartile."""
    lower, upper = np.quantile(values, (0.25, 0.75)).tolist()
    return lower, upper


def torch_over_ours(seconds: Rounds) -> list[float]:
    """Return the ratio of PyTorch's time to the time of fastconv in channels_last, round by round.

    PyTorch runs in its faster memory format, which is the one with the smaller median. (Choosing the faster format
    in each round would select noise.)
    """
    fastest = min(TORCH, key=medians(seconds).__getitem__)
    return [theirs / ours for theirs, ours in zip(seconds[fastest], seconds[OURS], strict=True)]
