"""The folders of runs: their numbers, runs/latest, naming a run in a command, --overwrite and --resume."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
from pathlib import Path

import pytest
import torch
from helpers import ROOT, complaint, contents

from fastconv.classifier import checkpoint, latest
from fastconv.classifier.cli.main import main
from fastconv.classifier.fit import OnEpoch, OnStep, Training

Output = pytest.CaptureFixture[str]
pytestmark = pytest.mark.usefixtures("in_an_empty_folder", "interruptible", "blank_pictures")
QUICK = ["train", "--limit", "200", "--epochs", "2", "--model", "conv4, pool", "--quiet"]
#: The commands that read a run, with their other arguments.
READERS = [["evaluate"], ["predict", "0"], ["plot"], ["report"], ["export", "--format", "torch"]]
FIRST, SECOND = (Path(f"runs/conv4-pool-mnist5k-{number}") for number in (1, 2))


def weights(path: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load(path / "checkpoint.pt").state_dict


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], weight) for name, weight in other.items())


def test_every_run_has_a_folder_of_its_own_and_latest_points_to_the_last() -> None:
    assert main(QUICK) == 0
    before = contents(FIRST)
    assert main([*QUICK, "--lr", "0.01"]) == 0
    assert contents(FIRST) == before
    assert latest.folder() == SECOND
    assert Path("runs/latest").resolve() == SECOND.resolve()
    shutil.rmtree(FIRST)
    assert main(["train", "--limit", "200", "--epochs", "1", "--model", "conv4, pool"]) == 0
    assert latest.folder() == Path("runs/conv4-pool-mnist5k-3")  # a number is not given twice


def test_two_recipes_never_share_a_folder(capsys: Output) -> None:
    """A folder never has the report of one network and the checkpoint of another."""
    assert main([*QUICK, "--output", "mine", "--report"]) == 0
    before = contents(Path("mine"))
    assert "mine has another run" in complaint([*QUICK, "--recipe", "fast", "--output", "mine"], capsys)
    assert contents(Path("mine")) == before


def test_latest_points_to_a_run_in_another_folder_too() -> None:
    assert main([*QUICK, "--output", "elsewhere/mine"]) == 0
    assert latest.folder() == Path("elsewhere/mine")
    assert main(["evaluate"]) == 0


def test_latest_is_a_file_where_links_cannot_be_made(capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, target: str, target_is_directory: bool = False) -> None:
        raise OSError(1, "a required privilege is not held by the client")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    assert main(QUICK) == 0
    assert Path("runs/latest").is_file()
    assert latest.folder() == FIRST
    for command in (["evaluate"], ["report"], ["predict", "0"]):
        assert main([command[0], "runs/latest", *command[1:]]) == 0, capsys.readouterr().err
    assert main(QUICK) == 0
    assert latest.folder() == SECOND


def test_a_missing_last_run_and_a_folder_named_latest_are_reported(capsys: Output) -> None:
    assert main(QUICK) == 0
    shutil.rmtree(FIRST)
    assert f"runs/latest points to {FIRST}, which is gone" in complaint(["evaluate"], capsys)
    Path("runs/latest").unlink()
    Path("runs/latest").mkdir()
    reason = "runs/latest is a folder, but it should point to the last run: rename it"
    assert main(QUICK) == 2
    assert reason in capsys.readouterr().err
    assert os.listdir("runs") == ["latest"]
    assert main([*QUICK[:-1], "--output", "mine"]) == 0  # a run elsewhere does not need the pointer
    assert f"{reason}; name the run in other commands" in capsys.readouterr().out
    assert Path("mine/checkpoint.pt").exists()


def test_a_mistake_leaves_no_folder(capsys: Output) -> None:
    for wrong in (["--patience", "2", "--validation-split", "0"], ["--device", "cuda", "--dtype", "float64"]):
        if "cuda" in wrong and torch.cuda.is_available():
            continue
        complaint([*QUICK, *wrong], capsys)
    assert not Path("runs").exists()


@pytest.mark.parametrize("command", READERS, ids=" ".join)
def test_each_command_takes_a_run_a_checkpoint_or_the_last_run(command: list[str], capsys: Output) -> None:
    assert main([*QUICK, "--output", "first"]) == 0
    assert main([*QUICK, "--output", "second", "--lr", "0.03"]) == 0
    name, *more = command
    shown = []
    for run in ([], ["second"], ["second/checkpoint.pt"], ["first"]):
        capsys.readouterr()
        assert main([name, *run, *more]) == 0, capsys.readouterr().err
        output = capsys.readouterr()
        shown.append(output.out)
        assert output.err == ("" if run else "the last run: second\n")
    assert shown[0] == shown[1] == shown[2] != shown[3]


def test_an_unfinished_run_names_the_command_that_continues_it(capsys: Output) -> None:
    Path("half run").mkdir()
    Path("half run/training.pt").write_bytes(b"")
    hint = "the run in half run is not finished; to continue: fastconv train --output 'half run' --resume\n"
    for command in READERS:
        assert hint in complaint([command[0], "half run", *command[1:]], capsys)


def test_predict_predicts_what_it_can_read(capsys: Output) -> None:
    assert main(QUICK) == 0
    capsys.readouterr()
    digit = str(ROOT / "examples" / "digit.png")
    assert main(["predict", "3", "no.png", digit, "9999"]) == 2
    output = capsys.readouterr()
    assert [line.split("\t")[0] for line in output.out.splitlines()] == ["image", "3", digit]
    assert output.err.splitlines()[-1] == (
        "fastconv: cannot read no.png: No such file or directory; no test image 9999: mnist5k has 0 to 999"
    )


# --overwrite


def test_overwrite_removes_all_that_belongs_to_the_earlier_run(capsys: Output) -> None:
    pytest.importorskip("tensorboard")
    assert main([*QUICK, "--output", "mine", "--report", "--tensorboard"]) == 0
    for command in (["plot", "mine"], ["export", "mine", "--format", "torch"], ["export", "mine", "--format", "pt2"]):
        assert main(command) == 0
    Path("mine/notes.txt").write_text("mine")
    Path("mine/plots/mine.png").write_text("mine")
    Path("mine/model.onnx").write_text("mine")
    assert main([*QUICK, "--recipe", "fast", "--output", "mine", "--overwrite"]) == 0
    kept = {str(path.relative_to("mine")) for path in Path("mine").rglob("*") if path.is_file()}
    assert kept == {
        *("checkpoint.pt", "history.csv", "history.json", "training.pt"),  # fast has no validation images: no best.pt
        *("notes.txt", "plots/mine.png", "model.onnx"),
    }
    assert json.loads(Path("mine/history.json").read_text())["config"]["recipe"] == "fast"


def test_overwrite_accepts_a_new_folder_but_not_resume(capsys: Output) -> None:
    assert main([*QUICK, "--output", "new", "--overwrite"]) == 0
    assert "leave out one of them" in complaint([*QUICK, "--output", "new", "--overwrite", "--resume"], capsys)


def test_an_interrupted_run_can_be_overwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_interrupted([*QUICK, "--output", "mine"], monkeypatch) == 130
    assert main([*QUICK, "--output", "mine", "--overwrite"]) == 0


# --resume


def run_interrupted(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """Train, press Ctrl-C after the first epoch, and return the exit code."""
    train = Training.run

    def run_and_interrupt(self: Training, on_step: OnStep, on_epoch: OnEpoch) -> None:
        train(self, on_step, lambda result: [on_epoch(result), os.kill(os.getpid(), signal.SIGINT)])

    with monkeypatch.context() as patch:
        patch.setattr(Training, "run", run_and_interrupt)
        return main(arguments)


@pytest.mark.skipif(os.name == "nt", reason="Windows has other signals")
def test_the_hint_of_ctrl_c_is_the_command_that_continues(capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    extras = ["--compare", "--report", "--threads", "1"]
    assert run_interrupted([*QUICK, *extras, "--output", "my run"], monkeypatch) == 130
    message = capsys.readouterr().err.splitlines()[-1]
    hint = message.removeprefix("fastconv: interrupted; to continue: ")
    assert hint == "fastconv train --output 'my run' --resume --compare --report --threads 1"
    assert main(shlex.split(hint)[1:]) == 0
    assert Path("my run/report.html").exists()
    assert "compare" in json.loads(Path("my run/history.json").read_text())


@pytest.mark.skipif(os.name == "nt", reason="Windows has other signals")
def test_resume_continues_the_last_run(capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_interrupted(QUICK, monkeypatch) == 130
    capsys.readouterr()
    assert main(["train", "--resume"]) == 0
    output = capsys.readouterr()
    assert output.err == f"the last run: {FIRST}\n"
    assert "resumed after 1 of 2 epochs" in output.out
    assert main([*QUICK, "--output", "whole"]) == 0
    assert equal(weights(FIRST), weights(Path("whole")))


def test_a_finished_run_says_so_and_continues_with_more_epochs(capsys: Output) -> None:
    assert main([*QUICK, "--report"]) == 0
    finished = complaint(["train", "--output", str(FIRST), "--resume"], capsys)
    command = f"fastconv train --output {FIRST} --resume --epochs N"
    assert f"the run in {FIRST} is finished after 2 epochs; to continue, with N above 2: {command}\n" in finished
    same = complaint(["train", "--output", str(FIRST), "--resume", "--epochs", "2"], capsys)
    assert same == finished
    assert main(["train", "--resume", "--epochs", "4"]) == 0
    assert not (FIRST / "report.html").exists()  # it was about the network after two epochs
    assert main([*QUICK, "--epochs", "4", "--output", "whole"]) == 0
    assert equal(weights(FIRST), weights(Path("whole")))
    assert [epoch["epoch"] for epoch in json.loads((FIRST / "history.json").read_text())["epochs"]] == [1, 2, 3, 4]
    assert checkpoint.load(FIRST / "checkpoint.pt").config["epochs"] == 4


def test_a_run_that_stopped_early_continues_with_more_patience(capsys: Output) -> None:
    stopping = ["train", "--limit", "320", "--epochs", "40", "--lr", "0.01", "--patience", "2", "--output", "run", "-q"]
    assert main(stopping) == 0
    done = len(json.loads(Path("run/history.json").read_text())["epochs"])
    assert done < 40
    said = complaint(["train", "--output", "run", "--resume"], capsys)
    command = "fastconv train --output run --resume --patience N"
    assert f"the run in run stopped early after {done} epochs; to continue, with N above 2: {command}\n" in said
    before = contents(Path("run"))
    assert "stopped early" in complaint(["train", "--output", "run", "--resume", "--patience", "1"], capsys)
    assert contents(Path("run")) == before
    assert main(["train", "--output", "run", "--resume", "--patience", "4"]) == 0
    assert len(json.loads(Path("run/history.json").read_text())["epochs"]) > done


def test_a_file_that_is_named_latest_is_not_a_pointer_if_it_names_no_folder() -> None:
    image = Path("images/latest")
    image.parent.mkdir()
    for content in (b"", b"\x89PNG\0\xff", b"no-such-folder", b"x" * 100_000):
        image.write_bytes(content)
        assert latest.followed(image) == image
    Path("images/run").mkdir()
    image.write_bytes(b"run")
    assert latest.followed(image) == Path("images/run")


def test_the_name_of_a_folder_has_at_most_255_bytes() -> None:
    assert len(os.fsencode(latest.new_folder("模" * 100).name)) <= 255


def test_a_run_of_an_earlier_version_is_finished_without_a_state(capsys: Output) -> None:
    assert main(QUICK) == 0
    (FIRST / "training.pt").unlink()
    said = complaint(["train", "--output", str(FIRST), "--resume"], capsys)
    assert f"nothing to resume: it is finished, and its training state was not kept; there is no {FIRST}" in said
