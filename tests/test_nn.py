from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import pytest
import torch
from cases import assert_identical, with_gradients

from fastconv import models
from fastconv import nn as fnn

CONV_ARGUMENTS: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((3, 8, 3), {}),
    ((3, 8, (3, 2)), {"stride": (2, 1), "padding": (1, 0), "bias": False}),
    ((4, 8, 3), {"groups": 2, "dilation": 2, "padding": "same"}),
    ((4, 8, 3), {"padding": "valid", "dtype": torch.float64}),
    *[((4, 6, 3), {"padding": (2, 1), "padding_mode": mode}) for mode in ("zeros", "reflect", "replicate", "circular")],
    ((4, 6, (3, 5)), {"padding": "same", "padding_mode": "reflect"}),
]


@pytest.mark.parametrize(("args", "kwargs"), CONV_ARGUMENTS, ids=str)
def test_conv2d_layer_equals_torchs_layer(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    torch.manual_seed(1)
    theirs = torch.nn.Conv2d(*args, **kwargs)
    torch.manual_seed(1)
    ours = fnn.Conv2d(*args, **kwargs)
    assert isinstance(ours, torch.nn.Conv2d)
    assert repr(ours) == f"fastconv.{theirs!r}"
    for mine, other in zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True):
        assert mine[0] == other[0]
        assert torch.equal(mine[1], other[1])
    for size in ((2, args[0], 9, 8), (args[0], 9, 8)):
        x = torch.randn(size, dtype=theirs.weight.dtype)
        for a, b in zip(with_gradients(ours, (x,)), with_gradients(theirs, (x,)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


POOL_ARGUMENTS: list[dict[str, Any]] = [
    {},
    {"kernel_size": 3},
    {"kernel_size": (3, 2), "stride": 2, "padding": 1},
    {"kernel_size": 2, "stride": (1, 2), "ceil_mode": True},
    {"kernel_size": 2, "dilation": 2, "padding": (0, 1)},
]


def fused_layer(pool: dict[str, Any] | None, *args: Any, **kwargs: Any) -> torch.nn.Module:
    """ConvReLUMaxPool2d, or ConvReLU2d if there is no pool."""
    if pool is None:
        return fnn.ConvReLU2d(*args, **kwargs)
    return fnn.ConvReLUMaxPool2d(*args, **{f"pool_{name}": value for name, value in pool.items()}, **kwargs)


@pytest.mark.parametrize("pool", [None, *POOL_ARGUMENTS], ids=str)
@pytest.mark.parametrize(("args", "kwargs"), CONV_ARGUMENTS, ids=str)
def test_fused_layers_equal_torchs_layers_in_sequence(
    args: tuple[Any, ...], kwargs: dict[str, Any], pool: dict[str, Any] | None
) -> None:
    layers = [torch.nn.Conv2d(*args, **kwargs), torch.nn.ReLU()]
    if pool is not None:
        layers.append(torch.nn.MaxPool2d(**(pool or {"kernel_size": 2})))
    theirs, ours = torch.nn.Sequential(*layers), fused_layer(pool, *args, **kwargs)
    conv = layers[0]
    assert isinstance(ours, torch.nn.Conv2d)
    assert list(ours.state_dict()) == list(conv.state_dict())
    with torch.no_grad():  # small integers: sums are exact, so both libraries choose the same maxima
        for parameter in conv.parameters():
            parameter.copy_(torch.randint(-2, 3, parameter.shape))
    ours.load_state_dict(conv.state_dict())
    for size in ((2, args[0], 9, 8), (args[0], 9, 8)):
        x = torch.randint(-3, 4, size).to(conv.weight.dtype)
        assert_identical(with_gradients(ours, (x,)), with_gradients(theirs, (x,)))
        gradients = [torch.autograd.grad(layer(x).sum(), list(layer.parameters())) for layer in (ours, theirs)]
        assert_identical(*map(list, gradients))


def test_fused_layers_have_the_initial_weights_of_torchs_conv2d() -> None:
    weights = []
    for layer in (torch.nn.Conv2d, fnn.ConvReLU2d, fnn.ConvReLUMaxPool2d):
        torch.manual_seed(1)
        weights.append(layer(3, 8, 3).state_dict())
    for other in weights[1:]:
        assert_identical(list(weights[0].values()), list(other.values()))


def test_repr_of_fused_layers_names_their_arguments() -> None:
    conv = "3, 8, kernel_size=(3, 3), stride=(1, 1)"
    assert repr(fnn.ConvReLU2d(3, 8, 3)) == f"fastconv.ConvReLU2d({conv})"
    for pool, text in [
        ({}, "pool_kernel_size=2, pool_stride=2"),
        ({"kernel_size": 3, "stride": (2, 1)}, "pool_kernel_size=3, pool_stride=(2, 1)"),
        (
            {"kernel_size": (3, 3), "padding": 1, "dilation": (1, 2), "ceil_mode": True},
            "pool_kernel_size=(3, 3), pool_stride=(3, 3), pool_padding=1, pool_dilation=(1, 2), pool_ceil_mode=True",
        ),
    ]:
        assert repr(fused_layer(pool, 3, 8, 3)) == f"fastconv.ConvReLUMaxPool2d({conv}, {text})"


@pytest.mark.parametrize("layer", [fnn.Conv2d, fnn.ConvReLU2d, fnn.ConvReLUMaxPool2d])
@pytest.mark.parametrize("arguments", [(0, 4, 3), (4, 6, 3, 1, 0, 1, 4), (4, 4, 3, 1, 0, 1, 0), (4, 4, 3, 2, "same")])
def test_conv2d_layers_raise_the_errors_of_torchs(layer: type[torch.nn.Conv2d], arguments: tuple[Any, ...]) -> None:
    if arguments[0] == 0:  # torch accepts it with a warning
        with pytest.warns(UserWarning, match="zero-element"):
            layer(*arguments)
        return
    with pytest.raises(ValueError, match=r".") as theirs:
        torch.nn.Conv2d(*arguments)
    with pytest.raises(ValueError, match=r".") as mine:
        layer(*arguments)
    assert str(mine.value) == str(theirs.value)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"kernel_size": 2},
        {"kernel_size": (3, 2), "stride": 2, "padding": 1, "ceil_mode": True},
        {"kernel_size": 2, "return_indices": True},
    ],
    ids=str,
)
def test_max_pool2d_layer_equals_torchs_layer(kwargs: dict[str, Any]) -> None:
    ours, theirs = fnn.MaxPool2d(**kwargs), torch.nn.MaxPool2d(**kwargs)
    assert isinstance(ours, torch.nn.MaxPool2d)
    assert repr(ours) == f"fastconv.{theirs!r}"
    x = torch.randn(2, 3, 9, 8)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=0)


def test_relu_layer_equals_torchs_layer() -> None:
    x = torch.randn(3, 4)
    assert repr(fnn.ReLU(inplace=True)) == f"fastconv.{torch.nn.ReLU(inplace=True)!r}"
    assert torch.equal(fnn.ReLU()(x), x.relu())
    y = x.clone()
    assert fnn.ReLU(inplace=True)(y) is y
    assert torch.equal(y, x.relu())


@pytest.mark.parametrize(
    "layer",
    [
        fnn.Conv2d(3, 4, 3),
        fnn.MaxPool2d(2),
        fnn.ReLU(),
        fnn.ConvReLU2d(3, 4, 3, padding=1, padding_mode="circular"),
        fnn.ConvReLUMaxPool2d(3, 4, 3, pool_kernel_size=3, pool_stride=1, pool_padding=1, pool_ceil_mode=True),
        models.MnistCNN().conv2,
    ],
    ids=lambda m: type(m).__name__,
)
def test_layers_can_be_copied_and_pickled(layer: torch.nn.Module) -> None:
    x = torch.randn(1, getattr(layer, "in_channels", 3), 8, 8)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert type(twin) is type(layer)
        assert repr(twin) == repr(layer)
        assert torch.equal(twin(x), layer(x))


@pytest.mark.parametrize("layer", [fnn.Conv2d, fnn.ConvReLU2d, fnn.ConvReLUMaxPool2d])
def test_a_conv2d_can_be_parametrised_and_hooked(layer: type[torch.nn.Conv2d]) -> None:
    module = torch.nn.utils.parametrizations.weight_norm(layer(3, 4, 3))
    seen = []
    module.register_forward_hook(lambda *_: seen.append(1))
    module(torch.randn(1, 3, 8, 8)).sum().backward()
    assert seen == [1]
    assert all(p.grad is not None for p in module.parameters())


@pytest.mark.parametrize("layer", [fnn.Conv2d, fnn.ConvReLU2d, fnn.ConvReLUMaxPool2d])
def test_conv2d_layers_have_the_signature_of_torchs_layer(layer: type[torch.nn.Conv2d]) -> None:
    theirs, ours = (inspect.signature(kind).parameters for kind in (torch.nn.Conv2d, layer))
    assert [(name, ours[name].default, ours[name].kind) for name in theirs] == [
        (name, parameter.default, parameter.kind) for name, parameter in theirs.items()
    ]
    pools = {name: parameter.kind for name, parameter in ours.items() if name not in theirs}
    assert all(name.startswith("pool_") for name in pools)
    assert set(pools.values()) <= {inspect.Parameter.KEYWORD_ONLY}


def test_a_wrong_argument_of_a_fused_layer_is_refused() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'pool_size'"):
        fnn.ConvReLUMaxPool2d(1, 8, 3, pool_size=2)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'kernel_size'"):
        fnn.ConvReLUMaxPool2d(1, 8)  # type: ignore[call-arg]
