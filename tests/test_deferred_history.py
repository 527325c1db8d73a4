"""Programs whose Functions return, save or change the result of a convolution that waits, against PyTorch."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import fastconv


class Permuted(Function):
    """Returns the result of a layer in another layout."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, conv: nn.Module) -> Tensor:
        return conv(x).permute(0, 2, 3, 1)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad.sum() * torch.ones(2, 3, 8, 8), None


class SavedView(Function):
    """Returns the result of a layer, and saves a view of it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, conv: nn.Module) -> Tensor:
        y: Tensor = conv(x)
        ctx.save_for_backward(y.flatten(1))
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return ctx.saved_tensors[0].sum() * grad.sum() * torch.ones(2, 3, 8, 8), None


class Squared(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * grad  # type: ignore[no-any-return]


class Exponential(Function):
    """Changes its argument in place, and saves it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x.mul_(0.1).exp_()
        ctx.mark_dirty(x)
        ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 0.1 * ctx.saved_tensors[0] * grad  # type: ignore[no-any-return]


def returned_in_another_layout(conv: nn.Module, x: Tensor) -> Tensor:
    return Permuted.apply(x, conv).sum()  # type: ignore[no-any-return]


def checkpoint_in_another_layout(conv: nn.Module, x: Tensor) -> Tensor:
    return checkpoint(lambda x: conv(x).permute(0, 2, 3, 1), x, use_reentrant=True).sum()  # type: ignore[union-attr]


def checkpoint_of_relu_in_another_layout(conv: nn.Module, x: Tensor) -> Tensor:
    run = lambda x: F.relu(conv(x)).permute(0, 2, 3, 1).contiguous()  # noqa: E731
    return checkpoint(run, x, use_reentrant=True).sum()  # type: ignore[union-attr]


def saved_view(conv: nn.Module, x: Tensor) -> Tensor:
    return SavedView.apply(x, conv).sum()  # type: ignore[no-any-return]


def saved_then_changed(conv: nn.Module, x: Tensor) -> Tensor:
    y = conv(x)
    z = Squared.apply(y)
    with torch.no_grad():
        y.mul_(2)
    return z.sum()  # type: ignore[no-any-return]


def saved_then_detached_and_changed(conv: nn.Module, x: Tensor) -> Tensor:
    y = conv(x)
    z = Squared.apply(y)
    y.detach().mul_(2)
    return z.sum() + y.sum()  # type: ignore[no-any-return]


def changed_twice(conv: nn.Module, x: Tensor) -> Tensor:
    z = Exponential.apply(conv(x))
    with torch.no_grad():
        z.mul_(2)
    return z.sum()  # type: ignore[no-any-return]


def changed_then_detached_and_changed(conv: nn.Module, x: Tensor) -> Tensor:
    z = Exponential.apply(conv(x))
    z.detach().clamp_(max=1)
    return z.sum()  # type: ignore[no-any-return]


def leaf_that_a_function_uses(conv: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        y: Tensor = conv(x)
    y.requires_grad_()
    (Squared.apply(y) + y).sum().backward()
    assert y.grad is not None
    return (y.grad * x.sum()).sum()


def layout_changed_without_gradients(conv: nn.Module, x: Tensor) -> Tensor:
    y: Tensor = conv(x)
    with torch.no_grad():
        y.permute(0, 2, 3, 1).mul_(2)
    return y.sum()


PROGRAMS = [
    returned_in_another_layout, checkpoint_in_another_layout, checkpoint_of_relu_in_another_layout, saved_view,
    saved_then_changed, saved_then_detached_and_changed, changed_twice, changed_then_detached_and_changed,
    leaf_that_a_function_uses, layout_changed_without_gradients,
]  # fmt: skip


def outcome(program: Callable[[nn.Module, Tensor], Tensor], conv: nn.Module, x: Tensor) -> Any:
    """Return the value and the gradients, or the start of the error."""
    x = x.clone().requires_grad_()
    conv.zero_grad()
    try:
        value = program(conv, x)
        value.backward()
    except RuntimeError as error:
        return str(error)[:60]
    return [value.detach(), *(t.grad for t in (x, *conv.parameters()))]


@pytest.mark.parametrize("is_converted", [True, False])
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_gets_pytorchs_gradients_or_error(program: Any, is_converted: bool) -> None:
    theirs, x = nn.Conv2d(3, 4, 3, padding=1), torch.randn(2, 3, 8, 8)
    mine = copy.deepcopy(theirs)
    if is_converted:
        fastconv.convert(mine)
    expected = outcome(program, theirs, x)
    for _ in range(2):
        with nullcontext() if is_converted else fastconv.enabled(fuse=True):
            found = outcome(program, mine, x)
        if isinstance(expected, str):
            assert found == expected
        else:
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_retained_gradient_keeps_nothing_alive() -> None:
    conv, x = nn.Conv2d(3, 4, 3), torch.randn(2, 3, 8, 8)
    gc.disable()
    try:
        with fastconv.enabled(fuse=True):
            y = conv(x)
            y.retain_grad()
            z = Exponential.apply(y)
            z.sum().backward()
            value = weakref.ref(z if type(z) is Tensor else z.settle())
        del y, z
        assert value() is None
    finally:
        gc.enable()
