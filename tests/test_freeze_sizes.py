"""fastconv.freeze of a model that torch.fx cannot record: the calls are recorded, once for each set of sizes."""

from __future__ import annotations

import copy
import ctypes
import functools
import itertools
import math
import pickle
import random
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy
import pytest
import torch
from test_freeze import Residual, seed_all, with_statistics
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

import fastconv
from fastconv._deferred.tensor import settled
from fastconv._frozen.calls import FrozenCalls
from fastconv._frozen.layers import FrozenChain, FrozenLinear

freeze = functools.partial(fastconv.freeze, record_calls=True)
#: Height and width. The odd ones need other padding.
SIZES = [(8, 8), (7, 9), (8, 8), (9, 8), (7, 9), (12, 6)]


def refused_size(self: object, x: Tensor) -> Tensor:
    """A branch that torch.fx cannot record."""
    return x if x.shape[-1] > 1 else x + 1


def same_padding(x: Tensor, kernel: int, stride: int) -> Tensor:
    """Pad as TensorFlow does, as in transformers' MobileNetV1."""
    sizes: list[int] = []
    for n in reversed(x.shape[-2:]):
        total = max(kernel - (stride if n % stride == 0 else n % stride), 0)
        sizes += [total // 2, total - total // 2]
    return F.pad(x, sizes)


class Model(Residual):
    """A block whose ``forward`` is given by a function."""

    def __init__(self) -> None:
        super().__init__(4, nn.ReLU(), bias=True)
        self.down = nn.Conv2d(4, 4, 3, stride=2)
        self.position = nn.Parameter(torch.randn(1, 4, 5, 5))
        self.register_buffer("scales", torch.rand(16))
        self.kept: dict[Any, Any] = {}
        self.constant = torch.rand(4, 1, 1)


def with_forward(forward: Callable[..., object]) -> Any:
    torch.manual_seed(0)
    return with_statistics(type("Program", (Model,), {"forward": forward})())


def records(frozen: Any) -> list[list[int] | None]:
    """The numbers of steps of the chains of each record. None for a call that was not recorded."""
    return [
        None if record is None else [len(m.steps) for m in record[0].modules() if isinstance(m, FrozenChain)]
        for record in frozen._calls._records.values()
    ]


def assert_equal(found: Any, expected: Any) -> None:
    assert type(settled(found)) is type(expected)
    for a, b in zip(tree_leaves(settled(found)), tree_leaves(expected), strict=True):
        if isinstance(b, Tensor):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
        else:
            assert a == b


# ---- programs that are recorded ----------------------------------------------------------------------------------


def tf_padding(self: Model, x: Tensor) -> object:
    x = self.act(self.conv1(x) + x)
    return self.act(self.down(same_padding(x, 3, 2)))


def branch_on_a_size(self: Model, x: Tensor) -> object:
    if x.shape[-1] % 2 == 1 or x.size(2) > 8:
        x = F.pad(x, (0, 1))
    return self.bn1(self.conv1(x))


def branch_on_a_size_within(self: Model, x: Tensor) -> object:
    y = self.down(self.conv1(x))
    H, W = y.shape[2:]
    return self.conv2(y) if H % 2 and len(y) == 2 else self.conv1(y) + W


def position_embedding(self: Model, x: Tensor) -> object:
    y = self.conv1(x)
    size = y.shape[-2:]
    if size != self.position.shape[-2:]:
        return y + F.interpolate(self.position, size=size, mode="bilinear")
    return y + self.position


def sizes_in_arange(self: Model, x: Tensor) -> object:
    grid = torch.arange(x.shape[-1], dtype=x.dtype, device=x.device) / math.sqrt(x.shape[-2])
    return self.conv1(x + grid) * self.scales[: x.shape[-1]]


def windows(self: Model, x: Tensor) -> object:
    """As in Swin."""
    N, C, H, W = refused_size(self, x).shape
    x = F.pad(x, (0, -W % 4, 0, -H % 4))
    rows, columns = x.shape[2] // 4, x.shape[3] // 4
    x = x.view(N, C, rows, 4, columns, 4).permute(0, 2, 4, 1, 3, 5).reshape(-1, C, 4, 4)
    x = torch.roll(self.conv1(x), shifts=(-2, -2), dims=(2, 3))
    x = x.view(N, rows, columns, C, 4, 4).permute(0, 3, 1, 4, 2, 5).reshape(N, C, 4 * rows, 4 * columns)
    return x[..., :H, :W].contiguous()


def upsampled(self: Model, x: Tensor) -> object:
    y = self.down(refused_size(self, x))
    return F.interpolate(self.conv1(y), size=x.shape[-2:]) + F.interpolate(y, x.shape[2:], mode="nearest")


def own_average(self: Model, x: Tensor) -> object:
    return F.avg_pool2d(self.conv1(x), (x.shape[2] // 2, x.shape[3] // 2))


def loops(self: Model, x: Tensor) -> object:
    parts = [self.conv1(part[None]) for part in x]
    for i in range(x.shape[2] // 3):
        parts[0] = parts[0] * (i + 1)
    first, second = torch.cat(parts).unbind()
    return {"all": parts, "sizes": (x.shape[2], None, "text"), "first": first, "sum": first + second}


class Result(NamedTuple):
    out: Tensor
    size: int


def options(self: Model, x: Tensor, mask: Tensor | None = None, mode: str = "plain", **kwargs: Any) -> object:
    y = self.conv1(x) if mode == "plain" else self.conv2(x)
    y = y if mask is None else y * mask
    return Result(y * (2 if type(x) is Tensor and isinstance(x, Tensor) else 3), x.shape[2])


def changes_in_place(self: Model, x: Tensor) -> object:
    n = x.shape[-1] // 2
    y = x * 2
    z = self.conv1(y)
    y[..., :n] += 1
    y.mul_(2).relu_()
    z += y
    x += 1
    return F.relu(z), self.conv2(y)


def padding_before_a_change(self: Model, x: Tensor) -> object:
    x = refused_size(self, x) * x.shape[0]
    padded = F.pad(x, (x.shape[0] - 1, 1, 1, 1))
    x.zero_()
    return self.conv1(padded)


def repeated_calls(self: Model, x: Tensor) -> object:
    y = self.conv1(x)
    for _ in range(x.shape[-1] % 3):
        y = self.act(self.bn1(self.conv1(y)) + x)
    return y


RECORDED = [
    tf_padding, branch_on_a_size, branch_on_a_size_within, position_embedding, sizes_in_arange, windows, upsampled,
    own_average, loops, options, changes_in_place, padding_before_a_change, repeated_calls,
]  # fmt: skip


@pytest.mark.parametrize("forward", RECORDED)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_each_size_is_recorded_once(
    forward: Callable[..., object], channels_last: bool, mode: Callable[[], Any]
) -> None:
    model = with_forward(forward)
    frozen = freeze(model)
    with mode():
        for H, W in SIZES:
            x = torch.randn(2, 4, H, W)
            if channels_last:
                x = x.to(memory_format=torch.channels_last)
            inputs = x.clone(), x.clone()
            found, expected = frozen(inputs[0]), model(inputs[1])
            assert_equal(found, expected)
            assert torch.equal(*inputs)
            for a, b in zip(tree_leaves(found), tree_leaves(expected), strict=True):
                assert not isinstance(b, Tensor) or a.stride() == b.stride()
    assert None not in records(frozen)
    assert len(records(frozen)) == len(set(SIZES))


def test_other_arguments_have_other_records() -> None:
    model = with_forward(options)
    frozen, x = freeze(model), torch.randn(2, 4, 6, 6)
    with torch.no_grad():
        for arguments, keywords in (
            ((x,), {}), ((x, torch.rand(6, 6)), {}), ((x, None, "other"), {}), ((x, None, "plain"), {}),
            ((), {"x": x, "mode": "other"}), ((x,), {"unused": True}), ((x,), {"unused": 1}),
        ):  # fmt: skip
            for _ in range(2):
                assert_equal(frozen(*arguments, **keywords), model(*arguments, **keywords))
        assert records(frozen) == [[1]] * 7
        for arguments, keywords in (((x, x), {}), ((x,), {"scale": 0.5}), ((x,), {"scale": [x]})):
            assert_equal(frozen(*arguments, **keywords), model(*arguments, **keywords))
    assert len(records(frozen)) == 7


def test_symmetric_padding_is_added_by_the_convolution() -> None:
    model = with_forward(tf_padding)
    frozen = freeze(model)
    with torch.no_grad():
        for size in (7, 8):
            frozen(torch.randn(1, 4, size, size))
    odd, even = (record[0] for record in frozen._calls._records.values())
    assert [node.name for node in odd.graph.nodes if "pad" in node.name] == []
    assert [node.name for node in even.graph.nodes if "pad" in node.name] == ["pad"]
    assert records(frozen) == [[2], [1, 1]]


# ---- programs that are not recorded ------------------------------------------------------------------------------


def branch_on_a_value(self: Model, x: Tensor) -> object:
    return self.conv1(x) if x.mean() > 0 else self.conv2(x)


def number(self: Model, x: Tensor) -> object:
    return self.conv1(x) * x.mean().item() + float(x[0, 0, 0, 0]) + int(x.abs().max())


def caught_branch(self: Model, x: Tensor) -> object:
    try:
        return self.conv1(x) if x.sum() > 0 else self.conv2(x)
    except Exception:
        return x


def everything_is_caught(self: Model, x: Tensor) -> object:
    try:
        return self.conv1(x) * x.tolist()[0][0][0][0]
    except:  # noqa: E722
        return self.conv2(x)


def caught_argument(self: Model, x: Tensor) -> object:
    """The recorder does not know the argument."""
    try:
        return self.conv1(x).mul(numpy.float32(2))
    except:  # noqa: E722
        return self.conv2(x)


def failing_function(self: Model, x: Tensor) -> object:
    try:
        return self.conv1(x) * torch.linalg.cholesky(x.mean().view(1, 1)).sum()
    except RuntimeError:
        return self.conv2(x)


def text_of_a_value(self: Model, x: Tensor) -> object:
    return self.conv1(x) * len(f"{x.mean().round()}".replace("-", ""))


def size_of_chosen_values(self: Model, x: Tensor) -> object:
    return self.conv1(x) * len(x[x > 0]) + torch.nonzero(x).shape[0] + x.round().unique().numel()


def size_from_a_value(self: Model, x: Tensor) -> object:
    n = (x.mean() > 0).long() + 1
    return self.conv1(x) * torch.arange(n).sum(), x[:, :n]


def parts_at_values(self: Model, x: Tensor) -> object:
    at = (x.mean() > 0).long() + torch.tensor([1, 3])
    return self.conv1(x) * torch.tensor_split(x, at, dim=3)[0].shape[3]


def packed(self: Model, x: Tensor) -> object:
    lengths = (x.mean((1, 2, 3)) > 0).long() + 1
    sequence = nn.utils.rnn.pack_padded_sequence(x.flatten(2), lengths, batch_first=True, enforce_sorted=False)
    return self.conv1(x) * sequence.data.shape[0]


def repeats(self: Model, x: Tensor) -> object:
    counts = (x.mean((1, 2, 3)) > 0).long() + 1
    many = torch.repeat_interleave(x, counts, dim=0)
    return self.conv1(x) * many.shape[0] * F.one_hot(counts).shape[1]


def compiled_code(self: Model, x: Tensor) -> object:
    """The function changes the tensor without PyTorch's functions."""
    y = x * 2
    ctypes_fill(y)
    return self.conv1(y)


def address(x: Tensor) -> int:
    """The address, as compiled code reads it: PyTorch's functions are not called."""
    with torch._C.DisableTorchFunction():
        return x.data_ptr()


def ctypes_fill(x: Tensor) -> None:
    ctypes.memset(address(x), 0, 4 * 4 * 4 * 4)


def branch_of_compiled_code(self: Model, x: Tensor) -> object:
    is_positive = ctypes.c_float.from_address(address(x)).value > 0
    return self.conv1(x) if is_positive else self.conv2(x)


def array(self: Model, x: Tensor) -> object:
    return self.conv1(x) * float(numpy.asarray(x.detach()).max())


def tensor_of_numpy(self: Model, x: Tensor) -> object:
    return self.conv1(x) * torch.from_numpy(numpy.full(1, numpy.float32(x.shape[-1])))


def addresses(self: Model, x: Tensor) -> object:
    y = x + 1
    return self.conv1(y) * (1 if y.data_ptr() == x.data_ptr() else 2)


def strides(self: Model, x: Tensor) -> object:
    return self.conv1(x) * (x.stride(1) if x.is_contiguous() else 7)


def wants_gradients(self: Model, x: Tensor) -> object:
    return self.conv1(x) if x.requires_grad else self.conv2(x)


def random_numbers(self: Model, x: Tensor) -> object:
    return self.conv1(x) + torch.rand(1)


def random_numbers_of_python(self: Model, x: Tensor) -> object:
    return self.conv1(x) * (random.random() + numpy.random.rand())


def number_of_calls(self: Model, x: Tensor) -> object:
    self.calls = getattr(self, "calls", 0) + 1
    return self.conv1(x) * self.calls


def last_size(self: Model, x: Tensor) -> object:
    before = self.kept.get("size", 1)
    self.kept["size"] = x.shape[-1]
    return self.conv1(x) * before


def largest_size(self: Model, x: Tensor) -> object:
    self.largest = max(getattr(self, "largest", 0), x.shape[-1])
    return self.conv1(x) * self.largest


def size_in_a_list_of_lists(self: Model, x: Tensor) -> object:
    sizes = self.kept.setdefault("sizes", [[1]])[0]
    sizes.append(x.shape[-1])
    return self.conv1(x) * sizes[-2]


def cached_grid(self: Model, x: Tensor) -> object:
    if "grid" not in self.kept or self.kept["grid"].shape[0] != x.shape[-1]:
        self.kept["grid"] = torch.arange(x.shape[-1]).float()
    return self.conv1(x) + self.kept["grid"]


def buffer(self: Model, x: Tensor) -> object:
    self.scales.add_(1)
    return self.conv1(x) * self.scales[0]


def tensor_of_an_attribute(self: Model, x: Tensor) -> object:
    return self.conv1(x) + self.constant


def no_grad(self: Model, x: Tensor) -> object:
    with torch.no_grad():
        return self.conv1(x)


def autocast(self: Model, x: Tensor) -> object:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return self.conv1(x).float() * 0 + x


def branch_on_the_modes(self: Model, x: Tensor) -> object:
    return self.conv1(x) if torch.is_grad_enabled() else self.conv2(x)


counter = itertools.count(1)


def global_counter(self: Model, x: Tensor) -> object:
    return self.conv1(refused_size(self, x)) * next(counter)


@functools.lru_cache
def grid_of(size: int) -> Tensor:
    return torch.arange(size).float()


def global_cache(self: Model, x: Tensor) -> object:
    return self.conv1(x) + grid_of(x.shape[-1])


scripted = torch.jit.script(nn.ReLU())


def script(self: Model, x: Tensor) -> object:
    return scripted(self.conv1(x))


def replaced_data(self: Model, x: Tensor) -> object:
    y = x * 1
    y.data = x + 1
    return self.conv1(y)


def legacy_constructor(self: Model, x: Tensor) -> object:
    return self.conv1(x) * torch.Tensor([x.shape[-1]])


def mapped(self: Model, x: Tensor) -> object:
    return torch.vmap(self.conv1)(x[None])[0]


REFUSED = [
    branch_on_a_value, number, caught_branch, everything_is_caught, caught_argument, failing_function,
    text_of_a_value, size_of_chosen_values, size_from_a_value, largest_size,
    parts_at_values, packed, repeats, compiled_code, branch_of_compiled_code, array, tensor_of_numpy,
    addresses, strides, wants_gradients, random_numbers, random_numbers_of_python,
    number_of_calls, last_size, size_in_a_list_of_lists, cached_grid, buffer, tensor_of_an_attribute, no_grad, autocast,
    branch_on_the_modes, global_cache, script, replaced_data, legacy_constructor, mapped,
]  # fmt: skip


@pytest.mark.parametrize("forward", REFUSED)
def test_what_the_sizes_do_not_decide_is_computed_in_each_call(forward: Callable[..., object]) -> None:
    def refused(self: Model, x: Tensor) -> object:
        return forward(self, refused_size(self, x))

    model = with_forward(refused)
    frozen = freeze(model)
    with torch.no_grad():
        for call, size in enumerate((6, 6, 7, 6, 6)):
            seed_all(call)
            x = torch.randn(2, 4, size, size)
            x = x if call % 2 else -x.abs().to(memory_format=torch.channels_last)
            seed_all(call)
            found = settled(frozen(x.clone()))
            seed_all(call)
            assert_equal(found, model(x.clone()))
    assert set(map(str, records(frozen))) == {"None"}


def test_a_number_that_changes_from_call_to_call() -> None:
    frozen = freeze(with_forward(global_counter))
    frozen(torch.randn(1, 4, 7, 7))
    assert records(frozen) == [None]


# ---- the state of the frozen model -------------------------------------------------------------------------------


def test_more_sizes_than_are_recorded() -> None:
    model = with_forward(tf_padding)
    frozen = freeze(model)
    with torch.no_grad():
        for size in (*range(6, 18), *range(6, 18)):
            x = torch.randn(1, 4, size, 7)
            assert_equal(frozen(x), model(x))
    assert len(records(frozen)) == FrozenCalls.most_records < 12


def test_records_share_their_weights() -> None:
    def forward(self: Any, x: Tensor) -> object:
        y = self.act(self.bn1(self.conv1(x if x.shape[-1] % 2 else F.pad(x, (0, 1)))))
        return self.linear(self.stage(y).mean((2, 3)))

    model = with_forward(forward)
    model.stage = nn.Sequential(Residual(4, nn.ReLU()), Residual(4, nn.ReLU())).eval()
    model.linear = nn.Linear(4, 250_000)
    frozen = freeze(model)
    with torch.no_grad():
        for size in (6, 7, 8):
            x = torch.randn(1, 4, size, size)
            assert_equal(frozen(x), model(x))
    found = [
        [id(tensor) for m in record[0].modules() if isinstance(m, FrozenChain | FrozenLinear) for tensor in m.buffers()]
        for record in frozen._calls._records.values()
    ]
    part = vars(frozen.model.stage)["forward"].frozen
    assert len(found) == 3
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == 2 * 6
    assert {id(tensor) for tensor in part.buffers()} < set(found[0])


def test_the_state_of_the_frozen_model_has_no_records() -> None:
    model = with_forward(tf_padding)
    frozen, x = freeze(model), torch.randn(1, 4, 7, 7)
    before = set(frozen.state_dict())
    names = [name for name, _ in frozen.named_modules()]
    frozen(x)
    assert records(frozen) == [[2]]
    assert set(frozen.state_dict()) == before
    assert [name for name, _ in frozen.named_modules()] == names
    with pytest.raises(RuntimeError, match="cannot be trained"):
        frozen.train()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies_record_again(copied: Callable[[Any], Any]) -> None:
    model = Padded().eval()
    frozen, x = freeze(model), torch.randn(1, 4, 7, 7)
    with torch.no_grad():
        frozen(x)
        again = copied(frozen)
        assert records(again) == []
        assert_equal(again(x), model(x))
        assert records(again) == records(frozen) == [[1]]
        again.model.conv.weight.mul_(2)
        assert_equal(frozen(x), model(x))
        model.conv.weight.mul_(2)
        assert_equal(again(x), model(x))


class Padded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(4, 4, 3, stride=2), nn.ReLU()
        self.scale = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv(same_padding(x, 3, 2))) * self.scale


def test_another_dtype() -> None:
    model = with_forward(tf_padding)
    frozen, x = freeze(model), torch.randn(1, 4, 7, 7)
    with torch.no_grad():
        frozen(x)
        frozen, x = frozen.double(), x.double()
        assert records(frozen) == []
        assert_equal(frozen(x), copy.deepcopy(model).double()(x))
        assert records(frozen) == [[2]]
        torch.testing.assert_close(frozen(x), model.double()(x), rtol=1e-12, atol=1e-12)
        frozen.share_memory()
        assert_equal(frozen(x), model(x))


def set_number(model: Any) -> None:
    model.scale = 3.0


def set_layer(model: Any) -> None:
    model.act = nn.Tanh()


def set_values(model: Any) -> None:
    with torch.no_grad():
        model.conv.weight.mul_(2)


def add_hook(model: Any) -> None:
    model.conv.register_forward_hook(lambda module, inputs, out: out + 1)


@pytest.mark.parametrize("change", [set_number, set_layer, set_values, add_hook])
def test_a_later_change_of_the_copy_has_effect(change: Callable[[Any], None]) -> None:
    model = Padded().eval()
    frozen, x = freeze(model), torch.randn(1, 4, 7, 7)
    with torch.no_grad():
        frozen(x)
        change(frozen.model)
        change(model)
        assert_equal(settled(frozen(x)), model(x))


def test_calls_without_a_record_do_not_end_the_records() -> None:
    model = with_forward(tf_padding)
    frozen, x = freeze(model), torch.randn(1, 4, 7, 7)
    gradients = []
    for each in (frozen, model):
        t = x.clone().requires_grad_()
        each(t).square().sum().backward()
        gradients.append(t.grad)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(frozen(x), model(x), rtol=0.1, atol=0.1)  # also compares the dtypes
    by_vmap = torch.func.vmap(frozen)(x[None])
    torch.testing.assert_close(by_vmap, model(x)[None], rtol=1e-4, atol=1e-4)
    assert records(frozen) == []
    with torch.no_grad():
        assert_equal(frozen(x), model(x))
    assert records(frozen) == [[2]]


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_default_device_of_cpu_does_not_end_the_records(device: str) -> None:
    model = with_forward(tf_padding)
    frozen, x = freeze(model), torch.randn(1, 4, 7, 7)
    expected = model(x)
    with torch.no_grad(), torch.device(device):
        assert_equal(frozen(x), expected)
    assert records(frozen) == ([[2]] if device == "cpu" else [])


class Twice(torch.autograd.Function):
    """Its gradient is not that of its operators."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] * 7


def own_gradient(self: Model, x: Tensor) -> object:
    return Twice.apply(self.conv1(refused_size(self, x)))


def test_a_gradient_of_the_models_own() -> None:
    model = with_forward(own_gradient)
    frozen, x = freeze(model), torch.randn(1, 4, 7, 7)
    with torch.no_grad():
        assert_equal(settled(frozen(x)), model(x))
    x.requires_grad_()
    found, expected = (torch.autograd.grad(m(x).sum(), x)[0] for m in (frozen, model))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_hooks_run() -> None:
    model = with_forward(tf_padding)
    seen: list[str] = []
    model.conv1.register_forward_hook(lambda module, inputs, out: seen.append("hook"))
    frozen, x = freeze(model), torch.randn(1, 4, 7, 7)
    with torch.no_grad():
        for _ in range(2):
            assert_equal(frozen(x), model(x))
    assert len(seen) == 4
    assert records(frozen) == [None]


def test_the_model_does_not_run_again_in_its_first_call() -> None:
    model = with_forward(random_numbers)
    frozen, x = freeze(model), torch.randn(1, 4, 7, 7)
    numbers = []
    for each in (frozen, model):
        seed_all(0)
        each(x)
        numbers.append((torch.rand(1).item(), random.random(), numpy.random.rand()))
    assert numbers[0] == numbers[1]


def test_an_error_of_the_model_is_raised() -> None:
    model = with_forward(tf_padding)
    frozen = freeze(model)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="to have 4 channels, but got 3"):
            frozen(torch.randn(1, 3, 7, 7))
    x = torch.randn(1, 4, 7, 7)
    assert_equal(frozen(x), model(x))


def test_compile_and_export() -> None:
    model = with_forward(tf_padding)
    frozen, x = freeze(model), torch.randn(1, 4, 7, 7)
    with torch.no_grad():
        expected = model(x)
        for _ in range(2):
            compiled = torch.compile(frozen, backend="eager", fullgraph=True)
            torch.testing.assert_close(compiled(x), expected, rtol=1e-5, atol=1e-5)
            exported = torch.export.export(frozen, (x,))
            torch.testing.assert_close(exported.module()(x), expected, rtol=1e-5, atol=1e-5)
            frozen(x)


def test_threads_record_and_call_at_the_same_time() -> None:
    model = with_forward(tf_padding)
    frozen = freeze(model)
    inputs = [torch.randn(1, 4, size, size) for size in (6, 7, 8, 9)]
    errors: list[BaseException] = []

    def call(seed: int) -> None:
        try:
            with torch.no_grad():
                for i in range(40):
                    x = inputs[(i + seed) % len(inputs)]
                    assert_equal(frozen(x), model(x))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=call, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(records(frozen)) == 4
    assert None not in records(frozen)


@pytest.mark.parametrize("size", [32, 33, 47])
def test_mobilenet_of_transformers(size: int) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.MobileNetV1Config(num_labels=10, depth_multiplier=0.25)
    model = with_statistics(transformers.MobileNetV1ForImageClassification(config))
    frozen = freeze(model)
    x = torch.randn(2, 3, size, size + 1).contiguous(memory_format=torch.channels_last)
    results = []
    with torch.inference_mode():
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(frozen(x))
        expected = model(x)
        assert type(results[0]) is type(expected)
        scale = expected.logits.abs().max()
        torch.testing.assert_close(results[0].logits / scale, expected.logits / scale, rtol=1e-5, atol=1e-5)
        assert torch.equal(results[0].logits, results[1].logits)
        hidden = frozen(x, output_hidden_states=True).hidden_states
        assert len(hidden) == 26
        assert_equal(frozen(x, return_dict=False), model(x, return_dict=False))
    (found, *_) = records(frozen)
    assert sum(found or []) == 27


# ---- faults that a review found ----------------------------------------------------------------------------------


def own_format(self: Model, x: Tensor) -> Tensor:
    y = refused_size(self, x).to(memory_format=torch.channels_last)  # x itself, or a copy
    y.mul_(2)
    return self.conv1(y) + x


def test_the_strides_of_arguments_belong_to_the_record() -> None:
    model = with_forward(own_format)
    frozen, x = freeze(model), torch.randn(2, 4, 8, 8)
    for memory_format in (torch.channels_last, torch.contiguous_format, torch.channels_last):
        with torch.inference_mode():
            inputs = [x.clone(memory_format=memory_format) for _ in range(2)]
            torch.testing.assert_close(frozen(inputs[0]), model(inputs[1]), rtol=1e-4, atol=1e-5)
            assert torch.equal(*inputs)


@torch.jit.script
def scaled(x: Tensor) -> Tensor:
    if bool(x.max() > 1):
        return x / 255
    return x


def in_torchscript(self: Model, x: Tensor) -> Tensor:
    return self.conv1(scaled(refused_size(self, x)))


class Counter:
    calls = 0


def nested_counter(self: Any, x: Tensor) -> Tensor:
    if "counter" not in self.kept:
        self.kept["counter"] = [Counter()]
    self.kept["counter"][0].calls += 1
    y = self.conv1(refused_size(self, x))
    return y if self.kept["counter"][0].calls < 4 else y * 2


def own_generator(self: Any, x: Tensor) -> Tensor:
    if "numbers" not in self.kept:
        self.kept["numbers"] = numpy.random.default_rng(0)
    y = self.conv1(refused_size(self, x))
    return y * float(self.kept["numbers"].random())


@pytest.mark.parametrize("forward", [in_torchscript, nested_counter, own_generator])
def test_state_and_operators_that_no_graph_repeats_are_not_recorded(forward: Any) -> None:
    model = with_forward(forward)
    with torch.inference_mode():
        model(torch.rand(2, 4, 8, 8))
        frozen = freeze(model)
        for factor in (1, 255, 1, 255, 1):
            x = torch.rand(2, 4, 8, 8) * factor
            torch.testing.assert_close(frozen(x), model(x), rtol=1e-4, atol=1e-4)


def test_a_changed_part_stays_changed_after_a_conversion_of_the_model() -> None:
    model = with_forward(lambda self, x: self.conv1(refused_size(self, x)) * self.factor)
    model.factor = 2
    frozen, x = freeze(model), torch.randn(2, 4, 8, 8)
    with torch.inference_mode():
        frozen(x)
        frozen.model.factor = 2.5
        frozen.float()
        torch.testing.assert_close(frozen(x), model(x) / 2 * 2.5, rtol=1e-4, atol=1e-5)


def test_calls_are_recorded_only_if_the_program_asks_for_it() -> None:
    runs = []

    def noting(self: Model, x: Tensor) -> Tensor:
        runs.append(x.shape)
        return self.conv1(refused_size(self, x))

    frozen = fastconv.freeze(with_forward(noting))
    runs.clear()  # torch.fx has tried
    with torch.inference_mode():
        frozen(torch.randn(2, 4, 8, 8))
    assert len(runs) == 1
