"""Installation: the version, the sdist, the wheel, and errors of one line that say what is missing and what to do."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from email.message import Message
from importlib import metadata
from pathlib import Path

import pytest
from forked import Python

import fastconv
from fastconv import _C, public

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="tests run outside of the source tree")


def run_setup(python: Python, prelude: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    argv = ["setup.py", *(arguments or ["--name"])]
    code = f"import runpy, sys; {prelude}; sys.argv = {argv}; runpy.run_path('setup.py')"
    return python(code, folder=ROOT, environment=environment)


def setup(python: Python, prelude: str, **environment: str) -> str:
    """The error of setup.py if something is missing."""
    result = run_setup(python, prelude, **environment)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    return result.stderr.strip()


def test_the_version_equals_that_of_the_metadata() -> None:
    assert fastconv.__version__ == metadata.version("fastconv")


def test_the_package_has_py_typed() -> None:
    assert (Path(fastconv.__file__).parent / "py.typed").exists()


def test_both_lists_of_the_public_names_agree() -> None:
    """Type checkers and editors read the list in fastconv/__init__.py. The command takes the names from public.py."""
    assert fastconv.__all__ == public.__all__
    for name in fastconv.__all__:
        assert getattr(fastconv, name) is getattr(public, name)


def test_a_build_without_torch_says_what_to_type(python: Python) -> None:
    message = setup(python, "sys.modules['torch'] = None")
    assert message.startswith("fastconv: the build needs torch, which is not installed.")
    assert "pip install --no-build-isolation ." in message
    assert len(message.splitlines()) == 1


def test_pip_learns_that_torch_is_missing_before_it_downloads_anything(python: Python) -> None:
    result = run_setup(python, "sys.modules['torch'] = None", "dist_info")
    assert result.returncode == 1
    assert result.stderr.strip().startswith("fastconv: the build needs torch, which is not installed.")


def test_a_build_with_an_old_torch_says_what_to_type(python: Python) -> None:
    message = setup(python, "import torch; torch.__version__ = '2.9.1'")
    assert message == "fastconv: torch 2.9.1 is too old. Type: pip install 'torch>=2.10'"


def test_a_build_without_a_compiler_says_what_to_install(python: Python) -> None:
    message = setup(python, "pass", CXX="no-such-compiler")
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
    cuda: str | None, environment: dict[str, str], line: str, toolkit: Path, python: Python
) -> None:
    no_gpu = "torch.cuda.is_available = lambda: False; torch.cuda.get_arch_list = lambda: []"
    result = run_setup(
        python, f"{cuda_torch(cuda)}; {no_gpu}", **{"FASTCONV_CUDA": "", "CUDA_HOME": str(toolkit), **environment}
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
    cuda: str | None, environment: dict[str, str], problem: str, remedy: str, toolkit: Path, python: Python
) -> None:
    message = setup(python, cuda_torch(cuda), **{"FASTCONV_CUDA": "1", "CUDA_HOME": str(toolkit), **environment})
    assert problem in message
    assert remedy in message
    assert len(message.splitlines()) == 1


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory, python: Python) -> dict[str, bytes]:
    """The files of an sdist, which is built without torch and without a compiler."""
    folder = tmp_path_factory.mktemp("sdist")
    arguments = ["--quiet", "egg_info", "-e", str(folder), "sdist", "-d", str(folder)]
    result = run_setup(python, "sys.modules['torch'] = None", *arguments, CXX="no-such-compiler")
    assert result.returncode == 0, result.stderr
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        members = [(member.name.partition("/")[2], tar.extractfile(member)) for member in tar.getmembers()]
        return {name: content.read() for name, content in members if content is not None}


@pytest.fixture(scope="module")
def description(sdist: dict[str, bytes]) -> Message:
    return message_from_bytes(sdist["PKG-INFO"])


def test_the_sdist_has_every_file_of_the_repository(sdist: dict[str, bytes]) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone, so git cannot list the files")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    present = {name for name in listed.split("\0") if name and (ROOT / name).exists()}
    assert {"setup.py", "csrc/extension.py", "examples/enabled.py", "fastconv/py.typed"} <= present
    assert present - set(sdist) == set()


def test_the_sdist_has_no_compiled_files(sdist: dict[str, bytes]) -> None:
    assert [name for name in sdist if name.endswith((".so", ".o", ".pyc"))] == []


def test_the_description_has_no_relative_links(description: Message) -> None:
    assert description["Description-Content-Type"] == "text/markdown"
    links = re.findall(r"\]\(([^)]+)\)", description.get_payload())
    assert any("/docs/howto/convert.md" in link for link in links)
    assert [link for link in links if not link.startswith("https://")] == []


def test_the_metadata_names_the_project_and_what_it_runs_on(description: Message) -> None:
    links = dict(link.split(", ") for link in description.get_all("Project-URL") or [])
    assert {"Homepage", "Source", "Documentation", "Changelog", "Issues"} <= set(links)
    classifiers = set(description.get_all("Classifier") or [])
    versions = {f"Programming Language :: Python :: 3.{minor}" for minor in range(10, 15)}
    assert versions | {"Typing :: Typed", "Operating System :: POSIX :: Linux"} <= classifiers


def test_warnings_are_errors_only_if_asked(python: Python) -> None:
    def flags(value: str) -> list[str]:
        program = "import sys; sys.path.insert(0, 'csrc'); import extension; print(*extension.compile_arguments(None))"
        result = python(program, folder=ROOT, environment={"FASTCONV_WERROR": value})
        assert result.returncode == 0, result.stderr
        return result.stdout.split()

    assert {"-Wall", "-Wextra"} <= set(flags(""))
    assert "-Werror" not in flags("")
    assert "-Werror" in flags("1")


def test_the_extension_uses_only_the_stable_abi_of_torch() -> None:
    if shutil.which("nm") is None:
        pytest.skip("needs nm of binutils")
    command = ["nm", "--dynamic", "--undefined-only", _C.__file__]
    symbols = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[1::2]
    assert any(symbol.startswith("aoti_torch_") for symbol in symbols)
    # The mangled names of functions of at::, c10:: and torch::.
    assert [symbol for symbol in symbols if re.match(r"_ZNK?(2at|3c10|5torch)", symbol)] == []


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("make") is None:
        pytest.skip("needs make")
    # Without the variables of a make that runs these tests.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    command = ["make", f"PYTHON={sys.executable}", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux has manylinux wheels")
def test_the_extension_calls_no_function_of_libm_that_is_newer_than_manylinux_2_28() -> None:
    """glibc 2.29 has new versions of these. A program that calls them needs it, even if it needs nothing else."""
    if shutil.which("nm") is None:
        pytest.skip("needs nm, of the package binutils")
    listed = subprocess.run(["nm", "-D", "--undefined-only", _C.__file__], text=True, capture_output=True, check=True)
    called = {line.split()[-1].partition("@")[0] for line in listed.stdout.splitlines()}
    assert "memcpy" in called or "memmove" in called
    assert called & {"exp", "exp2", "log", "log2", "pow"} == set()


def test_a_test_of_a_wheel_that_was_not_built_says_how_to_build_it(tmp_path: Path) -> None:
    (tmp_path / "fastconv-0.1.0-cp39-cp39-manylinux_2_28_x86_64.whl").touch()
    (tmp_path / "fastconv-0.1.0.tar.gz").touch()  # pip must not compile this
    result = make("test-wheel", f"WHEELS={tmp_path}", f"RELEASE={tmp_path}/release")
    assert result.returncode != 0
    tag = f"cp3{sys.version_info.minor}"
    assert result.stdout.splitlines()[0].startswith(f"{tmp_path} has no wheel for {sys.executable} ({tag}).")
    assert not (tmp_path / "release").exists()


def test_make_stops_if_its_environment_has_another_version_of_python_than_the_named_one(tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin/python").write_text("#!/bin/sh\necho 3.9\n")
    (venv / "bin/python").chmod(0o755)
    (venv / "torch").touch()
    result = make(f"{venv}/torch", f"VENV={venv}")
    named = f"3.{sys.version_info.minor}"
    assert result.returncode != 0
    assert result.stdout.splitlines()[0].startswith(f"{venv} has Python 3.9, not {named}. Remove {venv}, or name")
    (venv / "bin/python").write_text(f"#!/bin/sh\necho {named}\n")
    assert make(f"{venv}/torch", f"VENV={venv}").returncode == 0


def test_only_a_wheel_that_passed_its_tests_goes_to_dist(tmp_path: Path) -> None:
    steps = make("--dry-run", "wheels", f"VENV={tmp_path}/venv", f"RELEASE={tmp_path}/release")
    assert steps.returncode == 0, steps.stderr
    places = [steps.stdout.index(step) for step in ("-m build", "auditwheel repair", "pytest -n auto", " dist/\n")]
    assert places == sorted(places)


def test_building_a_wheel_installs_no_packages_of_the_command_and_the_tests(tmp_path: Path) -> None:
    """They are large, and some of them are not to be had for each version of Python."""
    assert ".[classifier" in make("--dry-run", "train", f"VENV={tmp_path}/venv").stdout
    assert ".[classifier" not in make("--dry-run", "wheels", f"VENV={tmp_path}/venv").stdout


@pytest.fixture(scope="module")
def editable(tmp_path_factory: pytest.TempPathFactory, python: Python) -> dict[str, Path]:
    """An editable install of a clone in a folder named fastconv. `above` is the folder that contains the clone."""
    above, site = tmp_path_factory.mktemp("projects"), tmp_path_factory.mktemp("site-packages")
    clone = above / "fastconv"
    clone.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "csrc", "fastconv"):
        source = ROOT / name
        if source.is_dir():  # as links, because the extension is large
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, clone / name, copy_function=os.symlink, ignore=ignored)
        else:
            shutil.copy(source, clone)
    build = "import setuptools.build_meta, sys; setuptools.build_meta.build_editable(sys.argv[1])"
    python(build, str(site), folder=clone, environment={"FASTCONV_COMPILE": "0"}).check_returncode()
    (wheel,) = site.glob("*.whl")
    with zipfile.ZipFile(wheel) as files:
        files.extractall(site)
    return {"above": above, "site": site, "clone": clone}


def test_an_editable_install_is_imported_from_the_folder_above_the_clone(editable: dict[str, Path]) -> None:
    program = (
        "import os, site, sys\n"
        "sys.path = [''] + [path for path in sys.path if path and not os.path.isdir(os.path.join(path, 'fastconv'))]\n"
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


def test_type_checkers_and_editors_find_an_editable_install(editable: dict[str, Path]) -> None:
    (path,) = editable["site"].glob("*.pth")
    assert path.read_text().split() == [str(editable["clone"])]  # not "import ...", because these tools run no code
