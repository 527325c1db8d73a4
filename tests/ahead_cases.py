"""A model for programs that look at intermediate results, and the comparison of a program with and without convert."""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastconv
from fastconv._deferred.tensor import settled
from fastconv._ops.batch_norm import Activation

Forward = Callable[["Net", Tensor], Any]


class Net(nn.Module):
    """Layers for the programs, and what the programs note."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.relu = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(inplace=True)
        self.conv2, self.bn2 = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.identity, self.leaky = nn.Identity(), nn.LeakyReLU(0.3)
        self.norm: nn.Module | None = None
        self.seen: list[Any] = []
        for bn in (self.bn, self.bn2):
            nn.init.normal_(bn.weight), nn.init.normal_(bn.bias), nn.init.normal_(bn.running_mean)  # type: ignore[arg-type]

    def note(self, value: Any) -> Any:
        self.seen.append(value.detach().clone() if isinstance(value, Tensor) else value)
        return value

    def swap(self, x: Tensor) -> Tensor:
        self.bn, self.bn2 = self.bn2, self.bn
        return x


class Swapping:
    """An object whose property changes the model."""

    def __init__(self, net: Net, x: Tensor) -> None:
        self.net, self.x = net, x

    @property
    def image(self) -> Tensor:
        return self.net.swap(self.x)

    def __add__(self, other: Tensor) -> Tensor:
        return other.detach() * 2


def outcome(model: nn.Module, x: Tensor, grad: bool) -> list[Any]:
    """Call the model. Return the results, or the error, and what else the program can see."""
    strides: list[Any] = []
    try:
        result = model(x)
        results = list(result) if isinstance(result, list | tuple) else [result]
        strides += [y.stride() for y in results if isinstance(y, Tensor) and y.layout is torch.strided]
        losses = [y.square().sum() for y in results if isinstance(y, Tensor) and y.requires_grad and grad]
        if losses:
            leaves = [x, *model.parameters()]
            results += torch.autograd.grad(sum(losses), leaves, allow_unused=True)  # type: ignore[arg-type]
    except Exception as error:
        results = [type(error), str(error)]
    return [*results, *strides, *getattr(model, "seen", []), *model.state_dict().values()]


def assert_same(found: list[Any], expected: list[Any]) -> None:
    found = settled(found)
    assert list(map(type, found)) == list(map(type, expected)), [f for f in found if not isinstance(f, Tensor)]
    for a, b in zip(found, expected, strict=True):
        if isinstance(a, Tensor):
            assert a.requires_grad == b.requires_grad
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)
        else:
            assert a == b


def compare_program(forward: Forward, training: bool, base: type[Net] = Net) -> None:
    """Compare the results of ``forward`` as the method of a model, with and without convert."""
    torch.manual_seed(0)
    model: nn.Module = type("Own", (base,), {"forward": forward})().double().train(training)
    original = copy.deepcopy(model)
    fastconv.convert(model)
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    for i in range(5 if training else 3):  # in training, convolutions at first return Deferred results
        with contextlib.nullcontext() if training else torch.inference_mode(i == 2), torch.set_grad_enabled(training):
            found, expected = (outcome(m, x.clone().requires_grad_(training), training) for m in (model, original))
        assert_same(found, expected)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.relu = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU()
        self.conv2, self.bn2, self.act = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU6()
        self.tail = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv(x)
        out = self.bn(out)
        out = self.relu(out)
        out = self.conv2(out)
        out = F.leaky_relu(self.bn2(out))
        out = self.tail(out)
        out += x
        return self.act(out)


def two_blocks() -> nn.Sequential:
    torch.manual_seed(1)
    model = nn.Sequential(Block(), Block(), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.SiLU()).double()
    for bn in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        for tensor in (bn.weight, bn.bias, bn.running_mean):
            nn.init.normal_(tensor)  # type: ignore[arg-type]
    return model


Change = Callable[[Any, list[Any]], Any]


def compare(change: Change, training: bool, make: Callable[[], nn.Module] = two_blocks) -> None:
    """Compare a converted model with the original, before and after a change.

    ``change(model, seen)`` may return a context or a model.
    """
    models = [make().train(training), make().train(training)]
    fastconv.convert(models[0])
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    results: list[list[Any]] = [[], []]
    with torch.set_grad_enabled(training):
        for model, into in zip(models, results, strict=True):
            for _ in range(4):
                into += outcome(model, x.clone().requires_grad_(training), training)
            seen: list[Any] = []
            changed = change(model, seen)
            is_context = hasattr(changed, "__enter__")
            called = changed if isinstance(changed, nn.Module) else model
            with changed if is_context else contextlib.nullcontext():
                for _ in range(2):
                    into += outcome(called, x.clone().requires_grad_(training), training)
            into += seen
    assert_same(*results)


def note(seen: list[Any], value: Any) -> None:
    seen += [t.detach().clone() for t in (value if isinstance(value, tuple) else (value,)) if t is not None]


def fused_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note the activations of the calls that compute more than one layer: conv2d_inference, or batch_norm in training.

    A "+" says that the call adds a residual.
    """
    fusion = sys.modules["fastconv._ahead.fusion"]
    noted: list[str] = []

    def inference(*args: Any) -> Tensor:
        noted.append(Activation(args[-2]).name + "+" * (args[7] is not None))
        return operator(*args)  # type: ignore[no-any-return]

    def batch_norm(*args: Any) -> Tensor:
        if args[-1] or args[3] is not None:
            noted.append(Activation(args[-1]).name + "+" * (args[3] is not None))
        return original(*args)  # type: ignore[no-any-return]

    operator, original = fusion._conv2d_inference, fusion._batch_norm.batch_norm
    monkeypatch.setattr(fusion, "_conv2d_inference", inference)
    monkeypatch.setattr(fusion._batch_norm, "batch_norm", batch_norm)
    return noted
