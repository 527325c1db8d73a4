"""The option --device: its errors, and where the images of a training are. These tests need no GPU."""

from __future__ import annotations

import pytest
import torch

import fastconv
from fastconv._ops.library import has_cuda
from fastconv.classifier import device
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


def test_images_that_take_more_than_half_of_the_free_memory_stay_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[torch.device] = []
    move = torch.Tensor.to

    def to(tensor: torch.Tensor, target: torch.dtype | torch.device) -> torch.Tensor:
        if isinstance(target, torch.dtype):
            return move(tensor, target)
        moved.append(target)
        return tensor

    monkeypatch.setattr(torch.Tensor, "to", to)
    images, labels, gpu = torch.rand(2, 1, 5, 5), torch.arange(2), torch.device("cuda:0")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2 * images.nbytes, 10**9))
    assert device.place(images, labels, gpu, torch.float32) == (images, labels)
    assert moved == [gpu, gpu]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2 * images.nbytes - 1, 10**9))
    placed, _ = device.place(images, labels, gpu, torch.float32)
    assert (placed.device.type, len(moved)) == ("cpu", 2)
    assert device.place(images, labels, torch.device("cpu"), torch.float64)[0].dtype is torch.float64
