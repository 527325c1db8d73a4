from __future__ import annotations

import itertools

import pytest
import torch
from cases import LAYOUTS, LEVELS, THREADS, assert_identical, assert_refused_alike, with_gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from sweep import over
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F

import fastconv.functional as FF

NAN, INF = float("nan"), float("inf")
DTYPES = [torch.float32, torch.float64, torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64]
SIZES = [(), (1,), (7,), (0, 3), (3, 5, 11), (2, 17, 9, 10), (3, 32, 26, 26), (70000,)]


@over(size=SIZES, dtype=DTYPES, level=LEVELS)
def test_relu_gives_pytorchs_values(size: tuple[int, ...], dtype: torch.dtype, level: str) -> None:
    x = (torch.randn(size) * 50).to(dtype)
    y = FF.relu(x)
    assert_identical([y], [F.relu(x)])
    assert y.stride() == F.relu(x).stride()
    assert_identical([FF.relu(x, inplace=True), x], [y, y])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [(2, 17, 9, 10), (1, 3, 1, 1), (3, 1, 5, 5)], ids=str)
def test_relu_accepts_any_layout_and_returns_pytorchs(layout: str, size: tuple[int, ...]) -> None:
    x = LAYOUTS[layout](torch.randn(size))
    assert FF.relu(x).stride() == F.relu(x).stride()
    g = torch.randn(size)
    expected = with_gradients(F.relu, (x,), g)
    for grad_layout in LAYOUTS.values():
        assert_identical(with_gradients(FF.relu, (x,), grad_layout(g)), expected)
    y = x.clone() if layout != "sliced" else x
    assert_identical([FF.relu(y, inplace=True), y], expected[:1] * 2)


def test_relu_of_an_expanded_tensor_equals_pytorchs() -> None:
    x = torch.randn(3, 1, 5).expand(3, 4, 5)
    assert_identical([FF.relu(x)], [F.relu(x)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_nan_and_negative_zero_give_pytorchs_results_and_gradients(dtype: torch.dtype, level: str) -> None:
    x = torch.tensor([NAN, -0.0, 0.0, -1.0, 1.0, INF, -INF, 1e-45], dtype=dtype).repeat(9)
    results, expected = with_gradients(FF.relu, (x,)), with_gradients(F.relu, (x,))
    assert_identical(results, expected)
    assert torch.equal(torch.signbit(results[0]), torch.signbit(expected[0]))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=True, allow_infinity=True), max_size=200))
def test_relu_agrees_with_pytorch_on_every_float(values: list[float]) -> None:
    x = torch.tensor(values)
    g = torch.randn(x.shape)
    assert_identical(with_gradients(FF.relu, (x,), g), with_gradients(F.relu, (x,), g))


def test_relu_is_bitwise_the_same_for_every_number_of_threads() -> None:
    x, g = torch.randn(300_001), torch.randn(300_001)
    results = []
    for threads in THREADS:
        torch.set_num_threads(threads)
        results.append(with_gradients(FF.relu, (x,), g))
    for other in results[1:]:
        assert_identical(results[0], other)


def test_relu_passes_gradcheck_in_first_and_second_order_and_forward_mode() -> None:
    x = torch.randn(3, 4, 5, dtype=torch.float64).requires_grad_()
    assert gradcheck(FF.relu, (x,), check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(FF.relu, (x,))

    def in_place(x: torch.Tensor) -> torch.Tensor:
        return FF.relu(x * 2, inplace=True)

    assert gradcheck(in_place, (x,), check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(in_place, (x,))


def test_relu_in_place_tells_autograd_that_its_input_changed() -> None:
    x = torch.randn(5, requires_grad=True)
    y = x * 1
    z = y**2  # saves y
    FF.relu(y, inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()


def test_relu_in_place_tells_autograd_even_if_no_gradient_is_recorded() -> None:
    w = torch.randn(5, requires_grad=True)
    x = torch.randn(5)
    z = w * x  # saves x, which needs no gradient
    FF.relu(x, inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()

    y = w * 1
    z = y**2
    with torch.no_grad():
        FF.relu(y, inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()


def test_relu_in_place_raises_pytorchs_errors() -> None:
    with torch.inference_mode():
        frozen = torch.randn(4)
    for x in (frozen, torch.randn(3, 1).expand(3, 4), None, [1.0]):
        assert_refused_alike(FF.relu, F.relu, x, inplace=True)


def test_relu_accepts_the_negative_view_of_a_tensor() -> None:
    x = torch.randn(3, 4, dtype=torch.complex64).conj().imag
    y = F.relu(x)
    assert_identical([FF.relu(x), FF.relu(x, inplace=True).resolve_neg()], [y, y])


@pytest.mark.parametrize("dtype", [torch.bool, torch.complex64], ids=str)
def test_relu_refuses_the_dtypes_that_pytorch_refuses(dtype: torch.dtype) -> None:
    x = torch.ones(4, dtype=dtype)
    assert_refused_alike(FF.relu, F.relu, x)


def test_relu_in_place_on_a_leaf_raises_pytorchs_error() -> None:
    x = torch.randn(4, requires_grad=True)
    assert_refused_alike(FF.relu, F.relu, x, inplace=True)


ORDERS = list(itertools.permutations(range(4)))


@pytest.mark.parametrize("size", [(2, 3, 5, 18), (3, 17, 1, 33), (1, 1, 4, 4), (2, 0, 3, 3)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_the_gradient_of_relu_accepts_any_order_in_memory(size: tuple[int, ...], dtype: torch.dtype) -> None:
    values, grads = torch.randn(size).to(dtype), torch.randn(size).to(dtype)
    expected = torch.where(values > 0, grads, torch.zeros_like(grads))
    for output_order, grad_order in itertools.product(ORDERS, ORDERS):
        y = values.permute(output_order).contiguous().permute(torch.tensor(output_order).argsort().tolist())
        g = grads.permute(grad_order).contiguous().permute(torch.tensor(grad_order).argsort().tolist())
        found = torch.ops.fastconv.relu_backward(g, y)
        assert torch.equal(found, expected), (output_order, grad_order)
        assert found.stride() == torch.relu(y).stride()


def test_relu_in_place_of_an_expanded_tensor_raises_pytorchs_error() -> None:
    x = torch.randn(3, 1, 5).expand(3, 4, 5)
    assert_refused_alike(FF.relu, F.relu, x, inplace=True)
