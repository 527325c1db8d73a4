"""Blocks of real networks: a layer computes the batch norm, the addition and the activation that follow."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import networks
import torch
from ahead_cases import fused_calls
from torch import Tensor, nn
from torch.nn import functional as F

import fastconv
from fastconv import nn as fnn
from fastconv._ahead import Ahead


def basic_block(downsample: bool = False) -> networks.BasicBlock:
    """torchvision's block of ResNet-18."""
    shortcut = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)) if downsample else None
    return networks.BasicBlock(4, 4, 1, shortcut)


class Kuangliu(nn.Module):
    """A block in the style of a well-known CIFAR repository."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.conv2(out)
        out = self.bn2(out) + x
        return F.relu(out)


class Conv2dNormActivation(nn.Sequential):
    """torchvision's Sequential of a convolution, a batch norm and an activation."""

    def __init__(self, groups: int = 1, activation: type[nn.Module] | None = nn.ReLU6) -> None:
        layers = [nn.Conv2d(4, 4, 3, padding=1, groups=groups, bias=False), nn.BatchNorm2d(4)]
        super().__init__(*layers, *([] if activation is None else [activation()]))


class InvertedResidual(nn.Module):
    """torchvision's block of MobileNetV2."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            Conv2dNormActivation(), Conv2dNormActivation(4), nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)  # type: ignore[no-any-return]


class ConvLayer(nn.Module):
    """The layer of MobileNet in transformers."""

    def __init__(self, normalised: bool = True, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(4, 4, 1)
        self.normalization = nn.BatchNorm2d(4) if normalised else None
        self.activation = activation

    def forward(self, features: Tensor) -> Tensor:
        features = self.convolution(features)
        if self.normalization is not None:
            features = self.normalization(features)
        if self.activation is not None:
            features = self.activation(features)
        return features


class Stages(nn.Module):
    """Layers called in a loop, and layers that are modules in other modules."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList([ConvLayer(activation=nn.Hardswish()), ConvLayer(activation=nn.LeakyReLU(0.2))])
        self.inner = nn.ModuleDict({"a": ConvLayer()})
        self.last = ConvLayer()
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            x = stage(x)
        x = self.inner["a"](x)
        x = self.last(x)
        return self.act(x)  # type: ignore[no-any-return]


def mixed() -> nn.Sequential:
    """A Sequential that becomes fastconv's, because of its first three layers."""
    first = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.MaxPool2d(1))
    return nn.Sequential(first, nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Identity(), nn.SiLU())


#: For each model: the activations of the fused convolutions in evaluation, "+" if with a residual; in training, the
#: number of batch norms that compute more. (In "functions", one batch norm cannot know what F.relu was before the
#: convolution ran, which is its argument.)
MODELS: dict[str, tuple[Callable[[], nn.Module], list[str], int]] = {
    "BasicBlock": (basic_block, ["RELU", "RELU+"], 2),
    "BasicBlock with downsampling": (lambda: basic_block(True), ["RELU", "NONE", "NONE"], 1),
    "functions": (Kuangliu, ["RELU", "RELU+"], 1),
    "InvertedResidual": (InvertedResidual, ["RELU6", "RELU6", "NONE+"], 2),
    "ConvLayer": (lambda: ConvLayer(activation=nn.ReLU()), ["RELU"], 1),
    "ConvLayer without an activation": (ConvLayer, ["NONE"], 0),
    "ConvLayer without a batch norm": (lambda: ConvLayer(False, nn.SiLU()), ["SILU"], 0),
    "stages": (Stages, ["HARDSWISH", "LEAKY_RELU", "NONE", "SILU"], 0),
    "nested": (lambda: nn.Sequential(nn.Sequential(ConvLayer()), nn.Identity(), nn.ReLU6()), ["RELU6"], 1),
    "mixed": (mixed, ["SILU"], 0),
    "ReLU6 with other limits": (lambda: hardtanh(ConvLayer(activation=nn.ReLU6())), ["NONE"], 0),
    "hooked": (lambda: hooked(ConvLayer(activation=nn.ReLU())), ["NONE"], 0),
}


def hardtanh(model: Any) -> nn.Module:
    model.activation.max_val = 3.0
    return model  # type: ignore[no-any-return]


def hooked(model: Any) -> nn.Module:
    model.activation.register_forward_pre_hook(lambda module, args: None)
    return model  # type: ignore[no-any-return]


def converted(make: Callable[[], nn.Module], training: bool) -> tuple[nn.Module, nn.Module]:
    """Return the model, converted and not, with random batch norms."""
    model = make().double().train(training)
    for bn in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        for tensor in (bn.weight, bn.bias, bn.running_mean):
            nn.init.normal_(tensor)  # type: ignore[arg-type]
    original = copy.deepcopy(model)
    return fastconv.convert(model), original


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return fused_calls(monkeypatch)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_a_block_is_fused_in_inference(name: str, channels_last: bool, calls: list[str]) -> None:
    make, expected, _ = MODELS[name]
    model, original = converted(make, False)
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    for inference in (False, True):
        calls.clear()
        with torch.inference_mode(inference), torch.no_grad():
            y, z = model(x), original(x)
            assert calls == expected
            assert (type(y), y.stride(), y.requires_grad) == (Tensor, z.stride(), False)
            torch.testing.assert_close(y, z)


@pytest.mark.parametrize("name", MODELS)
def test_a_batch_norm_is_fused_in_training(name: str, calls: list[str]) -> None:
    make, _, expected = MODELS[name]
    model, original = converted(make, True)
    for _ in range(5):  # the first results of convolutions are Deferred
        x = torch.randn(2, 4, 6, 6, dtype=torch.float64, requires_grad=True)
        calls.clear()
        losses = [m(x).square().sum() for m in (model, original)]
        fused = sum(not call.startswith("NONE") for call in calls)
        grads = [
            torch.autograd.grad(loss, [x, *m.parameters()]) for loss, m in zip(losses, (model, original), strict=True)
        ]
        torch.testing.assert_close(grads[0], grads[1])
    assert fused == expected
    torch.testing.assert_close(list(model.state_dict().values()), list(original.state_dict().values()))


def test_a_frozen_batch_norm_is_fused_with_a_gradient(calls: list[str]) -> None:
    model, original = converted(basic_block, False)
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64, requires_grad=True)
    for _ in range(4):
        calls.clear()
        grads = [torch.autograd.grad(m(x).square().sum(), [x, *m.parameters()]) for m in (model, original)]
        torch.testing.assert_close(*grads)
    assert calls == ["RELU", "RELU+", "RELU"]  # At last, backward computes the input of conv2 again.


def test_nothing_is_fused_without_fuse(calls: list[str]) -> None:
    model = fastconv.convert(basic_block().eval(), fuse=False)
    with torch.no_grad():
        model(torch.randn(2, 4, 6, 6))
    assert calls == []


def test_a_change_of_a_parameter_or_buffer_takes_effect_at_the_next_call(calls: list[str]) -> None:
    model, original = converted(basic_block, False)
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        for m in (model, original):
            m(x)
            for tensor in m.state_dict().values():
                tensor.mul_(2)
            m.bn1.running_var = torch.full((4,), 0.5, dtype=torch.float64)  # type: ignore[union-attr, assignment]
        torch.testing.assert_close(model(x), original(x))
    assert calls == ["RELU", "RELU+"] * 2


def test_a_program_that_is_traced_sees_every_layer(calls: list[str]) -> None:
    model, _ = converted(basic_block, False)
    set_back = sys.gettrace()
    sys.settrace(lambda *args: None)
    try:
        with torch.no_grad():
            model(torch.randn(2, 4, 6, 6, dtype=torch.float64))
    finally:
        sys.settrace(set_back)
    assert calls == []


def test_a_function_that_cannot_follow_raises_an_error() -> None:
    with pytest.raises(RuntimeError, match="fastconv expected no call of"):
        torch.tanh(Ahead(torch.zeros(1), 2))  # type: ignore[arg-type]


def test_activations_compute_alone_what_pytorchs_compute() -> None:
    x = torch.linspace(-8, 8, 33)
    for name in ("ReLU", "ReLU6", "LeakyReLU", "Hardswish", "SiLU"):
        torch.testing.assert_close(getattr(fnn, name)()(x), getattr(nn, name)()(x))
