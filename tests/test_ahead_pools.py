"""A converted batch norm computes the ReLU and the max-pool that follow, and no program can tell."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from ahead_cases import Change, Forward, Net, compare, compare_program, note
from torch import Tensor, nn
from torch.nn import functional as F

import fastconv


class Pooled(Net):
    """Layers for the programs, with two pools."""

    def __init__(self) -> None:
        super().__init__()
        self.pool, self.pool2 = nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1, return_indices=True)


PROGRAMS: dict[str, Forward] = {}
#: The programs in which a pool is computed ahead.
POOLED = ["in place", "own stem", "functions", "frozen", "unused variables", "shared pool", "twice"]


def program(forward: Any) -> Any:
    PROGRAMS[forward.__name__.replace("_", " ")] = forward
    return forward


@program
def in_place(self: Any, x: Tensor) -> Any:
    x = self.conv(x)
    return self.pool(self.relu(self.bn(x)))


@program
def own_stem(self: Any, x: Tensor) -> Any:
    self.pool.kernel_size, self.pool.stride, self.pool.padding = (3, 2), 2, (1, 1)
    x = self.conv(x)
    x = self.bn(x)
    x = self.relu(x)
    return self.pool(x)


@program
def functions(self: Any, x: Tensor) -> Any:
    return self.pool(F.relu(self.bn(x)))


@program
def frozen(self: Any, x: Tensor) -> Any:
    self.bn.train(False)
    x = self.conv(x)
    x = self.bn(x)
    return self.pool(self.relu(x))


@program
def unused_variables(self: Any, x: Tensor) -> Any:
    y = self.bn(x)
    z = torch.relu(y)
    out = self.pool(z)
    return out + out.mean()


@program
def shared_pool(self: Any, x: Tensor) -> Any:
    x = self.pool(self.relu(self.bn(x)))
    return self.pool(self.relu(self.bn(self.conv(x))))


@program
def twice(self: Any, x: Tensor) -> Any:
    y = self.pool(self.relu(self.bn(x)))
    return y, y.sin() + self.pool(self.relu(self.bn(x.flip(0)))), y * 2


@program
def relu_read_later(self: Any, x: Tensor) -> Any:
    y = self.relu(self.bn(x))
    return self.pool(y), y


@program
def batch_norm_read_later(self: Any, x: Tensor) -> Any:
    y = self.bn(x)
    return self.pool(F.relu(y)), y


@program
def relu6(self: Any, x: Tensor) -> Any:
    return self.pool(F.relu6(self.bn(x)))


@program
def residual(self: Any, x: Tensor) -> Any:
    return self.pool(self.relu(self.bn(x) + x))


@program
def indices(self: Any, x: Tensor) -> Any:
    return self.pool2(self.relu(self.bn(x)))


@program
def noted_between(self: Any, x: Tensor) -> Any:
    return self.pool(self.note(self.relu(self.bn(x))))


@program
def too_large(self: Any, x: Tensor) -> Any:
    self.pool.kernel_size = 9
    x = self.conv(x)
    x = self.bn(x)
    x = self.relu(x)
    return self.pool(x)


@program
def wrong_padding(self: Any, x: Tensor) -> Any:
    self.pool.padding = 2
    x = self.conv(x)
    x = self.bn(x)
    x = F.relu(x)
    return self.pool(x)


@program
def pool_without_relu(self: Any, x: Tensor) -> Any:
    return self.relu(self.pool(self.bn(x)))


@program
def two_pools(self: Any, x: Tensor) -> Any:
    return self.pool(self.pool(self.relu(self.bn(x))))


@program
def hook_on_the_result(self: Any, x: Tensor) -> Any:
    y = self.pool(self.relu(self.bn(x)))
    if y.requires_grad:
        y.register_hook(lambda g: g * 2)
    return y


POOLED += ["two pools", "hook on the result"]


@pytest.fixture
def pools(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Note the arguments of the pools that a batch norm computes."""
    module = sys.modules["fastconv._ahead.fusion"]._batch_norm_pool
    noted, original = [], module.batch_norm_relu_max_pool2d

    def noting(*args: Any) -> Tensor:
        noted.append(args[-1])
        return original(*args)  # type: ignore[no-any-return]

    monkeypatch.setattr(module, "batch_norm_relu_max_pool2d", noting)
    return noted


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_gets_pytorchs_results(name: str, training: bool, pools: list[Any]) -> None:
    compare_program(PROGRAMS[name], training, Pooled)
    if training:
        assert bool(pools) == (name in POOLED or name in ("too large", "wrong padding"))  # these raise an error


class Vgg(nn.Module):
    """VGG's layers, with a batch norm whose statistics count its calls."""

    def __init__(self, inplace: bool = True) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in ((3, 4), (4, 5)):
            convolution = nn.Conv2d(inputs, outputs, 3, padding=1)
            layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return torch.flatten(self.features(x), 1)


def vgg() -> nn.Module:
    torch.manual_seed(2)
    model = Vgg().double()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model


CHANGES: dict[str, Change] = {
    "hooks": lambda model, seen: [
        layer.register_forward_hook(lambda m, args, out: note(seen, out)) for layer in model.features
    ],
    "a hook before the pool": lambda model, seen: model.features[3].register_forward_pre_hook(
        lambda m, args: note(seen, args)
    ),
    "a hook of backward": lambda model, seen: model.features[3].register_full_backward_hook(
        lambda m, g_in, g_out: note(seen, g_in + g_out)
    ),
    "another ReLU": lambda model, seen: setattr(model.features, "2", nn.Tanh()),
    "a shared pool": lambda model, seen: setattr(model.features, "7", model.features[3]),
    "a shared batch norm": lambda model, seen: model.features.extend([model.features[5], nn.ReLU(), nn.MaxPool2d(1)]),
    "ceil_mode": lambda model, seen: setattr(model.features[7], "ceil_mode", True),
    "a replaced forward": lambda model, seen: setattr(model.features[3], "forward", lambda x: x.exp()[:, :, ::2, ::2]),
    "a frozen weight": lambda model, seen: model.features[1].requires_grad_(False),
    "no weight": lambda model, seen: setattr(model.features, "1", fastconv.nn.BatchNorm2d(4, affine=False).double()),
}


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("name", CHANGES)
def test_a_change_of_a_vgg_takes_effect(name: str, training: bool, pools: list[Any]) -> None:
    compare(CHANGES[name], training, vgg)
    assert bool(pools) == training  # before the change


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("make", [vgg, lambda: Vgg(False)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_a_vgg_trains_as_in_pytorch(
    make: Callable[[], nn.Module], dtype: torch.dtype, memory_format: torch.memory_format, pools: list[Any]
) -> None:
    model = make().to(dtype).to(memory_format=memory_format)  # type: ignore[call-overload]
    converted = fastconv.convert(copy.deepcopy(model))
    x = torch.randn(4, 3, 9, 11).to(dtype).contiguous(memory_format=memory_format).requires_grad_()
    for _ in range(4):
        results = [m(x) for m in (converted, model)]
        found, expected = (
            [y, *torch.autograd.grad(y.square().mean(), [x, *m.parameters()])]
            for y, m in zip(results, (converted, model), strict=True)
        )
    if dtype is torch.bfloat16:
        assert not pools
        return
    assert len(pools) == 8
    assert [t.stride() for t in found] == [t.stride() for t in expected]
    tolerance = 1e-3 if dtype is torch.float32 else 1e-9
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(list(converted.buffers()), list(model.buffers()), rtol=tolerance, atol=tolerance)


def test_backward_keeps_no_tensor_of_the_size_before_the_pool_but_the_input() -> None:
    model = fastconv.convert(vgg().train())
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    for _ in range(3):
        y = model(x)
    node: Any = y.grad_fn
    kept = []
    while node is not None:
        if type(node).__name__ == "BatchNormReLUMaxPool2dBackward":
            kept.append([t.nbytes for t in node.saved_tensors if t is not None and t.dim() == 4])
        node = next((n for n, _ in node.next_functions if n is not None), None)
    assert kept == [[2 * 5 * 4 * 4 * 8, 2 * 5 * 2 * 2], [2 * 4 * 8 * 8 * 8, 2 * 4 * 4 * 4]]  # input and argmax
