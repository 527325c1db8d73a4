"""A few of the calls of tests/attack.py: ``make attack`` makes 10,000 of each, ``make asan`` under sanitizers."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from helpers import run

ATTACK = Path(__file__).parent / "attack.py"


@pytest.mark.skipif(sys.platform != "linux", reason="limits its memory by /proc/self/statm")
def test_no_call_with_arguments_that_do_not_fit_crashes_or_lies() -> None:
    found = run([sys.executable, ATTACK, "--count", "150"])
    assert found.returncode == 0, found.stdout + found.stderr
