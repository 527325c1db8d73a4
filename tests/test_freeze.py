"""fastconv.freeze: the frozen copy computes what the model computes, and the model does not change."""

from __future__ import annotations

import contextlib
import copy
import gc
import pickle
import random
import re
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import numpy
import pytest
import test_ahead_attacks
import test_ahead_calls
import test_ahead_programs
import torch
from ahead_cases import Net
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

import fastconv
from fastconv import freezing
from fastconv._deferred.tensor import settled
from fastconv._frozen.layers import FrozenChain, FrozenLinear
from fastconv.freezing import _plain_copy


class Residual(nn.Module):
    """Two convolutions with a shortcut, as torchvision writes it."""

    def __init__(self, C: int, activation: nn.Module, bias: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(C, C, 3, padding=1, bias=bias)
        self.bn1 = nn.BatchNorm2d(C)
        self.act = activation
        self.conv2 = nn.Conv2d(C, C, 3, padding=1, bias=bias)
        self.bn2 = nn.BatchNorm2d(C, affine=bias)

    def forward(self, x: Tensor) -> Tensor:
        out = self.act(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x
        return self.act(out)


def with_statistics(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            if module.affine:
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
    return model.eval()


def chains(model: nn.Module) -> list[int]:
    """The number of steps of each chain."""
    return [len(module.steps) for module in model.modules() if isinstance(module, FrozenChain)]


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


ACTIVATIONS = [
    nn.ReLU(inplace=True),
    nn.ReLU6(),
    nn.LeakyReLU(0.2),
    nn.Hardswish(),
    nn.SiLU(),
    nn.Identity(),
    nn.Tanh(),
]


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: type(a).__name__)
@pytest.mark.parametrize("channels_last", [False, True])
def test_blocks_are_folded_and_fused(activation: nn.Module, channels_last: bool) -> None:
    model = with_statistics(nn.Sequential(nn.Conv2d(3, 16, 1), Residual(16, activation, bias=channels_last)))
    x = torch.randn(2, 3, 9, 9)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    expected = model(x)
    frozen = fastconv.freeze(model)
    # PyTorch computes Tanh, so the second convolution of the block is a chain of its own.
    assert (chains(frozen), norms(frozen)) == ([2, 1] if isinstance(activation, nn.Tanh) else [3], 0)
    with torch.no_grad():
        result = frozen(x)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)
    assert result.stride() == expected.stride()
    torch.testing.assert_close(frozen(x.clone().requires_grad_()), expected, rtol=1e-5, atol=1e-5)  # with a gradient


def test_all_convolutions_of_residual_blocks_are_one_chain() -> None:
    blocks = [Residual(4, nn.ReLU(inplace=True)) for _ in range(3)]
    frozen = fastconv.freeze(with_statistics(nn.Sequential(*blocks)))
    assert chains(frozen) == [6]
    assert len(list(frozen.graph.nodes)) == 3  # the input, the chain and the output


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    model = with_statistics(Residual(8, nn.ReLU())).to(dtype)
    x = torch.randn(1, 8, 6, 6, dtype=dtype)
    limit = 1e-12 if dtype == torch.float64 else 0.1
    torch.testing.assert_close(fastconv.freeze(model)(x), model(x), rtol=limit, atol=limit)


def test_the_model_itself_does_not_change() -> None:
    model = with_statistics(fastconv.convert(Residual(4, nn.ReLU())))
    classes = [type(module) for module in model.modules()]
    before = copy.deepcopy(model.state_dict())
    fastconv.freeze(model)
    assert [type(module) for module in model.modules()] == classes
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_values_are_those_of_the_call_of_freeze() -> None:
    model = with_statistics(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)))
    x = torch.randn(1, 4, 8, 8)
    frozen = fastconv.freeze(model)
    with torch.no_grad():
        first = frozen(x)
        model[0].weight.zero_()
        model[1].running_mean.fill_(7)
        assert torch.equal(frozen(x), first)


def test_memory_of_a_frozen_weight_may_be_reused() -> None:
    x = torch.randn(1, 64, 8, 8)
    for seed in range(20):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Conv2d(64, 64, 3)).eval()
        frozen = fastconv.freeze(model)
        with torch.no_grad():
            for _ in range(3):
                torch.testing.assert_close(frozen(x), model(x), rtol=1e-4, atol=1e-5)
        del frozen, model
        gc.collect()


def test_a_frozen_weight_with_other_values_or_another_dtype_is_used() -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, 3)).eval()
    x = torch.randn(1, 8, 9, 9)
    frozen = fastconv.freeze(model)
    with torch.no_grad():
        frozen(x)
        chain = next(module for module in frozen.modules() if isinstance(module, FrozenChain))
        chain.weight_0 = torch.zeros_like(chain.weight_0)
        assert torch.equal(frozen(x), model[0].bias.view(1, -1, 1, 1).expand(1, 8, 7, 7))
        torch.testing.assert_close(fastconv.freeze(model).double()(x.double()).float(), model(x), rtol=1e-4, atol=1e-5)


def test_a_shared_layer_and_a_result_that_is_used_twice() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.bn(self.conv(x))
            return F.relu(y) + y + F.relu6(self.conv(y))

    model = with_statistics(Shared())
    x = torch.randn(2, 4, 7, 7)
    frozen = fastconv.freeze(model)
    torch.testing.assert_close(frozen(x), model(x), rtol=1e-5, atol=1e-5)
    assert chains(frozen) == [1, 1]  # an addition is between them


def test_zeros_around_an_image_are_added_by_the_convolution() -> None:
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(4, 4, 3, padding=(0, 1)), nn.Conv2d(4, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(F.pad(x, (2, 2, 1, 1)))
            x = self.second(F.pad(x, (1, 1, 3, 3), "constant", 0.0))
            x = self.second(F.pad(x, (0, 0, 0, 0)))
            x = self.second(F.pad(x, (1, 0, 0, 0)))  # one side
            x = self.second(F.pad(x, (1, 1, 1, 1), value=1.0))
            x = self.second(F.pad(x, (1, 1, 1, 1), "reflect"))
            padded = F.pad(x, (1, 1, 1, 1))  # two users
            return self.first(padded) + padded.mean()

    model, x = Padded().eval(), torch.randn(1, 4, 9, 10)
    frozen = fastconv.freeze(model)
    assert chains(frozen) == [3, 1, 1, 1, 1]
    with torch.no_grad():
        torch.testing.assert_close(frozen(x), model(x), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(frozen(x[0]), model(x[0]), rtol=1e-5, atol=1e-5)


def test_a_chain_with_several_inputs_and_results() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            a = F.relu(self.first(x))
            b = F.relu(self.second(a) + residual)
            c = self.third(b) + a
            return c, a * 2, F.relu(b)

    model = Branches().eval()
    x, residual = torch.randn(2, 1, 4, 6, 6)
    frozen = fastconv.freeze(model)
    assert chains(frozen) == [3]
    with torch.no_grad():
        for inputs in ((x, residual), (x, x)):
            for result, expected in zip(frozen(*inputs), model(*inputs), strict=True):
                torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


class PreActivation(nn.Module):
    """Batch norms before the convolutions, as in DenseNet."""

    def __init__(self) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(4), nn.Conv2d(4, 6, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(6), nn.Conv2d(6, 2, 3, padding=1)
        self.bn3 = nn.BatchNorm2d(6, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.relu(self.bn1(x)))
        y = self.conv2(F.relu(self.bn2(y)))
        return F.relu6(self.bn3(torch.cat([x, y], 1)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_batch_norms_before_convolutions(dtype: torch.dtype) -> None:
    model = with_statistics(PreActivation())
    model.bn1.running_mean += 1e4  # the input's mean is far above its deviation
    model = model.to(dtype)
    x = (torch.randn(2, 4, 7, 7) + model.bn1.running_mean.float().view(-1, 1, 1)).to(dtype)
    frozen = fastconv.freeze(model)
    assert chains(frozen) == ([2] if dtype == torch.bfloat16 else [3, 1])
    exact = copy.deepcopy(model).double()(x.double())
    with torch.no_grad():
        found, theirs = frozen(x), model(x)
    assert found.dtype == dtype
    error, limit = (found.double() - exact).abs().max(), (theirs.double() - exact).abs().max()
    assert error <= 2 * limit + 1e-12


@pytest.mark.parametrize("bias", [False, True])
def test_linear_layers_and_dropout(bias: bool) -> None:
    model = nn.Sequential(nn.Conv2d(3, 512, 1), nn.Dropout(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model += nn.Sequential(nn.Linear(512, 1000, bias=bias), nn.ReLU(), nn.Linear(1000, 10, bias=bias))
    frozen = fastconv.freeze(model.eval())
    assert sum(isinstance(module, FrozenLinear) for module in frozen.modules()) == 1  # the second one is small
    assert not any(isinstance(module, nn.Dropout) for module in frozen.modules())
    for N in (1, 4, 5, 0):
        x = torch.randn(N, 3, 5, 5)
        with torch.no_grad():
            torch.testing.assert_close(frozen(x), model(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(frozen(x.requires_grad_()), model(x), rtol=1e-5, atol=1e-5)
    assert torch.equal(copy.deepcopy(frozen)(x), frozen(x))


def test_torch_compile_and_fake_tensors() -> None:
    model = with_statistics(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1)))
    frozen, x = fastconv.freeze(model), torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        compiled = torch.compile(frozen, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-5)
    assert "(1): 8, 8, (1, 1)" in repr(frozen)


def changed_input(self: Residual, x: Tensor) -> object:
    x = x * 2
    y = self.conv1(x)
    x.add_(1)
    return F.relu(self.bn1(y))


def changed_before_the_activation(self: Residual, x: Tensor) -> object:
    x = x * 2
    y = self.bn1(self.conv1(x))
    x *= 3
    return F.relu(y)


def changed_residual(self: Residual, x: Tensor) -> object:
    x = x * 2
    y = self.conv1(x)
    x.add_(1)
    return F.relu(y + x)


def changed_by_a_layer(self: Residual, x: Tensor) -> object:
    y = self.conv1(x)
    z = self.act(y)  # in place
    return self.bn1(self.conv2(y)), z


def alias_of_a_changed_tensor(self: Residual, x: Tensor) -> object:
    y = self.bn1(self.conv1(x))
    kept = y
    y += x
    return F.relu(y), kept


def alias_of_a_factor(self: Residual, x: Tensor) -> object:
    x = kept = x + 1
    x *= self.conv1(x)
    x -= 1
    x /= 2
    return x, self.conv2(kept)


def changed_argument(self: Residual, x: Tensor) -> object:
    x += 1
    return self.conv1(x)


def assigned_data(self: Residual, x: Tensor) -> object:
    x = x * 2
    x.data = x + 1
    return self.conv1(x)


def counted(self: Residual, x: Tensor) -> object:
    n = x.shape[0]
    n += 1
    return self.conv1(x) * n


@pytest.mark.parametrize(
    "forward",
    [
        changed_input, changed_before_the_activation, changed_residual, changed_by_a_layer, alias_of_a_changed_tensor,
        alias_of_a_factor, changed_argument, assigned_data, counted,
    ],
)  # fmt: skip
def test_changes_in_place_have_effect_in_their_order(forward: Callable[..., object]) -> None:
    cls = type("Program", (Residual,), {"forward": forward})
    model = with_statistics(cls(4, nn.ReLU(inplace=True), bias=True))
    x = torch.randn(2, 4, 5, 5)
    inputs = x.clone(), x.clone()
    with torch.no_grad():
        torch.testing.assert_close(fastconv.freeze(model)(inputs[0]), model(inputs[1]), rtol=1e-5, atol=1e-5)
    assert torch.equal(*inputs)


def test_hooks_still_run() -> None:
    model = with_statistics(nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), nn.ReLU()))
    seen: list[Tensor] = []
    model[0][1].register_forward_hook(lambda module, inputs, output: seen.append(output))
    model[0].register_forward_hook(lambda module, inputs, output: seen.append(output + 0))
    x = torch.randn(1, 3, 6, 6)
    expected = model(x)
    torch.testing.assert_close(fastconv.freeze(model)(x), expected, rtol=1e-5, atol=1e-5)
    assert len(seen) == 4
    torch.testing.assert_close(seen[2], seen[0], rtol=1e-5, atol=1e-5)


def test_a_model_that_cannot_be_traced_is_converted() -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            return self.block(x) if x.mean() > 0 else -self.block(x)

    model = with_statistics(Branch())
    frozen = fastconv.freeze(model)
    for x in (torch.rand(1, 3, 6, 6), -torch.rand(1, 3, 6, 6)):
        with torch.no_grad():
            torch.testing.assert_close(frozen(x), model(x), rtol=1e-5, atol=1e-5)


def test_a_model_with_optional_arguments_takes_the_branch_of_each_call() -> None:
    class Optional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor, mask: Tensor | None = None, scale: float = 1.0) -> Tensor:
            y = self.conv(x)
            return y if mask is None else y * mask * (2 * scale)

    model = Optional().eval()
    frozen, x = fastconv.freeze(model), torch.randn(1, 3, 4, 4)
    for arguments in ((x,), (x, torch.rand(1)), (x, torch.rand(1), 3.0)):
        torch.testing.assert_close(frozen(*arguments), model(*arguments), rtol=1e-5, atol=1e-5)


#: Programs that change the model or note something in each call, and one that compares identities of objects: a record
#: has what freeze() saw. And a sum that PyTorch refuses: a frozen model adds the sparse tensor to the dense one.
NOT_RECORDED = {
    "a_finalizer_between", "a_property_between", "a_weak_reference_between", "an_argument_is_a_property",
    "arguments_have_side_effects", "odd_global_variables", "residual: sparse", "same_object_in_place", "while_loop",
}  # fmt: skip
PROGRAMS = {**test_ahead_attacks.PROGRAMS, **test_ahead_calls.PROGRAMS, **test_ahead_programs.PROGRAMS}


def called_twice(model: nn.Module, x: Tensor) -> Any:
    """The results, or the type of the error."""
    try:
        return [model(x.clone()) for _ in range(2)]
    except Exception as error:
        return type(error)


class Unrecorded(nn.Module):
    """A model that torch.fx cannot record, around one that it may record. Each call may be recorded."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: Tensor) -> Any:
        return self.part(x) if x.shape[0] > 0 else x


@pytest.mark.parametrize("recorded", ["model", "part", "call"])
@pytest.mark.parametrize("name", sorted(PROGRAMS.keys() - NOT_RECORDED))
def test_a_frozen_program_gets_pytorchs_results(name: str, recorded: str) -> None:
    model = with_statistics(type("Own", (Net,), {"forward": PROGRAMS[name]})().double())
    model = model if recorded == "model" else Unrecorded(model).eval()
    original, x = copy.deepcopy(model), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        results = [called_twice(fastconv.freeze(model, record_calls=recorded == "call"), x), called_twice(original, x)]
    found, expected = map(tree_leaves, settled(results))
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        if isinstance(b, Tensor) and b.layout is torch.strided:
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)
        else:
            assert type(a) is type(b)


def random_factor(self: Residual, x: Tensor) -> Tensor:
    return self.conv1(x) * torch.rand(1)


def own_sum(self: Residual, x: Tensor) -> Tensor:
    total = torch.zeros(())
    total += x.sum()
    return self.conv1(x) + total


def bfloat16_within(self: Residual, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return self.conv1(x)


@pytest.mark.parametrize("forward", [random_factor, own_sum, bfloat16_within])
def test_what_a_trace_would_fix_is_computed_in_each_call(forward: Callable[..., Tensor]) -> None:
    model = with_statistics(type("Program", (Residual,), {"forward": forward})(4, nn.ReLU()))
    frozen, x = fastconv.freeze(model), torch.randn(1, 4, 6, 6)
    for _ in range(2):
        torch.manual_seed(3)
        expected = model(x)
        torch.manual_seed(3)
        torch.testing.assert_close(frozen(x), expected, rtol=1e-2, atol=1e-2)  # also compares the dtypes
        torch.rand(1)


def test_contexts_around_a_call() -> None:
    model = with_statistics(nn.Sequential(Residual(4, nn.ReLU()), nn.Flatten(), nn.Linear(144, 4000)))
    frozen, x = fastconv.freeze(model), torch.randn(3, 4, 6, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(frozen(x), model(x), rtol=0.1, atol=0.1)  # also compares the dtypes
    by_vmap = torch.func.vmap(frozen)(x[:, None])
    torch.testing.assert_close(by_vmap, model(x)[:, None], rtol=1e-4, atol=1e-4)
    tangent = torch.randn_like(x)
    found, expected = (torch.func.jvp(m, (x,), (tangent,))[1] for m in (frozen, model))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model", [nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), nn.Conv2d(3, 4, 3, padding="same")])
def test_copies(model: nn.Module) -> None:
    x = torch.randn(1, 3, 6, 6)
    frozen = fastconv.freeze(model.eval())
    for copied in (copy.deepcopy(frozen), pickle.loads(pickle.dumps(frozen))):
        torch.testing.assert_close(copied(x), model(x), rtol=1e-5, atol=1e-5)


def number_of_an_alias(self: Residual, x: Tensor) -> object:
    size = half = x.shape[-1]
    half //= 2
    return self.conv1(x) * half, size


def alias_by_an_attribute(self: Residual, x: Tensor) -> object:
    x = x * 1
    values = x.data
    values += 1
    return self.conv1(x)


def change_by_a_numpy_array(self: Residual, x: Tensor) -> object:
    x = x * 1
    y = self.conv1(x)
    x.numpy().fill(0)
    return F.relu(y)


def change_by_an_overload(self: Residual, x: Tensor) -> object:
    x = x * 1
    y = self.conv1(x)
    torch.ops.aten.add_.Tensor(x, 1)
    return F.relu(y)


def type_of_the_input(self: Residual, x: Tensor) -> object:
    return self.conv1(x * 2 if isinstance(x, Tensor) and torch.is_tensor(x) else x)


def keywords(self: Residual, x: Tensor, **kwargs: Tensor) -> object:
    mask = kwargs.get("mask")
    return self.conv1(x) if mask is None else mask


def counter(self: Residual, x: Tensor) -> object:
    self.calls = getattr(self, "calls", 0) + 1
    return self.conv1(x) * self.calls


def buffer(self: Residual, x: Tensor) -> object:
    self.bn1.running_mean.add_(1)
    return self.bn1(self.conv1(x))


def number_at_random(self: Residual, x: Tensor) -> object:
    return self.conv1(x) * torch.rand(()).item()


def ordered(self: Residual, x: Tensor) -> object:
    return OrderedDict(out=self.conv1(x))


def no_autocast(self: Residual, x: Tensor) -> object:
    with torch.autocast("cpu", enabled=False):
        return self.conv1(x)


def broadcasts(self: Residual, x: Tensor) -> object:
    return self.act(self.conv1(x) + x.mean((2, 3), keepdim=True))


def sum_in_the_layout_of_the_input(self: Residual, x: Tensor) -> object:
    return (x.contiguous() + self.conv1(x.contiguous(memory_format=torch.channels_last))).view(len(x), -1)


def branch_on_the_modes(self: Residual, x: Tensor) -> object:
    y = self.conv1(x) if torch.is_grad_enabled() else self.conv2(x)
    return y * 3 if torch.is_autocast_enabled("cpu") else y


def number_of_python(self: Residual, x: Tensor) -> object:
    return self.conv1(x) if random.random() < 0.99 else self.conv2(x)


def number_of_numpy(self: Residual, x: Tensor) -> object:
    return self.conv1(x) * numpy.random.rand()


def member_of_a_dictionary(self: Residual, x: Tensor) -> object:
    last = self.kept["last"]
    self.kept["last"] = self.conv1(x)
    return last + x


def text(self: Residual, x: Tensor) -> object:
    return self.conv1(x), f"{x.shape[0]} {x.dtype}"


def caught_branch(self: Residual, x: Tensor) -> object:
    try:
        return self.conv1(x) if x.sum() > 0 else self.conv2(x)
    except Exception:
        return x


def caught_number(self: Residual, x: Tensor) -> object:
    n = 1
    for number in (lambda: int(x.shape[0]), lambda: len(x), lambda: [0, 5, 6][x.shape[0]], lambda: float(x.shape[0])):
        with contextlib.suppress(Exception):
            n += number()
    return self.conv1(x) * n


def missing_attributes(self: Residual, x: Tensor) -> object:
    return self.conv1(x) * (2 if hasattr(x, "tensors") else 3) * getattr(x, "scale", 4)


def exact_type(self: Residual, x: Tensor) -> object:
    return self.conv1(x) * (2 if type(x) is Tensor else 3) * (5 if callable(x) else 7)


def cache_by_input(self: Residual, x: Tensor) -> object:
    return self.conv1(x) * {x: 2}.get(x, 3) * (5 if x.shape[0] in {1, 2} else 7)


FOUND_BY_ATTACK = [
    branch_on_the_modes, number_of_python, number_of_numpy, member_of_a_dictionary, text, caught_branch, caught_number,
    missing_attributes, exact_type, cache_by_input,
    number_of_an_alias, alias_by_an_attribute, change_by_a_numpy_array, change_by_an_overload, type_of_the_input,
    keywords, counter, buffer, number_at_random, ordered, no_autocast, broadcasts, sum_in_the_layout_of_the_input,
]  # fmt: skip


@pytest.mark.parametrize("forward", FOUND_BY_ATTACK)
@pytest.mark.parametrize("autocast", [False, True])
def test_what_a_record_cannot_hold_is_computed_in_each_call(forward: Callable[..., object], autocast: bool) -> None:
    model = with_statistics(type("Program", (Residual,), {"forward": forward})(4, nn.ReLU(), bias=True))
    model.kept = {"last": torch.ones(())}
    frozen, x = fastconv.freeze(model), torch.randn(2, 4, 6, 6)
    limit = 0.1 if autocast else 1e-5
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        for seed in range(3):
            seed_all(seed)
            found = settled(frozen(x.clone()))
            seed_all(seed)
            expected = model(x.clone())
            assert type(found) is type(expected)
            for a, b in zip(tree_leaves(found), tree_leaves(expected), strict=True):
                if isinstance(b, str):
                    assert a == b
                else:
                    torch.testing.assert_close(a, b, rtol=limit, atol=limit)  # also compares the dtypes


def seed_all(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    numpy.random.seed(seed)


def test_freeze_draws_no_random_numbers() -> None:
    for forward in (number_at_random, number_of_python, number_of_numpy):
        model = type("Program", (Residual,), {"forward": forward})(4, nn.ReLU()).eval()
        drawn = []
        for freeze in (fastconv.freeze, lambda model: model):
            seed_all(0)
            freeze(model)
            drawn.append((torch.rand(1).item(), random.random(), numpy.random.rand()))
        assert drawn[0] == drawn[1]


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return self.conv(x) if mask is None else self.conv(x) * mask


class PassesItOn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part = Masked()

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return self.part(x, mask)


class SameObject(Masked):
    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return self.conv(x) if x is mask else self.conv(x) - mask  # type: ignore[no-any-return]


class Skips(PassesItOn):
    """The part gets no argument of the model, but results of layers, which are never None."""

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return self.part(x.relu(), x.sigmoid())  # type: ignore[no-any-return]


@pytest.mark.parametrize("cls", [Masked, PassesItOn, SameObject, Skips])
def test_a_comparison_of_objects_is_made_in_each_call(cls: type[nn.Module]) -> None:
    model = cls().eval()
    frozen, x = fastconv.freeze(model), torch.randn(1, 4, 6, 6)
    with torch.no_grad():
        for mask in (torch.rand(6, 6), x, *(() if cls is SameObject else (None,))):
            torch.testing.assert_close(settled(frozen(x, mask)), model(x, mask), rtol=1e-5, atol=1e-5)
    is_recorded = any(isinstance(layer, FrozenChain) for layer in frozen.modules())
    assert is_recorded == (cls is Skips)


def test_a_layer_in_training_mode_stays_in_it() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Dropout(0.5)).eval()
    model[1].train()
    frozen, x = fastconv.freeze(model), torch.randn(1, 4, 6, 6)
    with torch.no_grad():
        assert not torch.equal(frozen(x), frozen(x))


def test_a_model_with_a_layer_of_the_name_of_a_chain() -> None:
    model = nn.Sequential(OrderedDict(conv=nn.Conv2d(4, 4, 1), fastconv_chain_0=nn.Tanh())).eval()
    x = torch.randn(1, 4, 6, 6)
    with torch.no_grad():
        torch.testing.assert_close(fastconv.freeze(model)(x), model(x), rtol=1e-5, atol=1e-5)


def test_gradients_within_no_grad_and_after_inference_mode() -> None:
    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                y = self.conv(x)
            return self.conv(x + y)

    model = Part().eval()
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            frozen = fastconv.freeze(model)
        x = torch.randn(1, 4, 6, 6, requires_grad=True)
        found, expected = (torch.autograd.grad(m(x).square().sum(), x)[0] for m in (frozen, model))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_shared_memory_does_not_free_a_frozen_address() -> None:
    x = torch.randn(1, 64, 8, 8)
    with torch.no_grad():
        for _ in range(10):
            frozen = fastconv.freeze(nn.Sequential(nn.Conv2d(64, 64, 3)).eval())
            frozen(x)
            frozen.share_memory()
            for _ in range(4):
                model = fastconv.convert(nn.Conv2d(64, 64, 3).eval())
                model(x)
                model.weight.normal_()
                torch.testing.assert_close(model(x), F.conv2d(x, model.weight, model.bias), rtol=1e-3, atol=1e-2)


def test_errors_of_a_batch_norm_are_pytorchs() -> None:
    model = with_statistics(nn.Sequential(nn.BatchNorm2d(4)))
    frozen = fastconv.freeze(model)
    for x in (torch.randn(2, 1, 6, 6), torch.randn(2, 4, 4, 3, 3), torch.randn(4, 6, 6), torch.ones(2, 4, 6, 6).int()):
        with pytest.raises(Exception) as expected:  # noqa: PT011
            model(x)
        with pytest.raises(type(expected.value), match=re.escape(str(expected.value))):
            frozen(x)
    assert frozen(torch.randn(2, 4, 6, 6).bfloat16()).dtype is torch.bfloat16


def test_an_unpickled_copy_and_other_refusals() -> None:
    frozen = pickle.loads(pickle.dumps(fastconv.freeze(nn.Sequential(nn.Conv2d(3, 4, 3)).eval())))
    with pytest.raises(RuntimeError, match="cannot be trained"):
        frozen.train()
    with pytest.raises(RuntimeError, match="cannot load values"):
        frozen.load_state_dict(frozen.state_dict())
    with pytest.raises(RuntimeError, match="a lazy layer has none yet"):
        fastconv.freeze(nn.Sequential(nn.LazyConv2d(4, 3)).eval())


def test_errors() -> None:
    with pytest.raises(TypeError, match=r"takes a torch\.nn\.Module, but got int"):
        fastconv.freeze(3)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="evaluation mode"):
        fastconv.freeze(nn.Sequential(nn.Conv2d(3, 4, 3)))
    frozen = fastconv.freeze(nn.Sequential(nn.Conv2d(3, 4, 3)).eval())
    with pytest.raises(RuntimeError, match="cannot be trained"):
        frozen.train()
    assert frozen.eval() is frozen
    with pytest.raises(RuntimeError, match="to have 3 channels, but got 2"):
        frozen(torch.randn(1, 2, 6, 6))


@pytest.fixture
def no_garbage_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_garbage_collection")
@pytest.mark.parametrize("make", [lambda m: m, copy.deepcopy])
def test_a_frozen_model_is_freed_without_the_garbage_collector(
    make: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = []

    def plain_copy(model: nn.Module) -> nn.Module:
        plain = _plain_copy(model)
        copied.append(weakref.ref(plain[0]))  # type: ignore[index]
        return plain

    monkeypatch.setattr(freezing, "_plain_copy", plain_copy)
    frozen = make(fastconv.freeze(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()))
    assert [reference() for reference in copied] == [None]  # the weights before they were folded
    frozen(torch.randn(1, 3, 8, 8))
    frozen.graph.lint()
    references = [weakref.ref(module) for module in frozen.modules()]
    del frozen
    assert [reference() for reference in references] == [None, None]
