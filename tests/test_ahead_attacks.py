"""Programs, tools and threads that might notice that a layer computes the next ones, too."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import functools
import gc
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import torch
from ahead_cases import Block, Change, Forward, Net, compare, compare_program, note
from torch import Tensor, nn
from torch.nn import functional as F

import fastconv
from fastconv import nn as fnn
from fastconv._ahead.layers import METHODS
from fastconv._layer import is_observed
from fastconv._ops.library import _C

PROGRAMS: dict[str, Forward] = {}


def program(forward: Forward) -> Forward:
    PROGRAMS[forward.__name__] = forward
    return forward


# ---- callers -------------------------------------------------------------------------------------------------------


@program
def mapped(self: Net, x: Tensor) -> Any:
    ys = list(map(self.conv, (x, x + 1)))
    zs = list(map(self.bn, ys))
    return [*zs, self.bn(next(map(self.conv, (x,)))), max(map(self.conv, (x, x + 2)), key=torch.mean)]


@program
def mapped_in_a_loop(self: Net, x: Tensor) -> Any:
    out = x
    for y in map(self.conv, (x, x + 1)):
        out = out + self.relu(self.bn(y))
    return out


@program
def partial(self: Net, x: Tensor) -> Any:
    conv = functools.partial(self.conv)
    bound = self.conv.__call__
    forward = self.conv.forward
    return F.relu(self.bn(conv(x))), F.relu(self.bn(bound(x))), F.relu(self.bn(forward(x)))


@program
def lambdas(self: Net, x: Tensor) -> Any:
    block = lambda y: self.relu(self.bn(self.conv(y)))  # noqa: E731
    step = lambda conv, bn, y: bn(conv(y))  # noqa: E731
    return block(x), step(self.conv2, self.bn2, x)


@program
def executed(self: Net, x: Tensor) -> Any:
    names: dict[str, Any] = {"self": self, "F": F}
    exec("def block(x):\n    y = self.conv(x)\n    y = self.bn(y)\n    return F.relu(y)\n", names)
    first = names["block"](x)
    exec("def block(x):\n    y = self.conv(x)\n    z = self.bn(y)\n    return F.relu(z), y\n", names)
    return first, *names["block"](x)


@program
def comprehensions(self: Net, x: Tensor) -> Any:
    listed = [self.relu(self.bn(self.conv(y))) for y in (x, x + 1)]
    keyed = {i: self.bn2(self.conv2(y)) for i, y in enumerate(listed)}
    return [*listed, *keyed.values(), *(F.silu(self.bn(self.conv(y))) for y in listed)]


@program
def generators(self: Net, x: Tensor) -> Any:
    def blocks() -> Iterator[Tensor]:
        y = self.conv(x)
        z = yield y
        y = self.bn(y)
        yield self.relu(self.bn(self.conv(y if z is None else z)))
        return y

    def all_blocks() -> Iterator[Tensor]:
        result = yield from blocks()
        yield result + 1

    return list(all_blocks())


@program
def coroutines(self: Net, x: Tensor) -> Any:
    seen: list[Tensor] = []

    async def block(y: Tensor) -> Tensor:
        y = self.conv(y)
        await asyncio.sleep(0)
        seen.append(y.detach().clone())
        y = self.bn(y)
        await asyncio.sleep(0)
        return self.relu(y)

    async def at_once(y: Tensor) -> Tensor:
        return self.relu(self.bn(self.conv(y)))

    async def results() -> AsyncIterator[Tensor]:
        y = self.conv(x)
        yield y
        yield self.bn(y)

    async def main() -> list[Tensor]:
        return [*await asyncio.gather(block(x), block(x + 1), at_once(x)), *[y async for y in results()]]

    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(main()) + seen
    finally:
        loop.close()


@program
def referrers(self: Net, x: Tensor) -> Any:
    y = self.conv(x)
    holders = [type(holder) for holder in gc.get_referrers(y) if isinstance(holder, dict | list | nn.Module)]
    y = self.bn(y)
    return self.relu(y), len(holders)


@program
def deep(self: Net, x: Tensor) -> Any:
    def down(n: int) -> Tensor:
        return self.relu(self.bn(self.conv(x))) if n == 0 else down(n - 1)

    return down(200)


@program
def at_the_limit(self: Net, x: Tensor) -> Any:
    """Call with so little room that the analysis may not end."""
    found: list[Tensor] = []
    if self.training:  # Each call that fails counts a batch.
        return found

    def down() -> None:
        with contextlib.suppress(RecursionError):
            down()
        if not found:
            with contextlib.suppress(RecursionError):
                found.append(self.relu(self.bn(self.conv(x))))

    limit = sys.getrecursionlimit()
    depth = len(__import__("inspect").stack(0))
    sys.setrecursionlimit(depth + 60)
    try:
        down()
    finally:
        sys.setrecursionlimit(limit)
    return found


@program
def an_exception_in_the_next_layer(self: Net, x: Tensor) -> Any:
    out = x
    try:
        out = self.relu(self.bn(self.conv(x)))
        out = nn.Linear(7, 7).to(x.dtype)(out)
    except RuntimeError as error:
        frame: Any = error.__traceback__
        seen = [v for f in _frames(frame) for v in f.f_locals.values() if isinstance(v, Tensor)]
        return out, all(type(v) in (Tensor, nn.Parameter) for v in seen)


def _frames(traceback: Any) -> Iterator[Any]:
    while traceback is not None:
        yield traceback.tb_frame
        traceback = traceback.tb_next


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_gets_pytorchs_results(name: str, training: bool) -> None:
    compare_program(PROGRAMS[name], training)


# ---- changes between calls -----------------------------------------------------------------------------------------

CHANGES: dict[str, Change] = {}


def change(function: Change) -> Change:
    CHANGES[function.__name__.replace("_", " ")] = function
    return function


@change
def a_hook_on_an_identity(m: Any, seen: list[Any]) -> None:
    m[0].relu = nn.Sequential(nn.Identity(), nn.ReLU())
    m[0].relu[0].register_forward_hook(lambda module, args, y: note(seen, y))
    m[1].bn = nn.Sequential(m[1].bn, nn.Identity())
    m[1].bn[1].register_forward_pre_hook(lambda module, args: note(seen, args))


@change
def hooks_on_new_layers(m: Any, seen: list[Any]) -> None:
    m[0].relu, m[1].bn = nn.ReLU(), nn.BatchNorm2d(3).double().train(m.training)
    for layer in (m[0].relu, m[1].bn):
        layer.register_forward_pre_hook(lambda module, args: note(seen, args))


@change
def a_hook_on_the_second_convolution(m: Any, seen: list[Any]) -> None:
    m[0].conv2.register_forward_pre_hook(lambda module, args: note(seen, args))
    m[1].tail[0].register_forward_hook(lambda module, args, y: y * 2)


@change
def own_methods_of_the_second_convolution(m: Any, seen: list[Any]) -> None:
    m[0].conv2.forward = torch.sin
    m[1].conv2._conv_forward = lambda input, weight, bias: input * 2


@change
def a_list_as_padding_of_the_second_convolution(m: Any, seen: list[Any]) -> None:
    m[0].conv2.padding, m[0].conv2.stride = [0, 0], [1, 1]
    m[1].conv2.padding_mode = "reflect"


@change
def the_second_convolution_does_not_fit(m: Any, seen: list[Any]) -> None:
    torch.manual_seed(2)
    m[0].conv2 = nn.Conv2d(5, 3, 1).double()
    if isinstance(m[0].conv, fnn.Conv2d):
        fastconv.convert(m)


@change
def the_second_convolution_needs_a_gradient(m: Any, seen: list[Any]) -> Any:
    m.requires_grad_(False)
    for block in m[:2]:
        block.conv2.requires_grad_(True)
        block.bn.weight.requires_grad_(True)
    return torch.enable_grad()


@change
def no_bias(m: Any, seen: list[Any]) -> None:
    del m[0].conv.bias


@change
def no_running_mean(m: Any, seen: list[Any]) -> None:
    m[0].bn.running_mean = None
    m[1].bn2.running_var = None


@change
def other_epsilons(m: Any, seen: list[Any]) -> None:
    m[0].bn.eps, m[0].bn2.eps, m[1].bn.eps = 1, 0.0, -1e-5


class Doubled(Tensor):
    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_function__(func, types, args, kwargs or {})
        return result * 2 if getattr(func, "__name__", "") in ("conv2d", "batch_norm") else result


@change
def parameters_of_a_subclass(m: Any, seen: list[Any]) -> None:
    for layer in (m[0].conv, m[1].bn):
        layer._parameters["weight"] = layer.weight.detach().as_subclass(Doubled)


@change
def sparse_parameters(m: Any, seen: list[Any]) -> None:
    m[0].bn._parameters["weight"] = m[0].bn.weight.detach().to_sparse()
    m[1].bn2._parameters["bias"] = m[1].bn2.bias.detach().to_sparse()


@change
def a_parameter_on_meta(m: Any, seen: list[Any]) -> None:
    m[1].bn.weight = nn.Parameter(torch.ones(3, dtype=torch.float64, device="meta"))


@change
def a_sequential_with_another_order(m: Any, seen: list[Any]) -> None:
    class Backwards(nn.Sequential):
        def __iter__(self) -> Iterator[nn.Module]:
            return iter(list(self._modules.values())[::-1])

    m[0].bn, m[1].bn = (Backwards(nn.Tanh(), block.bn) for block in m[:2])


def patched(cls: Any, name: str) -> Change:
    def change(m: Any, seen: list[Any]) -> Any:
        patch = pytest.MonkeyPatch()
        original = getattr(cls, name)
        patch.setattr(cls, name, lambda *args, **kwargs: (note(seen, torch.ones(1)), original(*args, **kwargs))[1])
        return _Undone(patch)

    return change


class _Undone:
    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.patch = patch

    def __enter__(self) -> None: ...

    def __exit__(self, *args: Any) -> None:
        self.patch.undo()


CHANGES |= {
    f"{cls.__name__}.{name} of torch.nn": patched(cls, name)
    for cls, name in (
        (nn.ReLU6, "forward"), (nn.Conv2d, "_conv_forward"), (nn.BatchNorm2d, "_check_input_dim"),
        (nn.Identity, "forward"), (nn.Module, "_call_impl"), (nn.Sequential, "__iter__"), (Tensor, "relu"),
        (Tensor, "__add__"),
    )
}  # fmt: skip


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("name", CHANGES)
def test_a_change_of_the_model_takes_effect(name: str, training: bool) -> None:
    compare(CHANGES[name], training)


@pytest.mark.parametrize(("cls", "name"), [(fnn.Conv2d, "_conv_forward"), (fnn.BatchNorm2d, "_check_input_dim")])
def test_a_replaced_method_of_fastconvs_own_classes_runs(cls: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = fastconv.convert(nn.Sequential(Block(), Block())).double().eval()
    x, seen = torch.randn(2, 3, 5, 5, dtype=torch.float64), []  # type: tuple[Tensor, list[int]]
    original = getattr(cls, name)
    with torch.no_grad():
        expected = model(x)
        monkeypatch.setattr(cls, name, lambda *args: (seen.append(1), original(*args))[1])
        torch.testing.assert_close(model(x), expected)
    assert len(seen) == 6


# ---- tools and threads ---------------------------------------------------------------------------------------------


class Broken(Net):
    """A block with graph breaks."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        torch._dynamo.graph_break()
        y = self.bn(y)
        y = self.relu(y)
        z = self.eager(y)
        torch._dynamo.graph_break()
        return F.relu(self.bn2(self.conv2(z)), inplace=True)

    @torch.compiler.disable
    def eager(self, y: Tensor) -> Tensor:
        return F.leaky_relu(self.bn(self.conv(y)), 0.2)


@pytest.mark.filterwarnings("ignore:The .grad attribute")
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_compiled_code_with_graph_breaks_gives_pytorchs_results(training: bool) -> None:
    torch.manual_seed(0)
    model = Broken().double().train(training)
    original = copy.deepcopy(model)
    compiled: Callable[[Tensor], Tensor] = torch.compile(fastconv.convert(model), backend="eager")
    for _ in range(3):
        x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
        with torch.set_grad_enabled(training):
            torch.testing.assert_close(compiled(x), original(x))
    torch._dynamo.reset()


def test_a_thread_may_exchange_layers_while_another_computes() -> None:
    torch.manual_seed(0)
    model: Any = Block().double().eval()
    model.tail = nn.Sequential(*model.tail)
    fastconv.convert(model)
    norms = [copy.deepcopy(model.bn), copy.deepcopy(model.bn)]
    nn.init.constant_(norms[1].running_mean, 2.0)
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    expected, ends = [], threading.Event()
    with torch.no_grad():
        for norm in norms:
            model.bn = norm
            expected.append(model(x))

        def exchange() -> None:
            while not ends.is_set():
                for norm in norms:
                    model.bn = norm

        thread = threading.Thread(target=exchange)
        thread.start()
        try:
            found = [model(x) for _ in range(200)]
        finally:
            ends.set()
            thread.join()
    assert all(any(torch.allclose(y, z) for z in expected) for y in found)


def test_a_debugger_in_one_thread_sees_every_layer_while_another_computes() -> None:
    model: Any = fastconv.convert(nn.Sequential(Block(), Block())).double().eval()
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    results: list[Any] = []
    wrong: list[Any] = []

    def traced() -> None:
        def watch(frame: Any, event: str, value: Any) -> Any:
            wrong.extend(v for v in frame.f_locals.values() if type(v).__name__ == "Ahead")
            return watch

        sys.settrace(watch)
        with torch.no_grad():
            results.extend(model(x) for _ in range(10))
        sys.settrace(None)

    thread = threading.Thread(target=traced)
    thread.start()
    with torch.no_grad():
        results.extend(model(x) for _ in range(50))
    thread.join()
    assert wrong == []
    for result in results:
        torch.testing.assert_close(result, results[0])


# ---- the check of a layer in C++ -----------------------------------------------------------------------------------

OWN = ("forward", "_conv_forward", "_call_impl", "_wrapped_call_impl", "_check_input_dim", "_compiled_call_impl",
       "weight", "bias", "running_mean", "running_var")  # fmt: skip
SEEN: dict[str, Callable[[nn.Module], Any]] = {
    **{f"own {name}": lambda layer, name=name: vars(layer).update({name: torch.sin}) for name in OWN},
    "forward hook": lambda layer: layer.register_forward_hook(lambda *args: None),
    "forward pre-hook": lambda layer: layer.register_forward_pre_hook(lambda *args: None),
    "backward hook": lambda layer: layer.register_full_backward_hook(lambda *args: None),
    "backward pre-hook": lambda layer: layer.register_full_backward_pre_hook(lambda *args: None),
    "nothing": lambda layer: vars(layer).update(another=1),
}


@pytest.mark.parametrize("name", SEEN)
def test_the_checks_of_a_layer_in_cpp_and_python_agree(name: str) -> None:
    for layer in (fnn.Conv2d(3, 3, 1), fnn.BatchNorm2d(3), nn.ReLU(), nn.Identity()):
        methods = METHODS[type(layer)]
        assert _C.is_stock(layer, methods)
        SEEN[name](layer)
        assert is_observed(layer) is (name != "nothing")
        assert _C.is_stock(layer, methods) is not is_observed(layer)


def test_the_check_in_cpp_compares_methods_and_their_code(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.ReLU()
    methods = METHODS[nn.ReLU]
    with monkeypatch.context() as patch:
        patch.setattr(nn.ReLU.forward, "__code__", nn.SiLU.forward.__code__)
        assert not _C.is_stock(layer, methods)
    with monkeypatch.context() as patch:
        patch.setattr(nn.ReLU, "_call_impl", nn.SiLU._call_impl, raising=False)
        assert _C.is_stock(layer, methods)  # the same function
        patch.setattr(nn.ReLU, "_call_impl", torch.sin, raising=False)
        assert not _C.is_stock(layer, methods)
    assert _C.is_stock(layer, methods)
    with pytest.raises(TypeError, match="takes a module and a tuple"):
        _C.is_stock(layer)  # type: ignore[call-arg]
    with pytest.raises((TypeError, AttributeError)):
        _C.is_stock(1, ())
