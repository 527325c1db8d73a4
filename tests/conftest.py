"""Fixtures and rules for all tests."""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

# The tests are about fastconv's own kernels on every machine. fastconv reads this variable at import, so set it before.
# Tests of the calls that the plan leaves to PyTorch set {"torch": "measured"} or "always".
os.environ["FASTCONV_ALGORITHM"] = "own"

import forked
from devices import no_gpu

from fastconv import _C
from fastconv._ahead import recompute

#: The number of cases that were left out because there is no GPU.
LEFT_OUT = pytest.StashKey[int]()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return the number of worker processes for ``-n auto``: one per core, at most 8, since each takes about 1 GB."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 8)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes() -> None:
    """Give each worker process and its child processes one thread. Tests that need more set the number themselves.

    A thread that waits must not occupy a core that another worker could use.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without a GPU, leave out the cases of test_gpu.py, and count all cases that a GPU would add.

    Each case that uses `device` would run on the GPU, too.
    """
    if no_gpu() is None:
        return
    needing = [item for item in items if item.path.name == "test_gpu.py"]
    if needing:
        items[:] = [item for item in items if item.path.name != "test_gpu.py"]
        config.hook.pytest_deselected(items=needing)
    emulated = sum("device" in getattr(item, "fixturenames", ()) for item in items)
    config.stash[LEFT_OUT] = len(needing) + emulated


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """In a worker process of pytest-xdist, pass the number of cases to the main process."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["gpu cases left out"] = session.config.stash.get(LEFT_OUT, 0)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    node.config.stash[LEFT_OUT] = getattr(node, "workeroutput", {}).get("gpu cases left out", 0)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if config.stash.get(LEFT_OUT, 0):
        terminalreporter.write_line(f"{no_gpu()}: {config.stash[LEFT_OUT]} CUDA cases deselected")


@pytest.fixture(params=_C.cpu_capabilities())
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test at each ISA level that this machine has."""
    before = _C.cpu_capability()
    _C.set_cpu_capability(request.param)
    yield request.param
    _C.set_cpu_capability(before)


@pytest.fixture(autouse=True)
def _fixed_seed_and_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _backward_computes_all_inputs_again(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The programs of test_ahead*.py have few channels, and so too few products."""
    if request.node.nodeid.startswith("tests/test_ahead"):
        monkeypatch.setattr("fastconv._ahead.recompute._LEAST_PRODUCTS", 0)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Note each tensor that backward computes again (fastconv/_ahead/recompute.py)."""
    found: list[Tensor] = []
    compute = recompute.Source.compute

    def noting(source: recompute.Source) -> Tensor:
        found.append(compute(source))
        return found[-1]

    monkeypatch.setattr(recompute.Source, "compute", noting)
    return found


@pytest.fixture
def algorithms_as_measured() -> Iterator[None]:
    """Forget the algorithms and bands that a test forced."""
    yield
    _C.set_algorithms({})


@pytest.fixture
def exact_for_integers(algorithms_as_measured: None) -> None:
    """Use no tiles of 3x3 for Winograd, because their transforms round small integers."""
    _C.set_algorithms({}, winograd=2)


@pytest.fixture
def two_threads() -> None:
    """Compute on two threads. `_fixed_seed_and_threads` restores their number."""
    torch.set_num_threads(2)


@pytest.fixture
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make an empty folder the current one."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def python() -> Iterator[forked.Python]:
    """Run programs in new processes that have imported torch already."""
    if not hasattr(os, "fork"):
        pytest.skip("needs os.fork")
    with forked.python() as run:
        yield run


@pytest.fixture
def blank_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `plot` and `report` write pictures of one pixel, because drawing takes 5 of the 6 seconds of a report.

    test_classifier_plots.py and test_cli.py draw the pictures.
    """
    from PIL import Image

    from fastconv.classifier import plots, report

    file = io.BytesIO()
    Image.new("RGB", (1, 1)).save(file, "PNG")
    blank = file.getvalue()
    monkeypatch.setattr(report, "_images", lambda draw: (blank, blank))
    monkeypatch.setattr(plots, "prediction_grid", lambda *arguments, **options: None)
    monkeypatch.setattr(plots, "png", lambda figure: blank)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Let SIGINT interrupt this process, and the processes that it starts, as it does in a terminal.

    A shell starts background jobs with SIGINT ignored, and every process inherits that from its parent.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
