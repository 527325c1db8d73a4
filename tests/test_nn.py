from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from cases import with_gradients

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
def test_conv2d_layer_is_torchs_layer(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    torch.manual_seed(1)
    theirs = torch.nn.Conv2d(*args, **kwargs)
    torch.manual_seed(1)
    ours = fnn.Conv2d(*args, **kwargs)
    assert isinstance(ours, torch.nn.Conv2d)
    assert repr(ours) == repr(theirs)
    for mine, other in zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True):
        assert mine[0] == other[0]
        assert torch.equal(mine[1], other[1])
    for size in ((2, args[0], 9, 8), (args[0], 9, 8)):
        x = torch.randn(size, dtype=theirs.weight.dtype)
        for a, b in zip(with_gradients(ours, (x,)), with_gradients(theirs, (x,)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("arguments", [(0, 4, 3), (4, 6, 3, 1, 0, 1, 4), (4, 4, 3, 1, 0, 1, 0), (4, 4, 3, 2, "same")])
def test_conv2d_layer_refuses_what_torchs_refuses(arguments: tuple[Any, ...]) -> None:
    if arguments[0] == 0:  # torch takes it, with a warning
        with pytest.warns(UserWarning, match="zero-element"):
            fnn.Conv2d(*arguments)
        return
    with pytest.raises(ValueError, match=r".") as theirs:
        torch.nn.Conv2d(*arguments)
    with pytest.raises(ValueError, match=r".") as mine:
        fnn.Conv2d(*arguments)
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
def test_max_pool2d_layer_is_torchs_layer(kwargs: dict[str, Any]) -> None:
    ours, theirs = fnn.MaxPool2d(**kwargs), torch.nn.MaxPool2d(**kwargs)
    assert isinstance(ours, torch.nn.MaxPool2d)
    assert repr(ours) == repr(theirs)
    x = torch.randn(2, 3, 9, 8)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=0)


def test_relu_layer_is_torchs_layer() -> None:
    x = torch.randn(3, 4)
    assert repr(fnn.ReLU(inplace=True)) == repr(torch.nn.ReLU(inplace=True))
    assert torch.equal(fnn.ReLU()(x), x.relu())
    y = x.clone()
    assert fnn.ReLU(inplace=True)(y) is y
    assert torch.equal(y, x.relu())


@pytest.mark.parametrize("layer", [fnn.Conv2d(3, 4, 3), fnn.MaxPool2d(2), fnn.ReLU()], ids=lambda m: type(m).__name__)
def test_layers_can_be_copied_and_pickled(layer: torch.nn.Module) -> None:
    x = torch.randn(1, 3, 8, 8)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert type(twin) is type(layer)
        assert torch.equal(twin(x), layer(x))


def test_a_conv2d_can_be_parametrised_and_hooked() -> None:
    layer = torch.nn.utils.parametrizations.weight_norm(fnn.Conv2d(3, 4, 3))
    seen = []
    layer.register_forward_hook(lambda *_: seen.append(1))
    layer(torch.randn(1, 3, 8, 8)).sum().backward()
    assert seen == [1]
    assert all(p.grad is not None for p in layer.parameters())
