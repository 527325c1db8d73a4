"""fastconv export: every format gives the network's results in a process without fastconv."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from forked import Python
from helpers import complaint

import fastconv
from fastconv.classifier import checkpoint, export
from fastconv.classifier.checkpoint import Checkpoint
from fastconv.classifier.cli.main import main
from fastconv.classifier.networks import build_model
from fastconv.installation import install_command

ROOT = Path(fastconv.__file__).parents[1]
FORMATS = list(export.SUFFIXES)
EVERY_LAYER = "conv6, bn, pool, conv8same, tanh, avgpool, conv4, leakyrelu, conv4, none, bn, dense9, bn, sigmoid"
COLOUR = "conv8same, pool, dropout.2, conv8x2, pool, dense12"
Output = pytest.CaptureFixture[str]


def make(path: Path, model: str = "mnist-cnn", shape: tuple[int, int, int] = (1, 28, 28), classes: int = 10) -> None:
    """Save a checkpoint of random weights in channels_last, as training does."""
    torch.manual_seed(0)
    network = build_model(model, shape=shape, classes=classes).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    names = tuple(f"Klasse {i} ü" for i in range(classes))
    checkpoint.save(path, Checkpoint(model, network.state_dict(), 0.5, {}, shape, names))


@pytest.fixture(autouse=True)
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkpoint:
    """Make an empty folder the current one, and write checkpoint.pt into it."""
    monkeypatch.chdir(tmp_path)
    make(Path("checkpoint.pt"))
    return checkpoint.load(Path("checkpoint.pt"))


def need(format: str) -> None:
    for package in {"onnx": ["onnxscript", "onnxruntime"], "safetensors": ["safetensors"]}.get(format, []):
        pytest.importorskip(package)


def run(python: Python, code: str, fastconv: bool = False) -> None:
    """Run ``code`` in another process, with or without fastconv."""
    hide = "" if fastconv else "import sys; sys.modules['fastconv'] = None\n"
    done = python(hide + code)
    assert done.returncode == 0, done.stderr


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def assert_said(values: dict[str, str]) -> None:
    said = {name: json.loads(value) for name, value in values.items()}
    assert said["model"] == "mnist-cnn"
    assert said["layers"] == "conv32, pool, conv64, pool, conv128, dense128"
    assert said["shape"] == [1, 28, 28]
    assert said["class_names"] == [f"Klasse {i} ü" for i in range(10)]


@pytest.mark.parametrize("format", FORMATS)
def test_export_writes_beside_the_checkpoint_and_overwrites_its_own_file(format: str, capsys: Output) -> None:
    need(format)
    name = f"model{export.SUFFIXES[format]}"
    for _ in range(2):
        assert main(["export", "checkpoint.pt", "--format", format]) == 0
        output = capsys.readouterr()
        assert output.out == f"wrote {name}, {Path(name).stat().st_size:,} bytes\n"
        assert output.err == ""
    assert sorted(os.listdir()) == ["checkpoint.pt", name]


@pytest.mark.parametrize("format", FORMATS)
def test_a_network_in_float64_is_written_in_float32(format: str, saved: Checkpoint) -> None:
    need(format)
    double = {name: weight.double() for name, weight in saved.state_dict.items()}
    checkpoint.save(Path("checkpoint.pt"), dataclasses.replace(saved, state_dict=double))
    export.write(checkpoint.load(Path("checkpoint.pt")), format, Path("double" + export.SUFFIXES[format]))
    export.write(saved, format, Path("single" + export.SUFFIXES[format]))
    sizes = [Path(name + export.SUFFIXES[format]).stat().st_size for name in ("double", "single")]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.01)


def test_safetensors_has_the_weights_and_says_what_they_are(saved: Checkpoint) -> None:
    safetensors = pytest.importorskip("safetensors")
    assert main(["export", "checkpoint.pt", "--format", "safetensors"]) == 0
    with safetensors.safe_open("model.safetensors", "pt") as file:
        assert set(file.keys()) == saved.state_dict.keys()
        assert all(torch.equal(file.get_tensor(name), weight) for name, weight in saved.state_dict.items())
        assert_said(file.metadata())


def documented(heading: str) -> str:
    """The Python code under a heading of docs/howto/export.md."""
    page = ROOT / "docs/howto/export.md"
    if not page.exists():
        pytest.skip("the documentation is not here")
    return page.read_text().partition(f"## {heading}\n")[2].partition("```python\n")[2].partition("```")[0]


def test_a_model_of_your_own_is_exported_as_documented(python: Python) -> None:
    pytest.importorskip("onnxscript")
    safetensors_torch = pytest.importorskip("safetensors.torch")
    onnxruntime = pytest.importorskip("onnxruntime")
    check = "torch.save((images, model(images).detach()), 'expected.pt')\n"
    run(
        python,
        "import warnings\nwarnings.simplefilter('ignore')\n" + documented("A model of your own") + check,
        fastconv=True,
    )
    images, expected = torch.load("expected.pt")
    assert set(safetensors_torch.load_file("mine.safetensors")) == {"0.weight", "0.bias"}
    assert_close(torch.export.load("mine.pt2").module()(images), expected)
    session = onnxruntime.InferenceSession("mine.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    assert_close(torch.from_numpy(found), expected)


def test_the_format_torch_loads_as_documented(saved: Checkpoint, python: Python) -> None:
    assert main(["export", "checkpoint.pt", "--format", "torch"]) == 0
    images = torch.rand(5, 1, 28, 28)
    torch.save(images, "images.pt")
    run(
        python,
        documented("The weights in plain PyTorch") + "torch.save(model(torch.load('images.pt')).detach(), 'out.pt')",
    )
    assert_close(torch.load("out.pt"), saved.build()(images))


RUN_PT2 = """
import torch
model = torch.export.load("{name}").module()
torch.save([model(images).detach() for images in torch.load("images.pt")], "out.pt")
"""


def batches(shape: tuple[int, int, int] = (1, 28, 28)) -> list[torch.Tensor]:
    return [torch.rand(1, *shape), torch.rand(7, *shape)]


def test_pt2_gives_the_same_results_without_fastconv(saved: Checkpoint, python: Python) -> None:
    assert main(["export", "checkpoint.pt", "--format", "pt2"]) == 0
    torch.save(batches(), "images.pt")
    run(python, RUN_PT2.format(name="model.pt2"))
    for images, found in zip(torch.load("images.pt"), torch.load("out.pt"), strict=True):
        assert_close(found, saved.build()(images))
    said = {"fastconv.json": ""}
    torch.export.load("model.pt2", extra_files=said)
    assert_said(json.loads(said["fastconv.json"]))


def test_pt2_has_every_kind_of_layer(python: Python) -> None:
    make(Path("other.pt"), EVERY_LAYER, (3, 28, 28), 4)
    assert main(["export", "other.pt", "--format", "pt2"]) == 0
    torch.save(batches((3, 28, 28)), "images.pt")
    run(python, RUN_PT2.format(name="model.pt2"))
    network = checkpoint.load(Path("other.pt")).build()
    for images, found in zip(torch.load("images.pt"), torch.load("out.pt"), strict=True):
        assert_close(found, network(images))


def test_the_network_of_fastconvs_layers_is_exported_as_documented(saved: Checkpoint, python: Python) -> None:
    Path("runs/mnist-cnn-mnist5k-1").mkdir(parents=True)
    Path("checkpoint.pt").rename("runs/mnist-cnn-mnist5k-1/checkpoint.pt")
    run(python, documented("With fastconv's operators"), fastconv=True)
    torch.save(batches(), "images.pt")
    run(python, "import fastconv" + RUN_PT2.format(name="fast.pt2"), fastconv=True)
    for images, found in zip(torch.load("images.pt"), torch.load("out.pt"), strict=True):
        assert_close(found, saved.build()(images))
    targets = {str(node.target) for node in torch.export.load("fast.pt2").graph.nodes}
    assert {"fastconv.conv2d_relu_max_pool2d.default", "fastconv.conv2d_relu.default"} <= targets


@pytest.mark.parametrize(
    ("model", "shape", "classes"),
    [("mnist-cnn", (1, 28, 28), 10), (COLOUR, (3, 12, 9), 4), (EVERY_LAYER, (3, 28, 28), 4)],
    ids=["mnist", "colour", "every layer"],
)
def test_onnx_gives_the_same_results(model: str, shape: tuple[int, int, int], classes: int) -> None:
    need("onnx")
    import onnxruntime

    make(Path("other.pt"), model, shape, classes)
    assert main(["export", "other.pt", "--format", "onnx"]) == 0
    session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
    assert [given.name for given in session.get_inputs()] == ["images"]
    assert [given.name for given in session.get_outputs()] == ["logits"]
    network = checkpoint.load(Path("other.pt")).build()
    for images in batches(shape):
        (logits,) = session.run(None, {"images": images.numpy()})
        assert_close(torch.from_numpy(logits), network(images))
    said = session.get_modelmeta().custom_metadata_map
    assert json.loads(said["shape"]) == list(shape)
    if model == "mnist-cnn":
        assert_said(said)


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_that_is_no_export_is_overwritten_with_force_only(format: str, capsys: Output) -> None:
    need(format)
    name = f"mine{export.SUFFIXES[format]}"
    Path(name).write_text("mine")
    arguments = ["checkpoint.pt", "--format", format, "--output", name]
    assert f"{name} exists and is not an export in this format; --force overwrites it" in complaint(
        ["export", *arguments], capsys
    )
    assert main(["export", *arguments, "--force"]) == 0
    assert Path(name).stat().st_size > len("mine")


def test_a_users_weights_of_the_same_network_are_overwritten_with_force_only(saved: Checkpoint, capsys: Output) -> None:
    torch.save(saved.build("torch").state_dict(), "mine.pt")
    arguments = ["export", "checkpoint.pt", "--format", "torch", "--output", "mine.pt"]
    assert "mine.pt exists and is not an export in this format" in complaint(arguments, capsys)
    assert main([*arguments, "--force"]) == 0
    torch.save(torch.load("mine.pt"), "mine.pt")  # an export that the user changed is the user's
    assert "mine.pt exists and is not an export in this format" in complaint(arguments, capsys)


@pytest.mark.parametrize("mmap", [False, True])
def test_torch_ignores_the_mark(mmap: bool, saved: Checkpoint) -> None:
    assert main(["export", "checkpoint.pt", "--format", "torch"]) == 0
    weights = torch.load("model.pt", weights_only=True, mmap=mmap)
    assert weights.keys() == saved.state_dict.keys()
    assert all(torch.equal(weight, saved.state_dict[name]) for name, weight in weights.items())
    with zipfile.ZipFile("model.pt") as archive:
        assert archive.testzip() is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["checkpoint.pt"], "--format"),
        (["checkpoint.pt", "--format", "tflite"], "tflite"),
        (["nowhere.pt", "--format", "torch"], "cannot read nowhere.pt: No such file"),
        (["checkpoint.pt", "--format", "torch", "--output", "checkpoint.pt", "--force"], "is the checkpoint itself"),
        (["checkpoint.pt", "--format", "torch", "--output", "copy.pt"], "copy.pt exists and is not an export"),
        (["checkpoint.pt", "--format", "onnx", "--output", "model.pt2"], "must end in .onnx for --format onnx"),
        (["checkpoint.pt", "--format", "torch", "--output", "copy.pt/a.pt"], "cannot write into copy.pt: "),
        (["checkpoint.pt", "--format", "pt2", "--output", "folder.pt2"], "cannot read folder.pt2: "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_argument_is_reported_in_one_line(arguments: list[str], message: str, capsys: Output) -> None:
    Path("copy.pt").write_bytes(Path("checkpoint.pt").read_bytes())
    Path("folder.pt2").mkdir()
    assert message in complaint(["export", *arguments], capsys)


@pytest.mark.parametrize(("format", "package"), [("safetensors", "safetensors.torch"), ("onnx", "onnxscript")])
def test_a_missing_package_is_named_with_its_extra(
    format: str, package: str, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert install_command("export") in complaint(["export", "checkpoint.pt", "--format", format], capsys)
