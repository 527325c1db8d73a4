"""A converted model computes the results of PyTorch's activations again in backward, with PyTorch's gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastconv
from fastconv._ahead import recompute
from fastconv._ops.linear import MAY_BE_FASTER
from fastconv.nn import layers

needs_linear = pytest.mark.skipif(not MAY_BE_FASTER, reason="PyTorch computes all linear layers of this build of torch")


class Applying(nn.Module):
    """A module that only calls a function, as transformers' activations do."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.act = function

    def forward(self, input: Tensor) -> Tensor:
        return self.act(input)


class Linears(nn.Module):
    """Two linear layers around an activation. ``before`` and ``after`` do nothing here."""

    def __init__(self, act: nn.Module | None = None) -> None:
        super().__init__()
        self.first, self.act, self.last = nn.Linear(8, 32), act or nn.GELU(), nn.Linear(32, 24)

    def forward(self, x: Tensor) -> Any:
        y = self.first(x)
        y = self.act(y)
        return self.last(y)


class Held(Linears):
    """A variable holds the activation's result, and it is used again."""

    def forward(self, x: Tensor) -> Any:
        h = self.act(self.first(x))
        y = self.last(h)
        return y, h


class Functional(Linears):
    def forward(self, x: Tensor) -> Any:
        return self.last(F.gelu(self.first(x), approximate="tanh"))


class InSequential(Linears):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(self.first, self.act, nn.Identity(), nn.Sequential(self.last))

    def forward(self, x: Tensor) -> Any:
        return self.layers(x)


class Norms(nn.Module):
    """A batch norm, an activation of PyTorch and a convolution."""

    def __init__(self, act: nn.Module | None = None) -> None:
        super().__init__()
        self.first, self.act, self.last = nn.BatchNorm2d(4), act or nn.SiLU(), nn.Conv2d(4, 6, 3)

    def forward(self, x: Tensor) -> Any:
        return self.last(self.act(self.first(x)))


def pair(model: nn.Module, dtype: torch.dtype = torch.float32) -> tuple[Any, Any, Tensor]:
    """Return a converted copy, the model, and an input."""
    torch.manual_seed(0)
    model = model.to(dtype).train()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    size = (2, 4, 7, 7) if isinstance(model, Norms) else (3, 5, 8)
    return fastconv.convert(copy.deepcopy(model)), model, torch.randn(size, dtype=dtype, requires_grad=True)


def gradients(model: nn.Module, x: Tensor) -> list[Tensor | None]:
    y = model(x)
    loss = sum(t.square().mean() for t in y) if isinstance(y, tuple) else y.square().mean()
    return list(torch.autograd.grad(loss, [x, *model.parameters()]))


def assert_equal_gradients(converted: nn.Module, model: nn.Module, x: Tensor) -> None:
    torch.testing.assert_close(gradients(converted, x), gradients(model, x), rtol=1e-4, atol=1e-4)


MODELS = {
    "gelu": Linears,
    "tanh": lambda: Linears(nn.GELU(approximate="tanh")),
    "silu": lambda: Linears(nn.SiLU()),
    "silu in place": lambda: Linears(nn.SiLU(inplace=True)),
    "hardswish": lambda: Linears(nn.Hardswish()),
    "module of a function": lambda: Linears(Applying(F.gelu)),
    "held": Held,
    "functional": Functional,
    "Sequential": InSequential,
}
NORMS = {
    "norm, silu": Norms,
    "norm, hardswish in place": lambda: Norms(nn.Hardswish(inplace=True)),
    "norm, gelu": lambda: Norms(nn.GELU()),
}


@pytest.mark.parametrize(
    "make",
    [pytest.param(make, id=name, marks=needs_linear) for name, make in MODELS.items()]
    + [pytest.param(make, id=name) for name, make in NORMS.items()],
)
def test_gradients_are_pytorchs(make: Callable[[], nn.Module], computed: list[Tensor]) -> None:
    converted, model, x = pair(make())
    kept: list[Tensor] = []
    converted.last.register_forward_pre_hook(lambda _, args: kept.append(args[0].detach().clone()))
    expected = gradients(converted, x)
    assert not computed  # the hook could have changed the input
    converted.last._forward_pre_hooks.clear()
    found = gradients(converted, x)
    assert len(computed) == 1
    assert torch.equal(computed[0], kept[0])
    assert all(map(torch.equal, found, expected))  # type: ignore[arg-type]
    assert_equal_gradients(converted, model, x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes_give_the_same_bits(dtype: torch.dtype, computed: list[Tensor]) -> None:
    converted, _, x = pair(Norms(), dtype)
    found = gradients(converted, x)
    assert len(computed) == 1
    converted.act.register_forward_hook(lambda *_: None)
    assert all(map(torch.equal, found, gradients(converted, x)))  # type: ignore[arg-type]
    assert len(computed) == 1


class Doubling(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x.data.mul_(2)
        return x


class DoublingFirst(Applying):
    def forward(self, input: Tensor) -> Tensor:
        input.data.mul_(2)
        return self.act(input)


class DoublingAfter(Applying):
    def forward(self, input: Tensor) -> Tensor:
        y = self.act(input)
        y.data.mul_(2)
        return y


def doubled(module: nn.Module, args: Any) -> None:
    args[0].data.mul_(2)


def doubled_gelu(y: Tensor) -> Tensor:
    y = F.gelu(y)
    y.data.mul_(2)
    return y


CHANGES: dict[str, Callable[[Any], Any]] = {
    "pre-hook": lambda m: m.last.register_forward_pre_hook(doubled),
    "hook of the activation": lambda m: m.act.register_forward_hook(lambda _, args, y: (y.data.mul_(2), None)[1]),
    "pre-hook of the activation": lambda m: m.act.register_forward_pre_hook(doubled),
    "layer after": lambda m: setattr(m, "act", nn.Sequential(m.act, Doubling())),
    "layer before": lambda m: setattr(m, "act", nn.Sequential(Doubling(), m.act)),
    "function that writes first": lambda m: setattr(m, "act", DoublingFirst(F.gelu)),
    "function that writes after": lambda m: setattr(m, "act", DoublingAfter(F.gelu)),
    "function of the program": lambda m: setattr(m, "act", Applying(doubled_gelu)),
    "its own forward": lambda m: setattr(m.act, "forward", lambda y: F.gelu(y * 2)),
    "last": lambda m: setattr(m, "last", nn.Sequential(Doubling(), m.last)),
}


@pytest.mark.parametrize("make", [pytest.param(Linears, marks=needs_linear), Norms])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_write_on_the_way_is_seen(make: type[nn.Module], change: Callable[[Any], Any]) -> None:
    converted, model, x = pair(make())
    for each in (converted, model):
        change(each)
    assert_equal_gradients(converted, model, x)


@pytest.mark.parametrize("act", [nn.GELU, nn.SiLU, nn.Hardswish])
@pytest.mark.parametrize("make", [pytest.param(Linears, marks=needs_linear), Norms])
def test_a_replaced_function_of_pytorch_runs(
    make: type[Any], act: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    converted, model, x = pair(make(act()))
    name = act.__name__.lower()
    function = getattr(F, name)

    def doubled(*args: Any, **kwargs: Any) -> Tensor:
        y: Tensor = function(*args, **kwargs)
        y.data.mul_(2)
        return y

    monkeypatch.setattr(F, name, doubled)
    assert_equal_gradients(converted, model, x)


@pytest.mark.parametrize("write", [lambda t: t.zero_(), lambda t: t.data.zero_()])
@needs_linear
def test_a_write_to_the_input_after_the_layer_changes_no_gradient(write: Callable[[Tensor], Any]) -> None:
    converted, model, x = pair(Held())
    expected = gradients(model, x)
    y, h = converted(x)
    loss = sum(t.square().mean() for t in (y, h))
    with torch.no_grad():
        write(h)
    found = torch.autograd.grad(loss, [converted.last.weight])
    torch.testing.assert_close(found[0], expected[3], rtol=1e-4, atol=1e-4)


@needs_linear
def test_a_variable_may_hold_the_argument_of_the_activation() -> None:
    class HeldArgument(Linears):
        def forward(self, x: Tensor) -> Any:
            z = self.first(x)
            h = self.act(z)
            y = self.last(h)
            z.data.zero_()
            return y

    converted, model, x = pair(HeldArgument())
    assert_equal_gradients(converted, model, x)


@needs_linear
def test_a_changed_argument_of_the_activation_is_an_error() -> None:
    converted, _, x = pair(Linears())
    y = converted(x)
    gelu = next(node for node, _ in y.grad_fn.next_functions if node is not None and "Gelu" in node.name())
    with torch.no_grad():
        gelu._saved_self.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("make", [pytest.param(Linears, marks=needs_linear), Norms])
def test_gradients_of_gradients_and_graphs_in_parts(make: type[nn.Module]) -> None:
    results = []
    converted, model, x = pair(make(), torch.float32)
    for each in (converted, model):
        loss = each(x).square().mean()
        (dx,) = torch.autograd.grad(loss, x, create_graph=True)
        again = torch.autograd.grad(loss, [each.last.weight], retain_graph=True)
        results.append([*torch.autograd.grad(dx.square().sum(), [x, each.last.weight]), *again])
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-3)


@needs_linear
def test_no_note_is_left_on_the_graph() -> None:
    converted, _, x = pair(Linears())
    y = converted(x)
    gelu = next(node for node, _ in y.grad_fn.next_functions if node is not None and "Gelu" in node.name())
    assert not vars(gelu.next_functions[0][0])


@needs_linear
def test_two_calls_of_one_layer_keep_their_own_inputs() -> None:
    class Twice(Linears):
        def forward(self, x: Tensor) -> Any:
            h = self.act(self.first(x))
            y = self.last(h)
            h.data.mul_(2)
            return y + self.last(h)

    class Apart(Linears):
        def forward(self, x: Tensor) -> Any:
            h = self.act(self.first(x))
            return self.last(h) + self.last(h.detach() * 2)

    converted, _, x = pair(Twice())
    _, apart, _ = pair(Apart())
    apart.load_state_dict(converted.state_dict())
    # PyTorch's first call would see the later write. So the expected gradient is that of a copy.
    found, expected = (
        torch.autograd.grad(each(x).square().mean(), [each.last.weight])[0] for each in (converted, apart)
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def outcome(function: Callable[[], Any]) -> Any:
    """Return the result, or the error's type and text."""
    try:
        return function()
    except Exception as error:
        return type(error), str(error)


@needs_linear
@pytest.mark.parametrize("size", [(4, 0, 8), (2, 0, 6, 8)])
def test_errors_of_a_convolution_of_an_empty_result_are_pytorchs(size: tuple[int, ...]) -> None:
    model = Linears()
    model.last = nn.Conv2d(4, 6, 3)
    converted, model, _ = pair(model)
    x = torch.randn(size, requires_grad=True)
    assert outcome(lambda: converted(x)) == outcome(lambda: model(x))


@needs_linear
@pytest.mark.parametrize("size", [(), (0, 32), (32,), (2, 3)])
def test_unusual_weights(size: tuple[int, ...]) -> None:
    converted, model, x = pair(Linears())
    for each in (converted, model):
        each.last.weight, each.last.bias = nn.Parameter(torch.ones(size)), None
    found, expected = outcome(lambda: converted(x)), outcome(lambda: model(x))
    if isinstance(expected, Tensor):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    else:
        assert found == expected


@pytest.mark.parametrize("make", [pytest.param(Linears, marks=needs_linear), Norms])
def test_a_view_that_was_written_to_is_an_input_without_a_gradient(make: type[nn.Module]) -> None:
    converted, model, _ = pair(make())
    base = torch.randn(2, 2, 4, 7, 32, requires_grad=True) * 1
    view, _ = base.unbind(0)
    with torch.no_grad():
        base.mul_(2)  # With a gradient, PyTorch does not allow any use of the view now.
        torch.testing.assert_close(converted.last(view), model.last(view))


@pytest.mark.parametrize("make", [pytest.param(Linears, marks=needs_linear), Norms])
def test_a_module_that_calls_itself_raises_pytorchs_error(make: type[Any]) -> None:
    class Endless(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return self(x)  # type: ignore[no-any-return]

    converted, _, x = pair(make())
    converted.last = Endless()
    with pytest.raises(RecursionError):
        converted(x)


def test_no_note_is_left_if_pytorch_computes_all_linear_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    class NormLinear(Norms):
        def __init__(self) -> None:
            super().__init__(nn.ReLU())
            self.last = nn.Linear(7, 24)  # type: ignore[assignment]

        def forward(self, x: Tensor) -> Any:
            h = self.act(self.first(x))
            return self.last(h), h

    converted, _, x = pair(NormLinear())
    for module in (recompute, layers):
        monkeypatch.setattr(module, "MAY_BE_FASTER", False)
    assert not vars(converted(x)[1])
