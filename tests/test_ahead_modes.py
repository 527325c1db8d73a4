"""Modes, transforms and tools get PyTorch's results from models whose layers compute the next ones, too."""

from __future__ import annotations

import contextlib
import copy
import io
import pickle
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from ahead_cases import Change, compare, note, two_blocks
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import fastconv


class Functions(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        return result + 1 if func.__name__ == "batch_norm" else result


class Dispatched(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        is_convolution = str(func) in ("aten.convolution.default", "fastconv.conv2d.default")
        return result * 2 if is_convolution else result


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
