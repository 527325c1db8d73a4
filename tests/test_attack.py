"""A few hundred of the calls of tests/attack.py. ``make attack`` makes 10,000 of each, ``make asan`` under sanitizers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ATTACK = Path(__file__).parent / "attack.py"


@pytest.mark.skipif(sys.platform != "linux", reason="limits its memory by /proc/self/statm")
def test_no_call_with_arguments_that_do_not_fit_crashes_or_lies() -> None:
    found = subprocess.run([sys.executable, ATTACK, "--count", "150"], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
