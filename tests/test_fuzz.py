"""The first cases of ``make fuzz``, in parts that can run at the same time."""

from __future__ import annotations

import sys

import pytest
from fuzz.__main__ import run_case
from helpers import run

CASES, PART = 2000, 250


@pytest.mark.parametrize("first", range(0, CASES, PART))
def test_random_operators_and_programs_agree_with_pytorch(first: int) -> None:
    done = run([sys.executable, "-m", "fuzz", "--seed", "1", "--start", first, "--cases", PART])
    assert done.returncode == 0, done.stdout
    assert f"{PART} cases of seed 1" in done.stdout


@pytest.mark.parametrize("number", range(3))
def test_a_case_depends_on_its_seed_and_number_alone(number: int) -> None:
    from fuzz.__main__ import KINDS, describe

    first, second = (run_case(5, number, list(KINDS)) for _ in range(2))
    assert describe(first[1]) == describe(second[1])
    assert describe(run_case(6, number, list(KINDS))[1]) != describe(first[1])
