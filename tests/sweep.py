"""Parametrization over several axes at once: a covering selection by default, the full product on request."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Sequence
from typing import Any

import pytest

#: ``make test-all`` sets this variable, and tests then run over the full cross products.
FULL = os.environ.get("FASTCONV_ALL_TESTS") == "1"

Row = tuple[int, ...]


def covering_rows(sizes: Sequence[int]) -> list[Row]:
    """Return rows of indices below `sizes`. Every pair of values of any two columns occurs in at least one row.

    The algorithm is IPO (in parameter order): begin with the product of the two longest columns, then add one column
    after the other. A new column first extends the rows, then gets additional rows for pairs that are still missing.
    Lei and Tai, "In-parameter-order: a test generation strategy for pairwise testing", 1998.
    """
    order = sorted(range(len(sizes)), key=lambda column: -sizes[column])
    rows = [list(row) for row in itertools.product(*(range(sizes[column]) for column in order[:2]))]
    for column in range(2, len(order)):
        _add_column(rows, [sizes[c] for c in order[: column + 1]])
    return sorted(tuple(row[order.index(column)] for column in range(len(sizes))) for row in rows)


def _add_column(rows: list[list[int]], sizes: list[int]) -> None:
    new = len(sizes) - 1
    missing = {
        (column, value, added) for column in range(new) for value in range(sizes[column]) for added in range(sizes[new])
    }
    for number, row in enumerate(rows):
        # Among equals, take the values in turn.
        candidates = [(number + shift) % sizes[new] for shift in range(sizes[new])]
        row.append(max(candidates, key=lambda added: sum((c, v, added) in missing for c, v in enumerate(row))))
        missing -= {(column, row[column], row[new]) for column in range(new)}
    while missing:
        column, value, added = min(missing)
        row = [0] * new + [added]
        row[column] = value
        for other in range(new):  # fill the row with other missing pairs
            if other != column:
                row[other] = next((v for v in range(sizes[other]) if (other, v, added) in missing), 0)
        missing -= {(c, row[c], added) for c in range(new)}
        rows.append(row)


def _name(value: Any) -> str:
    return str(getattr(value, "__name__", value))


def over(*, full: bool = FULL, **axes: Iterable[Any]) -> pytest.MarkDecorator:
    """Parametrize a test over `axes` so that every pair of values of two axes occurs; with `full`, every combination.

    The fixture `level` can be one of the axes.
    """
    values = [list(axis) for axis in axes.values()]
    sizes = [len(axis) for axis in values]
    rows = itertools.product(*map(range, sizes)) if full or len(sizes) < 3 else covering_rows(sizes)
    chosen = [[axis[i] for axis, i in zip(values, row, strict=True)] for row in rows]
    parameters = [pytest.param(*row, id="-".join(map(_name, row))) for row in chosen]
    return pytest.mark.parametrize(tuple(axes), parameters, indirect=["level"] if "level" in axes else False)
