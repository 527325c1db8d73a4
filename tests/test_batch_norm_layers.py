"""fnn.BatchNorm2d, fnn.BatchNormReLU2d and the activations against the layers of torch.nn."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import pytest
import torch
from cases import THREADS, assert_identical
from torch import Tensor, nn
from torch.nn import functional as F

import fastconv
import fastconv.functional as FF
from fastconv import nn as fnn

ARGUMENTS: list[dict[str, Any]] = [
    {}, {"momentum": None}, {"momentum": 0.0}, {"momentum": 1.0}, {"momentum": 1}, {"affine": False}, {"eps": 0.1},
    {"track_running_stats": False}, {"momentum": None, "affine": False}, {"dtype": torch.float64},
    {"dtype": torch.bfloat16},
]  # fmt: skip


class WithReLU(nn.BatchNorm2d):
    """BatchNormReLU2d in plain PyTorch."""

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        y = super().forward(input)
        return F.relu(y if residual is None else y + residual)


PAIRS = [(fnn.BatchNorm2d, nn.BatchNorm2d), (fnn.BatchNormReLU2d, WithReLU)]
every_pair = pytest.mark.parametrize(("mine", "theirs"), PAIRS)


def pair(mine: Any, theirs: Any, channels: int = 5, **arguments: Any) -> list[nn.BatchNorm2d]:
    """The two layers with the same random parameters."""
    plain = theirs(channels, **arguments)
    with torch.no_grad():
        for tensor in (*plain.parameters(), *[b for b in plain.buffers() if b.is_floating_point()]):
            tensor.copy_(torch.rand_like(tensor) + 0.5)
    layer = mine(channels, **arguments)
    layer.load_state_dict(plain.state_dict())
    return [layer, plain]


def state(layer: nn.Module) -> list[Any]:
    return [(name, value.dtype, value.clone()) for name, value in layer.state_dict().items()]


def assert_same_state(layers: list[nn.BatchNorm2d]) -> None:
    ours, theirs = map(state, layers)
    assert [entry[:2] for entry in ours] == [entry[:2] for entry in theirs]
    for a, b in zip(ours, theirs, strict=True):
        tolerance = 1e-2 if b[2].dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(a[2], b[2], rtol=tolerance, atol=tolerance)


# In bfloat16, the libraries differ in the sign of a few values, and so in what passes the ReLU.
@pytest.mark.parametrize(
    ("mine", "theirs", "arguments"),
    [(*layers, a) for layers in PAIRS for a in ARGUMENTS if layers == PAIRS[0] or a.get("dtype") != torch.bfloat16],
    ids=str,
)
def test_the_layers_equal_torchs_in_training_and_evaluation(mine: Any, theirs: Any, arguments: dict[str, Any]) -> None:
    layers = pair(mine, theirs, **arguments)
    assert repr(layers[0]) == f"fastconv.{repr(layers[1]).replace('WithReLU', 'BatchNormReLU2d')}"
    dtype = arguments.get("dtype", torch.float32)
    tolerance = 3e-2 if dtype == torch.bfloat16 else 1e-4
    for training in (True, True, False, True, False):
        x, g = torch.randn(4, 5, 6, 7, dtype=dtype) + 2, torch.randn(4, 5, 6, 7, dtype=dtype)
        found = []
        for layer in layers:
            layer.train(training).zero_grad()
            leaf = x.clone().requires_grad_()
            y = layer(leaf)
            y.backward(g)
            found.append([y.detach(), leaf.grad, *(p.grad for p in layer.parameters())])
        torch.testing.assert_close(*found, rtol=tolerance, atol=tolerance)
        assert_same_state(layers)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_running_statistics_after_100_steps_equal_pytorchs(dtype: torch.dtype) -> None:
    layers = pair(fnn.BatchNorm2d, nn.BatchNorm2d, 19)
    start, found = copy.deepcopy(layers[0]), []
    for threads in THREADS:
        torch.set_num_threads(threads)
        torch.manual_seed(1)
        layer = copy.deepcopy(start)
        for i in range(100):
            x = (torch.randn(8, 19, 9, 9) * (i % 7 + 1) + i).to(dtype)
            layer(x.contiguous(memory_format=torch.channels_last) if i % 2 else x)
            if threads == 1:
                layers[1](x)
        found.append([value for _, _, value in state(layer)])
    assert_same_state([layer, layers[1]])
    for other in found[1:]:
        assert_identical(found[0], other)
    before = [buffer._version for layer in layers for buffer in layer.buffers()]
    for layer in layers:
        layer(torch.randn(2, 19, 3, 3))
    after = [buffer._version for layer in layers for buffer in layer.buffers()]
    counts = [b - a for a, b in zip(before, after, strict=True)]
    assert counts[:3] == counts[3:] == [0, 0, 1]


@every_pair
@pytest.mark.parametrize("second_order", [False, True])
def test_backward_in_evaluation_uses_the_statistics_of_its_forward(mine: Any, theirs: Any, second_order: bool) -> None:
    """In PyTorch, a batch in training between forward and backward changes the gradient, without an error."""
    layers = pair(mine, theirs, 5)
    x = torch.randn(4, 5, 6, 7)
    found = []
    for layer, batch in zip(layers, [x * 3 + 1, None], strict=True):
        leaf = x.clone().requires_grad_()
        y = layer.eval()(leaf)
        if batch is not None:
            layer.train()(batch)
        (grad,) = torch.autograd.grad(y.square().sum(), leaf, create_graph=second_order)
        found.append([grad, *(torch.autograd.grad(grad.square().sum(), leaf) if second_order else ())])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


@every_pair
@pytest.mark.parametrize("training", [True, False])
def test_a_refused_call_changes_what_pytorchs_changes(mine: Any, theirs: Any, training: bool) -> None:
    for size, dtype in [
        ((1, 5, 1, 1), torch.float32), ((4, 5, 6), torch.float32), ((4, 6, 3, 3), torch.float32), ((5,), torch.float32),
        ((4, 5, 3, 3), torch.float64), ((4, 5, 3, 3), torch.int32), ((0, 5, 3, 3), torch.float32),
        ((4, 4, 3, 3), torch.float32),
    ]:  # fmt: skip
        layers, found = pair(mine, theirs), []
        for layer in layers:
            layer.train(training)
            try:
                found.append(str(layer(torch.ones(size, dtype=dtype)).shape))
            except (RuntimeError, ValueError) as error:
                found.append(f"{type(error).__name__}: {error}")
        assert found[0] == found[1]
        assert_same_state(layers)


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_residual_is_added_before_the_relu(channels_last: bool) -> None:
    layers = pair(*PAIRS[1])
    x, r, g = torch.randn(4, 5, 6, 7), torch.randn(4, 5, 6, 7), torch.randn(4, 5, 6, 7)
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    for residual in (r, r.contiguous(memory_format=torch.channels_last), r[:1], r[:, :, :1], None):
        found = []
        for layer in layers:
            leaves = [x.clone().requires_grad_()] + ([] if residual is None else [residual.clone().requires_grad_()])
            y = layer(*leaves)
            assert y.stride() == x.stride()
            found.append([y.detach(), *torch.autograd.grad(y, [*leaves, *layer.parameters()], g)])
        torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
    x.requires_grad_()
    same = [torch.autograd.grad(layer(x, x), x, g) for layer in layers]  # type: ignore[call-arg]
    torch.testing.assert_close(*same, rtol=1e-4, atol=1e-5)
    with pytest.raises(RuntimeError, match="must match the size of tensor"):
        layers[0](x, r[:, :, :4])  # type: ignore[call-arg]


@every_pair
def test_the_layers_can_be_copied_pickled_and_loaded(mine: Any, theirs: Any) -> None:
    layer, plain = pair(mine, theirs)
    x = torch.randn(3, 5, 4, 4)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert type(twin) is mine
        assert repr(twin) == repr(layer)
        for training in (False, True):
            assert torch.equal(twin.train(training)(x), copy.deepcopy(layer).train(training)(x))
    plain(x)
    keys = layer.load_state_dict(plain.state_dict())
    assert not keys.missing_keys
    assert not keys.unexpected_keys
    assert_same_state([layer, plain])
    assert isinstance(layer, nn.BatchNorm2d)
    assert inspect.signature(mine) == inspect.signature(nn.BatchNorm2d)
    old = {k: v for k, v in plain.state_dict().items() if k != "num_batches_tracked"}  # of torch before 1.0
    for module in (layer, plain):
        module.load_state_dict(old, strict=False)
    assert_same_state([layer, plain])
    layer.reset_running_stats(), plain.reset_running_stats()
    assert_same_state([layer.double(), plain.double()])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@every_pair
@pytest.mark.parametrize("training", [True, False])
def test_the_layers_compile_export_script_and_trace(mine: Any, theirs: Any, training: bool) -> None:
    layers = [layer.train(training) for layer in pair(mine, theirs)]
    x = torch.randn(4, 5, 6, 6)
    expected = copy.deepcopy(layers[1])(x)
    torch._dynamo.reset()
    layer = copy.deepcopy(layers[0])
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    leaf = x.clone().requires_grad_()
    y = compiled(leaf)
    torch.testing.assert_close(y, expected)
    (dx,) = torch.autograd.grad(y.square().sum(), leaf)
    torch.testing.assert_close(dx, torch.autograd.grad(copy.deepcopy(layers[1])(leaf).square().sum(), leaf)[0])
    layers[1](x)
    assert_same_state([layer, layers[1]])
    program = torch.export.export(copy.deepcopy(layers[0]), (x,))
    assert "fastconv" not in str(program.graph)
    scripted = torch.jit.script(copy.deepcopy(layers[0]))
    traced = torch.jit.trace(copy.deepcopy(layers[0]), x, check_trace=False)
    for other in (program.module(), scripted, traced):
        torch.testing.assert_close(other(x), expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_scripted_layer_takes_a_residual() -> None:
    layer, plain = pair(*PAIRS[1], momentum=None)
    scripted, x, r = torch.jit.script(layer), torch.randn(4, 5, 3, 3), torch.randn(4, 5, 3, 3)
    for training in (True, False):
        for module in (scripted, plain):
            module.train(training)
        torch.testing.assert_close(scripted(x, r), plain(x, r))
        torch.testing.assert_close(scripted(x), plain(x))
    assert_same_state([scripted, plain])


@every_pair
def test_autocast_gives_pytorchs_types_and_values(mine: Any, theirs: Any) -> None:
    layers, conv, x = pair(mine, theirs), nn.Conv2d(3, 5, 3), torch.randn(4, 3, 8, 8)
    for training in (True, False):
        found = []
        for layer in layers:
            layer.train(training).zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                y = layer(conv(x))
            y.float().square().sum().backward()
            found.append([y.detach(), *(p.grad for p in layer.parameters())])
        torch.testing.assert_close(*found, rtol=3e-2, atol=3e-2)
    assert_same_state(layers)


@every_pair
def test_checkpointing_and_inference_mode_give_pytorchs_results(mine: Any, theirs: Any) -> None:
    layers, x = pair(mine, theirs), torch.randn(4, 5, 6, 6, requires_grad=True)
    found = [
        torch.autograd.grad(torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False).square().sum(), x)
        for layer in layers
    ]
    torch.testing.assert_close(*found)
    with torch.inference_mode():
        for training in (True, False):
            torch.testing.assert_close(*[layer.train(training)(x) for layer in layers])
    assert_same_state(layers)
    with torch.inference_mode():
        frozen = pair(mine, theirs)
    messages = []
    for layer in frozen:  # its running statistics may not change outside of inference mode
        with pytest.raises(RuntimeError) as error:
            layer(torch.randn(4, 5, 6, 6))
        messages.append(str(error.value))
    assert messages[0] == messages[1]


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        (fnn.ReLU6(), nn.ReLU6()), (fnn.LeakyReLU(0.3), nn.LeakyReLU(0.3)), (fnn.LeakyReLU(), nn.LeakyReLU()),
        (fnn.Hardswish(), nn.Hardswish()), (fnn.SiLU(), nn.SiLU()), (fnn.ReLU6(inplace=True), nn.ReLU6(inplace=True)),
        (fnn.SiLU(inplace=True), nn.SiLU(inplace=True)),
    ],
    ids=str,
)  # fmt: skip
def test_the_activations_equal_torchs(mine: nn.Module, theirs: nn.Module) -> None:
    assert repr(mine) == f"fastconv.{theirs!r}"
    assert isinstance(mine, type(theirs))
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 0.0, -3.0, 3.0, 6.0, 1e30, -1e30, 0.7])
    for twin in (mine, copy.deepcopy(mine), pickle.loads(pickle.dumps(mine)), torch.jit.script(mine)):
        a, b = x.clone(), x.clone()
        assert_identical([twin(a), a], [theirs(b), b])


def test_a_batch_norm_of_another_layout_of_channels_goes_to_pytorch() -> None:
    """A user's subclass may take inputs that BatchNorm2d refuses."""

    class Any_(fnn.BatchNorm2d):
        def _check_input_dim(self, input: Tensor) -> None:
            pass

    layer, plain = Any_(5), nn.BatchNorm1d(5)
    for size in ((7, 5), (3, 5, 4)):
        x = torch.randn(size)
        torch.testing.assert_close(layer(x), plain(x))
    torch.testing.assert_close(FF.batch_norm(x, None, None, training=True), F.batch_norm(x, None, None, training=True))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("form", ["relu", "residual", "pool"])
def test_a_second_backward_through_an_activation_gives_pytorchs_zeros(form: str, training: bool) -> None:
    x = torch.randn(4, 3, 6, 6)
    weight, bias = torch.rand(3) + 0.5, torch.rand(3) + 0.5

    def second(convert: bool) -> list[Tensor | None]:
        layers = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), *([nn.MaxPool2d(2)] if form == "pool" else []))
        norm: Any = layers[0]
        norm.weight.data, norm.bias.data = weight.clone(), bias.clone()
        layers.train(training)
        leaves = [x.clone().requires_grad_(), norm.weight, norm.bias]
        if convert:
            layers = fastconv.convert(layers)
        if form == "residual":
            leaves.append((x * 2).requires_grad_())
            y = F.relu(layers[0](leaves[0]) + leaves[3])
        else:
            y = layers(leaves[0])
        found: list[Tensor | None] = []
        for leaf in leaves:
            first = torch.autograd.grad(y.square().sum(), leaf, create_graph=True)[0]
            found += torch.autograd.grad(first.sum(), leaves, retain_graph=True, allow_unused=True)
            linear = torch.autograd.grad(y.sum(), leaf, create_graph=True)[0]
            if linear.requires_grad:
                found += torch.autograd.grad(linear.sum(), leaves, retain_graph=True, allow_unused=True)
        return found

    for ours, theirs in zip(second(True), second(False), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
