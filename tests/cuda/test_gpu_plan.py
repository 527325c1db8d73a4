"""FF, layers, convert and enabled follow the plan for a GPU.

Here the CPU plays an H200, with the emulated operators.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from cases import assert_identical, with_gradients
from torch import Tensor, nn
from torch.nn import functional as F

import fastconv
import fastconv.functional as FF
import fastconv.nn as fnn
from fastconv import _C
from fastconv._ops import gpu

FUSED = "fastconv::conv2d_relu_max_pool2d"
FUSED_BACKWARD = "fastconv::conv2d_relu_max_pool2d_backward"
PASSES = ("forward", "backward_data", "backward_weight")


@pytest.fixture(autouse=True)
def _h200(emulated_operators: None, algorithms_as_measured: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make the CPU's tensors say that they are on an H200, and let the plan decide."""
    _C.set_algorithms({"torch": "measured"})
    for name, value in {"is_cuda": True, "is_cpu": False}.items():
        monkeypatch.setattr(Tensor, name, property(lambda tensor, value=value: value))
    monkeypatch.setattr(gpu, "HAS_CUDA", True)
    monkeypatch.setattr(FF, "HAS_CUDA", True)
    monkeypatch.setattr(gpu, "_capability", lambda device: 90)
    gpu._is_left.cache_clear()
    yield
    gpu._is_left.cache_clear()


def keep(monkeypatch: pytest.MonkeyPatch, *passes: str) -> None:
    """Let a plan keep these passes of every fused operator."""

    class Extension:
        torch_is_allowed = staticmethod(_C.torch_is_allowed)

        @staticmethod
        def plan(pass_: str, *sizes: Any, relu: bool, **options: Any) -> dict[str, Any]:
            return {"algorithm": "own" if relu and pass_ in passes else "torch"}

    monkeypatch.setattr(gpu, "_C", Extension)


def events_of(function: Callable[[], Any]) -> list[str]:
    with torch.profiler.profile(acc_events=True) as profile:
        function()
    return [event.name for event in profile.events()]


def arguments(*size: int, K: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Small integers, so that every order of summation gives the same result."""
    x, w, b = (torch.randint(-3, 4, s).float() for s in (size, (K, size[1], 3, 3), (K,)))
    return tuple(t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t for t in (x, w, b))  # type: ignore[return-value]


def composed(x: Tensor, w: Tensor, b: Tensor | None, pool: int | None) -> Tensor:
    y = F.relu(F.conv2d(x, w, b, padding=1))
    return y if pool is None else F.max_pool2d(y, pool)


def fused(x: Tensor, w: Tensor, b: Tensor | None, pool: int | None) -> Tensor:
    if pool is None:
        return FF.conv2d_relu(x, w, b, padding=1)
    return FF.conv2d_relu_max_pool2d(x, w, b, padding=1, pool_kernel_size=pool)


@pytest.mark.parametrize("pool", [None, 2, 3])
@pytest.mark.parametrize("kept", [c for n in range(4) for c in itertools.combinations(PASSES, n)], ids="+".join)
def test_each_pass_is_computed_by_whom_the_plan_says(
    kept: tuple[str, ...], pool: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(monkeypatch, *kept)
    x, w, b = arguments(2, 4, 9, 8)
    expected = with_gradients(composed, (x, w, b), pool=pool)
    found = []
    events = events_of(lambda: found.extend(with_gradients(fused, (x, w, b), pool=pool)))
    assert_identical(found, expected)
    forward = "fastconv::conv2d_relu" if pool is None else FUSED
    assert events.count(forward) == ("forward" in kept)
    if "forward" in kept:
        assert events.count("aten::convolution_backward") == (len(kept) < 3)
        # One call computes the gradients that are kept, and one the gradient of the convolution for PyTorch.
        assert events.count(f"{forward}_backward") == (len(kept) > 1) + (len(kept) < 3)
    else:
        assert not [event for event in events if event.startswith("fastconv::")]


def test_the_gradient_that_nobody_needs_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    keep(monkeypatch, "forward", "backward_weight")
    x, w, b = arguments(2, 4, 9, 8)
    w.requires_grad_()
    y = fused(x, w, b, 2)
    assert "aten::convolution_backward" not in events_of(lambda: y.sum().backward())


def test_the_first_block_of_mnist_is_fused_and_its_layers_alone_are_not() -> None:
    x, w, b = arguments(33, 1, 28, 28, K=32)
    with torch.no_grad():
        expected = F.max_pool2d(F.relu(F.conv2d(x, w, b)), 2)
        found: list[Tensor] = []
        assert FUSED in events_of(lambda: found.append(FF.conv2d_relu_max_pool2d(x, w, b)))
        assert_identical(found, [expected])
        assert FUSED not in events_of(lambda: FF.conv2d_relu_max_pool2d(x[:8], w, b))  # too small a batch
        assert "fastconv::conv2d" not in events_of(lambda: FF.conv2d(x, w, b))


def test_with_tf32_pytorch_computes_what_it_computes_faster() -> None:
    x, w, _ = arguments(64, 32, 13, 13, K=64)
    geometry = (1, 0, 1, 1)
    pool = (2, None, 0, 1, False)
    assert gpu.is_left(x, w, *geometry, relu=True, pool=pool)
    with torch.backends.cudnn.flags(allow_tf32=False):
        assert not gpu.is_left(x, w, *geometry, relu=True, pool=pool)
        assert gpu.is_left(x.contiguous(), w, *geometry, relu=True, pool=pool)


@pytest.mark.parametrize(("dtype", "left"), [(torch.float16, False), (torch.bfloat16, True)], ids=str)
def test_the_plan_gets_the_dtype_of_autocast(dtype: torch.dtype, left: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: device == "cuda")
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda device: dtype)
    x, w, _ = arguments(64, 32, 13, 13, K=64)
    assert gpu.is_left(x, w, 1, 0, 1, 1, relu=True, pool=(2, None, 0, 1, False)) is left


def test_unusual_calls_are_left_to_pytorch() -> None:
    x, w, _ = arguments(64, 1, 28, 28, K=32)
    pool = ((2, 2), (2, 2), (0, 0), (1, 1), False)
    assert not gpu.is_left(x, w, (1, 1), (0, 0), (1, 1), 1, relu=True, pool=pool)
    for case in [
        (x, w, [1, 1], 0, 1, 1),
        (x, w, 1, "same", 1, 1),
        (x, w, 1, 0, 1, 7),
        (x, w, 1, 0, None, 1),
        (x[0], w, 1, 0, 1, 1),
        (x, None, 1, 0, 1, 1),
    ]:
        assert gpu.is_left(*case, relu=True, pool=pool)
    assert gpu.is_left(x, w, 1, 0, 1, 1, relu=True, pool=(*pool[:4], True))


def in_code(model: nn.Sequential) -> nn.Module:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = model[0], nn.BatchNorm2d(6)

        def forward(self, x: Tensor) -> Tensor:
            return F.max_pool2d(F.relu(self.norm(F.relu(self.conv(x)))), 2)

    return Net()


@pytest.mark.parametrize("build", [lambda model: model, in_code], ids=["sequential", "in code"])
@pytest.mark.parametrize("door", ["convert", "enabled", "enabled(fuse=True)"])
def test_a_model_on_a_gpu_runs_on_pytorchs_operators(build: Callable[[Any], nn.Module], door: str) -> None:
    model = build(nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 2, 3)))
    x = torch.randn(2, 4, 12, 12)
    for mode in (model.train, model.eval):
        mode()
        expected = model(x)
        if door == "convert":
            events = events_of(lambda: fastconv.convert(model)(x).sum().backward())
            found = model(x)
            fastconv.revert(model)
        else:
            with fastconv.enabled(fuse="fuse" in door):
                events = events_of(lambda: model(x).sum().backward())
                found = model(x)
        torch.testing.assert_close(found, expected)
        assert not [event for event in events if event.startswith("fastconv::")]


def test_the_fused_layers_follow_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    block = fnn.ConvReLUMaxPool2d(4, 6, 3)
    sequential = fastconv.convert(nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.MaxPool2d(2)))
    x = torch.randn(2, 4, 12, 12)
    for model in (block, sequential):
        assert FUSED not in events_of(lambda: model(x))  # noqa: B023
        with monkeypatch.context() as patch:
            keep(patch, "forward")
            gpu._is_left.cache_clear()
            assert FUSED in events_of(lambda: model(x))  # noqa: B023
        gpu._is_left.cache_clear()


def test_own_keeps_every_call() -> None:
    _C.set_algorithms({"torch": "never"})
    x, w, b = arguments(2, 4, 9, 8)
    events = events_of(lambda: FF.max_pool2d(FF.relu(FF.conv2d(x, w, b)), 2))
    assert {"fastconv::conv2d", "fastconv::relu", "fastconv::max_pool2d"} <= set(events)
    events = events_of(lambda: with_gradients(fused, (x, w, b), pool=2))
    assert FUSED_BACKWARD in events
    assert "aten::convolution_backward" not in events


def test_a_build_without_cuda_leaves_everything_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    _C.set_algorithms({"torch": "never"})
    for module in (gpu, FF):
        monkeypatch.setattr(module, "HAS_CUDA", False)
    x, w, b = arguments(2, 4, 9, 8)
    assert not [event for event in events_of(lambda: fused(x, w, b, 2)) if event.startswith("fastconv::")]


def test_transforms_and_compilation_use_pytorchs_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    keep(monkeypatch, *PASSES)
    x, w, _ = arguments(2, 4, 9, 8)
    assert not gpu.is_left(x, w, 1, 0, 1, 1, relu=True)
    gradient = torch.func.grad(lambda w: fused(x, w, None, 2).sum())(w)
    expected = torch.func.grad(lambda w: composed(x, w, None, 2).sum())(w)
    torch.testing.assert_close(gradient, expected)

    monkeypatch.setattr(gpu, "_OWN", False)

    @torch.compile(backend="eager", fullgraph=True)
    def leaves(x: Tensor, w: Tensor) -> Tensor:
        return x + 1 if gpu.is_left(x, w, 1, 0, 1, 1, relu=True) else x

    assert torch.equal(leaves(x, w), x + 1)
    torch.compiler.reset()
