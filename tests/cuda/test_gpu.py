"""Tests that need a GPU: streams, graphs, several devices, autograd, training. Without a GPU they are deselected."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import CONV2D, FUSED, MAX_POOL2D, Conv2dCase, FusedCase, Pool2dCase, composed, conv, with_gradients
from devices import FLOATING
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

import fastconv.functional as FF
from fastconv.classifier import Classifier, cuda_graph
from fastconv.classifier.config import TrainingConfig
from fastconv.classifier.fit import Totals, Training

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
#: Relative to the largest value of the result. Sums have up to a thousand terms.
TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


def on_gpu(tensors: tuple[Tensor | None, ...], dtype: torch.dtype) -> tuple[Tensor | None, ...]:
    return tuple(None if t is None else t.to("cuda", dtype) for t in tensors)


def assert_equal_to(expected: list[Tensor], results: list[Tensor], dtype: torch.dtype) -> None:
    for mine, other in zip(results, expected, strict=True):
        assert mine.is_cuda
        assert mine.dtype == dtype
        scale = float(other.abs().max()) if other.numel() else 1.0
        torch.testing.assert_close(mine.cpu().double(), other, rtol=0, atol=TOLERANCE[dtype] * max(scale, 1.0))


#: All three passes of float32 use the largest tile.
LARGE = conv(1, 128, 128, 128, 128, 3, 3, padding=1)


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("case", [*CONV2D, LARGE], ids=str)
def test_conv2d_and_its_gradients_are_those_of_the_cpu(case: Conv2dCase, dtype: torch.dtype) -> None:
    tensors = case.integers(torch.float64)  # exact in every type, so only sums may be rounded
    expected = with_gradients(F.conv2d, tensors, **case.arguments)
    assert_equal_to(expected, with_gradients(FF.conv2d, on_gpu(tensors, dtype), **case.arguments), dtype)


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("case", FUSED, ids=str)
def test_fused_convolutions_and_their_gradients_are_those_of_the_cpu(case: FusedCase, dtype: torch.dtype) -> None:
    tensors = case.conv.integers(torch.float64)
    expected = with_gradients(composed, tensors, **case.arguments)
    assert_equal_to(expected, with_gradients(case.function, on_gpu(tensors, dtype), **case.arguments), dtype)


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("case", MAX_POOL2D, ids=str)
def test_max_pool2d_and_its_gradient_are_those_of_the_cpu(case: Pool2dCase, dtype: torch.dtype) -> None:
    x = case.tensor(torch.float64)
    expected = with_gradients(F.max_pool2d, (x,), **case.arguments)
    assert_equal_to(expected, with_gradients(FF.max_pool2d, on_gpu((x,), dtype), **case.arguments), dtype)


OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "conv2d": lambda x, w: FF.conv2d(x, w, padding=1),
    "conv2d_relu": lambda x, w: FF.conv2d_relu(x, w),
    "conv2d_relu_max_pool2d": lambda x, w: FF.conv2d_relu_max_pool2d(x, w),
    "max_pool2d": lambda x, w: FF.max_pool2d(x, 2) + w.sum() * 0,  # type: ignore[operator]
    "relu": lambda x, w: FF.relu(x) + w.sum() * 0,
}
every_operation = pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)


def inputs(device: str = "cuda") -> tuple[Tensor, Tensor]:
    x, w = torch.randn(8, 16, 20, 20), torch.randn(32, 16, 3, 3)
    return x.to(device).requires_grad_(), w.to(device).requires_grad_()


def step(operation: Callable[[Tensor, Tensor], Tensor], x: Tensor, w: Tensor) -> list[Tensor]:
    y = operation(x, w)
    return [y.detach(), *torch.autograd.grad(y, (x, w), torch.ones_like(y))]


@every_operation
def test_operators_run_on_the_current_stream(operation: Callable[[Tensor, Tensor], Tensor]) -> None:
    x, w = inputs()
    expected = step(operation, x, w)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # kernels on another stream would run before this ends
        late = torch.zeros_like(x).copy_(x.detach()).requires_grad_()
        results = step(operation, late, w)
        assert not stream.query()  # no operator waited for the stream
    stream.synchronize()
    for mine, other in zip(results, expected, strict=True):
        assert torch.equal(mine, other)


@every_operation
def test_a_graph_captures_forward_and_backward(operation: Callable[[Tensor, Tensor], Tensor]) -> None:
    x, w = inputs()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step(operation, x, w)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step(operation, x, w)
    with torch.no_grad():
        x.copy_(torch.randn_like(x))
    expected = step(operation, x, w)
    graph.replay()
    for mine, other in zip(results, expected, strict=True):
        assert torch.equal(mine, other)


@every_operation
def test_results_are_bitwise_the_same_in_every_run(operation: Callable[[Tensor, Tensor], Tensor]) -> None:
    x, w = inputs()
    first, *others = (step(operation, x, w) for _ in range(5))
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU or none")
@every_operation
def test_operators_run_where_their_tensors_are(operation: Callable[[Tensor, Tensor], Tensor]) -> None:
    torch.cuda.set_device(0)
    x, w = inputs("cuda:1")
    results = step(operation, x, w)
    assert torch.cuda.current_device() == 0
    expected = step(operation, x.detach().to("cuda:0").requires_grad_(), w.detach().to("cuda:0").requires_grad_())
    for mine, other in zip(results, expected, strict=True):
        assert mine.device == torch.device("cuda:1")
        assert torch.equal(mine.cpu(), other.cpu())


def test_tensors_on_two_devices_raise_an_error() -> None:
    x, w = inputs()
    with pytest.raises(RuntimeError):
        FF.conv2d(x, w.detach().cpu())
    with pytest.raises(RuntimeError, match="same device"):
        torch.ops.fastconv.conv2d(x, w.detach().cpu(), None, (1, 1), (0, 0), (1, 1), 1)


def test_a_fused_forward_runs_only_fastconvs_kernels() -> None:
    x, w = inputs()
    x, w = (t.detach().contiguous(memory_format=torch.channels_last).requires_grad_() for t in (x, w))
    FF.conv2d_relu_max_pool2d(x, w).sum().backward()
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as record:
        y = FF.conv2d_relu_max_pool2d(x, w)
        torch.cuda.synchronize()
    names = [event.name for event in record.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    assert names
    assert all("fastconv" in name for name in names), names
    assert y.is_cuda


@pytest.mark.parametrize("augment", ["none", "shift", "affine", "flip"])
@pytest.mark.parametrize("model", ["mnist-cnn", "conv8, bn, pool, dense16, dropout.5"])
@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd", "rmsprop"])
def test_training_with_cuda_graphs_gives_the_weights_of_training_without(
    optimizer: str, model: str, augment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels = torch.rand(200, 1, 28, 28), torch.arange(200) % 10
    settings: dict[str, Any] = {"model": model, "optimizer": optimizer, "augment": augment, "schedule": "one-cycle"}

    def train() -> list[Tensor]:
        training = Training(images, labels, TrainingConfig(epochs=2, batch_size=32, device="cuda", **settings))
        training.run()
        assert (training._step._graph is not None) == (cuda_graph._STEPS_BEFORE == 3)  # type: ignore[attr-defined]
        return [p.detach().cpu() for p in training.model.parameters()]

    graphed = train()
    monkeypatch.setattr(cuda_graph, "_STEPS_BEFORE", 10**9)
    for mine, other in zip(graphed, train(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


def test_a_changed_rate_a_frozen_layer_and_gradients_are_those_of_training_without_graphs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images, labels = torch.rand(200, 1, 28, 28), torch.arange(200) % 10

    def train() -> list[Tensor]:
        training = Training(images, labels, TrainingConfig(epochs=4, batch_size=16, device="cuda"))
        gradients = []

        def change(epoch: int, totals: Totals) -> None:
            if training.steps == 5 and epoch == 2:
                training._optimizer.param_groups[0]["lr"] = 1e-2
            if training.steps == 5 and epoch == 3:
                training.model.get_submodule("conv1").requires_grad_(False)
            gradients.append([p.grad.cpu() for p in training.model.parameters() if p.grad is not None])

        training.run(change)
        return [*(p.detach().cpu() for p in training.model.parameters()), *gradients[15], *gradients[25]]

    graphed = train()
    monkeypatch.setattr(cuda_graph, "_STEPS_BEFORE", 10**9)
    for mine, other in zip(graphed, train(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4)


class Reading(torch.nn.Linear):
    """A layer of torch.nn, by its name, that reads a value from the GPU. A graph cannot record that."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * float(input.sum() >= 0)


def test_a_network_that_reads_from_the_gpu_is_trained_without_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reading, "__module__", "torch.nn")
    model = torch.nn.Sequential(torch.nn.Flatten(), Reading(144, 10))
    classifier = Classifier(model, (1, 12, 12), 10, "torch").compile(device="cuda")
    images, labels = torch.rand(200, 1, 12, 12), torch.arange(200) % 10
    with pytest.warns(UserWarning, match="its recording failed"):
        history = classifier.fit(images, labels, epochs=3, verbose=0)
    assert history[-1].loss < history[0].loss


def test_steps_with_the_images_on_the_gpu_do_not_wait_for_it() -> None:
    """PyTorch warns if a call of the step waits. The end of the epoch waits once for the sums."""
    images, labels = torch.rand(640, 1, 28, 28), torch.arange(640) % 10
    training = Training(images, labels, TrainingConfig(epochs=3, validation_split=0.0, device="cuda"))

    def watch(epoch: int, totals: Totals) -> None:
        if epoch == 2 and training.steps in (2, 8):
            torch.cuda.set_sync_debug_mode("error" if training.steps == 2 else "default")

    try:
        training.run(watch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(training.history) == 3


def test_training_on_the_gpu_matches_the_cpu_and_can_be_resumed() -> None:
    images, labels = torch.rand(200, 1, 28, 28), torch.arange(200) % 10
    results = []
    for device in ("cpu", "cuda"):
        config = TrainingConfig(epochs=2, device=device)
        first = Training(images, labels, config)
        first.run(on_epoch=lambda result, training=first: training.stop())  # type: ignore[misc]
        second = Training(images, labels, config)
        second.load_state_dict(first.state_dict())
        second.run()
        results.append([result.loss for result in second.history])
    assert results[0] == pytest.approx(results[1], rel=1e-3)


@pytest.mark.filterwarnings("ignore:the training step runs without a CUDA graph:UserWarning")
def test_a_saved_classifier_continues_on_the_gpu(tmp_path: Path) -> None:
    """The metrics of the training images need the outputs of each step, which a CUDA graph does not return."""

    def top1(probabilities: Tensor, labels: Tensor) -> Tensor:
        return (probabilities.argmax(1) == labels).double().mean()

    images, labels = torch.rand(96, 1, 12, 12), torch.arange(96) % 2
    classifier = Classifier("conv4, pool, dense8", (1, 12, 12), 2, "torch").compile(device="cuda", metrics=[top1])
    history = classifier.fit(images, labels, epochs=2, verbose=0)
    assert history.history["top1"] == history.history["accuracy"]
    classifier.save(tmp_path / "model.pt")
    loaded = Classifier.load(tmp_path / "model.pt", metrics=[top1])
    assert classifier.optimizer is not None
    assert loaded.optimizer is not None
    for found, expected in zip(loaded.optimizer.state.values(), classifier.optimizer.state.values(), strict=True):
        assert all(found[name].is_cuda and torch.equal(found[name], expected[name]) for name in expected)
    assert loaded.fit(images, labels, epochs=1, verbose=0)[0].loss < history[0].loss
