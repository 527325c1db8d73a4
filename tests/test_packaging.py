"""Installation: the version, the sdist, and errors of one line that say what is missing and what to do."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import fastconv

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="tests run outside of the source tree")


def run_setup(prelude: str, **environment: str) -> subprocess.CompletedProcess[str]:
    code = f"import runpy, sys; {prelude}; sys.argv = ['setup.py', '--name']; runpy.run_path('setup.py')"
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def setup(prelude: str, **environment: str) -> str:
    """The error of setup.py if something is missing."""
    result = run_setup(prelude, **environment)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    return result.stderr.strip()


def test_the_version_equals_that_of_the_metadata() -> None:
    assert fastconv.__version__ == metadata.version("fastconv")


def test_the_package_has_py_typed() -> None:
    assert (Path(fastconv.__file__).parent / "py.typed").exists()


def test_a_build_without_torch_says_what_to_type() -> None:
    message = setup("sys.modules['torch'] = None")
    assert message.startswith("fastconv: the build needs torch, which is not installed.")
    assert "pip install --no-build-isolation ." in message
    assert len(message.splitlines()) == 1


def test_a_build_with_an_old_torch_says_what_to_type() -> None:
    message = setup("import torch; torch.__version__ = '2.9.1'")
    assert message == "fastconv: torch 2.9.1 is too old. Type: pip install 'torch>=2.10'"


def test_a_build_without_a_compiler_says_what_to_install() -> None:
    message = setup("pass", CXX="no-such-compiler")
    assert message.startswith("fastconv: no C++ compiler: 'no-such-compiler' is not on the path. Install one")
    assert len(message.splitlines()) == 1


@pytest.fixture
def toolkit(tmp_path: Path) -> Path:
    """A folder that looks like CUDA toolkit 13.0 to setup.py."""
    for file, content in {"include/cuda_runtime.h": "", "bin/nvcc": "#!/bin/sh\necho release 13.0, V13.0.88\n"}.items():
        (tmp_path / file).parent.mkdir()
        (tmp_path / file).write_text(content)
        (tmp_path / file).chmod(0o755)
    return tmp_path


def cuda_torch(version: str | None) -> str:
    """Code that makes torch look as if it was built with CUDA `version`, or without CUDA."""
    compiled = f"torch.cuda._is_compiled = lambda: {version is not None}"
    return f"import torch; torch.version.cuda = {version!r}; torch.__version__ = '2.13.0'; {compiled}"


@pytest.mark.parametrize(
    ("cuda", "environment", "line"),
    [
        ("13.0", {"FASTCONV_CUDA": "0"}, "building for the CPU alone: FASTCONV_CUDA=0"),
        (None, {}, "building for the CPU alone: torch 2.13.0 is built without CUDA"),
        ("13.0", {"CUDA_HOME": "/nowhere"}, "building for the CPU alone: no CUDA toolkit in /nowhere (CUDA_HOME)"),
        (
            "12.8",
            {},
            "building for the CPU alone: torch 2.13.0 is built with CUDA 12.8, and the toolkit in TOOLKIT is 13.0",
        ),
        ("13.2", {"TORCH_CUDA_ARCH_LIST": "8.6 9.0+PTX"}, "building with CUDA 13.0 from TOOLKIT for 8.6 9.0+PTX"),
        ("13.0", {"TORCH_CUDA_ARCH_LIST": ""}, "building with CUDA 13.0 from TOOLKIT for 7.5;8.0;8.6;9.0;10.0;12.0"),
    ],
)
def test_a_build_says_in_a_line_whether_it_has_cuda_and_why(
    cuda: str | None, environment: dict[str, str], line: str, toolkit: Path
) -> None:
    no_gpu = "torch.cuda.is_available = lambda: False; torch.cuda.get_arch_list = lambda: []"
    result = run_setup(
        f"{cuda_torch(cuda)}; {no_gpu}", **{"FASTCONV_CUDA": "", "CUDA_HOME": str(toolkit), **environment}
    )
    assert result.returncode == 0
    said = [said for said in result.stderr.splitlines() if said.startswith("fastconv: ")]
    assert said == [f"fastconv: {line.replace('TOOLKIT', str(toolkit))}"]


@pytest.mark.parametrize(
    ("cuda", "environment", "problem", "remedy"),
    [
        (None, {}, "torch 2.13.0 is built without CUDA", "Install a CUDA build of torch"),
        ("13.0", {"CUDA_HOME": "/nowhere"}, "no CUDA toolkit in /nowhere (CUDA_HOME)", "CUDA_HOME=/usr/local/cuda"),
        ("13.0", {"CUDA_HOME": "", "CUDA_PATH": "/none"}, "no CUDA toolkit in /none (CUDA_PATH)", "CUDA_HOME=/usr"),
        ("13.0", {"CUDA_HOME": "/a", "CUDA_PATH": "/b"}, "toolkit in /a (CUDA_HOME) or /b (CUDA_PATH)", "CUDA_HOME="),
        ("12.8", {}, "is built with CUDA 12.8, and the toolkit in", "Install toolkit 12.8 and name its folder"),
        ("13.0", {"FASTCONV_CUDA": "yes"}, "FASTCONV_CUDA=yes is neither 0 nor 1", "Unset it"),
    ],
)
def test_a_build_that_must_have_cuda_and_cannot_says_what_to_do(
    cuda: str | None, environment: dict[str, str], problem: str, remedy: str, toolkit: Path
) -> None:
    message = setup(cuda_torch(cuda), **{"FASTCONV_CUDA": "1", "CUDA_HOME": str(toolkit), **environment})
    assert problem in message
    assert remedy in message
    assert len(message.splitlines()) == 1


def test_the_sdist_has_all_that_a_build_needs(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "setup.py", "--quiet", "egg_info", "-e", str(tmp_path), "sdist", "-d", str(tmp_path)],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    needed = {
        str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*") if path.suffix != ".pyc" and path.is_file()
    }
    needed |= {
        "setup.py",
        "pyproject.toml",
        "LICENSE",
        "README.md",
        "fastconv/py.typed",
        "fastconv/classifier/cli/main.py",
    }
    assert needed <= names
    assert not any(name.endswith(".so") for name in names)


@pytest.fixture(scope="module")
def editable(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An editable install of a clone in a folder called fastconv: the folder above the clone, and site-packages."""
    above, site = tmp_path_factory.mktemp("projects"), tmp_path_factory.mktemp("site-packages")
    clone = above / "fastconv"
    clone.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "csrc", "fastconv"):
        source = ROOT / name
        if source.is_dir():  # with links in place of the extension, which is large
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, clone / name, copy_function=os.symlink, ignore=ignored)
        else:
            shutil.copy(source, clone)
    build = "import setuptools.build_meta, sys; setuptools.build_meta.build_editable(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", build, str(site)],
        cwd=clone, check=True, capture_output=True, env={**os.environ, "FASTCONV_COMPILE": "0"},
    )  # fmt: skip
    (wheel,) = site.glob("*.whl")
    with zipfile.ZipFile(wheel) as files:
        files.extractall(site)
    return {"above": above, "site": site, "clone": clone}


def test_an_editable_install_is_imported_from_the_folder_above_the_clone(editable: dict[str, Path]) -> None:
    program = (
        f"import site, sys; sys.path = [''] + [path for path in sys.path if path not in ('', {str(ROOT)!r})]\n"
        "sys.meta_path = [finder for finder in sys.meta_path if '__editable__' not in repr(finder)]\n"
        f"site.addsitedir({str(editable['site'])!r})\n"
        "import fastconv; print(fastconv.__file__, fastconv.convert.__name__)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=editable["above"], env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert result.stdout.split() == [str(editable["clone"] / "fastconv" / "__init__.py"), "convert"]


def test_an_editable_install_is_a_path_that_type_checkers_and_editors_read(editable: dict[str, Path]) -> None:
    (path,) = editable["site"].glob("*.pth")
    assert path.read_text().split() == [str(editable["clone"])]  # not "import ...", because these tools run no code
