"""A few of the calls of tests/attack.py. ``make attack`` makes more of them, ``make asan`` under sanitizers."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from helpers import run

ATTACK = Path(__file__).parent / "attack.py"


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc/self/statm to limit its memory")
def test_random_calls_raise_clear_errors_or_return_the_declared_size() -> None:
    found = run([sys.executable, ATTACK, "--count", "150"])
    assert found.returncode == 0, found.stdout + found.stderr
