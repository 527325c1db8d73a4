"""The option --device: its errors, and the training step as a CUDA graph. These tests need no GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch import Tensor

import fastconv
from fastconv._ops.library import has_cuda
from fastconv.classifier import cuda_graph, device
from fastconv.classifier.cli.main import main
from fastconv.classifier.errors import UserError


def test_the_cpu_is_found() -> None:
    assert device.find("cpu") == torch.device("cpu")


def test_the_error_names_what_a_gpu_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(UserError, match="is built without CUDA"):
        device.find("cuda")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="torch finds no GPU"):
        device.find("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(device, "has_cuda", lambda: False)
    with pytest.raises(UserError, match="FASTCONV_CUDA=1, or use the backend torch"):
        device.find("cuda")
    assert device.find("cuda", "torch") == torch.device("cuda:1")
    monkeypatch.setattr(device, "has_cuda", lambda: True)
    assert device.find("cuda") == torch.device("cuda:1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="used by one process"):
        device.find("cuda")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("command", ["train", "bench"])
def test_a_missing_gpu_is_reported_in_one_line(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--device", "cuda"]) == 2
    output = capsys.readouterr()
    assert output.err.startswith("fastconv: cannot use a GPU: torch ")
    assert (output.out, output.err.count("\n")) == ("", 1)


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        (["train"], "use --backend torch"),
        (["train", "--compare"], "use --backend torch without --compare"),
        (["bench"], "compare it with PyTorch on the CPU (--device cpu)"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_build_without_cuda_gets_advice_that_fits_the_command(
    arguments: list[str], advice: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(device, "has_cuda", lambda: False)
    assert main([*arguments, "--device", "cuda"]) == 2
    built = "fastconv: fastconv is built without CUDA: build it with FASTCONV_CUDA=1, or "
    assert capsys.readouterr().err == f"{built}{advice}\n"


def test_show_config_says_whether_there_is_cuda() -> None:
    (line,) = [line for line in fastconv.show_config().splitlines() if line.startswith("CUDA ")]
    assert line.startswith("CUDA no") != has_cuda()


def test_a_step_is_recorded_after_three_calls_and_other_shapes_run_unrecorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace CUDA's streams and graphs by fakes. A fake graph replays by calling the step on the recorded tensors."""
    calls: list[str] = []
    doing = "alone"

    def step(images: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        calls.append(f"{doing} {len(images)}")
        return images.sum(), images * target.view(-1, 1)

    graphed = cuda_graph.GraphedStep(step)

    @contextmanager
    def record(graph: Graph) -> Iterator[None]:
        nonlocal doing
        doing = "recorded"
        yield
        doing = "alone"

    class Graph:
        def replay(self) -> None:
            nonlocal doing
            doing = "replayed"
            for old, new in zip(graphed._results, step(graphed._images, graphed._target), strict=True):
                old.copy_(new)
            doing = "alone"

    class Stream:
        def wait_stream(self, other: Stream) -> None: ...

    fakes = {"Stream": Stream, "current_stream": Stream, "stream": nullcontext, "graph": record, "CUDAGraph": Graph}
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    for count in [4, 4, 2, 4, 4, 2, 4]:
        images, target = torch.randn(count, 3), torch.arange(float(count))
        total, product = graphed(images, target)
        assert torch.equal(total, images.sum())
        assert torch.equal(product, images * target.view(-1, 1))
    alone = ["alone 4", "alone 4", "alone 2", "alone 4"]
    assert calls == [*alone, "recorded 4", "replayed 4", "alone 2", "replayed 4"]
