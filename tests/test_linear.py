"""FF.linear, its layer and its operators, against PyTorch and float64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import (
    LEVELS,
    THREADS,
    assert_as_accurate,
    assert_identical,
    assert_refused_alike,
    has_wide_avx512,
    with_gradients,
)
from helpers import check_operator
from sweep import over
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils.checkpoint import checkpoint

import fastconv
import fastconv.functional as FF
from fastconv import _C, reference
from fastconv import nn as fnn
from fastconv._ops.linear import linear as with_operator

ours = torch.ops.fastconv
NAN, INF = float("nan"), float("inf")
#: The sizes of inputs with their K: tails of every block size, one row, one channel, leading dimensions of size 1, and
#: sums in several parts.
SIZES = [
    ((1, 1), 1), ((3, 5), 7), ((2, 3, 4, 17), 33), ((64, 100), 10), ((1, 300), 129), ((37, 64), 64), ((1, 1, 9), 200),
    ((130, 31), 16), ((5, 1), 48), ((1000, 3), 2), ((12, 512), 20), ((4, 50, 96), 384), ((7, 257), 9), ((9, 5000), 40),
]  # fmt: skip
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda t: t,
    "transposed": lambda t: t.transpose(0, -1).contiguous().transpose(0, -1),
    "gaps": lambda t: torch.stack([t, t], -1)[..., 1],
    "shifted": lambda t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape),
}


@pytest.fixture
def operators(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the operators that a test has called, without those of PyTorch."""
    called: list[str] = []
    from fastconv._ops import linear

    def noting(name: str) -> Callable[..., Any]:
        original = getattr(linear, name)
        return lambda *args: called.append(name) or original(*args)  # type: ignore[func-returns-value]

    for name in ("_linear", "_linear_backward"):
        monkeypatch.setattr(linear, name, noting(name))
    return called


def tensors(size: tuple[int, ...], K: int, bias: bool = True, dtype: torch.dtype = torch.float32) -> Any:
    """Input, weight, bias and grad_output."""
    made = torch.randn(size), torch.randn(K, size[-1]), torch.randn(K), torch.randn(*size[:-1], K)
    x, w, b, g = (t.to(dtype) for t in made)
    return (x, w, b if bias else None), g


@over(size=SIZES, bias=[True, False], layout=LAYOUTS, level=LEVELS)
def test_results_and_gradients_are_as_accurate_as_pytorchs(size: Any, bias: bool, layout: str, level: str) -> None:
    arguments, g = tensors(*size, bias)
    x, w, b = arguments
    shaped = (LAYOUTS[layout](x), LAYOUTS[layout](w), b)
    exact = with_gradients(F.linear, tuple(None if t is None else t.double() for t in arguments), g.double())
    expected = with_gradients(F.linear, arguments, g)
    found = with_gradients(with_operator, shaped, LAYOUTS[layout](g))
    assert_as_accurate(found, expected, exact)
    assert [t.shape for t in found] == [t.shape for t in expected]
    assert all(t.is_contiguous() for t in found)


@over(size=SIZES[1:5], dtype=[torch.float64, torch.bfloat16, torch.float16])
def test_the_operators_accept_every_floating_type(size: Any, dtype: torch.dtype) -> None:
    arguments, g = tensors(*size, dtype=dtype)
    exact = with_gradients(F.linear, tuple(t.double() for t in arguments), g.double())
    for a, b in zip(with_gradients(with_operator, arguments, g), exact, strict=True):
        assert a.dtype == dtype
        tolerance = {torch.float64: 1e-12, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]
        torch.testing.assert_close(a.double(), b, rtol=tolerance, atol=tolerance * 20)


@over(size=[((640, 96), 130), ((3, 40, 33), 70), ((20, 700), 900)])
def test_every_number_of_threads_gives_the_same_bits(size: Any) -> None:
    arguments, g = tensors(*size)
    torch.set_num_threads(1)
    expected = with_gradients(with_operator, arguments, g)
    for count in THREADS:
        torch.set_num_threads(count)
        assert_identical(with_gradients(with_operator, arguments, g), expected)


def test_dx_of_a_large_weight_is_computed_in_ranges_of_channels() -> None:
    arguments, g = tensors((3, 5, 1300), 4096)  # 21 MB
    for a, b in zip(with_gradients(with_operator, arguments, g), with_gradients(F.linear, arguments, g), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("value", [NAN, INF, -INF, -0.0])
def test_special_values_spread_as_in_pytorch(value: float) -> None:
    arguments, g = tensors((9, 20), 18)
    for i in range(3):
        changed = [t.clone() for t in arguments]
        changed[i].view(-1)[3] = value
        for a, b in zip(
            with_gradients(with_operator, tuple(changed), g), with_gradients(F.linear, tuple(changed), g), strict=True
        ):
            torch.testing.assert_close(a, b, equal_nan=True, rtol=1e-4, atol=1e-4)
    g.view(-1)[3] = value
    for a, b in zip(with_gradients(with_operator, arguments, g), with_gradients(F.linear, arguments, g), strict=True):
        torch.testing.assert_close(a, b, equal_nan=True, rtol=1e-4, atol=1e-4)


@over(wanted=[(1, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1)])
def test_only_the_wanted_gradients_are_computed_and_only_their_operands_saved(wanted: Any) -> None:
    arguments, g = tensors((4, 6, 20), 18)
    leaves = [t.requires_grad_(bool(w)) for t, w in zip(arguments, wanted, strict=True)]
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):  # type: ignore[func-returns-value]
        y = with_operator(*leaves)
    assert len(saved) == wanted[0] + wanted[1]
    y.backward(g)
    expected = with_gradients(F.linear, arguments, g)[1:]
    for leaf, want, gradient in zip(leaves, wanted, expected, strict=True):
        assert (leaf.grad is not None) == bool(want)
        if want:
            torch.testing.assert_close(leaf.grad, gradient, rtol=1e-4, atol=1e-4)


def test_gradients_of_gradients() -> None:
    for bias in (True, False):
        arguments, _ = tensors((2, 3, 5), 4, bias, torch.float64)
        leaves = tuple(t.requires_grad_() for t in arguments if t is not None)
        function = with_operator if bias else lambda x, w: with_operator(x, w, None)
        assert gradcheck(function, leaves)
        assert gradgradcheck(function, leaves)


def test_an_expanded_gradient_and_one_that_is_missing() -> None:
    (x, w, b), _ = tensors((6, 20), 18)
    leaves = [t.requires_grad_() for t in (x, w, b)]
    for function in (with_operator, F.linear):
        function(*leaves).sum().backward()
    doubled = [t.grad.clone() for t in leaves]
    for t in leaves:
        t.grad = None
    F.linear(*leaves).sum().backward()
    for a, t in zip(doubled, leaves, strict=True):
        torch.testing.assert_close(a, 2 * t.grad, rtol=1e-4, atol=1e-4)


def test_the_operators_pass_opcheck() -> None:
    (x, w, b), g = tensors((2, 3, 20), 18)
    check_operator(ours.linear.default, (x, w, b))
    check_operator(ours.linear.default, (x, w, None))
    for operands in ((x, w), (x, None), (None, w)):
        check_operator(ours.linear_backward.default, (g, *operands))


def test_empty_batches() -> None:
    for size in ((0, 5), (3, 0, 5)):
        arguments, g = tensors(size, 4)
        assert_identical(with_gradients(with_operator, arguments, g), with_gradients(F.linear, arguments, g))


def test_the_reference() -> None:
    (x, w, b), _ = tensors((2, 3, 20), 18)
    torch.testing.assert_close(reference.linear(x, w, b), F.linear(x, w, b), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(reference.linear(x, w), F.linear(x, w), rtol=1e-5, atol=1e-5)


# ---- the function ------------------------------------------------------------------------------------------------


def test_calls_with_and_without_gradient_run_the_operators(operators: list[str]) -> None:
    (x, w, b), _ = tensors((4, 20), 18)
    torch.testing.assert_close(FF.linear(x, w, b), F.linear(x, w, b), rtol=1e-4, atol=1e-4)
    assert operators == ["_linear"]
    FF.linear(x, w.requires_grad_(), b).relu_().sum().backward()  # the result is no view
    assert operators == ["_linear", "_linear", "_linear_backward"]


def other_types() -> dict[str, Callable[[], Any]]:
    """Calls that PyTorch computes."""
    (x, w, b), _ = tensors((4, 20), 18)

    class Own(Tensor):
        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            assert func is F.linear
            return "own"

    return {
        "float64": lambda: FF.linear(x.double(), w.double(), b.double()),
        "bfloat16": lambda: FF.linear(x.bfloat16(), w.bfloat16()),
        "transposed": lambda: FF.linear(x.t().contiguous().t(), w, b),
        "one row": lambda: FF.linear(x[0], w, b),
        "vmap": lambda: torch.func.vmap(FF.linear, (0, None, None))(x, w, b),
        "jvp": lambda: torch.func.jvp(lambda t: FF.linear(t, w, b), (x,), (x,)),
        "grad": lambda: torch.func.grad(lambda t: FF.linear(t, w, b).sum())(x),
        "trace": lambda: torch.jit.trace(FF.linear, (x, w, b), check_trace=False),
        "type": lambda: FF.linear(x.as_subclass(Own), w, b),
        "distributed": lambda: FF.linear(x, TwoTensor(w, w)),
        "meta": lambda: FF.linear(x.to("meta"), w.to("meta")),
        "nested": lambda: FF.linear(torch.nested.nested_tensor([x[:1], x[1:]]), w, b),
        "no outputs": lambda: FF.linear(x, w[:0], b[:0]),
    }


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("name", other_types())
def test_pytorch_computes_the_other_calls(name: str, operators: list[str]) -> None:
    other_types()[name]()
    assert operators == []


def test_autocast_casts_as_in_pytorch(operators: list[str]) -> None:
    (x, w, b), _ = tensors((4, 20), 18)
    with torch.autocast("cpu"):
        assert_identical([FF.linear(x, w, b)], [F.linear(x, w, b)])
    assert operators == []


def test_compiled_code_has_pytorchs_operator() -> None:
    (x, w, b), _ = tensors((4, 20), 18)
    compiled = torch.compile(FF.linear, fullgraph=True, backend="eager")
    assert_identical([compiled(x, w, b)], [F.linear(x, w, b)])


def test_invalid_arguments_have_pytorchs_errors() -> None:
    x, w, b = torch.randn(4, 20), torch.randn(18, 20), torch.randn(18)
    for arguments in [
        (x, w[:, 1:], b), (x, w, b[1:]), (x, w.double(), b), (x, w, b.double()), (x.long(), w, b), (x, None), (None, w),
        (x, torch.randn(2, 3, 20)), (x.to_sparse(), w.to("meta")),
    ]:  # fmt: skip
        assert_refused_alike(FF.linear, F.linear, *arguments)


def test_a_bias_that_broadcasts_is_left_to_pytorch() -> None:
    x, w = torch.randn(4, 20), torch.randn(18, 20)
    for bias in (torch.randn(1), torch.randn(1, 18), torch.randn(())):
        assert_identical([FF.linear(x, w, bias)], [F.linear(x, w, bias)])


# ---- the plan ----------------------------------------------------------------------------------------------------


def test_the_plan_chooses_fastconv_for_many_products_on_zen_5(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastconv._ops.linear.MAY_BE_FASTER", True)
    assert _C.linear_is_faster(1, 1, 1)  # FASTCONV_ALGORITHM=own
    _C.set_algorithms({"torch": "measured"})
    try:
        faster = [(8192, 96, 384), (64, 1600, 128), (2, 1024, 1024), (64, 4096, 4096), (100_000, 3, 64)]
        slower = [(1, 2048, 2048), (64, 128, 128), (4096, 256, 2)]
        assert [_C.linear_is_faster(*call) for call in faster] == [has_wide_avx512()] * len(faster)
        assert not any(_C.linear_is_faster(*call) for call in slower)
    finally:
        _C.set_algorithms({})


# ---- layers ------------------------------------------------------------------------------------------------------


def test_the_layer_is_pytorchs_with_another_forward() -> None:
    layer = fnn.Linear(20, 18)
    plain = nn.Linear(20, 18)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(4, 20)
    torch.testing.assert_close(layer(x), plain(x), rtol=1e-5, atol=1e-5)
    assert repr(layer) == f"fastconv.{plain}"
    torch.testing.assert_close(torch.jit.script(layer)(x), plain(x), rtol=1e-5, atol=1e-5)
    assert isinstance(copy.deepcopy(layer), fnn.Linear)


def test_convert_and_revert_change_the_class(operators: list[str]) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(20, 18), nn.ReLU(inplace=True), nn.Linear(18, 5, bias=False))
    x = torch.randn(4, 20)
    expected = model(x)
    assert fastconv.convert(model)[1].__class__ is fnn.Linear
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
    assert operators == ["_linear", "_linear"]
    assert "1  Linear  converted" in str(fastconv.conversion_report(model))
    assert type(fastconv.revert(model)[1]) is nn.Linear


def test_a_replaced_function_of_pytorch_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = fnn.Linear(20, 18)
    monkeypatch.setattr(F, "linear", lambda *_: "replaced")
    assert layer(torch.randn(4, 20)) == "replaced"


def test_enabled_serves_linear_layers(operators: list[str]) -> None:
    layer, x = nn.Linear(20, 18), torch.randn(7, 3, 20)
    with fastconv.enabled():
        found = layer(x)
        result = torch.empty(7, 3, 18)
        with torch.no_grad():
            assert F.linear(x, layer.weight, layer.bias, out=result) is result  # type: ignore[call-arg]
    torch.testing.assert_close(found, layer(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(result, found.detach(), rtol=1e-5, atol=1e-5)
    assert operators == ["_linear"]


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated", "ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("spec", [None, {nn.Linear}, {"0": torch.ao.quantization.default_dynamic_qconfig}])
def test_dynamic_quantisation_replaces_a_converted_layer(spec: Any) -> None:
    model = fastconv.convert(nn.Sequential(nn.Linear(20, 18), nn.Conv2d(1, 1, 1)))
    quantised = torch.ao.quantization.quantize_dynamic(model, spec, dtype=torch.qint8)
    assert type(quantised[0]) is torch.ao.nn.quantized.dynamic.Linear
    assert type(quantised[1]) is fnn.Conv2d
    assert type(model[0]) is fnn.Linear


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated", "ignore:torch.quantize_per_tensor")
def test_a_layer_whose_qconfig_is_none_is_not_quantised() -> None:
    model = fastconv.convert(nn.Sequential(nn.Linear(20, 18), nn.Linear(18, 4)))
    model[1].qconfig = None
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    assert type(quantised[0]) is torch.ao.nn.quantized.dynamic.Linear
    assert type(quantised[1]) is fnn.Linear


def test_a_transformer_layer_trains_as_in_pytorch() -> None:
    plain = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
    model = fastconv.convert(copy.deepcopy(plain))
    x = torch.randn(3, 9, 32)
    for m in (plain, model):
        m(x).square().sum().backward()
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-3)
    with torch.inference_mode():
        torch.testing.assert_close(model.eval()(x), plain.eval()(x), rtol=1e-4, atol=1e-5)


def test_a_frozen_layer_with_many_rows_runs_the_operator(operators: list[str]) -> None:
    model = nn.Sequential(nn.Linear(1000, 600)).eval()
    frozen, x = fastconv.freeze(model), torch.randn(40, 1000)
    with torch.no_grad():
        torch.testing.assert_close(frozen(x), model(x), rtol=1e-4, atol=1e-4)
    assert operators == ["_linear"]
    leaf = x.clone().requires_grad_()
    frozen(leaf).sum().backward()
    torch.testing.assert_close(leaf.grad, model[0].weight.sum(0).expand(40, -1), rtol=1e-4, atol=1e-4)


# ---- programs ----------------------------------------------------------------------------------------------------


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(20, 30), nn.ReLU(inplace=True), nn.Linear(30, 20))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(20, 8), nn.Linear(8, 20, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embedding(x.argmax(-1)))


class LowRank(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(20, 20).requires_grad_(False)
        self.down, self.up = nn.Linear(20, 2, bias=False), nn.Linear(2, 20, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


def gradients(model: nn.Module, loss: Tensor) -> list[Tensor]:
    loss.backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


def of_sum(model: nn.Module, x: Tensor) -> list[Tensor]:
    return gradients(model, model(x).square().sum())


def with_checkpoint(model: nn.Module, x: Tensor) -> list[Tensor]:
    return gradients(model, checkpoint(model, x, use_reentrant=False).square().sum())


def twice(model: nn.Module, x: Tensor) -> list[Tensor]:
    x.requires_grad_()
    (first,) = torch.autograd.grad(model(x).pow(3).sum(), x, create_graph=True)
    return gradients(model, first.square().sum())


def of_each_example(model: nn.Module, x: Tensor) -> list[Tensor]:
    def loss(parameters: dict[str, Tensor], row: Tensor) -> Tensor:
        return torch.func.functional_call(model, parameters, (row[None],)).square().sum()

    parameters = {name: value.detach() for name, value in model.named_parameters()}
    found = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    return list(found.values())


def with_saved_tensors_elsewhere(model: nn.Module, x: Tensor) -> list[Tensor]:
    with torch.autograd.graph.save_on_cpu():
        loss = model(x).square().sum()
    return gradients(model, loss)


def with_hooks(model: nn.Module, x: Tensor) -> list[Tensor]:
    seen: list[Tensor] = []
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda _, __, output: seen.append(output.detach()))
            module.register_full_backward_hook(lambda _, __, outputs: seen.append(outputs[0]))
    for relu in (m for m in model.modules() if isinstance(m, nn.ReLU)):
        relu.inplace = False
    of_sum(model, x.requires_grad_())
    return seen


def after_loading(model: nn.Module, x: Tensor) -> list[Tensor]:
    model.load_state_dict({name: 2 * value for name, value in model.state_dict().items()}, assign=True)
    return of_sum(model.requires_grad_(), x)


@over(
    make=[mlp, Tied, LowRank],
    program=[
        of_sum, with_checkpoint, of_each_example, with_saved_tensors_elsewhere, with_hooks, after_loading,
    ],
)  # fmt: skip
def test_programs_compute_what_they_compute_in_pytorch(make: Any, program: Any) -> None:
    plain, x = make(), torch.randn(6, 20)
    converted = fastconv.convert(copy.deepcopy(plain))
    found, expected = program(converted, x.clone()), program(plain, x.clone())
    assert len(found) == len(expected) > 0
    for a, b in zip(found, expected, strict=True):
        assert a.stride() == b.stride()
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_gradients_of_gradients_of_a_model() -> None:
    plain, x = mlp(), torch.randn(6, 20)
    converted = fastconv.convert(copy.deepcopy(plain))
    for a, b in zip(twice(converted, x.clone()), twice(plain, x.clone()), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_an_operand_that_changed_before_backward_is_an_error() -> None:
    model = fastconv.convert(mlp())
    x = torch.randn(6, 20)
    loss = model(x).sum()
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
