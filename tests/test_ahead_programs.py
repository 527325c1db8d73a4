"""Programs that could see that a layer has computed the next ones, too, get PyTorch's results."""

from __future__ import annotations

import contextlib
import copy
import functools
import operator
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.functional import relu as global_relu

import fastconv
from fastconv._deferred.tensor import settled

Forward = Callable[["Net", Tensor], Any]
PROGRAMS: dict[str, Forward] = {}


def program(forward: Forward) -> Forward:
    PROGRAMS[forward.__name__] = forward
    return forward


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


# ---- other references to an intermediate result --------------------------------------------------------------------


@program
def two_variables(self: Net, x: Tensor) -> Any:
    y = z = self.conv(x)
    y = self.bn(y)
    return self.relu(y) + z


@program
def alias(self: Net, x: Tensor) -> Any:
    y = self.conv(x)
    z = y
    y = self.bn(y)
    return F.relu(y), z


@program
def other_names(self: Net, x: Tensor) -> Any:
    a = self.conv(x)
    b = self.bn(a)
    c = F.relu(b)
    return a, b, c


@program
def attribute(self: Net, x: Tensor) -> Any:
    self.kept = self.conv(x)
    return self.relu(self.bn(self.kept)), self.kept


@program
def in_a_list(self: Net, x: Tensor) -> Any:
    out = [self.conv(x)]
    out.append(self.bn(out[0]))
    return F.relu(out[1]), *out


@program
def closure(self: Net, x: Tensor) -> Any:
    out = self.conv(x)
    read = lambda: out  # noqa: E731
    kept = read()
    out = self.bn(out)
    return self.relu(out + kept), read()


@program
def walrus(self: Net, x: Tensor) -> Any:
    return F.relu(self.bn(y := self.conv(x))) + y


@program
def unpacked(self: Net, x: Tensor) -> Any:
    (y,) = (self.conv(x),)
    y, z = self.bn(y), y
    return F.relu(y), z


@program
def deleted(self: Net, x: Tensor) -> Any:
    out = self.conv(x)
    y = self.bn(out)
    del out
    return F.relu(y)


@program
def returned_twice(self: Net, x: Tensor) -> Any:
    out = self.bn(self.conv(x))
    return self.relu(out), out


@program
def all_variables(self: Net, x: Tensor) -> Any:
    out = self.conv(x)
    normed = self.bn(out)
    return dict(locals())["out"], F.relu(normed)


@program
def keeps_locals(self: Net, x: Tensor) -> Any:
    names = locals()
    names.pop("x")
    x = self.conv(x)
    x = self.bn(x)
    return x, list(names) if sys.version_info < (3, 13) else None


@program
def read_by_a_callee(self: Net, x: Tensor) -> Any:
    def read() -> Tensor:
        return sys._getframe(1).f_locals["out"]

    out = self.conv(x)
    normed = self.bn(out)
    return F.relu(normed), read()


@program
def same_object_in_place(self: Net, x: Tensor) -> Any:
    y = self.bn(self.conv(x))
    z = self.relu(y)
    return z, z is y


@program
def plus_itself(self: Net, x: Tensor) -> Any:
    out = self.bn(self.conv(x))
    out += out
    return self.relu(out)


@program
def residual_is_in_place(self: Net, x: Tensor) -> Any:
    identity = x.clone()
    identity += self.bn(self.conv(x))
    return self.relu(identity), identity


@program
def aliased_addition(self: Net, x: Tensor) -> Any:
    out = self.bn(self.conv(x))
    kept = out
    out += x
    return F.relu(out), kept


@program
def generator(self: Net, x: Tensor) -> Any:
    def results() -> Iterator[Tensor]:
        y = self.conv(x)
        yield y
        y = self.bn(y)
        yield y

    return list(results())


@program
def comprehension(self: Net, x: Tensor) -> Any:
    return [F.relu(self.bn(y)) for y in [self.conv(z) for z in (x, x + 1)]]


# ---- code between the steps ----------------------------------------------------------------------------------------


@program
def arguments_have_side_effects(self: Net, x: Tensor) -> Any:
    return self.relu(self.bn(self.conv(self.swap(x))))


class Swapping:
    def __init__(self, net: Net, x: Tensor) -> None:
        self.net, self.x = net, x

    @property
    def image(self) -> Tensor:
        return self.net.swap(self.x)

    def __add__(self, other: Tensor) -> Tensor:
        return other.detach() * 2


@program
def an_argument_is_a_property(self: Net, x: Tensor) -> Any:
    source = Swapping(self, x)
    return self.relu(self.bn(self.conv(source.image)))


@program
def a_property_between(self: Net, x: Tensor) -> Any:
    source = Swapping(self, x)
    out = self.conv(x)
    image = source.image
    return image, self.bn(out)


@program
def a_finalizer_between(self: Net, x: Tensor) -> Any:
    class Guard:
        def __init__(self, net: Net) -> None:
            self.net = net

        def __del__(self) -> None:
            self.net.swap(x)

    out: Any = Guard(self)
    out = self.conv(x)
    out = self.bn(out)
    return self.relu(out)


@program
def a_weak_reference_between(self: Net, x: Tensor) -> Any:
    y = x + 1
    if not self.training:  # a Deferred does not keep its input alive for backward
        weakref.finalize(y, self.swap, x)
    y = self.conv(y)
    y = self.bn(y)
    return F.relu(y)


@program
def exception_with_the_result(self: Net, x: Tensor) -> Any:
    out = x
    try:
        out = self.conv(x)
        out = missing(self.bn(out))  # type: ignore[name-defined]
    except NameError as error:
        return out, str(error)


@program
def unbound_residual(self: Net, x: Tensor) -> Any:
    out = x
    try:
        out = self.conv(x)
        out = residual + self.bn(out)  # type: ignore[has-type]  # noqa: F823
        residual = x  # noqa: F841
    except UnboundLocalError:
        return out


@program
def finally_reads(self: Net, x: Tensor) -> Any:
    out = self.conv(x)
    try:
        return self.bn(out)
    finally:
        self.note(out)


@program
def with_between(self: Net, x: Tensor) -> Any:
    out = self.conv(x)
    with torch.enable_grad(), torch.autocast("cpu", enabled=False):
        out = self.bn(out)
    with contextlib.suppress(ValueError):
        return self.relu(out)


@program
def while_loop(self: Net, x: Tensor) -> Any:
    out = x
    while len(self.seen) < 3:
        y = self.conv(out)
        out = self.bn(y)
        self.note(y)
    return out


@program
def for_loop(self: Net, x: Tensor) -> Any:
    y = x
    for conv, bn in zip([self.conv, self.conv2], [self.bn, self.bn2], strict=True):
        x = conv(x)
        x = bn(x)
        x += y
    return F.relu(x)


@program
def expressions(self: Net, x: Tensor) -> Any:
    out = self.conv(x)
    out = self.bn(out) if len(self.seen) % 2 else self.bn2(out)
    assert out.shape == x.shape
    self.note(f"{out.shape} {len(out)} {bool(out.isfinite().all())}")
    return (self.relu if self.norm is None else self.leaky)(self.bn(out))


# ---- other ways to call ----------------------------------------------------------------------------------------------


@program
def reduced(self: Net, x: Tensor) -> Any:
    out = functools.reduce(operator.add, map(self.conv, [x, x + 1]))
    out = self.bn(out)
    return self.relu(out)


@program
def summed(self: Net, x: Tensor) -> Any:
    return self.relu(self.bn(sum(map(self.conv, [x, x + 1]))))


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


# ---- comparison ------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_gets_pytorchs_results(name: str, training: bool) -> None:
    torch.manual_seed(0)
    model: nn.Module = type("Own", (Net,), {"forward": PROGRAMS[name]})().double().train(training)
    original = copy.deepcopy(model)
    fastconv.convert(model)
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    for i in range(5 if training else 3):  # in training, convolutions at first return Deferred results
        with contextlib.nullcontext() if training else torch.inference_mode(i == 2), torch.set_grad_enabled(training):
            found, expected = (outcome(m, x.clone().requires_grad_(training), training) for m in (model, original))
        assert_same(found, expected)


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
