"""Programs that use a model in other ways than one call of forward get PyTorch's results from the converted model."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastconv
from fastconv import nn as fnn


class Net(nn.Module):
    """Two convolutions, a shared ReLU and pool, flags, and a second method."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 3, padding=1)
        self.relu, self.pool = nn.ReLU(), nn.MaxPool2d(2)
        self.convs = nn.ModuleList([nn.Conv2d(3, 3, 1)])
        self.use_pool = self.use_relu = True
        self.steps = 0

    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1
        y = self.conv1(x)
        if self.use_relu:
            y = self.relu(y)
        if self.use_pool:
            y = self.pool(y)
        y = self.conv2(y)
        if self.steps % 2 and torch.is_grad_enabled():
            y = self.relu(y)
        return self.convs[0](y)

    def embed(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x)).mean((2, 3))


def sequential() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 3, 3), nn.ReLU())


def layers_of(model: nn.Module, kind: type) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, kind)]


def children_one_by_one(model: nn.Module, x: Tensor) -> list[Tensor]:
    results = []
    for _, module in model.named_children():
        if isinstance(module, nn.Conv2d | nn.ReLU | nn.MaxPool2d):
            x = module(x)
            results.append(x)
    return results


def layer_sequential_unit_variance(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Mishkin and Matas, "All you need is a good init", 2015: each layer's weight is scaled by its results."""
    seen: dict[nn.Module, Tensor] = {}
    handles = [c.register_forward_hook(lambda m, _, y: seen.update({m: y})) for c in layers_of(model, nn.Conv2d)]
    for conv in layers_of(model, nn.Conv2d):
        for _ in range(2):
            model(x)
            with torch.no_grad():
                conv.weight.div_(seen[conv].std())
    for handle in handles:
        handle.remove()
    return [model(x), *model.parameters()]


def flag_changed(name: str) -> Callable[[nn.Module, Tensor], list[Tensor]]:
    def program(model: nn.Module, x: Tensor) -> list[Tensor]:
        results = [model(x)]
        setattr(model, name, False)
        return [*results, model(x), model(x)]

    return program


def without_gradient(model: nn.Module, x: Tensor) -> list[Tensor]:
    results = [model(x), model(x)]
    with torch.no_grad():
        results += [model(x), model(x)]
    with torch.inference_mode():
        results += [model(x).clone(), model(x).clone()]
    return results


def another_forward(model: nn.Module, x: Tensor) -> Tensor:
    model.forward = lambda x: model.pool(model.conv1(x))  # type: ignore[attr-defined]
    return model(x)


class Negated(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return -super().forward(input)


def another_class(model: nn.Module, x: Tensor) -> Tensor:
    layers_of(model, nn.Conv2d)[0].__class__ = Negated
    for relu in layers_of(model, nn.ReLU)[:1]:
        relu.__class__ = nn.Tanh
    return model(x * 10)


def own_method(name: str) -> Callable[[nn.Module, Tensor], Tensor]:
    def program(model: nn.Module, x: Tensor) -> Tensor:
        for layer in layers_of(model, nn.Conv2d):
            original = getattr(layer, name)
            setattr(layer, name, lambda *args, original=original: original(*args) * 2)
        return model(x)

    return program


def own_relu(model: nn.Module, x: Tensor) -> Tensor:
    relu = layers_of(model, nn.ReLU)[0]
    relu.forward = lambda x: x.abs()
    return model(x)


def appended(model: nn.Module, x: Tensor) -> Tensor:
    torch.manual_seed(3)
    added = nn.Conv2d(3, 3, 3, padding=1).double()
    model.convs.append(added)  # type: ignore[attr-defined, operator, union-attr]
    return model.relu(model.convs[1](model(x)))  # type: ignore[attr-defined, operator, index]


def indices_later(model: nn.Module, x: Tensor) -> list[Tensor]:
    pool = layers_of(model, nn.MaxPool2d)[0]
    pool.return_indices = False
    first = model(x)
    pool.return_indices = True
    y = model[:3](x) if isinstance(model, nn.Sequential) else model.pool(model.relu(model.conv1(x)))  # type: ignore[operator]
    assert isinstance(y, tuple)
    return [first, *y]


def saved(layer: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(layer, file)
    assert len(file.getvalue()) < 10_000  # the layer alone, not the model
    file.seek(0)
    return torch.load(file, weights_only=False)  # type: ignore[no-any-return]


def layer_saved(model: nn.Module, x: Tensor) -> list[Tensor]:
    conv = layers_of(model, nn.Conv2d)[0]
    return [saved(conv)(x), pickle.loads(pickle.dumps(conv))(x), copy.deepcopy(conv)(x)]


def gradients_of_activations(model: nn.Module, x: Tensor) -> list[Tensor]:
    """As captum and Grad-CAM do: a hook keeps the result, and its gradient is asked for later."""
    kept: list[Tensor] = []
    handle = layers_of(model, nn.Conv2d)[0].register_forward_hook(lambda m, args, y: kept.append(y))
    loss = model(x).square().sum()
    handle.remove()
    return [kept[0], *torch.autograd.grad(loss, kept, retain_graph=True)]


def kept_by_the_model(model: nn.Module, x: Tensor) -> list[Tensor]:
    kept = model.conv1(x)  # type: ignore[operator]
    loss = model.pool(model.relu(kept)).square().sum()  # type: ignore[operator]
    return [kept, *torch.autograd.grad(loss, [kept, x], retain_graph=True)]


def weights_change(model: nn.Module, x: Tensor) -> list[Tensor]:
    conv = layers_of(model, nn.Conv2d)[0]
    before, rectified = conv(x), F.relu(conv(x))
    with torch.no_grad():
        conv.weight.mul_(-1)
        conv.bias.add_(1)
    return [before.detach(), rectified.detach(), conv(x), model(x)]


def of_a_sequential(index: int) -> Callable[[nn.Module, Tensor], Tensor]:
    return lambda model, x: list(model.children())[index](x)  # type: ignore[no-any-return]


PROGRAMS: dict[str, Callable[[Any, Tensor], Any]] = {
    "the convolution by itself": lambda m, x: m.conv1(x),
    "convolution and ReLU": lambda m, x: m.relu(m.conv1(x)),
    "relu6": lambda m, x: F.relu6(m.conv1(x) * 10),
    "leaky": lambda m, x: F.leaky_relu(m.conv1(x)),
    "another method": lambda m, x: m.embed(x),
    "another forward": another_forward,
    "children one by one": children_one_by_one,
    "LSUV": layer_sequential_unit_variance,
    "flag: pool": flag_changed("use_pool"),
    "flag: relu": flag_changed("use_relu"),
    "step counter and grad mode": without_gradient,
    "another class": another_class,
    "own _conv_forward": own_method("_conv_forward"),
    "own forward": own_method("forward"),
    "own relu": own_relu,
    "the ReLU elsewhere": lambda m, x: [m(x), m.relu(torch.tensor([-1.0])), m.relu(x)],
    "the pool elsewhere": lambda m, x: [m(x), m.pool(x)],
    "appended": appended,
    "indices later": indices_later,
    "layer saved": layer_saved,
    "gradients of activations": gradients_of_activations,
    "kept by the model": kept_by_the_model,
    "weights change": weights_change,
}
SEQUENTIAL = {
    name: PROGRAMS[name]
    for name in (
        "children one by one", "LSUV", "another class", "own _conv_forward", "own forward", "own relu",
        "step counter and grad mode", "indices later", "layer saved", "gradients of activations", "weights change",
    )
} | {f"layer {i}": of_a_sequential(i) for i in range(3)}  # fmt: skip


def as_list(result: Any) -> list[Tensor]:
    return list(result) if isinstance(result, list | tuple) else [result]


def compare(make: Callable[[], nn.Module], program: Callable[[Any, Tensor], Any], warm: bool, training: bool) -> None:
    torch.manual_seed(0)
    model = make().double().train(training)
    original = copy.deepcopy(model)
    fastconv.convert(model)
    x = torch.randn(2, 3, 12, 12, dtype=torch.float64)
    if warm:  # an earlier call may change which results the layers defer
        model(x).sum()
        original(x).sum()
    for _ in range(2):
        found, expected = [], []
        for m, into in ((model, found), (original, expected)):
            leaf = x.clone().requires_grad_()
            results = as_list(program(m, leaf))
            loss = sum(y.double().square().sum() for y in results if y.requires_grad)
            grads = torch.autograd.grad(loss, [leaf, *m.parameters()], allow_unused=True) if loss != 0 else []
            into += [y.detach() for y in results] + [g for g in grads if g is not None]
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_gets_pytorchs_results(name: str, warm: bool, training: bool) -> None:
    compare(Net, PROGRAMS[name], warm, training)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
@pytest.mark.parametrize("name", SEQUENTIAL)
def test_a_program_gets_pytorchs_results_from_a_sequential(name: str, warm: bool, training: bool) -> None:
    compare(sequential, SEQUENTIAL[name], warm, training)


PATCHES: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "ReLU.forward": (nn.ReLU, "forward", lambda self, x: x.abs()),
    "Conv2d._conv_forward": (nn.Conv2d, "_conv_forward", lambda self, x, w, b: F.conv2d(x, w, b) * 2),
    "Conv2d.forward": (nn.Conv2d, "forward", lambda self, x: F.conv2d(x, self.weight) * 3),
    "MaxPool2d.forward": (nn.MaxPool2d, "forward", lambda self, x: F.avg_pool2d(x, 2)),
    "Sequential.forward": (nn.Sequential, "forward", lambda self, x: self[0](x) * 5),
    "F.relu": (F, "relu", lambda x, inplace=False: x.abs()),
    "F.max_pool2d": (F, "max_pool2d", lambda x, *args, **kwargs: F.avg_pool2d(x, 2)),
    "F.conv2d": (F, "conv2d", lambda x, w, b=None, *args: torch.conv2d(x, w, b) * 2),
}


@pytest.mark.parametrize("make", [Net, sequential])
@pytest.mark.parametrize("name", PATCHES)
def test_a_patch_of_pytorchs_classes_and_functions_takes_effect(
    name: str, make: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    def program(model: nn.Module, x: Tensor) -> list[Tensor]:
        before = model(x)
        with monkeypatch.context() as patch:
            patch.setattr(*PATCHES[name])
            return [before, model(x), *(layer(x) for layer in model.children() if isinstance(layer, nn.ReLU))]

    compare(make, program, False, True)


@pytest.mark.parametrize("part", ["body", "body.conv"])
def test_a_parent_may_call_the_layers_of_a_converted_part(part: str) -> None:
    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.relu, self.pool = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2)

        def forward(self, x: Tensor) -> Tensor:
            return self.pool(self.relu(self.conv(x)))

    class Parent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = Body()

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x).mean() + self.body.conv(x)

    model = Parent()
    original = copy.deepcopy(model)
    fastconv.convert(model.get_submodule(part))
    x = torch.randn(2, 3, 12, 12)
    torch.testing.assert_close(model(x), original(x), rtol=1e-4, atol=1e-4)


def test_a_layer_that_is_never_fused_stops_deferring_its_results() -> None:
    conv = fastconv.convert(nn.Conv2d(3, 4, 3))
    x = torch.randn(2, 3, 12, 12)
    kinds = []
    for _ in range(6):
        y = conv(x)
        kinds.append(type(y) is Tensor)
        y.sum()
    assert kinds == [False] * 3 + [True] * 3
    fastconv.convert(conv)
    for _ in range(6):
        F.relu(conv(x)).sum()
    assert type(conv(x)) is not Tensor


def test_convert_adds_nothing_to_the_state_dict() -> None:
    net = Net()
    keys = list(net.state_dict())
    fastconv.convert(net)
    net(torch.randn(2, 3, 12, 12)).sum()
    assert list(net.state_dict()) == keys
    assert type(net.conv1) is fnn.Conv2d
    fastconv.revert(net)
    assert "_patience" not in vars(net.conv1)
