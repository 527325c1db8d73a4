"""The command `fastconv bench` with one round: its output, its files, and rows in which fastconv is slower."""

from __future__ import annotations

import io
import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from helpers import COMMAND, ROOT, run, running
from PIL import Image

from fastconv.classifier import bench
from fastconv.classifier.bench import VARIANTS, Row
from fastconv.classifier.cli.main import main

Output = pytest.CaptureFixture[str]
pytestmark = pytest.mark.usefixtures("in_an_empty_folder")


@pytest.fixture(autouse=True)
def _processes_find_fastconv(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tell the processes that `bench` starts where the package is, installed or not."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def row(what: str, *seconds: list[float]) -> Row:
    return Row(what, dict(zip(VARIANTS, seconds, strict=True)))


WON = row("won", [0.5, 0.5, 0.5], [0.4, 0.3, 0.2], [0.1, 0.1, 0.1])
LOST = row("lost", [0.5, 0.5, 0.5], [0.6, 0.6, 0.6], [1.0, 1.0, 0.5])


def test_bench_prints_a_table_and_writes_what_is_asked_for(capsys: Output) -> None:
    assert main(["bench", "--rounds", "1", "--threads", "1", "--json", "a/b.json", "--png", "b.png"]) == 0
    output = capsys.readouterr()
    header, *rows = [line.split("\t") for line in output.out.splitlines()[:8]]
    assert header[1:4] == list(VARIANTS)
    assert [len(cells) for cells in rows] == [7] * 7
    assert [cells[0] for cells in rows][-2:] == ["conv3 + ReLU: forward + backward", "training step, batch 64"]
    assert all(float(cell) > 0 for cells in rows for cell in cells[1:5])
    summary, caption, *wrote = output.out.splitlines()[8:]
    assert summary.startswith("fastconv is faster in ")
    assert ", 1 thread, " in caption
    assert caption.endswith("; medians of 1 round")
    assert wrote == ["wrote a/b.json", "wrote b.png"]
    written = json.loads(Path("a/b.json").read_text())
    assert written["threads"] == written["rounds"] == 1
    assert [timed["what"] for timed in written["rows"]] == [cells[0] for cells in rows]
    assert all(timed["seconds"].keys() == set(VARIANTS) for timed in written["rows"])
    with Image.open("b.png") as picture:
        assert picture.format == "PNG"


def test_the_ratio_compares_with_pytorchs_faster_layout() -> None:
    assert WON.ratio == pytest.approx(3)
    assert WON.quartiles == pytest.approx((2.5, 3.5))
    assert LOST.ratio == pytest.approx(0.5)


def test_rows_where_fastconv_is_slower_are_marked_counted_and_red() -> None:
    _, rows = bench.table([WON, LOST])
    assert [cells[-1] for cells in rows] == ["", "slower"]
    assert bench.summary([WON, LOST]) == "fastconv is faster in 1 of 2 rows; PyTorch is faster in 1: lost"
    assert bench.summary([WON]) == "fastconv is faster in 1 of 1 rows"
    with Image.open(io.BytesIO(bench.picture([WON, LOST], "here; torch"))) as picture:
        colours = {colour for _, colour in picture.convert("RGB").getcolors(2**24) or []}
    assert {(31, 119, 180), (214, 39, 40)} <= colours


def test_the_variants_give_the_same_results() -> None:
    state = bench._trained_state()
    expected, *others = (bench._calls(variant, state) for variant in VARIANTS)
    for name, call in expected.items():
        if not name.endswith(": forward"):
            continue
        y = call()
        assert isinstance(y, torch.Tensor)
        assert len(y) == bench.BATCH
        for other in others:
            torch.testing.assert_close(other[name](), y, rtol=1e-4, atol=1e-4, check_stride=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rounds", "0"], "--rounds must be at least 1, not 0"),
        (["--threads", "0"], "--threads must be between"),
        (["--json", "a.txt"], "--json must end in .json: a.txt"),
        (["--png", "a.pdf"], "--png must end in .png: a.pdf"),
        (["--png", "file/a.png"], "cannot write into file: "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_option_is_reported_in_one_line_before_measuring(
    arguments: list[str], message: str, capsys: Output
) -> None:
    Path("file").write_text("mine")
    assert main(["bench", *arguments]) == 2
    output = capsys.readouterr()
    assert message in output.err
    assert (output.out, output.err.count("\n")) == ("", 1)
    assert os.listdir() == ["file"]


def number_of_processes(session: int) -> int:
    listed = run(["ps", "-o", "pid=", "--sid", session])
    return len(listed.stdout.split())


@pytest.mark.skipif(os.name == "nt", reason="Windows has other signals")
@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_ends_all_processes_and_prints_one_line() -> None:
    with running([*COMMAND, "bench", "--rounds", "1000"]) as process:
        while number_of_processes(process.pid) < 1 + len(VARIANTS):
            assert process.poll() is None
            time.sleep(0.1)
        time.sleep(2)
        os.killpg(process.pid, signal.SIGINT)
        output, errors = process.communicate(timeout=30)  # returns once every process has closed the pipes
    assert (output, errors, process.returncode) == ("", "fastconv: interrupted\n", 130)
