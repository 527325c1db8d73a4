"""Programs that call layers in unusual ways, or add unusual residuals, get PyTorch's results."""

from __future__ import annotations

import copy
import functools
import operator
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from ahead_cases import Forward, Net, Swapping, compare_program
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.functional import relu as global_relu

import fastconv

PROGRAMS: dict[str, Forward] = {}


def program(forward: Forward) -> Forward:
    PROGRAMS[forward.__name__] = forward
    return forward


# ---- other ways to call ----------------------------------------------------------------------------------------------


@program
def reduced(self: Net, x: Tensor) -> Any:
    images = [x, x + 1]
    out = functools.reduce(operator.add, map(self.conv, images))
    out = self.bn(out)
    return self.relu(out)


@program
def summed(self: Net, x: Tensor) -> Any:
    images = [x, x + 1]
    out = sum(map(self.conv, images))
    out = self.bn(out)
    return self.relu(out)


@program
def stars_and_keywords(self: Net, x: Tensor) -> Any:
    out = self.conv(*[x])
    out = self.bn(input=out)
    out = F.relu(out, inplace=False)
    out = self.bn(self.conv(input=out))
    return F.leaky_relu(out, 0.5)


@program
def chosen_callable(self: Net, x: Tensor) -> Any:
    conv = self.conv if x.sum() > 100 else self.conv2
    return self.bn((self.conv if self.norm is None else self.conv2)(x)), self.bn(conv(x))


@program
def self_is_rebound(self: Net, x: Tensor) -> Any:
    other = copy.copy(self)
    other._modules = dict(self._modules, bn=self.bn2)
    out = self.conv(x)
    self = other
    return self.bn(out)


@program
def another_self(this: Net, x: Tensor) -> Any:
    out = this.bn(this.conv(x))
    if this.norm is not None:
        out = this.norm(out)
    return global_relu(out)


@program
def no_module(self: Net, x: Tensor) -> Any:
    return nn.Sequential(self.conv, self.identity, self.bn, self.identity, self.leaky)(x), self.relu(self.conv2(x))


@program
def recursion(self: Net, x: Tensor) -> Any:
    self.seen.append(len(self.seen))
    out = self.bn(self.conv(x))
    return self(out) if len(self.seen) % 3 else self.relu(out)


@program
def evaluated(self: Net, x: Tensor) -> Any:
    names = {"self": self, "x": x}
    exec("y = self.conv(x)\nz = self.bn(y)\nz = self.relu(z) + y", names)
    return names["z"], eval("self.relu(self.bn(self.conv(x)))")


class Odd(dict[str, Any]):
    """Global variables that change when they are read."""

    def __getitem__(self, name: str) -> Any:
        value = super().__getitem__(name)
        if name == "act":
            self["model"].bn, self["model"].bn2 = self["model"].bn2, self["model"].bn
        return value


@program
def odd_global_variables(self: Net, x: Tensor) -> Any:
    names = Odd(model=self, act=F.relu)
    exec("def f(x):\n    y = model.conv(x)\n    return act(model.bn(y))", names)
    return names["f"](x)


# ---- residuals -------------------------------------------------------------------------------------------------------


def residual(make: Callable[[Tensor], Any]) -> Forward:
    def forward(self: Net, x: Tensor) -> Any:
        identity = make(x)
        out = self.conv(x)
        out = self.bn(out)
        out += identity
        out = self.relu(out)
        y = identity + self.bn2(self.conv2(x))
        return out, y

    return forward


class Doubled(Tensor):
    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return super().__torch_function__(func, types, args, kwargs or {}) * 2


RESIDUALS: dict[str, Callable[[Tensor], Any]] = {
    "the input": lambda x: x,
    "a number": lambda x: 2.5,
    "None": lambda x: None,
    "another dtype": lambda x: x.float(),
    "integers": lambda x: x.long(),
    "broadcast": lambda x: x.mean((2, 3), keepdim=True),
    "expanded": lambda x: x.mean((2, 3), keepdim=True).expand(x.shape),
    "a larger batch": lambda x: torch.cat([x, x]),
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(2, 3),
    "a slice": lambda x: torch.cat([x, x], 1)[:, 1:4],
    "negated lazily": lambda x: torch._neg_view(x.detach()),
    "a parameter": lambda x: nn.Parameter(x.detach().clone()),
    "requires grad": lambda x: x.detach().clone().requires_grad_(),
    "a subclass": lambda x: x.detach().as_subclass(Doubled),
    "an object": lambda x: Swapping(None, x),  # type: ignore[arg-type]
    "complex": lambda x: x.detach().to(torch.complex128),
    "meta": lambda x: x.to("meta"),
    "sparse": lambda x: x.detach().to_sparse(),
}
PROGRAMS |= {f"residual: {name}": residual(make) for name, make in RESIDUALS.items()}


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_gets_pytorchs_results(name: str, training: bool) -> None:
    compare_program(PROGRAMS[name], training)


def test_threads_may_share_a_model() -> None:
    model = type("Own", (Net,), {"forward": RESIDUAL_OF_THE_INPUT})().double().eval()
    original = copy.deepcopy(model)
    fastconv.convert(model)
    images = [torch.randn(2, 3, 5, 5, dtype=torch.float64) for _ in range(4)]
    wrong: list[bool] = []

    def run(x: Tensor) -> None:
        with torch.no_grad():
            expected = original(x)
            for _ in range(20):
                found = model(x)
                wrong.extend(not torch.allclose(a, b) for a, b in zip(found, expected, strict=True))

    threads = [threading.Thread(target=run, args=(x,)) for x in images]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not any(wrong)
    assert len(wrong) == 160


RESIDUAL_OF_THE_INPUT = PROGRAMS["residual: the input"]
