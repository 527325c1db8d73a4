"""A gradient is None where PyTorch's is None, and zeros where PyTorch's are zeros, in first and second derivatives.

Optimizers treat them differently: zeros decay Adam's moments and the weights, and None skips the parameter.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastconv

MODELS: dict[str, Callable[[], nn.Module]] = {
    "conv": lambda: nn.Sequential(nn.Conv2d(2, 3, 3)),
    "conv without bias": lambda: nn.Sequential(nn.Conv2d(2, 3, 3, bias=False)),
    "conv conv": lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.Conv2d(3, 3, 3)),
    "critic": lambda: nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.LeakyReLU(0.2), nn.Conv2d(3, 3, 3), nn.LeakyReLU(0.2), nn.Conv2d(3, 1, 2)
    ),
    "conv relu": lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU()),
    "conv relu conv": lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 3, 3)),
    "conv relu pool": lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.MaxPool2d(2)),
    "conv relu pool conv": lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 3, 3)),
    "conv pool": lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.MaxPool2d(2)),
    "pool": lambda: nn.Sequential(nn.MaxPool2d(2)),
    "relu": lambda: nn.Sequential(nn.ReLU()),
    "pool conv": lambda: nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(2, 2, 2)),
    "relu conv": lambda: nn.Sequential(nn.ReLU(), nn.Conv2d(2, 2, 2)),
}


def first(output: Tensor, x: Tensor, parameters: list[Tensor]) -> Tensor | None:
    return output.square().sum()


def gradient_penalty(output: Tensor, x: Tensor, parameters: list[Tensor]) -> Tensor | None:
    """The penalty of WGAN-GP: the norm of the gradient with respect to the input."""
    (grad,) = torch.autograd.grad(output.sum(), x, create_graph=True)
    return grad.norm()


def penalty_of_a_square(output: Tensor, x: Tensor, parameters: list[Tensor]) -> Tensor | None:
    (grad,) = torch.autograd.grad(output.square().sum(), x, create_graph=True)
    return grad.norm()


def penalty_on_parameters(output: Tensor, x: Tensor, parameters: list[Tensor]) -> Tensor | None:
    if not parameters:
        return None
    grads = torch.autograd.grad(output.sum(), parameters, create_graph=True, allow_unused=True)
    return sum((grad.square().sum() for grad in grads if grad is not None), torch.zeros((), requires_grad=True))


def third(output: Tensor, x: Tensor, parameters: list[Tensor]) -> Tensor | None:
    (grad,) = torch.autograd.grad(output.square().sum(), x, create_graph=True)
    (grad,) = torch.autograd.grad(grad.square().sum(), x, create_graph=True)
    return grad.square().sum()


LOSSES = [first, gradient_penalty, penalty_of_a_square, penalty_on_parameters, third]


def gradients(model: nn.Module, x: Tensor, loss: Any, context: Any) -> dict[str, Tensor | None]:
    model = copy.deepcopy(model)
    x = x.clone().requires_grad_()
    with context:
        value = loss(model(x), x, [p for p in model.parameters() if p.requires_grad])
        if value is not None:
            value.backward()
    return {"input": x.grad, **{name: p.grad for name, p in model.named_parameters()}}


def ways_to_use_fastconv(model: nn.Module) -> Iterator[tuple[str, nn.Module, Any]]:
    yield "convert", fastconv.convert(copy.deepcopy(model)), contextlib.nullcontext()
    yield "convert, fuse=False", fastconv.convert(copy.deepcopy(model), fuse=False), contextlib.nullcontext()
    yield "enabled", model, fastconv.enabled()
    yield "enabled, fuse=True", model, fastconv.enabled(fuse=True)


@pytest.mark.parametrize("frozen", ["nothing", "weight", "bias"])
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_none_or_zeros_where_pytorchs_are(name: str, loss: Any, frozen: str) -> None:
    model = MODELS[name]().double()
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(not key.endswith(frozen))
    x = torch.randn(2, 2, 10, 10, dtype=torch.double)
    expected = gradients(model, x, loss, contextlib.nullcontext())
    for way, ours, context in ways_to_use_fastconv(model):
        for key, grad in gradients(ours, x, loss, context).items():
            theirs = expected[key]
            assert (grad is None) == (theirs is None), (way, key)
            if theirs is not None:
                torch.testing.assert_close(grad, theirs, msg=lambda text, at=(way, key): f"{at}: {text}")


def test_a_gradient_penalty_trains_a_critic_with_adam_as_pytorch_does() -> None:
    plain = MODELS["conv relu pool conv"]().double()
    ours = fastconv.convert(copy.deepcopy(plain))
    for model in (plain, ours):
        torch.manual_seed(0)
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
        for step in range(4):
            x = torch.randn(2, 2, 10, 10, dtype=torch.double, requires_grad=True)
            output = model(x)
            loss = gradient_penalty(output, x, [])
            optimizer.zero_grad()
            (loss if step else output.sum()).backward()
            optimizer.step()
    for mine, theirs in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


def changed_in_place(output: Tensor, x: Tensor, parameters: list[Tensor]) -> Tensor | None:
    inputs = [x, *parameters]
    grads = torch.autograd.grad(output.square().sum(), inputs, create_graph=True, allow_unused=True)
    return sum((grad.mul_(2).clamp_(max=9).square().sum() for grad in grads if grad is not None), torch.zeros(()))


@pytest.mark.parametrize("name", [*MODELS, "conv batch norm relu"])
def test_gradients_of_a_graph_may_be_changed_in_place(name: str) -> None:
    block = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU())
    model = (MODELS[name]() if name in MODELS else block).double()
    x = torch.randn(2, 2, 10, 10, dtype=torch.double)
    expected = gradients(model, x, changed_in_place, contextlib.nullcontext())
    for way, ours, context in ways_to_use_fastconv(model):
        for key, grad in gradients(ours, x, changed_in_place, context).items():
            torch.testing.assert_close(grad, expected[key], msg=lambda text, at=(way, key): f"{at}: {text}")


class NoGradient(torch.autograd.Function):
    """The identity, without a gradient."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        return input.clone()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> None:
        return None


def test_a_linear_layer_without_a_gradient_gives_none() -> None:
    found = []
    for model in (layer := nn.Linear(4, 8), fastconv.convert(copy.deepcopy(layer))):
        x = torch.randn(3, 4, requires_grad=True)
        (NoGradient.apply(model(x)).sum() + x.sum()).backward()  # type: ignore[no-untyped-call]
        found.append([p.grad is None for p in model.parameters()])
    assert found == [[True, True]] * 2
