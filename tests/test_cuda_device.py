"""benchmarks/cuda_device.sh without a GPU: its arguments, its time limits, and its programs on the CPU."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("rich")
import cuda_blocks
import cuda_measure
import cuda_networks
import torch

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "cuda_device.sh"
#: Stands for Python with a GPU. One program fails, one never ends, and the others succeed.
PYTHON = """#!/usr/bin/env bash
echo "$FASTCONV_ALGORITHM $*" >> "$CALLS"
case "$*" in
  *get_device_name*) echo "a GPU" ;;
  *own.json*) echo "| wrong"; exit 4 ;;
  *mnist*) sleep 60 ;;
  *) echo "all is well" ;;
esac
"""

needs_bash = pytest.mark.skipif(sys.platform == "win32", reason="needs bash")


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(SCRIPT), *map(str, arguments)]
    variables = {**os.environ, "PYTHON": sys.executable, **environment}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=variables)


@pytest.fixture
def fake(tmp_path: Path) -> dict[str, str]:
    """The environment in which the script uses the program above. It writes its calls to a file."""
    python = tmp_path / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    (tmp_path / "calls").touch()
    return {"PYTHON": str(python), "CALLS": str(tmp_path / "calls"), "FASTCONV_ALGORITHM": ""}


@needs_bash
@pytest.mark.parametrize("arguments", [(), ("--help",), ("out", "speed"), ("out", "tests", "")])
def test_wrong_arguments_are_refused_with_the_usage(arguments: tuple[str, ...], tmp_path: Path) -> None:
    found = run(*(str(tmp_path / a) if a == "out" else a for a in arguments))
    assert found.returncode == 2
    assert "usage: benchmarks/cuda_device.sh OUT [PART...]" in found.stderr


@needs_bash
def test_a_missing_interpreter_is_refused(tmp_path: Path) -> None:
    found = run(tmp_path, PYTHON="no-such-python")
    assert (found.returncode, found.stderr.count("\n")) == (2, 1)
    assert "There is no no-such-python" in found.stderr


@needs_bash
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_one_sentence(tmp_path: Path) -> None:
    found = run(tmp_path / "out")
    assert (found.returncode, found.stdout) == (3, "")
    assert found.stderr == "There is no GPU here that torch can use, so nothing was checked.\n"


@needs_bash
def test_parts_that_fail_or_hang_do_not_stop_the_others(tmp_path: Path, fake: dict[str, str]) -> None:
    found = run(tmp_path / "out", CUDA_DEVICE_SECONDS="3", **fake)
    assert found.returncode == 1
    summary = (tmp_path / "out" / "summary.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in summary.splitlines() if line.startswith("| ")]
    assert summary.startswith("# a GPU\n")
    assert [(name, result) for name, result, *_ in rows[1:]] == [
        ("build", "passed"),
        ("tests", "passed"),
        ("own", "failed, exit status 4"),
        ("layers", "passed"),
        ("tensor", "passed"),
        ("mnist", "out of time"),
        ("networks", "out of time"),
        ("plan", "out of time"),
        ("sanitizer", "out of time"),
    ]
    assert all(len(row) == 4 for row in rows)
    assert (tmp_path / "out" / "layers.log").read_text() == "all is well\n"


@needs_bash
def test_parts_can_be_chosen_and_only_one_runs_on_fastconvs_kernels_alone(tmp_path: Path, fake: dict[str, str]) -> None:
    found = run(tmp_path / "out", "plan", "layers", "tests", **fake)
    assert found.returncode == 0
    calls = Path(fake["CALLS"]).read_text()
    programs = [line for line in calls.splitlines() if "benchmarks/" in line or "pytest" in line]
    assert [program.split()[0] for program in programs] == [
        "-m",
        "benchmarks/cuda_blocks.py",
        "benchmarks/cuda_blocks.py",
    ]
    assert "not emulated" in programs[0]
    run(tmp_path / "out", "own", **fake)
    assert Path(fake["CALLS"]).read_text().splitlines()[-1].startswith("own benchmarks/cuda_blocks.py")


@needs_bash
@pytest.mark.parametrize("found", ["", "racecheck", "memcheck"])
def test_the_sanitizer_looks_for_races_then_for_accesses_out_of_bounds(
    found: str, tmp_path: Path, fake: dict[str, str]
) -> None:
    """`found` is the tool that finds an error."""
    sanitizer = tmp_path / "compute-sanitizer"
    sanitizer.write_text(
        f'#!/usr/bin/env bash\necho "tool $2" >> "$CALLS"\n[ "$2" != "{found}" ] || exit 9\n"${{@:5}}"\n'
    )
    sanitizer.chmod(0o755)
    status = run(tmp_path / "out", "sanitizer", PATH=f"{tmp_path}:{os.environ['PATH']}", **fake).returncode
    calls = Path(fake["CALLS"]).read_text().splitlines()
    tools = [line.removeprefix("tool ") for line in calls if line.startswith("tool ")]
    expected = ["racecheck", "racecheck", "memcheck", "memcheck"]
    assert (status, tools) == ((1, expected[: expected.index(found) + 1]) if found else (0, expected))
    assert sum("-k not emulated tests/cuda/" in line for line in calls) == len(tools) - bool(found)


@needs_bash
def test_without_the_sanitizer_its_part_says_so(tmp_path: Path, fake: dict[str, str]) -> None:
    if Path("/usr/local/cuda/bin/compute-sanitizer").exists() or shutil.which("compute-sanitizer"):
        pytest.skip("it is installed")
    assert run(tmp_path / "out", "sanitizer", **fake).returncode == 0
    assert "compute-sanitizer is not on the path" in (tmp_path / "out" / "summary.md").read_text()


@pytest.mark.parametrize(
    ("program", "flags", "rows"),
    [
        (cuda_blocks, [], [("conv1 + pool, batch 1", "forward"), ("conv1 + pool, batch 1", "forward + backward")]),
        (
            cuda_blocks,
            ["--layers"],
            [("64 -> 64, 56 x 56, batch 1", how) for how in ("forward", "backward_data", "backward_weight")],
        ),
        (
            cuda_networks,
            [],
            [
                (f"ResNet-20, batch 2, {mode}", how)
                for mode in ("inference", "training")
                for how in ("from Python", "CUDA graph")
            ],
        ),
        (
            cuda_networks,
            ["--mnist"],
            [("MNIST CNN, batch 64, training with Adam", how) for how in ("CUDA graph", "fastconv train")],
        ),
    ],
    ids=["blocks", "layers", "networks", "mnist"],
)
def test_the_programs_run_on_the_cpu(
    program: object, flags: list[str], rows: list[tuple[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "new" / "found.json"
    common = ["--tiny", "--device", "cpu", "--rounds", "1", "--calls", "1", "--precision", "float32"]
    monkeypatch.setattr(sys, "argv", ["program", *flags, *common, "--json", str(path)])
    with torch.backends.cudnn.flags():  # restores what the program sets
        program.main()  # type: ignore[attr-defined]
    found = json.loads(path.read_text())
    assert [(row["what"], row["how"]) for row in found["rows"]] == rows
    assert found["machine"]["device"] == "CPU"
    for row in found["rows"]:
        loop = row["how"] == "fastconv train"  # it always uses channels_last
        assert set(row["microseconds"]) == {v for v in cuda_blocks.VARIANTS if "channels_last" in v or not loop}
        assert min(row["microseconds"].values()) > 0
    markdown = path.with_suffix(".md").read_text()
    assert markdown.count("\n| ") == 1 + len(rows)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_program_without_a_gpu_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["program"])
    with pytest.raises(SystemExit) as stop:
        cuda_blocks.main()
    assert stop.value.code == cuda_measure.NO_GPU
    assert capsys.readouterr().out == "There is no GPU here that torch can use, so nothing was measured.\n"


def test_the_ratio_is_that_of_the_faster_formats() -> None:
    times = {"torch NCHW": 4.0, "torch channels_last": 3.0, "fastconv NCHW": 2.0, "fastconv channels_last": 1.5}
    assert cuda_measure.ratio(times) == "2.00"
    assert cuda_measure.ratio({"torch NCHW": 4.0}) == ""
