"""Gradients and hooks of a waiting result that a program passes to an autograd.Function.

PyTorch passes the gradient of such a Function to the waiting tensor's own gradient function, not to that of its value.
"""

from __future__ import annotations

import copy
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastconv
from fastconv._deferred import Deferred


class Sine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad * ctx.saved_tensors[0].cos()


class Reversed(torch.autograd.Function):
    """Reverses the gradient, and reads no value."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return -grad


Run = Callable[[Tensor], Tensor]


def hook(y: Tensor, run: Run) -> list[Tensor]:
    y.register_hook(lambda grad: grad.clamp(-0.5, 0.5) * 2)
    (run(y).sum() + y.square().sum()).backward()
    return []


def removed_hook(y: Tensor, run: Run) -> list[Tensor]:
    y.register_hook(lambda grad: grad * 2).remove()
    run(y).sum().backward()
    return []


def hook_before_change_in_place(y: Tensor, run: Run) -> list[Tensor]:
    y.register_hook(lambda grad: grad * 2)
    run(y.mul_(3)).sum().backward()
    return []


def hook_of_what_relu_was_applied_to(y: Tensor, run: Run) -> list[Tensor]:
    z = F.relu(y)
    y.register_hook(lambda grad: grad * 2)
    run(z).sum().backward()
    return []


def hook_of_relu(y: Tensor, run: Run) -> list[Tensor]:
    z = F.relu(y)
    z.register_hook(lambda grad: grad * 2)
    (run(z) + z).sum().backward()
    return []


def hook_of_a_permuted_result(y: Tensor, run: Run) -> list[Tensor]:
    z = y.permute(0, 2, 3, 1)
    y.register_hook(lambda grad: grad * 2)
    run(z).sum().backward()
    return []


def hook_of_the_gradient_function(y: Tensor, run: Run) -> list[Tensor]:
    seen: list[Tensor] = []
    y.grad_fn.register_prehook(lambda grads: seen.append(grads[0]))  # type: ignore[union-attr]
    run(y).sum().backward()
    return seen


def multi_grad_hook(y: Tensor, run: Run) -> list[Tensor]:
    seen: list[Any] = []
    torch.autograd.graph.register_multi_grad_hook((y,), seen.extend)
    run(y).sum().backward()
    return seen


def gradient_edge(y: Tensor, run: Run) -> list[Tensor]:
    edge = torch.autograd.graph.get_gradient_edge(y)
    return list(torch.autograd.grad(run(y).sum(), [edge]))


def retained(y: Tensor, run: Run) -> list[Tensor]:
    first = run(y)
    y.retain_grad()
    (first.sum() + run(y).sum() + y.square().sum()).backward()
    return [y.grad]  # type: ignore[list-item]


def retained_before_relu(y: Tensor, run: Run) -> list[Tensor]:
    z = run(F.relu(y))
    y.retain_grad()
    z.sum().backward()
    return [y.grad]  # type: ignore[list-item]


def retained_with_what_it_was_made_from(y: Tensor, run: Run) -> list[Tensor]:
    z = F.relu(y)
    u = run(z)
    y.retain_grad()
    z.retain_grad()
    u.square().sum().backward()
    return [y.grad, z.grad]  # type: ignore[list-item]


def gradient_after_a_change_in_place(y: Tensor, run: Run) -> list[Tensor]:
    z = F.relu(y) + 1
    y.mul_(2)
    return list(torch.autograd.grad(z.sum() + run(y).sum(), [y]))


def gradient(y: Tensor, run: Run) -> list[Tensor]:
    z = run(y)
    return list(torch.autograd.grad(z.square().sum() + y.sum(), [y]))


def gradient_through_relu(y: Tensor, run: Run) -> list[Tensor]:
    z = F.relu(y)
    return list(torch.autograd.grad(run(z).sum() + z.sum(), [y, z]))


def gradient_through_relu_in_place(y: Tensor, run: Run) -> list[Tensor]:
    z = F.relu_(y.contiguous(memory_format=torch.channels_last))
    return list(torch.autograd.grad(run(z).sum(), [y]))


def batched(outputs: Tensor, inputs: list[Tensor], create_graph: bool = False) -> list[Tensor]:
    directions = torch.linspace(-1, 1, 3 * outputs.numel()).reshape(3, *outputs.shape)
    return list(
        torch.autograd.grad(outputs, inputs, directions, create_graph, create_graph, is_grads_batched=True)  # type: ignore[arg-type]
    )


def batched_gradient(y: Tensor, run: Run) -> list[Tensor]:
    return batched(run(y), [y])


def batched_gradient_of_several_uses(y: Tensor, run: Run) -> list[Tensor]:
    z = F.relu(y)
    pooled = F.max_pool2d(z, 2)
    return batched(run(z) + y * 2 + run(y) + pooled.mean(), [y, z])


def batched_gradient_in_another_layout(y: Tensor, run: Run) -> list[Tensor]:
    z = y.permute(0, 2, 3, 1).contiguous()
    return batched(run(z) + z, [y])


def second_batched_gradient(y: Tensor, run: Run) -> list[Tensor]:
    first = batched(run(y).square() + y.sin(), [y], create_graph=True)
    return list(torch.autograd.grad(first[0].square().sum(), y))


def second_gradient(y: Tensor, run: Run) -> list[Tensor]:
    first = torch.autograd.grad(run(y).pow(3).sum(), y, create_graph=True)
    return list(torch.autograd.grad(first[0].sum(), y))


def backward_to_the_result_and_what_is_before_it(y: Tensor, run: Run) -> list[Tensor]:
    z = F.relu(y)
    y.retain_grad()
    z.square().sum().backward(inputs=[y, *parameters_of(y)], retain_graph=True)
    run(z).sum().backward(inputs=[y, *parameters_of(y)])
    return [y.grad]  # type: ignore[list-item]


def parameters_of(y: Tensor) -> list[Tensor]:
    """Return the leaves that ``y`` was computed from."""
    found, nodes = [], [y.grad_fn]
    while nodes:
        node: Any = nodes.pop()
        if hasattr(node, "variable"):
            found.append(node.variable)
        nodes += [after for after, _ in getattr(node, "next_functions", ()) if after is not None]
    return found


def backward_to_the_result(y: Tensor, run: Run) -> list[Tensor]:
    z = run(F.relu(y)).sum()
    z.backward(inputs=[y], retain_graph=True)
    z.backward()  # PyTorch adds to the gradient again
    return [y.grad]  # type: ignore[list-item]


def gradient_after_a_change_of_a_permuted_copy(y: Tensor, run: Run) -> list[Tensor]:
    z = y.permute(0, 2, 3, 1).contiguous()
    z.mul_(2)
    return list(torch.autograd.grad(z.square().sum() + run(z).sum(), [y]))


def gradient_after_a_write_to_a_permuted_copy(y: Tensor, run: Run) -> list[Tensor]:
    z = F.relu(y.permute(0, 2, 3, 1)).contiguous().permute(0, 3, 1, 2)
    z[0].zero_()
    return list(torch.autograd.grad((z * 3).sum() + run(z).sum(), [y]))


PROGRAMS = [
    hook, removed_hook, hook_before_change_in_place, hook_of_what_relu_was_applied_to, hook_of_relu,
    hook_of_a_permuted_result, hook_of_the_gradient_function, multi_grad_hook, gradient_edge, retained,
    retained_before_relu, retained_with_what_it_was_made_from, gradient_after_a_change_in_place,
    gradient, gradient_through_relu, gradient_through_relu_in_place, second_gradient,
    batched_gradient, batched_gradient_of_several_uses, batched_gradient_in_another_layout, second_batched_gradient,
    gradient_after_a_change_of_a_permuted_copy, gradient_after_a_write_to_a_permuted_copy,
    backward_to_the_result, backward_to_the_result_and_what_is_before_it,
]  # fmt: skip


@pytest.mark.filterwarnings("error:The .grad attribute")
@pytest.mark.parametrize("is_override", [False, True])
@pytest.mark.parametrize("function", [Sine, Reversed])
@pytest.mark.parametrize("program", PROGRAMS)
def test_functions_of_the_program_see_pytorchs_gradients_and_hooks(
    program: Callable[[Tensor, Run], list[Tensor]], function: Any, is_override: bool
) -> None:
    x = torch.randn(2, 3, 8, 8)
    theirs = nn.Conv2d(3, 8, 3)
    ours = nn.Conv2d(3, 8, 3)
    ours.load_state_dict(theirs.state_dict())
    if not is_override:
        ours = fastconv.convert(ours)
    with fastconv.enabled(fuse=True) if is_override else nullcontext():
        y = ours(x)
        assert type(y) is Deferred
        found = program(y, function.apply)
    expected = program(theirs(x), function.apply)
    found += [parameter.grad for parameter in ours.parameters()]
    expected += [parameter.grad for parameter in theirs.parameters()]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4, check_stride=True)


class Tripled(torch.autograd.Function):
    """Triples its argument in place."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        x.mul_(3)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad * 3


class ReversedInPlace(torch.autograd.Function):
    """Reverses the gradient, and returns its argument. It writes no value."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return -grad


def hook_after_a_write_to_a_part(y: Tensor, run: Run) -> list[Tensor]:
    z = run(y)
    z[0].zero_()
    z.register_hook(lambda grad: grad * 3)
    z.square().sum().backward()
    return []


def hook_of_the_argument_after_a_write_to_a_part(y: Tensor, run: Run) -> list[Tensor]:
    z = run(y)
    z[0].zero_()
    y.register_hook(lambda grad: grad * 3)
    y.square().sum().backward()
    return []


def retained_before_a_change_in_place(y: Tensor, run: Run) -> list[Tensor]:
    y.retain_grad()
    z = run(y)
    z.square().sum().backward()
    return [y.grad, z.grad]  # type: ignore[list-item]


def retained_and_hook(y: Tensor, run: Run) -> list[Tensor]:
    z = run(y)
    y.retain_grad()
    y.register_hook(lambda grad: grad * 2)
    (y.square().sum() + Sine.apply(z).sum()).backward()
    return [y.grad]  # type: ignore[list-item]


def second_change_in_place(y: Tensor, run: Run) -> list[Tensor]:
    z = run(run(y).add_(1))
    z.register_hook(lambda grad: grad * 2)
    run(z.mul_(2)).square().sum().backward()
    return []


def results_made_before_a_change_in_place(y: Tensor, run: Run) -> list[Tensor]:
    before = F.relu(y), y + 1
    z = run(y)
    (before[0].sum() + before[1].square().sum() + z.square().sum()).backward()
    return []


def view_after_a_change_in_place(y: Tensor, run: Run) -> list[Tensor]:
    k = run(y).view(-1)
    k.mul_(2)
    return list(torch.autograd.grad(k.square().sum() + y.sum(), [y], retain_graph=True))


CHANGES = [
    hook_after_a_write_to_a_part, hook_of_the_argument_after_a_write_to_a_part, retained_before_a_change_in_place,
    retained_and_hook, second_change_in_place, results_made_before_a_change_in_place, view_after_a_change_in_place,
]  # fmt: skip


@pytest.mark.parametrize("function", [Tripled, ReversedInPlace])
@pytest.mark.parametrize("program", CHANGES)
def test_a_function_may_change_a_result_in_place(program: Callable[[Tensor, Run], list[Tensor]], function: Any) -> None:
    theirs, x = nn.Conv2d(3, 8, 3), torch.randn(2, 3, 8, 8)
    ours = fastconv.convert(copy.deepcopy(theirs))
    y = ours(x)
    assert type(y) is Deferred
    found = [*program(y, function.apply), *(parameter.grad for parameter in ours.parameters())]
    expected = [*program(theirs(x), function.apply), *(parameter.grad for parameter in theirs.parameters())]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


VIEWS: dict[str, Run] = {
    "view": lambda y: y.view(-1),
    "slice": lambda y: y[:, :2],
    "as_subclass": lambda y: y.as_subclass(Tensor),
    "the same memory": lambda y: y.add_(1),
    "view of a view": lambda y: y[0].view(-1),
    "view of a computed result": lambda y: (y + 1, y.view(-1))[1],
    "waiting view": lambda y: y.permute(0, 2, 3, 1),
    "view of a waiting view": lambda y: y.permute(0, 2, 3, 1)[0],
}


@pytest.mark.parametrize("uses", ["view", "result", "both", "released"])
@pytest.mark.parametrize("function", [Tripled, ReversedInPlace])
@pytest.mark.parametrize("name", VIEWS)
def test_a_view_gets_the_gradient_of_a_function_that_changes_the_result_in_place(
    name: str, function: Any, uses: str
) -> None:
    theirs, x = nn.Conv2d(3, 8, 3), torch.randn(2, 3, 8, 8)
    ours = fastconv.convert(copy.deepcopy(theirs))
    for model in theirs, ours:
        y = model(x)
        k = VIEWS[name](y)
        z = function.apply(y)
        loss = k.square().sum() if uses != "result" else k.new_zeros(())
        if uses in ("result", "both"):
            loss = loss + z.square().sum()
        del y, z
        loss.backward()
    torch.testing.assert_close(gradients(ours), gradients(theirs), rtol=1e-4, atol=1e-4)


def gradients(model: nn.Module) -> list[Tensor | None]:
    return [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize("function", [Tripled, ReversedInPlace])
def test_a_result_gets_the_gradient_of_a_function_that_changes_a_waiting_view_in_place(function: Any) -> None:
    theirs, x = nn.Conv2d(3, 8, 3), torch.randn(2, 3, 8, 8)
    ours = fastconv.convert(copy.deepcopy(theirs))
    for model in theirs, ours:
        y = model(x)
        z = function.apply(y.permute(0, 2, 3, 1))
        (y.square().sum() + z.sum()).backward()
    torch.testing.assert_close(gradients(ours), gradients(theirs), rtol=1e-4, atol=1e-4)


class Exponential(torch.autograd.Function):
    """Saves its result, which it computes in place."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        x.exp_()
        ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad * ctx.saved_tensors[0]


def test_a_function_may_save_a_result_that_it_changed_in_place() -> None:
    theirs, x = nn.Conv2d(3, 8, 3), torch.randn(2, 3, 8, 8)
    ours = fastconv.convert(copy.deepcopy(theirs))
    for model in theirs, ours:
        (Exponential.apply(model(x)).sin() + 1).sum().backward()
    torch.testing.assert_close(gradients(ours), gradients(theirs), rtol=1e-4, atol=1e-4)


def test_a_hook_that_would_miss_the_gradient_of_a_function_is_an_error() -> None:
    y = fastconv.convert(nn.Conv2d(3, 8, 3))(torch.randn(2, 3, 8, 8))
    z = Sine.apply(y)
    y.register_hook(lambda grad: grad * 2)
    with pytest.raises(RuntimeError, match=r"registered after the result was passed to an autograd\.Function"):
        z.sum().backward()


def wave(x: Tensor) -> Tensor:
    return x.sin() + 1


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).sin()  # type: ignore[no-any-return]


class Compiled(nn.Module):
    """A convolution, and a part of the model that torch.compile compiles alone."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.rest: Any = wave if form == "function" else Block()
        if form == "method":
            self.rest.compile(backend="eager", fullgraph=True)
        else:
            rest = torch.compile(self.rest, backend="eager", fullgraph=True)
            del self.rest
            self.rest = rest

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.rest(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("form", ["module", "method", "function"])
def test_a_result_does_not_wait_for_a_compiled_part_of_the_model(form: str) -> None:
    model, x = Compiled(form), torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(fastconv.convert(model)(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("grad", [False, True])
def test_several_threads_may_use_a_waiting_result(grad: bool) -> None:
    conv, x = nn.Conv2d(8, 16, 3), torch.randn(2, 8, 12, 12)
    expected = F.relu(conv(x)).detach()
    meet = threading.Barrier(3)
    uses: list[Run] = [lambda t: t + 0, lambda t: F.max_pool2d(t, 2), lambda t: t.permute(0, 2, 3, 1) * 1]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(100):
            with torch.set_grad_enabled(grad), fastconv.enabled(fuse=True):
                y = F.relu(F.conv2d(x, conv.weight, conv.bias))
            assert type(y) is Deferred

            def use(i: int, y: Tensor = y) -> Tensor:
                meet.wait()
                return uses[i](y)

            with ThreadPoolExecutor(3) as pool:
                found = list(pool.map(use, range(3)))
            for a, run in zip(found, uses, strict=True):
                torch.testing.assert_close(a.detach() * 1, run(expected), rtol=1e-4, atol=1e-5)
    finally:
        sys.setswitchinterval(interval)


def test_another_thread_may_use_a_result_that_is_just_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    def set_and_use(deferred: Deferred, name: str, value: Any) -> None:
        object.__setattr__(deferred, name, value)
        if name == "_settled":
            thread = threading.Thread(target=lambda: torch.sin(deferred))
            thread.start()
            thread.join()

    y = fastconv.convert(nn.Conv2d(3, 8, 3))(torch.randn(2, 3, 8, 8))
    monkeypatch.setattr(Deferred, "__setattr__", set_and_use, raising=False)
    Sine.apply(y).sum().backward()
