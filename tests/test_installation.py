"""The command without the extra classifier, and the pip command that its error names."""

from __future__ import annotations

import shlex
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from helpers import run

import fastconv
from fastconv.installation import command_for, install_command

#: Packages of the extras. Importing any of them fails in `bare`.
EXTRAS = ["matplotlib", "mlxtend", "PIL", "platformdirs", "pooch", "pydantic", "requests", "rich", "tqdm", "typer"]


def bare(*arguments: str) -> tuple[int, str, str]:
    """Run the command in an environment without the packages of the extras: exit code, stdout and stderr."""
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({EXTRAS}))\n"
        "from fastconv.__main__ import main; raise SystemExit(main())"
    )
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "fastconv")  # it imports the command, as the installed script does
        script.write_text(program)
        done = run([sys.executable, str(script), *arguments])
    return done.returncode, done.stdout, done.stderr


def test_sources_that_hide_the_installed_package_are_named(tmp_path: Path) -> None:
    """A program that is started in a clone imports the clone's folder, whose extension may not be compiled."""
    package = Path(fastconv.__file__).parent
    ignore = shutil.ignore_patterns("_C*", "__pycache__", "classifier")
    shutil.copytree(package, tmp_path / "clone" / "fastconv", ignore=ignore)
    error = run([sys.executable, "-c", "import fastconv"], cwd=tmp_path / "clone").stderr.splitlines()[-1]
    assert error == (
        f"ImportError: Python imports fastconv's sources in {tmp_path / 'clone' / 'fastconv'}, without the extension,"
        f" and not the installed package in {package}: start Python in another folder, or type"
        f" pip install --no-build-isolation --editable . (in {tmp_path / 'clone'})"
    )


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_the_version_needs_no_extra(option: str) -> None:
    assert bare(option) == (0, f"fastconv {fastconv.__version__}\n", "")


def test_info_needs_no_extra() -> None:
    code, output, errors = bare("info")
    assert (code, errors) == (0, "")
    assert output.splitlines()[0] == f"fastconv {fastconv.__version__}"
    assert "CPU level" in output


@pytest.mark.parametrize("arguments", [["train"], ["--help"], []])
def test_other_commands_name_the_extra_in_one_line(arguments: list[str]) -> None:
    code, output, errors = bare(*arguments)
    assert (code, output) == (2, "")
    assert errors.startswith("fastconv: the command needs ")
    assert errors.endswith(f": {install_command('classifier')}\n")
    assert errors.count("\n") == 1


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        (None, ["fastconv[classifier]"]),
        (
            {"url": "file:///home/me/my%20code/fastconv", "dir_info": {"editable": True}},
            ["--no-build-isolation", "--editable", "/home/me/my code/fastconv[classifier]"],
        ),
        (
            {"url": "file:///src/fastconv", "dir_info": {}},
            ["--no-build-isolation", "/src/fastconv[classifier]"],
        ),
        (
            {"url": "file:///dist/fastconv-0.1.0-cp311-cp311-linux_x86_64.whl", "archive_info": {}},
            ["fastconv[classifier] @ file:///dist/fastconv-0.1.0-cp311-cp311-linux_x86_64.whl"],
        ),
        (
            {"url": "https://example.com/f.git", "vcs_info": {"vcs": "git", "commit_id": "0123abc"}},
            ["--no-build-isolation", "fastconv[classifier] @ git+https://example.com/f.git@0123abc"],
        ),
    ],
    ids=["index", "editable", "folder", "wheel", "git"],
)
def test_the_hint_names_the_origin_of_the_installation(origin: dict[str, Any] | None, command: list[str]) -> None:
    hint = command_for(origin, "classifier")
    words = shlex.split(hint)
    assert words[words.index("pip") :] == ["pip", "install", *command]
    assert words[: words.index("pip")] == (["FASTCONV_COMPILE=0"] if "--editable" in command else [])
    assert "'" in hint  # zsh would expand the brackets


def test_the_hint_of_this_installation_names_a_folder_that_can_be_installed() -> None:
    arguments = shlex.split(install_command("export"))
    path, bracket, extra = arguments[-1].partition("[")
    assert bracket + extra == "[export]"
    assert path == "fastconv" or (Path(path) / "pyproject.toml").exists()
