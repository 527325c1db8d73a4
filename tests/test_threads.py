"""Inference in threads while weights change and the cache of packed weights evicts. `make tsan` runs longer tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ENVIRONMENT, ROOT, run

CXX = os.environ.get("CXX") or "c++"


def test_threads_that_infer_get_pytorchs_results_while_weights_change_and_entries_are_evicted() -> None:
    environment = {**ENVIRONMENT, "FASTCONV_CACHE_MB": "1", "OMP_NUM_THREADS": "2"}
    done = run([sys.executable, Path(__file__).parent / "threads" / "infer.py", "10"], env=environment)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(shutil.which(CXX) is None, reason="needs a C++ compiler")
def test_the_cache_has_no_data_race_and_an_evicted_entry_lives_as_long_as_it_is_in_use(tmp_path: Path) -> None:
    (tmp_path / "empty.cpp").write_text("int main() {}")
    compile_ = [CXX, "-std=c++20", "-O1", "-g", "-fsanitize=thread", "-o", str(tmp_path / "program")]
    if subprocess.run([*compile_, str(tmp_path / "empty.cpp")], capture_output=True, check=False).returncode != 0:
        pytest.skip("the compiler has no ThreadSanitizer")
    memory = ROOT / "csrc" / "cpu" / "memory"
    sources = [Path(__file__).parent / "threads" / "weight_cache.cpp", memory / "weight_cache.cpp"]
    run([*compile_, *sources]).check_returncode()
    done = run([tmp_path / "program"])
    assert done.returncode == 0, done.stdout + done.stderr
