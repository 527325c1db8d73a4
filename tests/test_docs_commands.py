"""Run the commands of README and docs: every line that starts with fastconv or torchrun, from top to bottom.

Options are added to make the commands fast: `--limit` and `--epochs` to `train`. The data sets are downloaded from a
server in this process. `bench` does not measure, pictures have one pixel, and torchrun imports torch once.
test_bench.py, test_classifier_plots.py and test_cli.py run these without shortcuts.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from forked import Python, ranks
from helpers import ROOT

pytest.importorskip("typer", reason="needs the extra classifier")

from test_classifier_data import write_mnist
from test_classifier_download import Server, offer
from test_classifier_folder import write_images

from fastconv.__main__ import main
from fastconv.classifier import bench
from fastconv.classifier.bench import VARIANTS, Row
from fastconv.classifier.data.download import SOURCES
from fastconv.classifier.fit import OnEpoch, OnStep, Training

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *(page for page in sorted(DOCS.rglob("*.md")) if DOCS / "zh" not in page.parents)]
#: A line of an indented block, or the first cell of a table.
BLOCK = re.compile(r"^    ((?:fastconv|torchrun) .*)$", re.MULTILINE)
CELL = re.compile(r"^\| `((?:fastconv|torchrun) [^`]*)` \|", re.MULTILINE)
FILE = re.compile(r"`([\w.-]+\.toml)`:\n\n```toml\n(.*?)```", re.DOTALL)

pytestmark = [
    pytest.mark.skipif(not (ROOT / "docs").exists(), reason="the documentation is not here"),
    pytest.mark.usefixtures("in_an_empty_folder", "interruptible", "blank_pictures"),
]


def lines(page: Path) -> list[str]:
    """The commands of a page, in their order. A line that ends with a backslash continues in the next one."""
    text = page.read_text().replace("\\\n", " ")
    found = [(match.start(), match[1]) for pattern in (BLOCK, CELL) for match in pattern.finditer(text)]
    return [line for _, line in sorted(found) if "..." not in line]


def arguments(line: str) -> list[str]:
    """The words of a line, with the options that make it fast. The comment and the part after ">" are removed."""
    words = shlex.split(line, comments=True)
    words = words[: words.index(">")] if ">" in words else words
    if "train" in words:
        words += ["--limit", "100"]
        if "--epochs" not in words and "--resume" not in words:
            words += ["--epochs", "2"]
    return words


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


def run_interrupted(words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """Run a command, press Ctrl-C after the first epoch, and return the exit code."""
    train = Training.run

    def run_and_interrupt(self: Training, on_step: OnStep, on_epoch: OnEpoch) -> None:
        train(self, on_step, lambda result: [on_epoch(result), os.kill(os.getpid(), signal.SIGINT)])

    with monkeypatch.context() as patch:
        patch.setattr(Training, "run", run_and_interrupt)
        return main(words)


@pytest.mark.parametrize("page", [page for page in PAGES if lines(page)], ids=lambda page: str(page.relative_to(ROOT)))
def test_the_commands_of_a_page_run_one_after_another(
    page: Path,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    python: Python,
) -> None:
    monkeypatch.setattr(bench, "measure", lambda *_: [Row("block", {variant: [0.5] for variant in VARIANTS})])
    monkeypatch.setenv("FASTCONV_DATA", str(tmp_path / "cache"))
    shutil.copytree(ROOT / "examples", "examples")  # what a clone has
    write_images(Path("photos"), count=20)  # the reader's own images
    shutil.copy(next(path for path in Path("photos").rglob("*") if path.is_file()), "new.jpg")
    for name, content in FILE.findall(page.read_text()):
        Path(name).write_text(content)
    write_mnist(tmp_path / "made", compressed=True)
    for name in ("mnist", "fashion-mnist"):
        made = {file: (tmp_path / "made" / file).read_bytes() for file in SOURCES[name].checksums}
        offer(monkeypatch, name, made, server)
    for line in lines(page):
        program, *words = arguments(line)
        if program == "torchrun":
            assert words[:4] == ["--nproc-per-node", "2", "-m", "fastconv"]
            done = ranks(python, words[4:])
            assert done.returncode == 0, f"{line}: {done.stderr}"
        elif "Ctrl-C" in line:
            assert run_interrupted(words, monkeypatch) == 130, line
            assert "interrupted; to continue: fastconv train --output" in capsys.readouterr().err
        elif "cuda" in words and not torch.cuda.is_available():
            assert main(words) == 2, line
            assert "cannot use a GPU" in capsys.readouterr().err
        else:
            assert main(words) == 0, f"{line}: {capsys.readouterr().err}"


def test_the_pages_have_every_command() -> None:
    """The search for commands finds those of blocks, tables and continued lines."""
    found = [line for page in PAGES for line in lines(page)]
    commands = {arguments(line)[1] for line in found if line.startswith("fastconv ")}
    assert {"train", "evaluate", "predict", "plot", "report", "download", "export", "bench", "info"} <= commands
    assert any("dataset fashion-mnist" in line and "dense128" in line for line in found)
    assert [line for line in lines(ROOT / "README.md") if "examples/digit.png" in line]
    fenced = re.compile(r"^```(?:sh|bash|console)", re.MULTILINE)
    assert not [page.name for page in PAGES if fenced.search(page.read_text())]  # `lines` does not read such blocks
