from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from fastconv import models, nn

MODELS = [models.MnistCNN, models.SimpleCNN]
Losses = list[float]


def train(model: torch.nn.Module, make: Callable[..., torch.optim.Optimizer], steps: int) -> Losses:
    torch.manual_seed(0)
    images, labels = torch.rand(steps, 64, 1, 28, 28), torch.randint(10, (steps, 64))
    optimizer = make(model.parameters())
    losses = []
    for x, y in zip(images, labels, strict=True):
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def twins(model: type[torch.nn.Module]) -> tuple[torch.nn.Module, torch.nn.Module]:
    ours, theirs = model(layers=nn), model(layers=torch.nn)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_fifty_steps_of_sgd_have_pytorchs_losses(
    model: type[torch.nn.Module], memory_format: torch.memory_format
) -> None:
    ours, theirs = (m.to(memory_format=memory_format) for m in twins(model))
    a, b = (train(m, lambda p: torch.optim.SGD(p, lr=0.01), 50) for m in (ours, theirs))
    assert len(set(b)) > 40  # the loss does change
    assert a == pytest.approx(b, abs=1e-3)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-13)], ids=str)
def test_logits_and_gradients_are_pytorchs(
    model: type[torch.nn.Module], memory_format: torch.memory_format, dtype: torch.dtype, tolerance: float, level: str
) -> None:
    """There are few images, so that no maximum and no sign depends on rounding."""
    ours, theirs = (m.to(dtype=dtype, memory_format=memory_format) for m in twins(model))
    images, labels = torch.rand(4, 1, 28, 28, dtype=dtype), torch.randint(10, (4,))
    logits = [m(images) for m in (ours, theirs)]
    torch.testing.assert_close(*logits, rtol=tolerance, atol=tolerance)
    gradients = [
        torch.autograd.grad(F.cross_entropy(y, labels), list(m.parameters()))
        for y, m in zip(logits, (ours, theirs), strict=True)
    ]
    torch.testing.assert_close(*gradients, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("model", MODELS)
def test_a_layer_saves_only_input_weight_and_bytes_for_backward(model: type[torch.nn.Module]) -> None:
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        model().conv1(torch.rand(2, 1, 28, 28))
    assert [t.dtype for t in saved] == [torch.float32, torch.float32, torch.uint8]
    assert saved[2].shape == (2, 32, 13, 13)


@pytest.mark.parametrize("model", MODELS)
def test_five_steps_of_adam_have_pytorchs_losses(model: type[torch.nn.Module]) -> None:
    a, b = (train(m, lambda p: torch.optim.Adam(p, fused=True), 5) for m in twins(model))
    assert a == pytest.approx(b, abs=1e-3)


def test_the_networks_have_the_documented_layers_and_sizes() -> None:
    assert sum(p.numel() for p in models.MnistCNN().parameters()) == 241_546
    layers = ("conv1", "conv2", "conv3", "dense1", "dense2")
    assert list(models.MnistCNN().state_dict()) == [
        f"{layer}.{name}" for layer in layers for name in ("weight", "bias")
    ]
    assert sum(p.numel() for p in models.SimpleCNN().parameters()) == 121_930
    for model in MODELS:
        assert model()(torch.rand(3, 1, 28, 28)).shape == (3, 10)
        assert list(model().state_dict()) == list(model(layers=torch.nn).state_dict())


LAYERS = [
    lambda: [nn.Conv2d(1, 32, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 3), nn.ReLU()],
    lambda: [nn.ConvReLUMaxPool2d(1, 32, 3), nn.ConvReLUMaxPool2d(32, 64, 3), nn.ConvReLU2d(64, 128, 3)],
]


@pytest.mark.parametrize("layers", LAYERS, ids=["composed", "fused"])
def test_training_is_bitwise_the_same_for_every_number_of_threads(layers: Callable[[], list[torch.nn.Module]]) -> None:
    weights = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        torch.manual_seed(3)
        convolutions = torch.nn.Sequential(*layers())
        optimizer = torch.optim.SGD(convolutions.parameters(), lr=0.01)
        for _ in range(3):
            optimizer.zero_grad()
            convolutions(torch.rand(16, 1, 28, 28)).square().mean().backward()
            optimizer.step()
        weights.append([p.detach().clone() for p in convolutions.parameters()])
    for other in weights[1:]:
        assert all(torch.equal(a, b) for a, b in zip(weights[0], other, strict=True))
