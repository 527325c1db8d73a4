"""The forms in which a program may write a block: functions, methods, subscripts, pools, autocast, several blocks."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import pytest
import torch
from ahead_cases import Forward, Net, compare_program, fused_calls
from torch import Tensor, nn
from torch.nn import functional as F

import fastconv


class Containers(Net):
    """The layers again, in containers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([self.conv, self.bn, self.relu, self.conv2, self.bn2, self.leaky])
        self.named = nn.ModuleDict({"conv": self.conv, "bn": self.bn, "act": self.leaky})
        self.stack = nn.Sequential(self.conv, self.bn, self.relu)
        self.stack2 = nn.Sequential(self.conv2, self.bn2)
        self.both = nn.Sequential(self.stack, self.identity, nn.Sequential(self.stack2, nn.SiLU()))
        self.pairs = [(self.conv, self.bn), (self.conv2, self.bn2)]
        self.hidden = Reversed([self.conv, self.bn, self.bn2])


class Reversed(nn.ModuleList):
    """A list with another order."""

    def __getitem__(self, i: Any) -> Any:
        return super().__getitem__(-1 - i)


def of(layer: Any) -> Forward:
    """A program that applies a function to a batch norm's result."""
    return lambda self, x: layer(self, self.bn(self.conv(x)))


RELU_OF_TENSORS = Tensor.relu
#: Programs, and the activations of the calls of conv2d_inference that compute more than a convolution in evaluation.
FORMS: dict[str, tuple[Forward, list[str]]] = {
    "F.relu": (lambda self, x: F.relu(self.bn(self.conv(x))), ["RELU"]),
    "F.relu, keyword": (lambda self, x: F.relu(self.bn(self.conv(x)), inplace=True), ["RELU"]),
    "F.relu, position": (lambda self, x: F.relu(self.bn(self.conv(x)), True), ["RELU"]),
    "F.relu, variable": (lambda self, x: F.relu(self.bn(self.conv(x)), inplace=self.training), ["NONE"]),
    "F.relu, wrong keyword": (lambda self, x: F.relu(self.bn(self.conv(x)), in_place=True), ["NONE"]),  # type: ignore[call-arg]
    "F.relu, no bool": (lambda self, x: F.relu(self.bn(self.conv(x)), inplace=1), ["NONE"]),  # type: ignore[arg-type]
    "F.relu_": (lambda self, x: F.relu_(self.bn(self.conv(x))), ["RELU"]),
    "torch.relu": (lambda self, x: torch.relu(self.bn(self.conv(x))), ["RELU"]),
    "torch.relu, keyword": (lambda self, x: torch.relu(self.bn(self.conv(x)), out=None), ["NONE"]),  # type: ignore[call-arg]
    "Tensor.relu": (lambda self, x: self.bn(self.conv(x)).relu(), ["RELU"]),
    "Tensor.relu_": (lambda self, x: self.bn(self.conv(x)).relu_(), ["RELU"]),
    "Tensor.relu, argument": (lambda self, x: self.bn(self.conv(x)).relu(True), ["NONE"]),  # type: ignore[call-arg]
    "Tensor.relu, a function": (lambda self, x: RELU_OF_TENSORS(self.bn(self.conv(x))), ["NONE"]),
    "another method": (lambda self, x: self.bn(self.conv(x)).tanh(), ["NONE"]),
    "an attribute": (lambda self, x: self.bn(self.conv(x)).data, ["NONE"]),
    "F.relu6": (lambda self, x: F.relu6(self.bn(self.conv(x))), ["RELU6"]),
    "F.relu6, keyword": (lambda self, x: F.relu6(self.bn(self.conv(x)), inplace=True), ["RELU6"]),
    "F.hardswish": (lambda self, x: F.hardswish(self.bn(self.conv(x)), inplace=True), ["HARDSWISH"]),
    "F.silu": (lambda self, x: F.silu(self.bn(self.conv(x)), inplace=False), ["SILU"]),
    "F.leaky_relu": (lambda self, x: F.leaky_relu(self.bn(self.conv(x))), ["LEAKY_RELU"]),
    "F.leaky_relu, slope": (lambda self, x: F.leaky_relu(self.bn(self.conv(x)), 0.3, True), ["LEAKY_RELU"]),
    "F.leaky_relu, int": (lambda self, x: F.leaky_relu(self.bn(self.conv(x)), negative_slope=2), ["LEAKY_RELU"]),
    "F.leaky_relu, twice": (lambda self, x: F.leaky_relu(self.bn(self.conv(x)), 0.3, negative_slope=2), ["NONE"]),  # type: ignore[misc]
    "F.leaky_relu, many": (lambda self, x: F.leaky_relu(self.bn(self.conv(x)), 0.3, True, 1), ["NONE"]),  # type: ignore[call-arg]
    "F.gelu": (lambda self, x: F.gelu(self.bn(self.conv(x))), ["NONE"]),
    "a layer with an argument": (lambda self, x: self.relu(self.bn(self.conv(x)), True), ["NONE"]),
    "a list": (lambda self, x: self.layers[2](self.layers[1](self.layers[0](x))), ["RELU"]),
    "a list from its end": (lambda self, x: self.layers[-4](self.layers[1](self.layers[-6](x))), ["RELU"]),
    "a list, too far": (lambda self, x: self.layers[99](self.layers[1](self.layers[0](x))), []),
    "a dict": (lambda self, x: self.named["act"](self.named["bn"](self.named["conv"](x))), ["LEAKY_RELU"]),
    "a dict, no name": (lambda self, x: self.named["none"](self.named["bn"](self.named["conv"](x))), []),
    "a Sequential": (lambda self, x: self.stack[2](self.stack[1](self.stack[0](x))), ["RELU"]),
    "a slice": (lambda self, x: self.stack[1:](self.stack[0](x)), []),
    "a list of another order": (lambda self, x: self.relu(self.hidden[1](self.hidden[2](x))), []),
    "tuples": (lambda self, x: self.relu(self.pairs[0][1](self.pairs[0][0](x))), ["RELU"]),
    "a pool": (lambda self, x: F.max_pool2d(F.relu(self.bn(self.conv(x)), inplace=True), 2), ["RELU"]),
    "two blocks": (lambda self, x: self.bn2(self.conv2(self.relu(self.bn(self.conv(x))))), ["RELU", "NONE"]),
    "a Sequential as a step": (lambda self, x: F.silu(self.stack2(self.stack(x))), ["RELU", "SILU"]),
    "Sequentials in a Sequential": (lambda self, x: self.relu(self.both(x)), ["RELU", "SILU"]),
    "a block and another use": (lambda self, x: (self.stack2(y := self.stack(x)), y), ["RELU", "NONE"]),
}


def form(*expected: str) -> Any:
    def add(forward: Forward) -> Forward:
        FORMS[forward.__name__.replace("_", " ")] = forward, list(expected)
        return forward

    return add


@form("RELU", "RELU")
def a_list_in_a_loop(self: Any, x: Tensor) -> Any:
    for i, k in ((0, 1), (3, 4)):
        x = self.layers[i](x)
        x = self.layers[k](x)
        x = self.relu(x)
    return x


@form("NONE")
def the_index_changes(self: Any, x: Tensor) -> Any:
    i = 0
    y = self.layers[i](x)
    y = self.layers[i + 1](y)
    return self.relu(y), self.bn2(self.conv2(x))


@form()
def indices_with_side_effects(self: Any, x: Tensor) -> Any:
    indices = [4, 1]
    y = self.layers[indices.pop()](self.conv(x))
    return self.layers[indices.pop()](self.conv(y))


@form("RELU", "NONE+")
def a_block_and_its_residual(self: Any, x: Tensor) -> Any:
    y = self.conv(x)
    y = self.bn(y)
    y = self.relu(y)
    y = self.conv2(y)
    y = self.bn2(y)
    y += x
    return y * 2


@form("RELU", "NONE+")
def the_result_of_the_first_block_is_added(self: Any, x: Tensor) -> Any:
    y = self.relu(self.bn(self.conv(x)))
    z = self.bn2(self.conv2(y))
    z += y
    return z


@form("RELU", "RELU")
def the_first_block_keeps_a_name(self: Any, x: Tensor) -> Any:
    y = self.relu(self.bn(self.conv(x)))
    z = self.conv2(y)
    z = self.bn2(z)
    z = self.relu(z)
    return y.sum(), z


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return fused_calls(monkeypatch)


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("name", FORMS)
def test_a_form_gives_pytorchs_results(name: str, training: bool) -> None:
    compare_program(FORMS[name][0], training, Containers)


@pytest.mark.parametrize("name", FORMS)
def test_a_form_is_fused(name: str, calls: list[str]) -> None:
    forward, expected = FORMS[name]
    model: Any = type("Own", (Containers,), {"forward": forward})().eval()
    fastconv.convert(model)
    x = torch.randn(2, 3, 5, 5)
    for _ in range(2):
        calls.clear()
        # The other test compares the errors.
        with torch.no_grad(), contextlib.suppress(TypeError, IndexError, KeyError):
            model(x)
        assert calls == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("of", [torch.float32, torch.float64])
def test_autocast_runs_a_block_in_its_dtype(dtype: torch.dtype, of: torch.dtype, calls: list[str]) -> None:
    block = FORMS["a block and its residual"][0]
    for forward in (block, FORMS["two blocks"][0], FORMS["a Sequential as a step"][0]):
        torch.manual_seed(0)
        model = type("Own", (Containers,), {"forward": forward})().to(of).eval()
        original = copy.deepcopy(model)
        fastconv.convert(model)
        x = torch.randn(2, 3, 5, 5, dtype=dtype if of is torch.float32 else of)  # the dtype of the block's result
        for _ in range(2):
            calls.clear()
            with torch.no_grad(), torch.autocast("cpu", dtype):
                y, z = model(x), original(x)
            assert len(calls) == 2
            assert (y.dtype, y.stride()) == (z.dtype, z.stride())
            exact = torch.float64 in (y.dtype, of)
            tolerance = {} if exact else {"rtol": 0.05, "atol": 0.1}
            torch.testing.assert_close(y, z, **tolerance)  # type: ignore[arg-type]


def test_autocast_that_begins_or_ends_between_two_layers_counts(calls: list[str]) -> None:
    def forward(self: Any, x: Tensor) -> Any:
        y = self.conv(x)
        with torch.autocast("cpu", torch.bfloat16):
            y = self.conv2(y)
        return self.bn2(y), y.dtype

    model = type("Own", (Containers,), {"forward": forward})().eval()
    original = copy.deepcopy(model)
    fastconv.convert(model)
    x = torch.randn(2, 3, 5, 5)
    with torch.no_grad():
        (y, dtype), (z, expected) = model(x), original(x)
    assert (dtype, y.dtype) == (expected, z.dtype)
    torch.testing.assert_close(y, z, rtol=0.05, atol=0.1)
