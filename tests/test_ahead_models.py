"""Models that a program changes, watches or transforms get PyTorch's results, though layers compute the next ones."""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import pickle
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from test_ahead_programs import assert_same, outcome
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.nn.utils import parametrize, prune
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import fastconv


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.relu = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU()
        self.conv2, self.bn2, self.act = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU6()
        self.tail = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv(x)
        out = self.bn(out)
        out = self.relu(out)
        out = self.conv2(out)
        out = F.leaky_relu(self.bn2(out))
        out = self.tail(out)
        out += x
        return self.act(out)


def two_blocks() -> nn.Sequential:
    torch.manual_seed(1)
    model = nn.Sequential(Block(), Block(), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.SiLU()).double()
    for bn in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        for tensor in (bn.weight, bn.bias, bn.running_mean):
            nn.init.normal_(tensor)  # type: ignore[arg-type]
    return model


Change = Callable[[Any, list[Any]], Any]


def compare(change: Change, training: bool, make: Callable[[], nn.Module] = two_blocks) -> None:
    """Compare the model before and after a change. ``change(model, seen)`` may return a context or a model."""
    models = [make().train(training), make().train(training)]
    fastconv.convert(models[0])
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    results: list[list[Any]] = [[], []]
    with torch.set_grad_enabled(training):
        for model, into in zip(models, results, strict=True):
            for _ in range(4):
                into += outcome(model, x.clone().requires_grad_(training), training)
            seen: list[Any] = []
            changed = change(model, seen)
            is_context = hasattr(changed, "__enter__")
            called = changed if isinstance(changed, nn.Module) else model
            with changed if is_context else contextlib.nullcontext():
                for _ in range(2):
                    into += outcome(called, x.clone().requires_grad_(training), training)
            into += seen
    assert_same(*results)


def note(seen: list[Any], value: Any) -> None:
    seen += [t.detach().clone() for t in (value if isinstance(value, tuple) else (value,)) if t is not None]


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


def negative(self: Any, input: Tensor) -> Tensor:
    return -input


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
    "code of ReLU6.forward": patched(lambda m: nn.ReLU6.forward, "__code__", with_code_of(negative)),
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


# ---- modes, transforms and tools -------------------------------------------------------------------------------------


class Functions(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        return result + 1 if func.__name__ == "batch_norm" else result


class Dispatched(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        return result * 2 if "convolution" in str(func) or "conv2d" in str(func) else result


@contextlib.contextmanager
def profiled(m: Any, seen: list[Any]) -> Iterator[None]:
    """Note what the layers return, as a debugger does."""

    def note_return(frame: Any, event: str, value: Any) -> Any:
        if event == "return" and frame.f_code.co_name == "_wrapped_call_impl":
            note(seen, value)
        return note_return if sys.gettrace() is not None else None

    set_function = sys.settrace if len(seen) % 2 else sys.setprofile
    set_function(note_return)
    try:
        yield
    finally:
        set_function(None)


MODES: dict[str, Change] = {
    "function mode": lambda m, s: Functions(),
    "dispatch mode": lambda m, s: Dispatched(),
    "profile": profiled,
    "no function protocol": lambda m, s: torch._C.DisableTorchFunctionSubclass(),
    "saved tensors": lambda m, s: saved_tensors_hooks(lambda t: t.clone(), lambda t: t),
    "inference mode": lambda m, s: torch.inference_mode(),
    "grad": lambda m, s: torch.enable_grad(),
    "global hook": lambda m, s: nn.modules.module.register_module_forward_hook(lambda m, args, y: note(s, y)),
    "functional call": lambda m, s: Called(
        m, lambda x: torch.func.functional_call(m, {k: v.detach() * 2 for k, v in m.named_parameters()}, (x,))
    ),
    "checkpoint": lambda m, s: Called(m, lambda x: checkpoint(m, x, use_reentrant=False)),
    "vmap": lambda m, s: Called(m.eval(), lambda x: torch.func.vmap(m)(x[:, None])[:, 0]),
    "gradient of func": lambda m, s: Called(m.eval(), torch.func.grad(lambda x: m(x).square().sum())),
    "jvp": lambda m, s: Called(m.eval(), lambda x: torch.func.jvp(m, (x.detach(),), (x.detach(),))[1]),
    "deepcopy": lambda m, s: copy.deepcopy(m),
    "pickle": lambda m, s: pickle.loads(pickle.dumps(m)),
    "save": lambda m, s: saved(m),
    "fx": lambda m, s: torch.fx.symbolic_trace(m),
    "jit trace": lambda m, s: torch.jit.trace(m.eval(), torch.randn(2, 3, 5, 5, dtype=torch.float64)),
    "jit script": lambda m, s: torch.jit.script(m),
    "revert": lambda m, s: fastconv.revert(m),
    "replica": lambda m, s: replica(m),
    "channels last": lambda m, s: m.to(memory_format=torch.channels_last),
    "fused by torch": lambda m, s: torch.nn.utils.fuse_conv_bn_eval(m[2].eval(), m[3].eval()),
}


class Called(nn.Module):
    def __init__(self, model: nn.Module, call: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.call = model, call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x)


def saved(model: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def replica(model: nn.Module) -> nn.Module:
    """A replica as torch.nn.parallel.replicate makes it: its parameters are plain attributes."""
    copies = {m: m._replicate_for_data_parallel() for m in model.modules()}  # type: ignore[no-untyped-call]
    for original, copied in copies.items():
        for name, child in original._modules.items():
            copied._modules[name] = None if child is None else copies[child]
        for name, parameter in original._parameters.items():
            setattr(copied, name, None if parameter is None else parameter * 1)
        for name, buffer in original._buffers.items():
            copied._buffers[name] = buffer
    return copies[model]


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("name", MODES)
def test_a_mode_or_tool_gives_pytorchs_results(name: str, training: bool) -> None:
    compare(MODES[name], training)


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("casts", [False, True], ids=["plain", "autocast"])
def test_every_dtype_and_autocast_give_pytorchs_results(dtype: torch.dtype, casts: bool, training: bool) -> None:
    model = two_blocks().float() if casts else two_blocks().to(dtype)
    model.train(training)
    original = copy.deepcopy(model)
    fastconv.convert(model)
    for _ in range(4):
        x = torch.randn(2, 3, 5, 5, dtype=torch.float32 if casts else dtype)
        with torch.set_grad_enabled(training), torch.autocast("cpu", dtype, enabled=casts and dtype != torch.float32):
            y, z = model(x), original(x)
        assert y.dtype == z.dtype
        is_float = z.dtype == torch.float32 and not casts
        torch.testing.assert_close(y, z, **({"rtol": 1e-4, "atol": 1e-4} if is_float else {"rtol": 0.1, "atol": 0.25}))
