"""The first cases of ``make fuzz``: two runs, so that two cores share them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz.__main__ import run_case

ROOT = Path(__file__).parent.parent
CASES = 2000


def start(*arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), str(ROOT)])}
    command = [sys.executable, "-m", "fuzz", *arguments]
    return subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_random_operators_and_programs_agree_with_pytorch() -> None:
    half = CASES // 2
    runs = [start("--seed", "1", "--start", str(first), "--cases", str(half)) for first in (0, half)]
    for run in runs:
        output, _ = run.communicate()
        assert run.returncode == 0, output
        assert f"{half} cases of seed 1" in output


@pytest.mark.parametrize("number", range(3))
def test_a_case_depends_on_its_seed_and_number_alone(number: int) -> None:
    from fuzz.__main__ import KINDS, describe

    first, second = (run_case(5, number, list(KINDS)) for _ in range(2))
    assert describe(first[1]) == describe(second[1])
    assert describe(run_case(6, number, list(KINDS))[1]) != describe(first[1])
