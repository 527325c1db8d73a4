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
def test_fifty_steps_of_sgd_lose_what_pytorch_loses(
    model: type[torch.nn.Module], memory_format: torch.memory_format
) -> None:
    ours, theirs = (m.to(memory_format=memory_format) for m in twins(model))
    a, b = (train(m, lambda p: torch.optim.SGD(p, lr=0.01), 50) for m in (ours, theirs))
    assert len(set(b)) > 40  # it does train
    assert a == pytest.approx(b, abs=1e-3)


@pytest.mark.parametrize("model", MODELS)
def test_five_steps_of_adam_lose_what_pytorch_loses(model: type[torch.nn.Module]) -> None:
    a, b = (train(m, lambda p: torch.optim.Adam(p, fused=True), 5) for m in twins(model))
    assert a == pytest.approx(b, abs=1e-3)


def test_the_networks_are_the_textbooks() -> None:
    assert sum(p.numel() for p in models.MnistCNN().parameters()) == 241_546
    assert list(models.MnistCNN().state_dict())[:2] == ["conv1.weight", "conv1.bias"]
    assert sum(p.numel() for p in models.SimpleCNN().parameters()) == 121_930
    for model in MODELS:
        assert model()(torch.rand(3, 1, 28, 28)).shape == (3, 10)
        assert list(model().state_dict()) == list(model(layers=torch.nn).state_dict())


def test_training_is_bitwise_the_same_for_every_number_of_threads() -> None:
    weights = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        torch.manual_seed(3)
        convolutions = torch.nn.Sequential(
            nn.Conv2d(1, 32, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 3), nn.ReLU()
        )
        optimizer = torch.optim.SGD(convolutions.parameters(), lr=0.01)
        for _ in range(3):
            optimizer.zero_grad()
            convolutions(torch.rand(16, 1, 28, 28)).square().mean().backward()
            optimizer.step()
        weights.append([p.detach().clone() for p in convolutions[3].parameters()])
    for other in weights[1:]:
        assert all(torch.equal(a, b) for a, b in zip(weights[0], other, strict=True))
