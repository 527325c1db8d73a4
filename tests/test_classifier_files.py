"""Damaged files, odd names, unexpected errors and wrong options: each is accepted, or refused in one line."""

from __future__ import annotations

import copy
import gzip
import io
import json
import math
import os
import pickle
import random
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch
from helpers import COMMAND, ENVIRONMENT, complaint, run
from PIL import Image
from test_classifier_data import batch, idx, python2_pickle

import fastconv
from fastconv.classifier import Classifier, checkpoint, config, data, schemas
from fastconv.classifier.checkpoint import Checkpoint
from fastconv.classifier.cli import main as cli
from fastconv.classifier.cli.main import main
from fastconv.classifier.config import TrainingConfig
from fastconv.classifier.data import images
from fastconv.classifier.data.cifar import _read_batch
from fastconv.classifier.data.idx import read_idx
from fastconv.classifier.errors import UserError
from fastconv.classifier.fit import Totals, Training
from fastconv.classifier.history import EpochResult
from fastconv.classifier.networks import build_model
from fastconv.classifier.runs import RunFolder

Output = pytest.CaptureFixture[str]
pytestmark = pytest.mark.usefixtures("in_an_empty_folder")
MODEL = "conv2, pool, dense4"
SETTINGS = config.settle({"model": MODEL, "epochs": 3, "batch_size": 8, "validation_split": 0.25})
#: The values that replace each value of a file.
WRONG: list[Any] = [
    *(None, "text", "", 5, -1, 0.5, math.nan, math.inf, 2**63, 10**400, True, [], [1, 2], {}, {"a": 1}, ()),
    "\udcff",
]


def places(content: Any) -> Iterator[tuple[Any, ...]]:
    """The keys that lead to each value of nested dictionaries and lists."""
    pairs = (
        content.items() if isinstance(content, dict) else enumerate(content) if type(content) in (list, tuple) else ()
    )
    for key, value in pairs:
        yield (key,)
        yield from ((key, *rest) for rest in places(value))


def changed(content: Any, place: tuple[Any, ...], change: Callable[[Any], Any]) -> Any:
    """Copy ``content``, and apply ``change`` to the dictionary or list that holds the value at ``place``."""
    key, *rest = place
    if not rest:
        return change(content)
    parts = dict(content) if isinstance(content, dict) else list(content)
    parts[key] = changed(content[key], tuple(rest), change)
    return tuple(parts) if isinstance(content, tuple) else parts


def mutants(content: Any) -> Iterator[tuple[str, Any]]:
    """Copies of ``content`` with one value left out or replaced by a wrong one. Each has a name."""
    for place in places(content):
        key = place[-1]

        def without(table: Any, key: Any = key) -> Any:
            if isinstance(table, dict):
                return {name: value for name, value in table.items() if name != key}
            return type(table)(value for index, value in enumerate(table) if index != key)

        yield f"without {place}", changed(content, place, without)
        for wrong in WRONG:

            def replaced(table: Any, key: Any = key, wrong: Any = wrong) -> Any:
                if isinstance(table, dict):
                    return table | {key: wrong}
                return type(table)(wrong if index == key else value for index, value in enumerate(table))

            yield f"{place} is {str(wrong)[:30]!a}", changed(content, place, replaced)
    yield from ((f"all of it is {str(wrong)[:30]!a}", wrong) for wrong in WRONG)


def assert_read_or_refused(read: Callable[[], object], name: str) -> bool:
    """Return whether ``read`` refuses the file. A refusal must have a message of one line and moderate length."""
    try:
        read()
    except UserError as error:
        message = str(error)
    except Exception as error:
        raise AssertionError(f"{name}: {type(error).__name__}: {error}") from error
    else:
        return False
    assert "\n" not in message, name
    assert 10 < len(message) < 600, name
    return True


# The contents of each file


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(32, 1, 28, 28, generator=torch.Generator().manual_seed(0)), torch.arange(32) % 10


def stopped_training(optimizer: str = "adam") -> Training:
    """A training that was stopped within its second epoch."""
    settings = SETTINGS | {"optimizer": optimizer}
    found = Training(*digits(), TrainingConfig.of(settings))
    done: list[int] = []

    def stop(epoch: int, totals: Totals) -> None:
        done.append(epoch)
        if len(done) == 4:  # an epoch has three steps
            found.stop()

    found.run(stop)
    return found


@pytest.fixture(scope="module")
def state() -> dict[str, Any]:
    return copy.deepcopy(stopped_training().state_dict())


def checkpoint_content() -> dict[str, Any]:
    weights = build_model(MODEL).state_dict()
    path = Path("whole.pt")
    checkpoint.save(path, Checkpoint(MODEL, weights, 0.5, SETTINGS))
    return torch.load(path, weights_only=True)


def history_content() -> dict[str, Any]:
    epochs = [
        {"epoch": number, "loss": 0.5, "accuracy": 0.9, "val_loss": 0.4, "val_accuracy": 0.8, "seconds": 1.0}
        | {"images_per_second": 100.0}
        for number in (1, 2)
    ]
    versions = {"torch": "2", "threads": 2, "configuration": ["one", "two"]}
    compare = {"backend": "torch", "epochs": epochs, "test_accuracy": 0.9, "test_loss": 0.3}
    return {
        "config": SETTINGS, "versions": versions, "epochs": epochs, "test_accuracy": 0.9, "test_loss": 0.3,
        "compare": compare,
    }  # fmt: skip


def test_the_schemas_have_the_fields_of_the_classes_they_describe() -> None:
    assert schemas.Epoch.model_fields.keys() == get_type_hints(EpochResult).keys()
    assert schemas.TrainingState.model_fields.keys() == stopped_training().state_dict().keys()
    assert schemas.problem(schemas.History, history_content()) is None


def test_a_checkpoint_with_any_wrong_value_is_read_or_refused_in_one_line() -> None:
    content = checkpoint_content()
    refused = 0
    for name, mutant in mutants(content):

        def read(mutant: Any = mutant) -> None:
            found = checkpoint._checked(Path("x.pt"), mutant)
            with torch.no_grad():
                assert found.build()(torch.zeros(1, *found.shape)).shape == (1, len(found.class_names))
            assert found.loss in config.LOSSES

        refused += assert_read_or_refused(read, name)
    assert refused > 500


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": 5}, "model: a string is expected, not 5"),
        ({"config": "x"}, "config: a dictionary is expected, not 'x'"),
        ({"config": {"loss": "hinge"}}, "config: unknown loss 'hinge'"),
        ({"test_accuracy": "0.9"}, "test_accuracy: a number is expected, not '0.9'"),
        ({"test_accuracy": math.nan}, "test_accuracy: a finite number is expected"),
        ({"version": "2"}, "version: "),
        ({"model": "conv9999999, conv9999999x9999"}, "no memory|leaves nothing|weights are not those"),
        ({"model": "dense9999999, dense9999999"}, "weights are not those"),
    ],
)
def test_the_error_names_the_wrong_value_of_a_checkpoint(change: dict[str, Any], message: str) -> None:
    torch.save(checkpoint_content() | change, "x.pt")
    with pytest.raises(checkpoint.CheckpointError, match=message):
        checkpoint.load(Path("x.pt"))


def test_a_checkpoint_with_weights_that_are_not_finite_is_refused() -> None:
    content = checkpoint_content()
    content["state_dict"]["dense1.bias"][1] = math.nan
    torch.save(content, "x.pt")
    with pytest.raises(checkpoint.CheckpointError, match=r"dense1\.bias has values that are not finite"):
        checkpoint.load(Path("x.pt"))


def test_a_checkpoint_whose_entries_are_larger_than_the_file_is_refused() -> None:
    with zipfile.ZipFile("x.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", bytes(1 << 24))
    with pytest.raises(checkpoint.CheckpointError, match="its entries are larger than the file"):
        checkpoint.load(Path("x.pt"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no named pipes")
@pytest.mark.parametrize("name", ["checkpoint.pt", "history.json", "digit.png"])
def test_a_pipe_in_the_place_of_a_file_is_refused_at_once(name: str) -> None:
    os.mkfifo(name)
    folder = RunFolder(Path())
    read = {
        "checkpoint.pt": lambda: checkpoint.load(folder.checkpoint),
        "history.json": folder.read_history,
        "digit.png": lambda: images.read_digit(Path(name)),
    }
    with pytest.raises(UserError, match=f"{name} is not a file"):
        read[name]()


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "rmsprop"])
def test_a_training_state_with_any_wrong_value_continues_or_is_refused_in_one_line(optimizer: str) -> None:
    """If the state is accepted, its next step gives finite weights."""
    state = copy.deepcopy(stopped_training(optimizer).state_dict())
    settings = SETTINGS | {"optimizer": optimizer}
    content = {"format": "fastconv-training", "version": 3, "settings": settings, "training": state}
    folder = RunFolder(Path())
    folder.training.write_bytes(b"")
    refused = 0
    fresh = Training(*digits(), TrainingConfig.of(settings))
    for name, mutant in mutants(content):

        def read(mutant: Any = mutant) -> None:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(checkpoint, "read", lambda *_: mutant)
                _, found = folder.read_for_resume({})
                folder.restore(fresh, found)
            fresh.run(lambda *_: fresh.stop())
            assert all(weight.isfinite().all() for weight in fresh.model.parameters())
            assert fresh.steps <= 3

        refused += assert_read_or_refused(read, name)
    assert refused > 1000


def test_a_saved_classifier_with_any_wrong_value_continues_or_is_refused_in_one_line() -> None:
    """If the file is accepted, the next epoch of the classifier gives finite weights."""
    torch.manual_seed(0)
    classifier = Classifier(MODEL).compile()
    classifier.fit(*digits(), epochs=1, verbose=0)
    classifier.save("model.pt")
    content = torch.load("model.pt", weights_only=True)
    refused = 0
    for name, mutant in mutants(content["training"]):

        def read(mutant: Any = mutant) -> None:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(checkpoint, "read", lambda *_: content | {"training": mutant})
                loaded = Classifier.load("model.pt")
            loaded.fit(*digits(), epochs=1, verbose=0)
            assert all(weight.isfinite().all() for weight in loaded.model.parameters())

        refused += assert_read_or_refused(read, name)
    assert refused > 500


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": "3"}, r"training\.steps: an integer is expected, not '3'"),
        ({"steps": 1000}, "it has done 1000 steps, but an epoch has 3"),
        ({"seconds": "1"}, r"training\.seconds: a number is expected, not '1'"),
        ({"optimizer": "adam"}, r"training\.optimizer: a dictionary"),
        ({"rng": torch.zeros(3)}, "rng is not torch.uint8"),
        ({"totals": [1, 2, 3, 4]}, "images in 1 steps"),
        ({"totals": [8, 8, torch.zeros(2), torch.tensor(0)]}, "the sum of the loss is not"),
        ({"model": {}}, "its weights are not those of the model"),
        ({"history": [{"epoch": "1"}]}, r"training\.history\.0\.epoch: an integer"),
    ],
    ids=str,
)
def test_the_error_names_the_wrong_value_of_a_training(
    state: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    folder = RunFolder(Path())
    content = {"format": "fastconv-training", "version": 3, "settings": SETTINGS, "training": state | change}
    torch.save(content, folder.training)
    with pytest.raises(UserError, match=message):
        folder.restore(Training(*digits(), TrainingConfig.of(SETTINGS)))


def test_a_history_with_any_wrong_value_is_read_or_refused_in_one_line() -> None:
    """If the history is accepted, it can be reported."""
    from fastconv.classifier import report

    folder = RunFolder(Path())
    shown, labels = digits()
    tiny = data.DataSet("tiny", shown, labels, shown, labels)
    refused = 0
    for name, mutant in mutants(history_content()):

        def read(mutant: Any = mutant) -> None:
            folder.history.write_text(json.dumps(mutant))
            record = folder.read_history()
            facts = report.Facts(0.5, "run", report._date(record, folder), [])
            report.page(record, tiny, facts, []).encode(errors="replace")

        refused += assert_read_or_refused(read, name)
    assert refused > 500


@pytest.mark.parametrize("loss", [1e-300, 1e37, 1e300])
def test_a_history_of_extreme_values_is_plotted(loss: float) -> None:
    from fastconv.classifier import plots

    epochs = history_content()["epochs"]
    epochs[1] |= {"loss": loss, "val_loss": loss}
    assert plots.png(plots.training_curves(epochs)).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "text", ["", "[" * 100_000, "{" * 10, '{"epochs": ' + "9" * 10_000 + "}", "\x00", "NaN", "\ufeff{}"]
)
def test_a_history_that_is_no_json_is_refused_in_one_line(text: str, capsys: Output) -> None:
    Path("history.json").write_text(text)
    assert main(["report", "."]) == 2
    assert capsys.readouterr().err.count("\n") == 1


# Bytes


def damaged(content: bytes, count: int) -> Iterator[tuple[str, bytes]]:
    """Copies of ``content`` that are truncated, extended, or have a bit flipped or bytes replaced or inserted."""
    draw = random.Random(0)
    for length in {0, 1, 2, len(content) // 2, len(content) - 1}:
        yield f"{length} bytes", content[:length]
    yield "more", content + b"more"
    for index in range(count):
        changed = bytearray(content)
        place = draw.randrange(min(len(content), 600) if index % 2 else len(content))
        if index % 3 == 0:
            changed[place] ^= 1 << draw.randrange(8)
        elif index % 3 == 1:
            changed[place : place + 4] = draw.choice([b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", draw.randbytes(4)])
        else:
            changed[place:place] = draw.randbytes(draw.randrange(1, 9))
        yield f"damage {index}", bytes(changed)


def image(ending: str) -> bytes:
    file = io.BytesIO()
    Image.effect_noise((40, 30), 60).convert("RGB").save(file, ending)
    return file.getvalue()


def torch_file() -> bytes:
    checkpoint_content()
    return Path("whole.pt").read_bytes()


KINDS: dict[str, tuple[Callable[[], bytes], Callable[[Path], object], int]] = {
    "x.pt": (torch_file, checkpoint.load, 150),
    "history.json": (
        lambda: json.dumps(history_content()).encode(),
        lambda path: RunFolder(Path()).read_history(),
        300,
    ),
    "images-idx3-ubyte": (lambda: idx(np.zeros((3, 28, 28), np.uint8)), lambda path: read_idx(path, 3), 300),
    "labels-idx1-ubyte.gz": (
        lambda: gzip.compress(idx(np.arange(9, dtype=np.uint8)), mtime=0),
        lambda path: read_idx(path, 1),
        300,
    ),
    "test_batch": (lambda: python2_pickle(batch(3)), _read_batch, 400),
    **{
        f"x.{ending}": ((lambda ending=ending: image(ending)), images.read_digit, 120)  # type: ignore[misc]
        for ending in ("png", "jpeg", "bmp", "gif", "tiff", "webp", "ppm", "ico", "tga", "pcx", "sgi")
    },
}


@pytest.mark.filterwarnings("ignore")  # Pillow warns about what it repairs
@pytest.mark.parametrize("name", KINDS)
def test_a_file_of_damaged_bytes_is_read_or_refused_in_one_line(name: str) -> None:
    make, read, count = KINDS[name]
    path, start = Path(name), time.perf_counter()
    content = make()
    path.write_bytes(content)
    read(path)
    for what, bad in damaged(content, count):
        path.write_bytes(bad)
        assert_read_or_refused(lambda: read(path), f"{name}, {what}")
    assert time.perf_counter() - start < 120  # no damaged file made the reader hang


@pytest.mark.parametrize("sizes", [(2**32 - 1, 0, 2**32 - 1), (0, 2**32 - 1, 2**32 - 1), (2**32 - 1,) * 3, (3, 0, 0)])
def test_an_idx_header_of_impossible_sizes_is_refused(sizes: tuple[int, ...]) -> None:
    for part in ("train", "t10k"):
        Path(f"{part}-images-idx3-ubyte").write_bytes(np.array([0x0803, *sizes], ">u4").tobytes())
        Path(f"{part}-labels-idx1-ubyte").write_bytes(idx(np.zeros(3, np.uint8)))
    with pytest.raises(data.DataError, match="train-images-idx3-ubyte"):
        data.load("mnist", Path())


def test_a_pickle_of_cifar10_allocates_no_array_larger_than_its_file() -> None:
    huge = pickle.dumps({"labels": [1], "data": np.zeros((1, 3072), np.uint8)}, 2)
    Path("test_batch").write_bytes(huge.replace(b"\x4d\x00\x0c", b"\x4a\xff\xff\xff\x7f"))
    with pytest.raises(data.DataError, match="test_batch"):
        _read_batch(Path("test_batch"))


def test_files_that_vanish_and_broken_links_are_reported_in_one_line(capsys: Output) -> None:
    for name in ("one", "two"):
        Path("images", name).mkdir(parents=True)
        for index in range(6):
            Path("images", name, f"{index}.png").write_bytes(image("png"))
    found = data.folder._list_images

    def vanish(folder: Path, endings: set[str]) -> list[Path]:
        listed = found(folder, endings)
        listed[0].unlink(missing_ok=True)
        return listed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data.folder, "_list_images", vanish)
        assert main(["train", "--dataset", "folder", "--data-dir", "images", "--model", MODEL]) == 2
    assert "cannot read images/one/0.png: No such file" in capsys.readouterr().err
    Path("loop").symlink_to("loop")
    assert main(["train", "--dataset", "folder", "--data-dir", "loop"]) == 2
    assert capsys.readouterr().err == "fastconv: loop is not a folder\n"
    assert main(["train", "--output", "loop/run"]) == 2
    assert capsys.readouterr().err == "fastconv: cannot write into loop/run: Too many levels of symbolic links\n"
    Path("run/best.pt").mkdir(parents=True)
    assert main(["train", "--output", "run"]) == 2
    assert capsys.readouterr().err == "fastconv: run/best.pt is a folder: choose another --output\n"
    Path("link.pt").symlink_to("nowhere.pt")
    assert main(["evaluate", "link.pt"]) == 2
    assert capsys.readouterr().err == "fastconv: cannot read link.pt: No such file or directory\n"


# Names


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no names that are not UTF-8")
def test_every_command_accepts_class_names_that_are_not_utf_8(capfd: Output) -> None:
    for name in (b"b\xfcro", b"b\xfdro", "wörter".encode()):
        os.makedirs(b"im\xe4ges/" + name)
        for index in range(6):
            with open(b"im\xe4ges/" + name + b"/%d.png" % index, "wb") as file:
                file.write(image("png"))
    folder, run = os.fsdecode(b"im\xe4ges"), os.fsdecode(b"r\xfcn")
    train = [
        "train",
        "--dataset",
        "folder",
        "--data-dir",
        folder,
        "--image-size",
        "28",
        "--model",
        MODEL,
        "--epochs",
        "1",
    ]
    assert main([*train, "--output", run, "--report", "--compare"]) == 0, capfd.readouterr().err
    assert "im?ges: " in capfd.readouterr().out
    for command in (
        ["report", run],
        ["evaluate", f"{run}/checkpoint.pt"],
        ["plot", f"{run}/checkpoint.pt", "--count", "2"],
        ["predict", f"{run}/checkpoint.pt", "0", os.fsdecode(b"im\xe4ges/b\xfcro/1.png")],
        ["export", f"{run}/checkpoint.pt", "--format", "torch"],
    ):
        assert main(command) == 0, capfd.readouterr().err
    page = Path(run, "report.html").read_bytes().decode()
    assert "im?ges" in page
    saved = checkpoint.load(Path(run, "checkpoint.pt"))
    assert set(map(os.fsencode, saved.class_names)) == {b"b\xfcro", b"b\xfdro", "wörter".encode()}
    capfd.readouterr()
    pytest.importorskip("tensorboard")
    assert main([*train, "--tensorboard", "--output", os.fsdecode(b"\xfc")]) == 2
    assert "--tensorboard needs a folder with a name in UTF-8, not ?: choose" in capfd.readouterr().err


def test_letters_that_the_terminal_lacks_are_printed_as_question_marks() -> None:
    buffer = io.BytesIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", io.TextIOWrapper(buffer, "ascii"))
        with cli._any_text_printed():
            print("wörter \udcff")
        sys.stdout.flush()
        assert sys.stdout.errors == "strict"
        assert buffer.getvalue() == b"w?rter ?\n"


# Unexpected errors


def raising(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail() -> str:
        raise error

    monkeypatch.setattr(fastconv, "show_config", fail)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (
            ZeroDivisionError("division\nby zero"),
            1,
            "unexpected ZeroDivisionError: division by zero (a bug: please report",
        ),
        (MemoryError(), 2, "not enough memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), 2, "not enough memory"),
        (OSError(28, "No space left on device"), 2, "No space left on device"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (ModuleNotFoundError("no fastconv.gone", name="fastconv.gone"), 1, "unexpected ModuleNotFoundError"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_unexpected_error_is_one_line(
    error: BaseException, code: int, message: str, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    raising(monkeypatch, error)
    assert main(["info"]) == code
    errors = capsys.readouterr().err
    assert errors.startswith(f"fastconv: {message}") or message in errors
    assert errors.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--traceback", "info"], ["info", "--traceback"]])
def test_traceback_shows_where_an_error_happened(
    arguments: list[str], capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    raising(monkeypatch, ZeroDivisionError("0"))
    assert main(arguments) == 1
    errors = capsys.readouterr().err
    assert errors.startswith("Traceback (most recent call last):")
    assert "in fail\n" in errors
    assert errors.splitlines()[-1].startswith("fastconv: unexpected ZeroDivisionError")


def test_a_package_that_cannot_be_imported_is_named(capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("broken_package.py").write_text("raise ValueError('the variable X is\\nwrong')")
    monkeypatch.syspath_prepend(str(Path.cwd()))

    def show_config() -> str:
        import broken_package  # type: ignore[import-not-found]

        return str(broken_package)

    monkeypatch.setattr(fastconv, "show_config", show_config)
    assert main(["info"]) == 2
    assert capsys.readouterr().err == "fastconv: cannot import broken_package: the variable X is wrong\n"


@pytest.mark.parametrize(
    ("variable", "arguments", "message"),
    [
        ("FASTCONV_CPU_CAPABILITY", ["info"], "fastconv: cannot import fastconv: "),
        ("MPLBACKEND", ["plot", "x.pt"], "fastconv: cannot import matplotlib: "),
    ],
)
def test_an_invalid_variable_is_reported_in_one_line(variable: str, arguments: list[str], message: str) -> None:
    if variable == "MPLBACKEND":
        checkpoint.save(Path("x.pt"), Checkpoint(MODEL, build_model(MODEL).state_dict(), 0.5))
    done = run([*COMMAND, *arguments], env=ENVIRONMENT | {variable: "garbage"})
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert done.stderr.startswith(message)
    assert "garbage" in done.stderr


def test_a_full_disk_is_reported_in_one_line() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("only Linux has /dev/full")
    with open("/dev/full", "w") as full:
        done = run([*COMMAND, "--version"], stdout=full)
    assert (done.returncode, done.stderr) == (2, "fastconv: [Errno 28] No space left on device\n")


# Options


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--output", ""],
        ["train", "--data-dir", ""],
        ["evaluate", ""],
        ["evaluate", "x.pt", "--data-dir", ""],
        ["predict", "x.pt", ""],
        ["plot", "x.pt", "--output", ""],
        ["report", ""],
        ["report", "run", "--output", ""],
        ["download", "mnist", "--data-dir", ""],
        ["export", "x.pt", "--format", "torch", "--output", ""],
        ["bench", "--png", ""],
    ],
    ids=" ".join,
)
def test_an_empty_path_is_refused(arguments: list[str], capsys: Output) -> None:
    assert "must not be empty" in complaint(arguments, capsys)


def test_a_path_with_nul_is_refused(capsys: Output) -> None:
    assert "a path must not contain a NUL character" in complaint(["evaluate", "x\0.pt"], capsys)


HUGE = "99999999999999999999"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--epochs", HUGE], f"epochs must be at most 1000000, not {HUGE}"),
        (["train", "--epochs", "-1"], "epochs must be at least 1"),
        (["train", "--epochs", "1e3"], "--epochs"),
        (["train", "--epochs", ""], "--epochs"),
        (["train", "--batch-size", HUGE], "batch size must be between"),
        (["train", "--seed", HUGE], "seed must be between"),
        (["train", "--patience", HUGE], "patience must be at most"),
        (["train", "--patience", "-1"], "patience must be at least 1"),
        (["train", "--limit", HUGE], "limit must be at most"),
        (["train", "--image-size", HUGE], "image size must be at most 1024"),
        (["train", "--threads", HUGE], "--threads must be between"),
        (["train", "--model", ""], "unknown model ''"),
        (["bench", "--rounds", HUGE], "--rounds must be at most"),
        (["bench", "--rounds", "0"], "--rounds must be at least 1"),
        (["plot", "x.pt", "--count", HUGE], "--count must be between"),
        (["plot", "x.pt", "--start", HUGE], "no test image"),
        (["plot", "x.pt", "--start", "-1"], "no test image"),
        (["predict", "x.pt", "9" * 5000], "no test image"),
        (["plot", "."], ". is not the folder of a run: it has no checkpoint.pt"),
        (["plot", "/"], "/ is not the folder of a run: it has no checkpoint.pt"),
        *(
            ([*train], "must be")
            for option in ("--lr", "--validation-split", "--label-smoothing")
            for value in ("nan", "inf", "-inf", "-1", "1e999")
            for train in [["train", option, value]]
        ),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)
def test_a_number_out_of_its_range_is_refused(arguments: list[str], message: str, capsys: Output) -> None:
    checkpoint.save(Path("x.pt"), Checkpoint(MODEL, build_model(MODEL).state_dict(), 0.5))
    assert message in complaint(arguments, capsys)


@pytest.mark.parametrize("value", [*WRONG, b"bytes", object()], ids=lambda value: ascii(value)[:20])
def test_a_setting_of_any_type_is_accepted_or_refused_in_one_line(value: Any) -> None:
    for name in SETTINGS:
        assert_read_or_refused(lambda name=name: config.check_settings({name: value}), name)  # type: ignore[misc]


@pytest.mark.parametrize("value", ["garbage", "", "-1", "0", "1.5", "9" * 5000])
def test_an_invalid_world_size_is_reported_in_one_line(
    value: str, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", value)
    assert main(["train", "--limit", "20", "--epochs", "1"]) == 2
    errors = capsys.readouterr().err
    assert "WORLD_SIZE must be" in errors
    assert errors.count("\n") == 1
