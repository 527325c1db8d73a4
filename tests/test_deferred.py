"""fastconv.enabled(fuse=True) fuses operations that are called one by one. Results and gradients stay PyTorch's."""

from __future__ import annotations

import copy
import ctypes
import itertools
import pickle
import threading
import weakref
from collections.abc import Callable
from contextlib import nullcontext, suppress
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import fastconv
from fastconv._deferred import Deferred, creation

NHWC, NCHW = (0, 2, 3, 1), (0, 3, 1, 2)
Program = Callable[[Tensor, Tensor, Tensor], Any]


def keras_block(x: Tensor, w: Tensor, b: Tensor, pool: bool = True) -> Tensor:
    """The calls that Keras 3 makes on its torch backend."""
    x = torch.permute(x, NHWC)
    x = torch.permute(x, NCHW).contiguous()
    x = x.contiguous(memory_format=torch.channels_last)
    w = w.contiguous(memory_format=torch.channels_last)
    y = torch.permute(F.conv2d(x, w, stride=(1, 1), padding=0, dilation=(1, 1), groups=1), NHWC)
    y = torch.add(y.to("cpu"), torch.reshape(b, (1, 1, 1, -1)))
    y = F.relu(y.to("cpu"), inplace=False)
    if not pool:
        return y
    y = torch.permute(y, NCHW).contiguous()
    y = F.max_pool2d(y, (2, 2), stride=(2, 2), padding=0, dilation=1, ceil_mode=False, return_indices=False)
    return torch.permute(y, NHWC)


def keras_next(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    y = torch.permute(keras_block(x, w, b), NCHW).contiguous()
    assert y.is_contiguous()
    assert not y.is_contiguous(memory_format=torch.channels_last)
    return y.contiguous(memory_format=torch.channels_last)


def given_twice(x: Tensor, w: Tensor, b: Tensor) -> list[Tensor]:
    y = keras_block(x, w, b).permute(NCHW)
    one, other = (y.contiguous(memory_format=torch.channels_last) for _ in range(2))
    return [one.mul_(2), other, y]


def in_place_on_the_result(x: Tensor, w: Tensor, b: Tensor) -> list[Tensor]:
    y = F.conv2d(x, w, b)
    turned = y.permute(NHWC)
    y.mul_(2)
    return [turned, y, F.relu(turned)]


def in_place_on_a_view(x: Tensor, w: Tensor, b: Tensor) -> list[Tensor]:
    y = F.conv2d(x, w, b)
    turned = y.permute(NHWC)
    turned += 1
    return [F.relu(y), turned]


def in_place_relu(x: Tensor, w: Tensor, b: Tensor) -> list[Tensor]:
    y = F.conv2d(x, w, b)
    z = F.relu(y, inplace=True)
    return [y, F.max_pool2d(z, 2)]


def operand_changed(x: Tensor, w: Tensor, b: Tensor) -> list[Tensor]:
    x, w = x.detach().clone(), w.detach().clone()
    y = F.relu(F.conv2d(x, w, b))
    x.zero_()
    z = F.relu(F.conv2d(x, w, b))
    w[0] = 3
    return [y.detach(), z.detach(), F.conv2d(x, w, b).detach()]


def operand_set(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    x = x.detach().clone()
    y = F.conv2d(x, w, b)
    x.data = torch.ones(1)
    return y.detach()


def written_into(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    x = x.detach().clone()
    y = F.conv2d(x, w, b).detach()
    torch.add(x, 1, out=x)
    return y + F.conv2d(x, w, b).detach()


def without_then_with_gradient(x: Tensor, w: Tensor, b: Tensor) -> list[Any]:
    with torch.no_grad():
        y = F.conv2d(x, w)
    z = F.relu(y)
    shifted = y + b.view(-1, 1, 1)
    return [z.requires_grad, y.requires_grad, z, shifted]


def with_then_without_gradient(x: Tensor, w: Tensor, b: Tensor) -> list[Any]:
    y = F.conv2d(x, w, b)
    with torch.no_grad():
        z = F.max_pool2d(F.relu(y), 2)
        turned = y.permute(NHWC)
    return [z.requires_grad, y.requires_grad, z, y, turned.clone()]


def pooled_without_gradient(x: Tensor, w: Tensor, b: Tensor) -> list[Any]:
    y = F.conv2d(x, w, b)
    r = F.relu(y)
    with torch.no_grad():
        z = F.max_pool2d(r, 2)
        q = F.relu(F.max_pool2d(y, 2))
    return [z.requires_grad, q.requires_grad, z, q, r]


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * 2


class Same(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * 3


class Inside(torch.autograd.Function):
    """Calls conv2d in forward, and has a backward of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return F.conv2d(x, w)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        return torch.zeros_like(x), torch.ones_like(w) * grad.sum()


def hooked(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    y = F.conv2d(x, w, b)
    y.register_hook(lambda grad: grad * 5)
    return F.relu(y)


def retained(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    y = F.conv2d(x, w, b)
    y.retain_grad()
    F.relu(y).square().sum().backward(retain_graph=True)
    assert y.grad is not None
    return y.grad


def backward_to_it(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    y = F.conv2d(x, w, b)
    (y * y).sum().backward(inputs=[y], retain_graph=True)
    assert y.grad is not None
    return y.grad


def module_hooks(x: Tensor, w: Tensor, b: Tensor) -> list[Tensor]:
    conv = nn.Conv2d(2, 4, 3)
    conv.weight, conv.bias = nn.Parameter(w.detach()), nn.Parameter(b.detach())
    conv.register_forward_hook(lambda module, inputs, output: output * 2)
    seen: list[Tensor] = []
    conv.register_full_backward_hook(lambda module, inputs, outputs: seen.extend(outputs))
    y = nn.Sequential(conv, nn.ReLU(), nn.MaxPool2d(2))(x)
    y.sum().backward(retain_graph=True)
    assert conv.weight.grad is not None
    return [y, conv.weight.grad, *seen]


PROGRAMS: dict[str, Program] = {
    "conv": F.conv2d,
    "conv, relu": lambda x, w, b: F.relu(F.conv2d(x, w, b)),
    "conv, Tensor.relu": lambda x, w, b: F.conv2d(x, w, b, padding="same").relu(),
    "conv, relu, pool": lambda x, w, b: F.max_pool2d(F.relu(F.conv2d(x, w, b)), 2),
    "conv, relu, overlapping pool": lambda x, w, b: F.max_pool2d(torch.relu(F.conv2d(x, w)), 3, 2, 1, ceil_mode=True),
    "conv, relu, pool with indices": lambda x, w, b: F.max_pool2d(F.relu(F.conv2d(x, w, b)), 2, return_indices=True),
    "conv, relu, pool that fits nothing": lambda x, w, b: F.max_pool2d(F.relu(F.conv2d(x, w, b)), 17, 1, 8),
    "conv, pool": lambda x, w, b: F.max_pool2d(F.conv2d(x, w, b), 2),
    "conv, pool, relu": lambda x, w, b: F.relu(F.max_pool2d(F.conv2d(x, w, b), 2)),
    "conv, relu, relu": lambda x, w, b: F.relu(F.relu(F.conv2d(x, w, b))),
    "conv, conv": lambda x, w, b: F.conv2d(F.conv2d(x, w, b), w.transpose(0, 1), padding=2),
    "two uses": lambda x, w, b: (y := F.conv2d(x, w, b)) + F.relu(y),
    "permuted and back": lambda x, w, b: F.relu(F.conv2d(x, w, b).permute(0, 2, 3, 1).permute([0, 3, 1, 2])),
    "another permutation": lambda x, w, b: F.relu(F.conv2d(x, w, b).permute(3, 2, 1, 0)),
    "transposed": lambda x, w, b: F.conv2d(x, w, b).transpose(1, 3),
    "bias on the second axis": lambda x, w, b: F.relu(F.conv2d(x, w) + b.view(1, -1, 1, 1)),
    "bias on the left": lambda x, w, b: F.relu(b.view(-1, 1, 1) + F.conv2d(x, w)),
    "bias on the wrong axis": lambda x, w, b: F.relu(F.conv2d(x[..., :6], w) + b),
    "two biases": lambda x, w, b: F.relu(F.conv2d(x, w, b) + b.view(-1, 1, 1)),
    "bias after relu": lambda x, w, b: F.relu(F.conv2d(x, w)) + b.view(-1, 1, 1),
    "a multiple of a bias": lambda x, w, b: torch.add(F.conv2d(x, w), b.view(-1, 1, 1), alpha=2),
    "a number": lambda x, w, b: F.relu(F.conv2d(x, w) + 1),
    "another dtype": lambda x, w, b: F.relu(F.conv2d(x, w) + b.float().view(-1, 1, 1)),
    "cast": lambda x, w, b: F.relu(F.conv2d(x, w, b).to(torch.float32)),
    "cast to itself": lambda x, w, b: F.relu(F.conv2d(x, w, b).to(w.dtype).to("cpu")),
    "copied": lambda x, w, b: F.relu(F.conv2d(x, w, b).to("cpu", copy=True)),
    "contiguous": lambda x, w, b: F.relu(F.conv2d(x, w, b).contiguous()),
    "channels_last": lambda x, w, b: F.relu(F.conv2d(x, w, b)).contiguous(memory_format=torch.channels_last),
    "flattened": lambda x, w, b: F.max_pool2d(F.relu(F.conv2d(x, w, b)).contiguous(), 2).view(len(x), -1),
    "Keras": keras_block,
    "Keras without pool": lambda x, w, b: keras_block(x, w, b, pool=False).reshape(len(x), -1),
    "Keras twice": keras_next,
    "Keras, and changed": lambda x, w, b: keras_next(x, w, b).mul_(2),
    "Keras, given twice": given_twice,
    "in place on the result": in_place_on_the_result,
    "in place on a view": in_place_on_a_view,
    "in place relu": in_place_relu,
    "operand changed": operand_changed,
    "operand set": operand_set,
    "written into": written_into,
    "without, then with gradient": without_then_with_gradient,
    "with, then without gradient": with_then_without_gradient,
    "pooled without gradient": pooled_without_gradient,
    "a Function of the user's": lambda x, w, b: F.relu(Double.apply(F.conv2d(x, w, b))),
    "a Function that gives its argument": lambda x, w, b: F.relu(Same.apply(F.conv2d(x, w, b))),
    "a Function that convolves": lambda x, w, b: F.relu(Inside.apply(x, w)),
    "hooked": hooked,
    "retained": retained,
    "backward to the result": backward_to_it,
    "hooks of the module": module_hooks,
    "grad of it": lambda x, w, b: torch.autograd.grad(torch.flatten(y := F.relu(F.conv2d(x, w, b))).square().sum(), y),
    "grad of the operands": lambda x, w, b: torch.autograd.grad(
        F.conv2d(x, w, b), [x, w, b], torch.ones(3, 4, 7, 6, dtype=w.dtype), create_graph=True
    ),
    "indexed": lambda x, w, b: F.conv2d(x, w, b)[0, ..., 1],
    "unpacked": lambda x, w, b: [F.relu(y) for y in F.conv2d(x, w, b)],
    "stacked": lambda x, w, b: torch.cat([F.conv2d(x, w, b), F.relu(F.conv2d(x, w, b))]),
    "einsum": lambda x, w, b: torch.einsum("nkpq,k->npq", F.conv2d(x, w, b), b),
    "batch norm": lambda x, w, b: F.relu(F.batch_norm(F.conv2d(x, w, b), None, None, training=True)),
    "interpolated": lambda x, w, b: F.interpolate(F.relu(F.conv2d(x, w, b)), scale_factor=2),
    "copied deep": lambda x, w, b: copy.deepcopy(F.conv2d(x, w, b).detach()),
    "pickled": lambda x, w, b: pickle.loads(pickle.dumps(F.conv2d(x, w, b).detach())),
    "numpy": lambda x, w, b: torch.from_numpy(np.asarray(F.conv2d(x, w, b).detach()) + 1),
    "metadata": lambda x, w, b: [
        *((y := F.conv2d(x, w, b)).shape, y.stride(), y.dtype, y.device, y.ndim, y.requires_grad, y.is_leaf),
        *(y.is_contiguous(), y.numel(), y.size(1), len(y), y.element_size(), y.storage_offset(), y.is_cuda),
    ],
}  # fmt: skip


def as_list(result: Any) -> list[Any]:
    return list(result) if isinstance(result, list | tuple) else [result]


def operands(channels_last: bool) -> list[Tensor]:
    order = torch.channels_last if channels_last else torch.contiguous_format
    x, w, b = (torch.randn(size, dtype=torch.float64) for size in ((3, 2, 9, 8), (4, 2, 3, 3), (4,)))
    return [t.requires_grad_() for t in (x.contiguous(memory_format=order), w.contiguous(memory_format=order), b)]


def run(program: Program, tensors: list[Tensor]) -> tuple[list[Any], list[Any]]:
    """Return the results, and the gradients of first and second order."""
    results = as_list(program(*tensors))
    differentiable = [y for y in results if isinstance(y, Tensor) and y.requires_grad]
    if not differentiable:
        return results, []
    torch.manual_seed(1)
    loss = sum((y * torch.randn(y.shape, dtype=y.dtype)).sum() + y.square().sum() for y in differentiable)
    assert isinstance(loss, Tensor)
    grads = torch.autograd.grad(loss, tensors, create_graph=True, allow_unused=True)
    smooth = [g for g in grads if g is not None and g.requires_grad]
    second = torch.autograd.grad(sum(g.square().sum() for g in smooth), tensors, allow_unused=True) if smooth else []
    return results, [*grads, *second]


def compare(program: Program, channels_last: bool) -> None:
    torchs = operands(channels_last)
    ours = [t.detach().clone().requires_grad_() for t in torchs]
    assert [t.stride() for t in ours] == [t.stride() for t in torchs]
    expected, expected_grads = run(program, torchs)
    with fastconv.enabled(fuse=True):
        found = as_list(program(*ours))
    with fastconv.enabled(fuse=True):
        found_inside, found_grads = run(program, ours)
    for results in (found, found_inside):
        for ours_, torchs_ in zip(results, expected, strict=True):
            if isinstance(torchs_, Tensor):
                torch.testing.assert_close(ours_, torchs_, check_stride=True)
                assert ours_.requires_grad == torchs_.requires_grad
            else:
                assert ours_ == torchs_
    torch.testing.assert_close(found_grads, expected_grads)


@pytest.mark.parametrize("channels_last", [False, True], ids=["NCHW", "channels_last"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_results_and_gradients_are_pytorchs(name: str, channels_last: bool) -> None:
    compare(PROGRAMS[name], channels_last)


@pytest.mark.parametrize("channels_last", [False, True], ids=["NCHW", "channels_last"])
@pytest.mark.parametrize(
    ("name", "operators"),
    [
        ("conv, relu, pool", ["conv2d_relu_max_pool2d"]),
        ("conv, relu, overlapping pool", ["conv2d_relu_max_pool2d"]),
        ("conv, relu", ["conv2d_relu"]),
        ("permuted and back", ["conv2d_relu"]),
        ("bias on the second axis", ["conv2d_relu"]),
        ("Keras", ["conv2d_relu_max_pool2d"]),
        ("Keras without pool", ["conv2d_relu"]),
        ("Keras twice", ["conv2d_relu_max_pool2d"]),
        ("conv, pool", ["conv2d", "max_pool2d"]),
        ("conv, pool, relu", ["conv2d_relu_max_pool2d"]),
        ("two uses", ["conv2d"]),  # PyTorch computes the ReLU of a result that was read
    ],
)
def test_the_expected_operators_run(name: str, operators: list[str], channels_last: bool) -> None:
    tensors = operands(channels_last)
    with torch.profiler.profile(acc_events=True) as profile, fastconv.enabled(fuse=True):
        result = PROGRAMS[name](*tensors)
        result.sum()
    ran = [event.name for event in profile.events() if event.name.startswith("fastconv::")]
    assert sorted(ran) == [f"fastconv::{name}" for name in operators]


def test_the_result_of_a_pool_is_not_copied_to_another_layout_and_back() -> None:
    tensors = operands(channels_last=True)
    with torch.profiler.profile(acc_events=True) as profile, fastconv.enabled(fuse=True):
        assert type(keras_next(*tensors)) is Tensor
    # Keras changes the layout of the input twice. Deferring copies input, weight and bias.
    assert sum(event.name == "aten::copy_" for event in profile.events()) <= 5


def test_results_are_deferred_only_with_fuse() -> None:
    x, w, _ = operands(False)
    with fastconv.enabled():
        assert type(F.conv2d(x, w)) is Tensor
    with fastconv.enabled(fuse=True):
        assert type(F.conv2d(x, w)) is Deferred
        with fastconv.enabled():
            assert type(F.conv2d(x, w)) is Tensor


def test_enabled_can_be_nested() -> None:
    x, w, b = operands(False)
    with fastconv.enabled(fuse=True), fastconv.enabled(fuse=True):
        y = F.max_pool2d(F.relu(F.conv2d(x, w, b)), 2)
        z = F.conv2d(x, w, b).permute(NHWC).square()
    torch.testing.assert_close(y, F.max_pool2d(F.relu(F.conv2d(x, w, b)), 2))
    torch.testing.assert_close(z, F.conv2d(x, w, b).permute(NHWC).square())


def test_a_deferred_result_is_computed_on_leaving() -> None:
    x, w, b = (t.detach() for t in operands(False))
    expected = F.conv2d(x, w, b)
    with fastconv.enabled(fuse=True):
        y = F.conv2d(x, w, b)
    x.zero_()
    torch.testing.assert_close(y, expected)


def test_a_deferred_result_may_be_used_after_leaving() -> None:
    x, w, b = operands(False)
    with fastconv.enabled(fuse=True):
        y = F.conv2d(x, w, b)
        turned = F.conv2d(x, w, b).permute(NHWC)
        y.retain_grad()
        k = F.relu(y).sum()
        rectified = F.conv2d(x, w, b).relu_()
    (k + turned.sum() + rectified.sum()).backward()
    assert y.grad is not None
    torch.testing.assert_close(y.grad, (y > 0).to(y.dtype))
    found, x.grad = x.grad, None
    (F.conv2d(x, w, b).sum() + 2 * F.relu(F.conv2d(x, w, b)).sum()).backward()
    torch.testing.assert_close(found, x.grad)


def test_a_deferred_result_is_computed_on_an_exception() -> None:
    x, w, b = (t.detach() for t in operands(False))
    expected = F.conv2d(x, w, b)
    with suppress(KeyError), fastconv.enabled(fuse=True):
        y = F.conv2d(x, w, b)
        raise KeyError
    w.zero_()
    torch.testing.assert_close(y.clone(), expected)


def test_reading_a_result_in_inference_mode_does_not_affect_its_gradient() -> None:
    x, w, b = operands(False)
    with fastconv.enabled(fuse=True):
        y = F.conv2d(x, w, b)
        with torch.inference_mode():
            assert (y.permute(NHWC) > 0).any()
            F.relu(y)
        y.square().mean().backward()
    assert w.grad is not None


@pytest.mark.parametrize(
    "act",
    [nn.ReLU(True), nn.LeakyReLU(inplace=True), nn.Dropout(1, inplace=True), lambda x: F.leaky_relu(x, 0.1, True)],
)
def test_an_in_place_activation_of_an_operand_does_not_reach_a_deferred_result(act: Callable[[Tensor], Tensor]) -> None:
    x, w, b = (t.detach() for t in operands(False))
    expected = F.relu(F.conv2d(x, w, b))
    with fastconv.enabled(fuse=True):
        y = F.conv2d(x, w, b)
        act(x)
        torch.testing.assert_close(F.relu(y), expected)


def test_a_hook_runs_even_if_a_view_was_made_before() -> None:
    x, w, b = operands(False)
    with fastconv.enabled(fuse=True):
        y = F.conv2d(x, w, b)
        turned = y.permute(NHWC)
        y.register_hook(lambda grad: grad * 2)
        F.relu(turned).sum().backward()
    found, x.grad = x.grad, None
    (2 * F.relu(F.conv2d(x, w, b))).sum().backward()
    torch.testing.assert_close(found, x.grad)


@pytest.mark.parametrize("held", [False, True], ids=["dropped", "held"])
def test_inputs_are_kept_only_while_results_are_deferred(held: bool) -> None:
    x, w, b = (t.detach() for t in operands(False))
    with torch.no_grad(), fastconv.enabled(fuse=True):
        copied = x.clone()
        reference = weakref.ref(copied.untyped_storage())
        y = F.conv2d(copied, w, b)
        if held:
            y.sum()
        else:
            del y
        del copied
        assert reference() is None


CHANGES: dict[str, Callable[[Tensor], Any]] = {
    "zero_": lambda t: t.zero_(),
    "below the override protocol": lambda t: below_the_protocol(t),
    "storage": lambda t: t.untyped_storage().fill_(0),
    "set_": lambda t: t.set_(torch.zeros_like(t)),
    "data": lambda t: setattr(t, "data", torch.zeros_like(t)),
    "swap_tensors": lambda t: torch.utils.swap_tensors(t, torch.zeros_like(t)),
    "out": lambda t: torch.mul(t, 0, out=t),
    "a view": lambda t: t.view(-1)[3:].zero_(),
    "a view of the storage": lambda t: torch.empty(0, dtype=t.dtype).set_(t.untyped_storage()).zero_(),
    "another thread": lambda t: in_a_thread(t.zero_),
    "NumPy": lambda t: t.numpy().fill(0),
    "DLPack": lambda t: torch.from_dlpack(t).zero_(),
    "a scripted function": lambda t: scripted_zero(t),
    "foreach": lambda t: torch._foreach_zero_([t]),
    "an optimizer": lambda t: step_on(t),
    "resized": lambda t: t.resize_(1),
    "a pointer": lambda t: ctypes.memset(t.data_ptr(), 0, t.numel() * t.element_size()),
}


def below_the_protocol(t: Tensor) -> None:
    with torch._C.DisableTorchFunction():
        t.zero_()


def in_a_thread(call: Callable[[], Any]) -> None:
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()


@torch.jit.script
def scripted_zero(t: Tensor) -> Tensor:
    return t.zero_()


def step_on(t: Tensor) -> None:
    t.requires_grad_()
    t.grad = torch.ones_like(t)
    torch.optim.SGD([t], lr=1.0).step()


@pytest.mark.parametrize("which", ["input", "weight", "bias"])
@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_a_change_of_an_operand_does_not_reach_a_deferred_result(name: str, which: str) -> None:
    tensors = dict(zip(("input", "weight", "bias"), (t.detach() for t in operands(False)), strict=True))
    expected = F.conv2d(**tensors)
    with fastconv.enabled(fuse=True):
        plain, rectified = F.conv2d(**tensors), F.relu(F.conv2d(**tensors))
        CHANGES[name](tensors[which])
        torch.testing.assert_close(plain + 0, expected)
        torch.testing.assert_close(F.max_pool2d(rectified, 2), F.max_pool2d(F.relu(expected), 2))


@pytest.mark.parametrize("make", ["NumPy", "shared memory", "a buffer"])
def test_memory_that_other_code_writes_to_is_copied(make: str) -> None:
    """For example a buffer for frames, which is refilled between the calls."""
    w, b = torch.ones(8, 1, 3, 3), torch.zeros(8)
    buffer = np.zeros((1, 1, 9, 9), np.float32)
    if make == "NumPy":
        x = torch.from_numpy(buffer)
    elif make == "a buffer":
        x = torch.frombuffer(buffer, dtype=torch.float32).view(1, 1, 9, 9)
    else:
        x = torch.zeros(1, 1, 9, 9).share_memory_()
        buffer = x.numpy()
    results = []
    with fastconv.enabled(fuse=True):
        for value in (1, 2, 3):
            buffer[:] = value
            results.append(F.conv2d(x, w, b))
    assert [y.max().item() for y in results] == [9, 18, 27]


@pytest.mark.parametrize("grad", [False, True])
def test_operands_keep_their_address_in_memory(grad: bool) -> None:
    """A NumPy array that shares memory with an operand shares it after the call, too."""
    tensors = [t.detach().float() for t in operands(False)]
    arrays = [t.numpy() for t in tensors]
    x, w, b = (t.requires_grad_(grad) for t in tensors)
    with fastconv.enabled(fuse=True):
        kept = [F.conv2d(x, w, b), F.relu(F.conv2d(x, w, b)), F.max_pool2d(F.relu(F.conv2d(x, w, b)), 2)]
    with torch.no_grad():
        for t, array in zip(tensors, arrays, strict=True):
            t.fill_(7)
            assert (array == 7).all()
    assert [type(y) is Deferred for y in kept] == [True, True, False]


def test_numpy_writes_do_not_reach_a_deferred_result() -> None:
    x, w, b = (t.detach() for t in operands(False))
    expected, array = F.conv2d(x, w, b), x.numpy()
    with fastconv.enabled(fuse=True):
        y = F.conv2d(x, w, b)
        array[:] = 7
        torch.testing.assert_close(y + 0, expected)


def test_a_call_with_large_operands_is_not_deferred() -> None:
    x, w = torch.randn(1, 64, 9, 9), torch.randn(2, 64, 3, 3)
    with fastconv.enabled(fuse=True):
        assert type(F.conv2d(x, w)) is Tensor
        assert type(F.conv2d(x, torch.randn(64, 64, 1, 1))) is Deferred


def test_a_computed_result_releases_the_result_it_was_made_of() -> None:
    x, w, b = operands(False)
    with fastconv.enabled(fuse=True):
        y = F.conv2d(x, w, b)
        r = F.relu(y)
        reference = weakref.ref(y)
        del y
        assert reference() is not None
        r.sum()
        assert reference() is None


def test_writes_of_embedding_and_batch_norm_do_not_reach_a_deferred_result() -> None:
    x, w, b = (t.detach() for t in operands(False))
    expected = F.conv2d(x, w, b)
    with fastconv.enabled(fuse=True):
        y = F.conv2d(x, w, b)
        F.embedding(torch.tensor([0, 1]), x.view(-1, 8), max_norm=1e-3)
        torch.testing.assert_close(y + 0, expected)
        y = F.conv2d(x, w, b)
        expected = F.conv2d(x.clone(), w.clone(), b.clone()) + 0
        F.batch_norm(torch.randn(3, 4, 2, 2, dtype=b.dtype), b, torch.ones(4, dtype=b.dtype), training=True)
        torch.testing.assert_close(y + 0, expected)


def test_operands_may_be_created_in_inference_mode() -> None:
    x, w, b = (t.detach() for t in operands(False))
    with torch.inference_mode():
        frozen = b.clone()
    for bias_later in (False, True):
        with fastconv.enabled(fuse=True):
            y = F.conv2d(x, w) + frozen.view(-1, 1, 1) if bias_later else F.conv2d(x, w, frozen)
            torch.testing.assert_close(F.relu(y), F.relu(F.conv2d(x, w, b)))
    with fastconv.enabled(fuse=True), torch.inference_mode():
        y = F.conv2d(x, w, frozen)
        assert type(y) is Deferred
    assert y.is_inference()
    assert not F.relu(y).is_inference()


def gradients(ask: Callable[[Tensor, Tensor, Tensor, Tensor], Any], fuse: bool) -> Any:
    torch.manual_seed(4)
    x, w, b = operands(True)
    with fastconv.enabled(fuse=True) if fuse else nullcontext():
        y = F.conv2d(x, w, b)
        r = F.relu(y)
        z = F.max_pool2d(r, 2)
        loss = (z * torch.arange(z.numel(), dtype=z.dtype).view(z.shape)).square().sum()
        assert (type(y) is Deferred) == fuse
        return ask(x, y, r, loss)


def backward_to(loss: Tensor, *inputs: Tensor) -> list[Tensor | None]:
    loss.backward(inputs=list(inputs))
    return [t.grad for t in inputs]


def between(ask: Callable[..., Any], fuse: bool, step: Callable[..., Tensor]) -> list[Any]:
    torch.manual_seed(5)
    x, w, b = operands(False)
    x, w = x[..., :6], w  # (N, K, P, Q) with Q == K
    with fastconv.enabled(fuse=fuse):
        y = F.conv2d(x, w)
        assert (type(y) is Deferred) == fuse
        z = step(y, b)
        return [ask(y, z), b.grad, w.grad]


STEPS_BETWEEN: dict[str, Callable[..., Tensor]] = {
    "relu": lambda y, b: F.relu(y),
    "bias": lambda y, b: y + b.view(-1, 1, 1),
    "bias, relu": lambda y, b: F.relu(y + b.view(-1, 1, 1)),
    "permute, relu": lambda y, b: F.relu(y.permute(NHWC)),
    "pool, relu": lambda y, b: F.relu(F.max_pool2d(y, 2)),
    "relu, pool": lambda y, b: F.max_pool2d(F.relu(y), 2),
}


def after_hook(y: Tensor, z: Tensor, retain: bool) -> Any:
    seen: list[Tensor] = []
    if retain:
        y.retain_grad()
    else:
        y.register_hook(lambda g: seen.append(g) or g * 3)  # type: ignore[func-returns-value]
    z.square().sum().backward()
    return y.grad if retain else seen


ASKS_BETWEEN: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "retain_grad": lambda y, z: after_hook(y, z, True),
    "hook": lambda y, z: after_hook(y, z, False),
    "grad": lambda y, z: torch.autograd.grad(z, y, torch.ones(z.shape, dtype=z.dtype)),
    "grad, materialised": lambda y, z: torch.autograd.grad(z.square().sum(), [y], materialize_grads=True),
    "backward": lambda y, z: z.backward(torch.ones(z.shape, dtype=z.dtype), inputs=[y]) or y.grad,  # type: ignore[func-returns-value]
}


# A hook on a result that was fused is an error: test_a_hook_on_a_result_that_was_fused_is_an_error.
FUSED_BEFORE = {("hook", "relu, pool"), ("hook", "pool, relu")}


@pytest.mark.parametrize(
    ("name", "step"), [pair for pair in itertools.product(ASKS_BETWEEN, STEPS_BETWEEN) if pair not in FUSED_BEFORE]
)
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_a_result_gets_its_gradient_while_the_next_result_is_deferred(name: str, step: str) -> None:
    found, expected = (between(ASKS_BETWEEN[name], fuse, STEPS_BETWEEN[step]) for fuse in (True, False))
    torch.testing.assert_close(found, expected)


def retained_late(loss: Tensor, *inputs: Tensor) -> list[Tensor | None]:
    for t in inputs:
        t.retain_grad()
        t.retain_grad()
    loss.backward()
    return [t.grad for t in inputs]


ASKS: dict[str, Callable[..., Any]] = {
    "grad": lambda x, y, r, loss: torch.autograd.grad(loss, [x, y, r]),
    "grad of one": lambda x, y, r, loss: torch.autograd.grad(loss, y),
    "grad of a mapping": lambda x, y, r, loss: torch.autograd.grad(loss, {"y": y, "x": x}),
    "grad, used twice": lambda x, y, r, loss: torch.autograd.grad(loss + y.square().sum() + F.relu(y).sum(), [y, x]),
    "grad of the second order": lambda x, y, r, loss: torch.autograd.grad(
        torch.autograd.grad(loss, y, create_graph=True)[0].square().sum(), x
    ),
    "unused": lambda x, y, r, loss: torch.autograd.grad(x.sum(), [y, r], allow_unused=True),
    "materialised": lambda x, y, r, loss: torch.autograd.grad(x.sum(), [y, r], materialize_grads=True),
    "backward to one": lambda x, y, r, loss: backward_to(loss, y),
    "backward to all": lambda x, y, r, loss: backward_to(loss, x, y, r),
    "torch.autograd.backward": lambda x, y, r, loss: [torch.autograd.backward([loss], inputs=(y, x)), y.grad, x.grad],
    "retained": lambda x, y, r, loss: retained_late(loss, y, r),
}


@pytest.mark.parametrize("name", ASKS)
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_a_result_that_was_fused_gets_its_gradient(name: str) -> None:
    found, expected = gradients(ASKS[name], True), gradients(ASKS[name], False)
    torch.testing.assert_close(found, expected)


def test_an_unused_result_raises_pytorchs_error() -> None:
    for fuse in (True, False):
        with pytest.raises(RuntimeError, match="appears to not have been used in the graph"):
            gradients(lambda x, y, r, loss: torch.autograd.grad(x.sum(), [y]), fuse)


def test_a_hook_on_a_result_that_was_fused_is_an_error() -> None:
    x, w, b = operands(False)
    with fastconv.enabled(fuse=True):
        y = F.conv2d(x, w, b)
        F.relu(y).sum()
        with pytest.raises(RuntimeError, match="was registered after the result was fused"):
            y.register_hook(print)


def test_a_result_whose_copy_was_skipped_gets_its_gradient() -> None:
    x, w, b = operands(True)
    with fastconv.enabled(fuse=True):
        y = F.max_pool2d(F.relu(F.conv2d(x, w, b)).contiguous(), 2)
        assert type(y) is Deferred
        z = y.contiguous(memory_format=torch.channels_last)
        assert type(z) is Tensor
        y.retain_grad()
        (z * z).sum().backward()
        torch.testing.assert_close(y.grad, 2 * z.detach(), check_stride=False)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("fuse", [False, True], ids=["plain", "fused"])
@pytest.mark.parametrize("reentrant", [False, True], ids=["not reentrant", "reentrant"])
@pytest.mark.filterwarnings("ignore")  # from Dynamo
def test_checkpointing_gives_the_same_gradients(reentrant: bool, fuse: bool, compiled: bool) -> None:
    def grads(enabled: bool) -> list[Tensor | None]:
        torch.manual_seed(0)
        x, w, b = operands(False)

        def program(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
            y = checkpoint(lambda x: F.conv2d(x, w, b), x, use_reentrant=reentrant)
            z = checkpoint(lambda x: F.max_pool2d(F.relu(F.conv2d(x, w, b)), 2), x, use_reentrant=reentrant)
            r = checkpoint(lambda y: F.relu(y) * 2, F.conv2d(x, w, b), use_reentrant=reentrant)
            return F.relu(y).sum() + z.sum() + r.sum()

        if compiled and not reentrant:
            program = torch.compile(program, backend="aot_eager")
        with fastconv.enabled(fuse=fuse) if enabled else nullcontext():
            loss = program(x, w, b)
            loss.backward(retain_graph=True)
            torch.autograd.backward(loss)
        return [x.grad, w.grad, b.grad]

    torch.testing.assert_close(grads(True), grads(False))


def test_a_checkpoint_may_be_recomputed_inside_enabled() -> None:
    x, w, b = operands(False)
    with fastconv.enabled(fuse=True):
        y = checkpoint(lambda x: F.relu(F.conv2d(x, w, b)), x, use_reentrant=False)
        (found,) = torch.autograd.grad(y.square().sum(), x)
    torch.testing.assert_close(found, *torch.autograd.grad(F.relu(F.conv2d(x, w, b)).square().sum(), x))


def test_an_invalid_call_raises_its_error_at_once() -> None:
    x, w, b = operands(False)
    wrong: list[tuple[Any, ...]] = [
        (x, w, b[:3]), (x[:, :1], w), (x, w, b, 0), (x, w, b, 1, -1), (x[..., :2], w), (x, w, b, 1, 0, 1, 3),
        (x, w, b, 1, 0, 0), (x, w.float()), (x, w, b, 1, "same-ish"), (x, w[0]), (x[0, 0], w), (x, w, b, (1, 2, 3)),
    ]  # fmt: skip
    for arguments in wrong:
        with pytest.raises((RuntimeError, ValueError, TypeError)) as expected:
            F.conv2d(*arguments)
        with fastconv.enabled(fuse=True), pytest.raises(expected.type) as found:
            F.conv2d(*arguments)
        assert str(found.value) == str(expected.value)
    for padding in (2**33, 2**40):  # PyTorch's messages depend on the algorithm
        with fastconv.enabled(fuse=True), pytest.raises(RuntimeError):
            F.conv2d(x, w, b, 1, padding)


def test_another_thread_may_use_a_deferred_result() -> None:
    x, w, b = (t.detach() for t in operands(False))
    found: list[Tensor] = []
    with fastconv.enabled(fuse=True):
        y = F.conv2d(x, w, b)
        thread = threading.Thread(target=lambda: found.append(F.relu(y)))
        thread.start()
        thread.join()
    torch.testing.assert_close(found[0], F.relu(F.conv2d(x, w, b)))


@pytest.mark.filterwarnings("ignore")  # from Dynamo, which does not compile such a function
def test_a_compiled_function_accepts_a_deferred_result() -> None:
    x, w, b = operands(False)
    compiled = torch.compile(lambda y: F.relu(y) * 2, backend="eager")
    with fastconv.enabled(fuse=True):
        found = compiled(F.conv2d(x, w, b))
    torch.testing.assert_close(found, F.relu(F.conv2d(x, w, b)) * 2)
    found.sum().backward()
    assert w.grad is not None


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("door", ["enabled", "convert"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "compiled", [[0], [1], [2], [3], [1, 2, 3], [0, 2]], ids=lambda layers: "+".join(map(str, layers))
)
def test_layers_may_be_compiled_one_by_one(compiled: list[int], training: bool, door: str) -> None:
    torch._dynamo.reset()
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)).train(training)
    model = copy.deepcopy(plain)
    model = fastconv.convert(model) if door == "convert" else model
    for i in compiled:
        model[i].compile(backend="eager")
    x = torch.randn(2, 3, 9, 9)
    for _ in range(2):
        with fastconv.enabled(fuse=True) if door == "enabled" else nullcontext():
            found = model(x)
        expected = plain(x)
        torch.testing.assert_close(found, expected)
        found.sum().backward()
        expected.sum().backward()
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_torch_func_transforms_give_pytorchs_results() -> None:
    x, w, b = (t.detach() for t in operands(False))
    with fastconv.enabled(fuse=True):
        batched = torch.func.vmap(lambda x: F.relu(F.conv2d(x[None], w, b)))(x)
        gradient = torch.func.grad(lambda w: F.relu(F.conv2d(x, w, b)).sum())(w)
    torch.testing.assert_close(batched[:, 0], F.relu(F.conv2d(x, w, b)))
    torch.testing.assert_close(gradient, torch.func.grad(lambda w: F.relu(F.conv2d(x, w, b)).sum())(w))


def test_training_gives_pytorchs_weights() -> None:
    def train(enabled: bool) -> list[Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(
            *(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(150, 3)),
        )
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        x, labels = torch.randn(8, 1, 16, 16), torch.arange(8) % 3
        for _ in range(5):
            optimizer.zero_grad()
            with fastconv.enabled(fuse=True) if enabled else nullcontext():
                F.cross_entropy(model(x), labels).backward()
                optimizer.step()
        return [p.detach() for p in model.parameters()]

    torch.testing.assert_close(train(True), train(False), atol=1e-4, rtol=1e-3)


_STEPS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "relu": lambda y, b: F.relu(y),
    "permute": lambda y, b: y.permute(NHWC),
    "permute back": lambda y, b: y.permute(NCHW),
    "contiguous": lambda y, b: y.contiguous(),
    "channels_last": lambda y, b: y.contiguous(memory_format=torch.channels_last),
    "to": lambda y, b: y.to("cpu"),
    "bias": lambda y, b: y + b[: y.shape[1]].view(-1, 1, 1),
    "bias last": lambda y, b: y + b[: y.shape[-1]],
    "pool": lambda y, b: F.max_pool2d(y, 2),
    "relu_": lambda y, b: y.relu_(),
    "double": lambda y, b: y * 2,
}


@given(st.lists(st.sampled_from(sorted(_STEPS)), max_size=7), st.booleans())
@settings(max_examples=150, deadline=None)
def test_steps_in_random_order_give_pytorchs_results(steps: list[str], channels_last: bool) -> None:
    def program(x: Tensor, w: Tensor, b: Tensor) -> list[Tensor]:
        y = F.conv2d(x, w, padding=1)
        seen = [y]
        for step in steps:
            if min(y.shape[2:]) < 2 and step == "pool":
                continue
            y = _STEPS[step](y, torch.cat([b] * 4))
            seen.append(y)
        return [y.detach()] if "relu_" in steps else [y, *seen]  # autograd refuses some programs with relu_

    torch.manual_seed(0)
    compare(program, channels_last)


MADE_OF_A_RESULT: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "pool": lambda y: F.max_pool2d(y, 2),
    "pool, relu": lambda y: F.relu(F.max_pool2d(y, 2)),
    "bias": lambda y: y + torch.arange(4.0, dtype=torch.double).view(-1, 1, 1),
    "layout": lambda y: y.contiguous(memory_format=torch.channels_last),
    "bias, relu": lambda y: F.relu(y + torch.ones(4, 1, 1, dtype=torch.double)),
    "permute, copy": lambda y: y.permute(NHWC).contiguous(),
    "permute, bias": lambda y: y.permute(NHWC) + torch.ones(4, dtype=torch.double),
}
RESULT_CHANGES: dict[str, Callable[[Tensor], Any]] = {
    "relu_": lambda y: y.relu_(),
    "F.relu": lambda y: F.relu(y, inplace=True),
    "relu_, mul_": lambda y: y.relu_().mul_(-1),
    "add_": lambda y: y.add_(1),
    "copy_": lambda y: y.copy_(torch.ones_like(y)),
    "item": lambda y: y.__setitem__(0, 2.0),
    "view": lambda y: y.permute(NHWC).mul_(3),
    "fill": lambda y: y.untyped_storage().fill_(0),
    "numpy": lambda y: y.detach().numpy().fill(1),
}


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("change", RESULT_CHANGES)
@pytest.mark.parametrize("made", MADE_OF_A_RESULT)
def test_a_change_of_a_result_does_not_reach_earlier_results_made_of_it(made: str, change: str, grad: bool) -> None:
    def program() -> list[Tensor]:
        torch.manual_seed(0)
        x = torch.randn(2, 3, 8, 8).double().requires_grad_(grad)
        y = F.conv2d(x, torch.randn(4, 3, 3, 3).double())
        z = MADE_OF_A_RESULT[made](y)
        RESULT_CHANGES[change](y)
        if not grad:
            return [y.clone(), z]
        try:
            return [y.detach().clone(), z, *torch.autograd.grad(z.sum() + y.sum(), x)]
        except RuntimeError as error:  # PyTorch's backward needs the changed tensor; that of a fused pool does not
            assert "modified by an inplace operation" in str(error)  # noqa: PT017
            return [y.detach().clone(), z]

    expected = program()
    with fastconv.enabled(fuse=True):
        found = program()
    assert len(found) >= len(expected)
    for ours, theirs in zip(found, expected, strict=False):
        torch.testing.assert_close(ours, theirs)


def test_an_in_place_relu_is_not_lost_when_the_result_before_it_is_read() -> None:
    x, w = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3)
    for make in MADE_OF_A_RESULT.values():
        with fastconv.enabled(fuse=True):
            y = F.conv2d(x.double(), w.double())
            z = F.relu(make(y), inplace=True)
            y.sum()
            torch.testing.assert_close(z + 0, F.relu(make(F.conv2d(x.double(), w.double()) + 0)))


def test_a_change_of_a_result_does_not_reach_the_result_it_was_made_of() -> None:
    x, w = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3)
    for make in MADE_OF_A_RESULT.values():
        with fastconv.enabled(fuse=True):
            y = F.conv2d(x.double(), w.double())
            make(y).sub_(5)
            plain = y.clone()
        torch.testing.assert_close(plain, F.conv2d(x.double(), w.double()))


@pytest.mark.parametrize("outer", [False, True])
def test_computing_a_deferred_result_does_not_change_the_grad_mode(outer: bool) -> None:
    x, w = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3)
    with torch.set_grad_enabled(outer):
        with fastconv.enabled(fuse=True):
            y = F.conv2d(x, w)
            z = F.relu(y)
            with torch.set_grad_enabled(not outer):
                pooled = F.max_pool2d(y, 2)
            y.sum(), z.sum(), pooled.sum()
        assert torch.is_grad_enabled() == outer
        assert not torch.is_inference_mode_enabled()


def test_a_result_does_not_keep_alive_results_made_of_it() -> None:
    with fastconv.enabled(fuse=True):
        y = F.conv2d(torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3))
        z = F.relu(y)
        reference = weakref.ref(z)
        del z
        assert reference() is None


def test_the_address_of_a_waiting_result_is_an_error_and_not_null() -> None:
    x, w = torch.randn(1, 1, 5, 5), torch.randn(2, 1, 3, 3)
    with fastconv.enabled(fuse=True):
        y = F.conv2d(x, w)
        with pytest.raises(RuntimeError, match="Cannot access data pointer"):
            torch.utils.dlpack.to_dlpack(y)
        assert torch.from_dlpack(y).shape == (1, 2, 3, 3)


@pytest.mark.parametrize("is_override", [False, True])
@pytest.mark.parametrize("is_inference", [False, True])
def test_a_waiting_result_may_become_the_data_of_a_tensor(is_override: bool, is_inference: bool) -> None:
    conv, x = nn.Conv2d(3, 4, 3), torch.randn(2, 3, 8, 8)
    layer = conv if is_override else fastconv.convert(copy.deepcopy(conv))
    plain, parameter = torch.zeros(1), nn.Parameter(torch.ones(2, 4, 6, 6))
    parameter.sum().backward()  # the parameter has an accumulator, whose device PyTorch compares
    with fastconv.enabled(fuse=True) if is_override else nullcontext(), torch.inference_mode(is_inference):
        y = layer(x)
        assert type(y) is Deferred
        plain.data = y
        parameter.data = F.relu(layer(x))
    torch.testing.assert_close(plain, conv(x).detach())
    torch.testing.assert_close(parameter.detach(), F.relu(conv(x)).detach())
    with torch.inference_mode(is_inference):
        plain.fill_(7)
        assert (y == 7).all()  # as in PyTorch, both tensors refer to the same memory


class Tagged(Tensor):
    pass


def test_a_waiting_result_may_become_a_subclass() -> None:
    conv, x = nn.Conv2d(3, 4, 3), torch.randn(2, 3, 8, 8)
    y = fastconv.convert(copy.deepcopy(conv))(x)
    assert type(y) is Deferred
    tagged = y.as_subclass(Tagged)
    assert type(tagged) is Tagged
    torch.testing.assert_close(tagged.as_subclass(Tensor), conv(x))
    assert tagged.requires_grad


class Squared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * 2 * x


class Tripled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        return x.mul_(3)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * 3


IN_PLACE: dict[str, Callable[[Tensor], object]] = {
    "mul_": lambda y: y.mul_(2),
    "sigmoid_": lambda y: y.sigmoid_(),
    "leaky_relu_": lambda y: F.leaky_relu_(y),
    "two": lambda y: y.mul_(2).add_(y),
    "setitem": lambda y: y.__setitem__((slice(None), 0), 1.0),
    "copy_": lambda y: y.copy_(y.detach() * 3),
    "detach_": lambda y: y.detach_(),
    "read before": lambda y: (y.sum(), y.mul_(2)),
    "a Function": lambda y: Tripled.apply(y),
    "a Function after": lambda y: (y.mul_(2), Tripled.apply(y)),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_a_function_gets_the_gradient_of_a_result_that_was_changed_in_place(name: str) -> None:
    def run(fuse: bool) -> list[Tensor | None]:
        x, w, b = operands(False)
        with fastconv.enabled(fuse=True) if fuse else nullcontext():
            y = F.conv2d(x, w, b)
            IN_PLACE[name](y)
            z = Squared.apply(y)
        if z.requires_grad:
            z.sum().backward()
        return [z, w.grad, b.grad]

    torch.manual_seed(0)
    expected = run(False)
    torch.manual_seed(0)
    torch.testing.assert_close(run(True), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("later", [False, True])
def test_a_function_raises_an_error_if_the_result_was_changed_through_a_view(later: bool) -> None:
    x, w, b = operands(False)
    with fastconv.enabled(fuse=True):
        y = F.conv2d(x, w, b)
        y.view(-1).mul_(3)
        z = Squared.apply(y)
        total = z.sum() + y.sum() if later else z.sum()
    with pytest.raises(RuntimeError, match="changed in place through a view"):
        total.backward()


def test_set_exchanges_the_memory_of_a_result() -> None:
    x, w = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3)
    with fastconv.enabled(fuse=True):
        y = F.conv2d(x, w)
        y.set_(torch.ones(3))
        assert y.tolist() == [1, 1, 1]


def test_nothing_is_copied_for_a_convolution_before_a_batch_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[torch.Size] = []
    original = creation.snapshot

    def noted(tensor: Tensor) -> Tensor:
        copied.append(tensor.shape)
        return original(tensor)

    monkeypatch.setattr(creation, "snapshot", noted)

    class Pair(nn.Module):
        def __init__(self, C: int, layer: nn.Module) -> None:
            super().__init__()
            self.conv, self.layer = nn.Conv2d(C, C, 3), layer

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return self.layer(y)

    for layer in (nn.BatchNorm2d(4), nn.ReLU()):
        model = fastconv.convert(Pair(4, layer))
        model(torch.randn(2, 4, 8, 8)).sum().backward()
        assert bool(copied) == isinstance(layer, nn.ReLU)
    copied.clear()
    fastconv.convert(Pair(64, nn.ReLU()))(torch.randn(1, 64, 4, 4))  # the weight is far larger than the result
    assert copied == []
