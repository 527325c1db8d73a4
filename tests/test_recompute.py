"""A converted model computes the inputs of convolutions again in backward, and nobody can tell by the gradients."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import fastconv
from fastconv._ahead import recompute


class Net(nn.Module):
    """conv, batch norm, ReLU, and a convolution whose input backward computes again."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.relu = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()
        self.conv2, self.bn2 = nn.Conv2d(4, 12, 3, padding=1), nn.BatchNorm2d(12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = self.relu(self.bn(x))
        x = self.conv2(x)
        return self.bn2(x)  # type: ignore[no-any-return]


class Entered(Net):
    """The same, with the second convolution in a module of its own."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(4, 12, 3, padding=1), nn.BatchNorm2d(12)

        def forward(self, x: Tensor) -> Tensor:
            out = self.conv(x)
            return self.bn(out)  # type: ignore[no-any-return]

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(self.Block())

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = self.relu(self.bn(x))
        return self.block(x)  # type: ignore[no-any-return]


class Variable(Net):
    """The same. A variable holds the input of the second convolution, and it is used again."""

    def forward(self, x: Tensor) -> Any:
        y = self.conv(x)
        y = self.relu(self.bn(y))
        z = self.conv2(y)
        return self.bn2(z), y


class Frozen(Net):
    """The same with the running statistics."""

    def train(self, mode: bool = True) -> Frozen:
        super().train(mode)
        self.bn.eval()
        return self


def models(cls: type[nn.Module], dtype: torch.dtype = torch.float64) -> tuple[Any, Any, Tensor]:
    """Return a converted model after three steps, and PyTorch's, with the same state, and an input."""
    torch.manual_seed(0)
    model = cls().to(dtype).train()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    converted = fastconv.convert(copy.deepcopy(model))
    x = torch.randn(2, 3, 6, 6, dtype=dtype, requires_grad=True)
    for each in (converted, model):
        for _ in range(3):
            result(each, x).square().sum().backward()
        each.zero_grad()
    x.grad = None
    return converted, model, x


def result(model: nn.Module, x: Tensor) -> Tensor:
    y = model(x)
    return sum(t.square().mean() for t in y) if isinstance(y, tuple) else y  # type: ignore[no-any-return]


def gradients(model: nn.Module, x: Tensor) -> list[Tensor | None]:
    loss = result(model, x).square().sum()
    return list(torch.autograd.grad(loss, [x, *model.parameters()], allow_unused=True))


@pytest.mark.parametrize("cls", [Net, Entered, Variable, Frozen])
def test_gradients_are_pytorchs(cls: type[Net], computed: list[Tensor]) -> None:
    converted, model, x = models(cls)
    computed.clear()
    torch.testing.assert_close(gradients(converted, x), gradients(model, x), rtol=1e-9, atol=1e-9)
    assert len(computed) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_same_bits_are_computed_again(dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    converted, _, x = models(Net, dtype)
    inputs: list[Tensor] = []
    converted.conv2.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    x = x.detach().to(memory_format=memory_format).requires_grad_()  # type: ignore[call-overload]
    kept = gradients(converted, x)
    converted.conv2._forward_pre_hooks.clear()
    again = gradients(converted, x)
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(kept, again, strict=True))  # type: ignore[arg-type]
    assert len(inputs) == 1


def test_the_input_is_freed_after_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    converted, _, x = models(Net)
    freed: list[bool] = []
    take = recompute.take_source

    def watched(layer: Any, input: Any) -> Any:
        source = take(layer, input)
        if source is not None:
            weakref.finalize(input, freed.append, True)
        return source

    monkeypatch.setattr("fastconv.nn.convolution.take_source", watched)
    y = converted(x)
    assert freed == [True]
    y.sum().backward()


@pytest.mark.parametrize("write", [lambda t: t.zero_(), lambda t: t.data.zero_(), lambda t: t.detach().numpy().fill(0)])
def test_a_write_to_the_input_after_the_convolution_changes_no_gradient(write: Callable[[Tensor], Any]) -> None:
    """PyTorch raises an error, or its gradients are those of other values."""
    converted, model, x = models(Variable)
    expected = gradients(model, x)
    y, h = converted(x)
    loss = sum(t.square().mean() for t in (y, h)).square().sum()
    with torch.no_grad():
        write(h)
    found = torch.autograd.grad(loss, [converted.conv2.weight])
    torch.testing.assert_close(found[0], expected[5], rtol=1e-9, atol=1e-9)


def doubled(module: nn.Module, args: Any) -> None:
    args[0].data.mul_(2)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.conv2.register_forward_pre_hook(doubled),
        lambda m: m.relu.register_forward_hook(lambda _, args, out: (out.data.mul_(2), None)[1]),
        lambda m: m.bn.register_forward_hook(lambda _, args, out: (out.data.mul_(2), None)[1]),
        lambda m: setattr(m, "relu", nn.Sequential(nn.ReLU(), Doubling())),
        lambda m: (setattr(m, "relu", nn.ReLU6()), setattr(m, "conv2", nn.Sequential(nn.SiLU(inplace=True), m.conv2))),
        lambda m: setattr(m, "conv2", nn.Sequential(Doubling(), m.conv2)),
        lambda m: setattr(m, "conv2", Calling(m.conv2)),
    ],
    ids=["pre-hook", "hook", "hook of the norm", "module", "layer", "module before", "module that writes first"],
)
def test_a_write_before_the_convolution_is_seen(change: Callable[[Any], Any]) -> None:
    converted, model, x = models(Net)
    for each in (converted, model):
        change(each)
    torch.testing.assert_close(gradients(converted, x), gradients(model, x), rtol=1e-9, atol=1e-9)


class Doubling(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x.data.mul_(2)
        return x


class Calling(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        x.data.mul_(2)
        return self.layer(x)  # type: ignore[no-any-return]


def test_a_second_convolution_keeps_its_own_input() -> None:
    class Twice(Net):
        def forward(self, x: Tensor) -> Tensor:
            h = self.conv(x)
            h = self.relu(self.bn(h))
            y = self.conv2(h)
            h.data.mul_(2)
            return y + self.conv2(h)  # type: ignore[no-any-return]

    class TwiceApart(Twice):
        def forward(self, x: Tensor) -> Tensor:
            h = self.relu(self.bn(self.conv(x)))
            return self.conv2(h) + self.conv2(h.clone().mul_(2))  # type: ignore[no-any-return]

    converted, _, x = models(Twice)
    _, apart, _ = models(TwiceApart)
    apart.load_state_dict(converted.state_dict())
    # PyTorch's first call would see the later write. So the expected gradients are those of a copy.
    found, expected = gradients(converted, x), gradients(apart, x)
    torch.testing.assert_close(found[5], expected[5], rtol=1e-9, atol=1e-9)


def scale_in_place(weight: Tensor) -> None:
    with torch.no_grad():
        weight.mul_(2)


def scale_its_data(weight: Tensor) -> None:
    weight.data.mul_(2)


@pytest.mark.parametrize("change", [scale_in_place, scale_its_data])
def test_a_changed_weight_does_not_change_the_gradient_of_the_next_convolution(change: Any) -> None:
    results = []
    converted, model, x = models(Net)
    for each in (converted, model):
        loss = each(x).square().sum()
        change(each.bn.weight)
        results.append(torch.autograd.grad(loss, list(each.conv2.parameters())))
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)


def test_a_weight_that_is_changed_in_place_is_an_error_in_the_batch_norm() -> None:
    converted, _, x = models(Net)
    loss = converted(x).square().sum()
    scale_in_place(converted.bn.weight)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, [converted.conv.weight])


def test_a_changed_bias_changes_no_gradient() -> None:
    results = []
    converted, model, x = models(Net)
    for each in (converted, model):
        loss = each(x).square().sum()
        with torch.no_grad():
            each.bn.bias.add_(9)
        results.append(torch.autograd.grad(loss, [x, *each.parameters()], allow_unused=True))
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)


def test_a_later_batch_does_not_change_the_gradient() -> None:
    converted, _, x = models(Frozen)
    expected = torch.autograd.grad(converted(x).square().sum(), [converted.conv2.weight])
    loss = converted(x).square().sum()
    converted.bn.train()
    with torch.no_grad():
        converted.bn(torch.randn(8, 4, 5, 5, dtype=x.dtype) * 9)  # updates the running statistics
    torch.testing.assert_close(torch.autograd.grad(loss, [converted.conv2.weight]), expected)


def test_gradients_of_gradients_are_pytorchs(computed: list[Tensor]) -> None:
    converted, model, x = models(Net)
    computed.clear()
    results = []
    for each in (converted, model):
        (dx,) = torch.autograd.grad(each(x).square().sum(), x, create_graph=True)
        results.append(torch.autograd.grad(dx.square().sum(), [x, *each.parameters()], allow_unused=True))
    torch.testing.assert_close(*results, rtol=1e-7, atol=1e-7)
    assert computed


def test_a_graph_can_be_used_twice_and_in_parts() -> None:
    converted, model, x = models(Net)
    results = []
    for each in (converted, model):
        loss = each(x).square().sum()
        first = torch.autograd.grad(loss, [each.conv2.weight], retain_graph=True)
        results.append([*first, *torch.autograd.grad(loss, [x, *each.parameters()], allow_unused=True)])
        with pytest.raises(RuntimeError, match="backward through the graph a second time"):
            torch.autograd.grad(loss, [each.conv2.weight])
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)


def test_the_second_part_of_a_freed_graph() -> None:
    """The batch norm's tensors are freed first. The convolution still has its own."""
    results = []
    converted, model, x = models(Variable)
    for each in (converted, model):
        y, h = each(x)
        h.sum().backward()
        results.append(torch.autograd.grad(y.square().sum(), [each.conv2.weight])[0])
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)


def test_hooks_and_gradients_of_the_input_are_pytorchs() -> None:
    results = []
    converted, model, x = models(Variable)
    for each in (converted, model):
        seen: list[Tensor] = []
        y, h = each(x)
        h.register_hook(seen.append)
        h.retain_grad()
        y.square().sum().backward()
        results.append([*seen, h.grad])
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)


def set_stride(conv: nn.Conv2d) -> None:
    conv.stride = 2  # type: ignore[assignment]  # not a tuple, which PyTorch accepts, too


def set_wrong_stride(conv: nn.Conv2d) -> None:
    conv.stride = (None, "a")  # type: ignore[assignment]


def remove_weight(conv: nn.Conv2d) -> None:
    conv.weight = None  # type: ignore[assignment]


@pytest.mark.parametrize("change", [set_stride, set_wrong_stride, remove_weight])
def test_unusual_attributes_of_the_convolution(change: Callable[[nn.Conv2d], None]) -> None:
    results = []
    converted, model, x = models(Net)
    for each in (converted, model):
        change(each.conv2)
        try:
            results.append(each(x))
        except Exception as error:
            results.append((type(error), str(error)))
    if isinstance(results[1], Tensor):
        torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)
    else:
        assert results[0] == results[1]


def test_a_padded_input_and_another_dtype_are_kept() -> None:
    class Padded(Net):
        def __init__(self) -> None:
            super().__init__()
            self.conv2 = nn.Conv2d(4, 12, 3, padding=1, padding_mode="reflect")

    converted, model, x = models(Padded)
    torch.testing.assert_close(gradients(converted, x), gradients(model, x), rtol=1e-9, atol=1e-9)
    converted, model, x = models(Net, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(gradients(converted, x), gradients(model, x), rtol=0.1, atol=0.5)


def test_a_frozen_convolution_computes_nothing_again(computed: list[Tensor]) -> None:
    converted, model, x = models(Net)
    computed.clear()
    for each in (converted, model):
        each.conv2.requires_grad_(False)
    found, expected = (torch.autograd.grad(m(x).square().sum(), [x]) for m in (converted, model))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert not computed


def test_a_waiting_convolution_is_still_fused_with_relu_and_pool() -> None:
    class Pooled(Net):
        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            x = self.relu(self.bn(x))
            x = self.conv2(x)
            return F.max_pool2d(F.relu(x), 2)

    converted, model, x = models(Pooled)
    for _ in range(3):
        y = converted(x)
        assert "ReLUMaxPool" in type(y.grad_fn).__name__
        torch.testing.assert_close(gradients(converted, x), gradients(model, x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("change", [{"groups": 4, "stride": 2}, {"stride": 3}, {"kernel_size": 1, "padding": 0}])
def test_with_few_products_the_input_is_kept(change: dict[str, int], computed: list[Tensor]) -> None:
    class Thin(Net):
        def __init__(self) -> None:
            super().__init__()
            self.conv2 = nn.Conv2d(4, 12, **{"kernel_size": 3, "padding": 1, **change})  # type: ignore[arg-type]

    converted, model, x = models(Thin)
    torch.testing.assert_close(gradients(converted, x), gradients(model, x), rtol=1e-9, atol=1e-9)
    assert not computed


@pytest.mark.parametrize("tool", ["checkpoint", "hooks"])
def test_tools_that_see_saved_tensors(tool: str, computed: list[Tensor]) -> None:
    converted, model, x = models(Net)
    computed.clear()

    def run(each: nn.Module) -> list[Tensor | None]:
        if tool == "checkpoint":
            loss = checkpoint(each, x, use_reentrant=False).square().sum()  # type: ignore[union-attr]
        else:
            with torch.autograd.graph.save_on_cpu():
                loss = each(x).square().sum()
        return list(torch.autograd.grad(loss, [x, *each.parameters()], allow_unused=True))

    torch.testing.assert_close(run(converted), run(model), rtol=1e-9, atol=1e-9)
    assert not computed
