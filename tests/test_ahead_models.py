"""A change of a model takes effect, though layers compute the next ones, too."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from ahead_cases import Block, Change, compare, note
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize, prune


def patched(target: Any, name: str, make: Callable[[Any], Any]) -> Change:
    def change(model: Any, seen: list[Any]) -> Any:
        patch = pytest.MonkeyPatch.context()

        @contextlib.contextmanager
        def context() -> Iterator[None]:
            with patch as p:
                owner = target(model) if callable(target) and not isinstance(target, type) else target
                p.setattr(owner, name, make(getattr(owner, name)))
                yield

        return context()

    return change


def doubled(original: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: original(*args, **kwargs) * 2


def with_code_of(replacement: Callable[..., Any]) -> Callable[[Any], Any]:
    return lambda code: replacement.__code__


def another_forward(self: Any, x: Tensor) -> Tensor:
    return self.bn2(self.conv(x)) + x


MODULES: dict[str, Callable[[Any], nn.Module]] = {
    "convolution": lambda m: m[0].conv,
    "batch norm": lambda m: m[0].bn,
    "ReLU": lambda m: m[0].relu,
    "Sequential": lambda m: m[0].tail,
    "last of a Sequential": lambda m: m[0].tail[1],
    "block": lambda m: m[1],
    "model": lambda m: m,
}
HOOKS: dict[str, Callable[[nn.Module, list[Any]], Any]] = {
    "forward": lambda m, s: m.register_forward_hook(lambda m, args, y: note(s, y)),
    "replacing": lambda m, s: m.register_forward_hook(lambda m, args, y: y * 2),
    "pre": lambda m, s: m.register_forward_pre_hook(lambda m, args: note(s, args)),
    "backward": lambda m, s: m.register_full_backward_hook(lambda m, a, b: note(s, b)),
    "backward pre": lambda m, s: m.register_full_backward_pre_hook(lambda m, b: note(s, b)),
}
CHANGES: dict[str, Change] = {
    f"{kind} hook on the {name}": lambda m, s, hook=hook, find=find: hook(find(m), s) and None
    for kind, hook in HOOKS.items()
    for name, find in MODULES.items()
}
CLASSES: dict[str, type] = {
    c.__name__: c for c in (nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.ReLU6, nn.SiLU, nn.Sequential, Block)
}
CHANGES |= {f"{name}.forward": patched(cls, "forward", doubled) for name, cls in CLASSES.items()}
CHANGES |= {
    f"{method} of the class of the {name}": patched(lambda m, find=find: type(find(m)), method, doubled)
    for method in ("forward", "__call__", "_call_impl")
    for name, find in MODULES.items()
}
CHANGES |= {
    f"F.{name}": patched(F, name, doubled) for name in ("relu", "relu6", "hardtanh", "silu", "leaky_relu", "batch_norm")
}
CHANGES |= {
    "Tensor.__iadd__": patched(Tensor, "__iadd__", lambda original: lambda a, b: a - b),
    "torch.batch_norm": patched(torch, "batch_norm", doubled),
    "torch.relu": patched(torch, "relu", doubled),
    "Module.__call__": patched(nn.Module, "__call__", doubled),
    "Module.__getattr__": patched(
        nn.Module, "__getattr__", lambda original: lambda m, name: original(m, "bn2" if name == "bn" else name)
    ),
    "code of forward": patched(lambda m: Block.forward, "__code__", with_code_of(another_forward)),
}


def change(function: Change) -> Change:
    CHANGES[function.__name__.replace("_", " ")] = function
    return function


@change
def class_attribute_hides_a_layer(m: Any, seen: list[Any]) -> None:
    class Hiding(Block):
        bn = property(lambda self: self.bn2)  # type: ignore[assignment]

    m[0].__class__ = Hiding


@change
def getattribute(m: Any, seen: list[Any]) -> None:
    class Counting(Block):
        def __getattribute__(self, name: str) -> Any:
            return super().__getattribute__("bn2" if name == "bn" else name)

        def __getattr__(self, name: str) -> Any:
            return super().__getattr__("bn2" if name == "bn" else name)

    m[0].__class__ = Counting


@change
def plain_attribute_hides_a_layer(m: Any, seen: list[Any]) -> None:
    vars(m[0])["relu"] = torch.tanh
    vars(m[1])["bn"] = vars(m[1])["bn2"] = lambda x: x * 3


@change
def replaced_layers(m: Any, seen: list[Any]) -> None:
    m[0].relu, m[1].bn, m[1].act = nn.Tanh(), nn.Identity(), nn.Hardtanh(-1, 1)
    m[4] = nn.Sequential(nn.Identity(), nn.LeakyReLU(0.5, inplace=True))


@change
def shared_layers(m: Any, seen: list[Any]) -> None:
    m[0].bn = m[0].bn2
    m[1] = m[0]
    m[0].tail.append(m[0].tail[0])


@change
def other_settings(m: Any, seen: list[Any]) -> None:
    m[0].act.max_val, m[1].act.min_val = 0.5, -1.0
    m[0].bn.train(not m.training)
    m[1].bn.eval()
    m[1].bn2.eps = 0.5
    m[1].tail[1].momentum = None


@change
def no_statistics(m: Any, seen: list[Any]) -> None:
    m[0].bn = nn.BatchNorm2d(3, track_running_stats=False).double()
    m[1].bn = nn.BatchNorm2d(3, affine=False).double()
    m[1].bn.train(m.training)


@change
def wrong_sizes(m: Any, seen: list[Any]) -> None:
    m[0].bn = nn.BatchNorm2d(4).double().train(m.training)


@change
def wrong_dtype(m: Any, seen: list[Any]) -> None:
    m[0].bn = nn.BatchNorm2d(3).train(m.training)


@change
def wrong_geometry(m: Any, seen: list[Any]) -> None:
    m[1].tail[0].stride = (0, 0)


@change
def a_list_as_padding(m: Any, seen: list[Any]) -> None:
    m[0].conv.padding, m[0].conv.stride = [1, 1], 1


class Frozen(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return input * self.weight[:, None, None]


@change
def other_batch_norms(m: Any, seen: list[Any]) -> None:
    m[0].bn, m[0].bn2 = Frozen(3).double(), nn.SyncBatchNorm(3).double().eval()
    m[1].bn = nn.LazyBatchNorm2d().double().train(m.training)


@change
def no_bias_and_constants(m: Any, seen: list[Any]) -> None:
    m[0].conv.bias = None
    m[0].bn.requires_grad_(False)
    m[1].bn.weight.requires_grad_(False)
    for p in m[1].tail.parameters():
        p.requires_grad_(False)


@change
def hidden_parameters(m: Any, seen: list[Any]) -> None:
    for layer in (m[0].bn, m[1].conv, m[1].tail[1]):
        vars(layer)["weight"] = layer.weight.detach() * 2
    vars(m[0].bn2)["running_mean"] = torch.ones(3, dtype=torch.float64)


@change
def parametrised(m: Any, seen: list[Any]) -> None:
    parametrize.register_parametrization(m[0].bn, "weight", nn.Tanh())
    nn.utils.parametrizations.weight_norm(m[0].conv2)
    prune.l1_unstructured(m[1].bn, "weight", 1)
    prune.l1_unstructured(m[1].conv, "weight", 2)


@change
def own_forward_of_an_instance(m: Any, seen: list[Any]) -> None:
    m[0].relu.forward = torch.tanh
    m[1].bn.forward = torch.sin
    m[0].tail.forward = lambda x: x * 2


@change
def remembered_forward(m: Any, seen: list[Any]) -> None:
    class Remembering(Block):
        forward = functools.lru_cache(Block.forward)

        def __call__(self, *args: Any) -> Any:
            return super().__call__(*args) + 1

    class Remembered(Block):
        __call__ = functools.lru_cache(Block.__call__)

    m[0].__class__, m[1].__class__ = Remembering, Remembered
    m[1].bn2, m[1].conv2 = m[2], m[3]


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("name", CHANGES)
def test_a_change_of_the_model_takes_effect(name: str, training: bool) -> None:
    compare(CHANGES[name], training)
