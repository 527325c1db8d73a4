"""What a person sees who installs: the version, the sdist, and one line that says what is missing and what to do."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from importlib import metadata
from pathlib import Path

import pytest

import fastconv

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="tests run outside of the source tree")


def setup(prelude: str, **environment: str) -> str:
    """What setup.py says last, when something is missing."""
    code = f"import runpy, sys; {prelude}; sys.argv = ['setup.py', '--name']; runpy.run_path('setup.py')"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    return result.stderr.strip()


def test_the_version_is_said_once() -> None:
    assert fastconv.__version__ == metadata.version("fastconv")


def test_the_package_says_that_it_is_typed() -> None:
    assert (Path(fastconv.__file__).parent / "py.typed").exists()


def test_a_build_without_torch_says_what_to_type() -> None:
    message = setup("sys.modules['torch'] = None")
    assert message.startswith("fastconv: torch is not there to build with.")
    assert "pip install --no-build-isolation ." in message
    assert len(message.splitlines()) == 1


def test_a_build_with_an_old_torch_says_what_to_type() -> None:
    message = setup("import torch; torch.__version__ = '2.9.1'")
    assert message == "fastconv: torch 2.9.1 is too old. Type: pip install 'torch>=2.10'"


def test_a_build_without_a_compiler_says_what_to_install() -> None:
    message = setup("pass", CXX="no-such-compiler")
    assert message.startswith("fastconv: no C++ compiler: 'no-such-compiler' is not on the path. Install one")
    assert len(message.splitlines()) == 1


def test_the_sdist_has_all_that_a_build_needs(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "setup.py", "--quiet", "egg_info", "-e", str(tmp_path), "sdist", "-d", str(tmp_path)],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    needed = {str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*") if path.suffix != ".pyc" and path.is_file()}
    needed |= {"setup.py", "pyproject.toml", "LICENSE", "README.md", "fastconv/py.typed", "fastconv/mnist/cli.py"}
    assert needed <= names
    assert not any(name.endswith(".so") for name in names)
