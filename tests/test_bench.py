"""The command `fastconv bench` with one round: its output, its files, and rows in which fastconv is slower."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import COMMAND, ROOT, run, running
from PIL import Image

from fastconv.benchmarking import machine
from fastconv.benchmarking.machine import Load
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


@pytest.fixture
def hardly_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train the network that is measured for a few steps only: the share of zeros changes times, not results."""
    monkeypatch.setattr(bench, "_STEPS_BEFORE", 5)


@pytest.mark.usefixtures("hardly_trained")
def test_bench_prints_a_table_and_writes_what_is_asked_for(capsys: Output) -> None:
    assert main(["bench", "--rounds", "1", "--threads", "1", "--png", "a/b.png"]) == 0
    output = capsys.readouterr()
    header, *rows = [line.split("\t") for line in output.out.splitlines()[:8]]
    assert header[1:4] == list(VARIANTS)
    assert [len(cells) for cells in rows] == [7] * 7
    assert [cells[0] for cells in rows][-2:] == ["conv3 + ReLU: forward + backward", "training step, batch 64"]
    assert all(float(cell) > 0 for cells in rows for cell in cells[1:5])
    summary, caption, *wrote = output.out.splitlines()[8:]
    assert summary.startswith("fastconv is faster in ")
    assert ", 1 thread, " in caption
    assert re.search(r"; medians of 1 round; \d+\.\d of \d+ cores? busy before$", caption)
    assert wrote == ["wrote a/b.png"]
    with Image.open("a/b.png") as picture:
        assert picture.format == "PNG"


def test_bench_prints_all_times_as_json(capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "measure", lambda *_: [WON, LOST])
    monkeypatch.setattr(machine, "busy_cores", lambda: Load(0.1, 2))
    assert main(["bench", "--rounds", "3", "--threads", "1", "--json"]) == 0
    output = capsys.readouterr()
    written = json.loads(output.out)
    assert (written["threads"], written["rounds"], written["busy_cores"]) == (1, 3, 0.1)
    assert [(timed["what"], timed["seconds"]) for timed in written["rows"]] == [
        ("won", WON.seconds),
        ("lost", LOST.seconds),
    ]
    assert "0.1 of 2 cores busy before" in written["machine"]
    assert output.err == ""


def test_bench_warns_on_a_busy_machine(capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "measure", lambda *_: [WON])
    monkeypatch.setattr(machine, "busy_cores", lambda: Load(1.3, 2))
    assert main(["bench", "--rounds", "1"]) == 0
    output = capsys.readouterr()
    assert output.err.startswith("warning: other programs use 1.3 of 2 cores, so the times below vary: ")
    assert "1.3 of 2 cores busy before" in output.out
    assert [Load(busy, cores).is_busy for busy, cores in ((0.2, 2), (0.3, 2), (1.0, 64), (7.0, 64))] == [
        *(False, True, False, True)
    ]


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="only Linux has the figure")
def test_the_load_counts_the_cores_that_work() -> None:
    """A process that computes adds about a core, unless all are busy already."""
    quiet = machine.busy_cores(0.3).busy
    with running([sys.executable, "-c", "while True: pass"]):
        time.sleep(0.2)
        assert machine.busy_cores(0.5).busy > min(quiet + 0.4, 0.6)


def test_the_picture_has_a_logarithmic_axis(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bars of twice as fast and half as fast have the same length."""
    drawn: list[Any] = []
    monkeypatch.setattr(bench, "png", lambda figure: drawn.append(figure) or b"")
    twice, half = row("twice", [0.4], [0.2], [0.1]), row("half", [0.2], [0.1], [0.2])
    bench.picture([twice, half], "here")
    (axes,) = drawn[0].axes
    drawn[0].canvas.draw()
    assert axes.get_xscale() == "log"
    first, second = (patch.get_window_extent().width for patch in axes.patches)
    assert first == pytest.approx(second)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.5", "1", "1.5", "2"]


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


@pytest.mark.usefixtures("hardly_trained")
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
    with running([*COMMAND, "bench", "--rounds", "1000", "--quiet"]) as process:
        while number_of_processes(process.pid) < 1 + len(VARIANTS):
            assert process.poll() is None
            time.sleep(0.1)
        time.sleep(2)
        os.killpg(process.pid, signal.SIGINT)
        output, errors = process.communicate(timeout=30)  # returns once every process has closed the pipes
    assert (output, errors, process.returncode) == ("", "fastconv: interrupted\n", 130)
