"""Types with their own ``__torch_function__`` get PyTorch's functions from every door."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.profiler import profile

import fastconv

DOORS: dict[str, Callable[[nn.Module, Any], Any]] = {
    "convert": lambda model, x: fastconv.convert(model)(x),
    "convert without fusion": lambda model, x: fastconv.convert(model, fuse=False)(x),
    "enabled": fastconv.enabled()(lambda model, x: model(x)),
    "enabled with fusion": fastconv.enabled(fuse=True)(lambda model, x: model(x)),
}
MODELS: dict[str, Callable[[], nn.Module]] = {
    "convolution": lambda: nn.Conv2d(3, 4, 3),
    "convolution, ReLU, pool": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2)),
    "convolution, pool, ReLU": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.ReLU()),
    "convolution, ReLU": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()),
    "pool": lambda: nn.MaxPool2d(2),
    "ReLU": lambda: nn.ReLU(),
    "batch norm, ReLU": lambda: nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()),
    "block": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval(),
}
FUNCTIONS = (torch.conv2d, F.relu, F.max_pool2d, F.batch_norm)


class Scaled:
    """No tensor: a value and a factor, as in PyTorch's guide to its extension. It knows only a few functions."""

    def __init__(self, value: Tensor, factor: float) -> None:
        self.value, self.factor = value, factor

    def dim(self) -> int:
        return self.value.dim()

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in FUNCTIONS:
            return NotImplemented
        (first, *others) = args
        return cls(func(first.value, *others, **(kwargs or {})), first.factor + 1)


class Doubling(Tensor):
    """A tensor with its own version of a few functions."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_function__(func, types, args, kwargs or {})
        return result * 2 if func in FUNCTIONS else result


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("name", MODELS)
def test_a_type_gets_pytorchs_functions(name: str, door: str) -> None:
    model = MODELS[name]()
    original = copy.deepcopy(model)
    x = torch.randn(2, 3, 8, 8)
    found, expected = DOORS[door](model, Scaled(x, 1.0)), original(Scaled(x, 1.0))
    assert found.factor == expected.factor > 1
    torch.testing.assert_close(found.value, expected.value, rtol=1e-4, atol=1e-4)
    found, expected = DOORS[door](model, x.as_subclass(Doubling)), original(x.as_subclass(Doubling))
    assert type(found) is type(expected) is Doubling
    torch.testing.assert_close(found.as_subclass(Tensor), expected.as_subclass(Tensor), rtol=1e-4, atol=1e-4)


class DoublingMode(TorchFunctionMode):
    """A mode with its own version of a few functions."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        return result * 2 if func in FUNCTIONS else result


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("name", MODELS)
def test_a_mode_sees_pytorchs_functions(name: str, door: str) -> None:
    model = MODELS[name]()
    original = copy.deepcopy(model)
    x = torch.randn(2, 3, 8, 8)
    with DoublingMode():
        found, expected = DOORS[door](model, x), original(x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("context", [lambda: torch.device("cpu"), fastconv.enabled])
def test_modes_that_change_no_function_do_not_turn_fastconv_off(context: Callable[[], Any]) -> None:
    model = fastconv.convert(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))
    with context(), profile() as profiled:
        model(torch.randn(2, 3, 8, 8))
    assert "fastconv::conv2d_relu" in [event.key for event in profiled.key_averages()]


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("name", [name for name in MODELS if name != "block"])  # PyTorch's batch norm raises an error
def test_parameters_made_in_inference_mode(name: str, door: str) -> None:
    with torch.inference_mode():
        model = MODELS[name]().eval()
        original = copy.deepcopy(model)
        x = torch.randn(2, 3, 8, 8)
    found, expected = DOORS[door](model, x), original(x)
    assert (found.requires_grad, found.is_inference()) == (expected.requires_grad, expected.is_inference())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    for module in (model, original):  # PyTorch computes some layers, fastconv the others: both raise this error
        if any(True for _ in module.parameters()):
            with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
                DOORS[door](module, torch.randn(2, 3, 8, 8, requires_grad=True))


@pytest.mark.parametrize("door", DOORS)
def test_a_weight_of_such_a_type_gets_pytorchs_functions(door: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    weight = model[0].weight.detach().as_subclass(Doubling)
    del model[0].weight
    model[0].weight = weight
    x = torch.randn(2, 3, 8, 8)
    expected = model(x).as_subclass(Tensor)
    torch.testing.assert_close(DOORS[door](model, x).as_subclass(Tensor), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("door", DOORS)
def test_a_subclass_without_own_rules_is_computed_by_fastconv(door: str) -> None:
    class Named(Tensor):
        pass

    x = torch.randn(2, 3, 8, 8).as_subclass(Named)
    y = DOORS[door](nn.Conv2d(3, 4, 3), x)
    assert type(y) is Named
    assert y.grad_fn is not None
    assert "Convolution" not in y.grad_fn.name()  # PyTorch's is ConvolutionBackward0
