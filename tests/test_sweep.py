"""The selection of cases that `sweep.over` makes."""

from __future__ import annotations

import itertools

import pytest
from sweep import covering_rows, over


@pytest.mark.parametrize("sizes", [(47, 6, 3), (13, 3, 3, 2, 3), (1, 2, 3), (2,) * 6, (3, 1, 4, 1, 5)], ids=str)
def test_every_pair_of_values_occurs_in_few_rows(sizes: tuple[int, ...]) -> None:
    rows = covering_rows(sizes)
    for first, second in itertools.combinations(range(len(sizes)), 2):
        pairs = set(itertools.product(range(sizes[first]), range(sizes[second])))
        assert {(row[first], row[second]) for row in rows} == pairs
    assert len(rows) == len(set(rows)) <= 2 * max(a * b for a, b in itertools.combinations(sizes, 2))


def test_the_full_sweep_is_the_cross_product() -> None:
    mark = over(full=True, a=[1, 2], b=[3, 4], c=[5, 6]).mark
    assert [parameter.values for parameter in mark.args[1]] == list(itertools.product([1, 2], [3, 4], [5, 6]))
