"""The first cases of ``make fuzz``, in parts that can run at the same time: 500, or 2,000 in ``make test-all``."""

from __future__ import annotations

import pytest
from forked import Python
from fuzz.__main__ import run_case
from sweep import FULL

CASES, PART = 2000 if FULL else 500, 250
PROGRAM = "import runpy; runpy.run_module('fuzz', run_name='__main__')"


@pytest.mark.parametrize("first", range(0, CASES, PART))
def test_random_operators_and_programs_agree_with_pytorch(first: int, python: Python) -> None:
    done = python(PROGRAM, "--seed", "1", "--start", str(first), "--cases", str(PART))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{PART} cases of seed 1" in done.stdout


@pytest.mark.parametrize("number", range(3))
def test_a_case_depends_on_its_seed_and_number_alone(number: int) -> None:
    from fuzz.__main__ import KINDS, describe

    first, second = (run_case(5, number, list(KINDS)) for _ in range(2))
    assert describe(first[1]) == describe(second[1])
    assert describe(run_case(6, number, list(KINDS))[1]) != describe(first[1])
