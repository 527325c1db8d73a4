from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import (
    CONV2D,
    LARGE_WEIGHT,
    LAYOUTS,
    LEVELS,
    MEMORY_FORMATS,
    REFUSED_CONV2D,
    THREADS,
    Conv2dCase,
    W,
    X,
    assert_as_accurate,
    assert_identical,
    assert_refused_alike,
    conv,
    root_mean_square,
    with_gradients,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from sweep import over
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F

import fastconv.functional as FF
from fastconv import _C

ours = torch.ops.fastconv
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")

every_case = pytest.mark.parametrize("case", [*CONV2D, LARGE_WEIGHT], ids=str)
SPARSE = [
    conv(3, 32, 13, 13, 64, 3, 3),
    conv(3, 64, 5, 5, 70, 3, 3),
    conv(2, 16, 12, 11, 20, 5, 5, padding=2),
    conv(2, 33, 9, 10, 18, 3, 3, padding=(1, 2), stride=(2, 1)),
    conv(2, 40, 11, 11, 16, 3, 3, padding=3, dilation=2),
    conv(2, 64, 7, 7, 5, 1, 1),
    conv(1, 16, 40, 41, 8, 3, 3, padding=1),
    conv(1, 16, 9, 300, 64, 3, 3),  # tiles of one row; most taps do not reach the last tile (for make asan)
]


def random_like(output: torch.Tensor) -> torch.Tensor:
    return torch.randn(output.shape, dtype=torch.float64)


@every_case
def test_conv2d_and_its_gradients_err_at_most_twice_as_much_as_pytorchs(case: Conv2dCase, level: str) -> None:
    tensors = case.tensors()
    g = random_like(F.conv2d(*tensors, **case.arguments)).float()
    doubles = tuple(None if t is None else t.double() for t in tensors)
    exact = with_gradients(F.conv2d, doubles, g.double(), **case.arguments)
    theirs = with_gradients(F.conv2d, tensors, g, **case.arguments)
    assert_as_accurate(with_gradients(FF.conv2d, tensors, g, **case.arguments), theirs, exact)


@every_case
def test_conv2d_in_float64_equals_pytorchs(case: Conv2dCase, level: str) -> None:
    tensors = case.tensors(torch.float64)
    g = random_like(F.conv2d(*tensors, **case.arguments))
    for mine, other in zip(
        with_gradients(FF.conv2d, tensors, g, **case.arguments),
        with_gradients(F.conv2d, tensors, g, **case.arguments),
        strict=True,
    ):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-11)


@over(case=[*CONV2D, LARGE_WEIGHT], layout=LAYOUTS, weight_layout=["contiguous", "channels_last", "transposed"])
def test_conv2d_accepts_any_layout_and_returns_pytorchs(case: Conv2dCase, layout: str, weight_layout: str) -> None:
    x, w, b = case.tensors()
    expected = FF.conv2d(x, w, b, **case.arguments)
    x, w = LAYOUTS[layout](x), LAYOUTS[weight_layout](w)
    y = FF.conv2d(x, w, b, **case.arguments)
    assert y.stride() == F.conv2d(x, w, b, **case.arguments).stride()
    # For the large weight each memory format has its own algorithm, and sums have 2,304 terms.
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=2e-4 if case is LARGE_WEIGHT else 1e-5)
    g = torch.randn_like(y)
    for grad_layout in ("contiguous", "channels_last", "sliced"):
        for mine, other in zip(
            with_gradients(FF.conv2d, (x, w, b), LAYOUTS[grad_layout](g), **case.arguments),
            with_gradients(F.conv2d, (x, w, b), g, **case.arguments),
            strict=True,
        ):
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-3)


@pytest.mark.usefixtures("algorithms_as_measured")
@over(case=CONV2D, layout=["contiguous", "channels_last", "sliced"], weight_layout=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_calls_left_to_pytorch_give_the_same_values_gradients_and_layouts(
    case: Conv2dCase, layout: str, weight_layout: str, dtype: torch.dtype
) -> None:
    tensors = case.tensors(dtype)
    x, w, b = LAYOUTS[layout](tensors[0]), LAYOUTS[weight_layout](tensors[1]), tensors[2]
    g = random_like(FF.conv2d(x, w, b, **case.arguments)).to(dtype)
    results = []
    for choice in ("never", "always"):
        _C.set_algorithms({"torch": choice})
        results.append(with_gradients(FF.conv2d, (x, w, b), g, **case.arguments))
    for mine, pytorchs in zip(*results, strict=True):
        assert mine.stride() == pytorchs.stride()
        error = 2e-2 if dtype is torch.bfloat16 else 1e-4
        torch.testing.assert_close(mine, pytorchs, rtol=error, atol=error * 10)


@pytest.mark.usefixtures("algorithms_as_measured")
@pytest.mark.parametrize("groups", [1, 8])
@pytest.mark.parametrize("stride", [2**31, 2**32, 2**40])
def test_a_stride_above_the_image_gives_one_window(stride: int, groups: int) -> None:
    x, w = torch.randn(2, 8, 5, 6), torch.randn(8, 8 // groups, 3, 3)
    results = []
    for step in (stride, 6):  # 6: PyTorch cuts a larger stride to 32 bits.
        operands = [t.clone().requires_grad_() for t in (x, w)]
        y = FF.conv2d(*operands, None, step, 1, 1, groups)
        y.sum().backward()
        fused = FF.conv2d_relu(*operands, None, step, 1, 1, groups)
        fused.sum().backward()
        results.append([y, fused, *(t.grad for t in operands)])
    for huge, small in zip(*results, strict=True):
        assert_identical(huge, small)


def assert_exact(x: torch.Tensor, w: torch.Tensor, **arguments: Any) -> None:
    """Compare a convolution of small integers, and its gradients, with exact arithmetic."""
    x.requires_grad_(), w.requires_grad_()
    y, expected = FF.conv2d(x, w, **arguments), F.conv2d(x.double(), w.double(), **arguments)
    assert torch.equal(y, expected.float())
    g = torch.randint_like(y, -2, 3)
    gradients = torch.autograd.grad(y, (x, w), g), torch.autograd.grad(expected, (x, w), g.double())
    for ours, exact in zip(*gradients, strict=True):
        assert torch.equal(ours, exact)


# Stores of such results bypass the cache, if their channels are whole vectors. 100 channels are not.
@pytest.mark.parametrize(("C", "K"), [(64, 96), (96, 64), (3, 100)])
@pytest.mark.parametrize("layout", MEMORY_FORMATS)
@pytest.mark.usefixtures("level")
def test_results_larger_than_the_cache_are_exact(C: int, K: int, layout: str) -> None:
    x = LAYOUTS[layout](torch.randint(-8, 9, (5, C, 112, 111)).float())
    assert_exact(x, torch.randint(-8, 9, (K, C, 1, 1)).float())


# A weight of 1 MB or more is packed block by block if there are one or two tiles: 2 of 1024 pixels, 1 of 49.
@pytest.mark.parametrize(
    ("size", "weight", "stride"),
    [
        ((1, 512, 7, 7), (700, 512, 1, 1), 1),
        ((2, 300, 9, 7), (130, 300, 3, 3), 2),
        ((1, 70, 33, 31), (520, 70, 3, 3), 1),
    ],
)
@pytest.mark.parametrize("layout", MEMORY_FORMATS)
@pytest.mark.usefixtures("level", "two_threads", "algorithms_as_measured")
def test_large_weights_give_exact_results(size: Any, weight: Any, stride: int, layout: str) -> None:
    _C.set_algorithms({"winograd": "never"})
    x, w = (LAYOUTS[layout](torch.randint(-2, 3, shape).float()) for shape in (size, weight))
    assert_exact(x, w, stride=stride, padding=weight[2] // 2)


def test_padding_much_larger_than_the_image_needs_no_memory() -> None:
    """With its own kernels, fastconv would store 13 GB of zeros."""
    _C.set_algorithms({"torch": "measured"})
    x, w = torch.randn(1, 2, 8, 8), torch.randn(2, 2, 3, 3)
    g = torch.randn(1, 2, 8, 8)
    mine = with_gradients(FF.conv2d, (x, w, None), g, padding=20_000, dilation=20_000)
    theirs = with_gradients(F.conv2d, (x, w, None), g, padding=20_000, dilation=20_000)
    for ours, expected in zip(mine, theirs, strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.usefixtures("algorithms_as_measured")
@pytest.mark.parametrize("largest", [3, 4])
@pytest.mark.parametrize("P", range(1, 10))
def test_winograd_cuts_images_of_every_size(P: int, largest: int, level: str) -> None:
    """Tiles have 1 to `largest` outputs on a side and may extend beyond the edge. With 130 images, Winograd is chosen.

    test_environment.py and test_fastconv_winograd_limits_the_tiles set `largest` by FASTCONV_WINOGRAD.
    """
    _C.set_algorithms({}, winograd=largest)
    for Q in range(1, 10):
        padding = (P % 3 if P > 2 else 0, Q % 2)
        x = torch.randn(130, 33, P + 2 - 2 * padding[0], Q + 2 - 2 * padding[1], dtype=torch.float64)
        w, b = torch.randn(18, 33, 3, 3, dtype=torch.float64), torch.randn(18, dtype=torch.float64)
        y = FF.conv2d(x, w, b, padding=padding)
        assert y.shape[2:] == (P, Q)
        torch.testing.assert_close(y, F.conv2d(x, w, b, padding=padding), rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize(
    "size",
    [(33, 33, 3, 1, 17, (3, 2)), (8, 48, 1, 7, 64, (2, 2)), (16, 64, 16, 16, 64, (1, 1)), (64, 256, 3, 3, 32, (1, 1))],
    ids=str,
)
def test_winograd_errs_at_most_twice_as_much_as_pytorch(size: Any, level: str) -> None:
    """The cases include large padding, where PyTorch's sums have few terms."""
    N, C, H, W, K, padding = size
    x, w = torch.randn(N, C, H, W), torch.randn(K, C, 3, 3)
    exact = F.conv2d(x.double(), w.double(), padding=padding)
    error = root_mean_square(FF.conv2d(x, w, padding=padding) - exact)
    assert error <= 2 * root_mean_square(F.conv2d(x, w, padding=padding) - exact)


def test_gradients_have_the_layout_of_their_tensors() -> None:
    x, w, b = CONV2D[1].tensors()
    for format_x in (torch.contiguous_format, torch.channels_last):
        for format_w in (torch.contiguous_format, torch.channels_last):
            tensors = (x.contiguous(memory_format=format_x), w.contiguous(memory_format=format_w), b)
            _, dx, dw, _ = with_gradients(FF.conv2d, tensors)
            assert dx.is_contiguous(memory_format=format_x)
            assert dw.is_contiguous(memory_format=format_w)


@over(case=[*CONV2D, *SPARSE], live=[1.0, 0.2])
def test_conv2d_is_bitwise_the_same_for_every_number_of_threads(case: Conv2dCase, live: float) -> None:
    tensors = case.tensors()
    g = torch.randn(F.conv2d(*tensors, **case.arguments).shape)
    g *= torch.rand_like(g) < live
    results = []
    for threads in THREADS:
        torch.set_num_threads(threads)
        results.append(with_gradients(FF.conv2d, tensors, g, **case.arguments))
    for other in results[1:]:
        assert_identical(results[0], other)


@over(case=SPARSE, live=[0.0, 0.02, 0.3], layout=MEMORY_FORMATS, level=LEVELS)
def test_gradients_are_right_where_most_of_grad_output_is_zero(
    case: Conv2dCase, live: float, layout: str, level: str
) -> None:
    x, w, b = case.tensors()
    tensors = (LAYOUTS[layout](x), LAYOUTS[layout](w), b)
    g = torch.randn(F.conv2d(*tensors, **case.arguments).shape)
    g *= torch.rand_like(g) < live
    exact = with_gradients(F.conv2d, (x.double(), w.double(), b.double()), g.double(), **case.arguments)
    theirs = with_gradients(F.conv2d, tensors, g, **case.arguments)
    assert_as_accurate(with_gradients(FF.conv2d, tensors, LAYOUTS[layout](g), **case.arguments), theirs, exact)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_zero_gradient_times_nan_or_infinity_is_nan(bad: float, level: str) -> None:
    x, w, b = SPARSE[0].tensors()
    g = torch.randn(3, 64, 11, 11)
    g *= torch.rand_like(g) < 0.1
    x[1, 3, 5, 6] = bad
    w[2, 7, 1, 1] = bad
    for mine, exact in zip(
        with_gradients(FF.conv2d, (x, w, b), g),
        with_gradients(F.conv2d, (x.double(), w.double(), b.double()), g.double()),
        strict=True,
    ):
        assert torch.equal(mine.isnan(), exact.isnan())


def test_nan_and_infinity_in_grad_output_reach_the_gradients(level: str) -> None:
    x, w, b = SPARSE[0].tensors()
    g = torch.zeros(3, 64, 11, 11)
    g[0, 1, 2, 3], g[2, 5, 6, 7] = float("nan"), float("inf")
    for mine, exact in zip(
        with_gradients(FF.conv2d, (x, w, b), g),
        with_gradients(F.conv2d, (x.double(), w.double(), b.double()), g.double()),
        strict=True,
    ):
        assert torch.equal(mine.isnan(), exact.isnan())
        assert torch.equal(mine.isinf(), exact.isinf())


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_conv2d_agrees_with_pytorch_on_random_valid_arguments(data: Any) -> None:
    draw = data.draw
    groups, group_C, group_K = draw(st.integers(1, 3)), draw(st.integers(1, 20)), draw(st.integers(1, 40))
    R, S = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    stride = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    padding = (draw(st.integers(0, 4)), draw(st.integers(0, 4)))
    dilation = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    H = draw(st.integers(max(1, dilation[0] * (R - 1) + 1 - 2 * padding[0]), 18))
    W = draw(st.integers(max(1, dilation[1] * (S - 1) + 1 - 2 * padding[1]), 18))
    N, layout, live = draw(st.integers(1, 4)), draw(st.sampled_from(list(LAYOUTS))), draw(st.sampled_from([1.0, 0.2]))
    torch.manual_seed(draw(st.integers(0, 2**16)))
    x = LAYOUTS[layout](torch.randn(N, groups * group_C, H, W))
    w, b = torch.randn(groups * group_K, group_C, R, S), torch.randn(groups * group_K)
    arguments = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    exact_tensors = (x.double(), w.double(), b.double())
    # Call PyTorch in float64 only. In float32, oneDNN of torch 2.13 crashes the process for a channels_last input
    # with a kernel of one column, padding beyond the image, stride and dilation. Example: input (3, 21, 8, 2),
    # weight (33, 7, 5, 1), 3 groups, stride (1, 3), padding (1, 4), dilation (2, 3).
    g = torch.randn(F.conv2d(*exact_tensors, **arguments).shape)
    g *= torch.rand_like(g) < live
    exact = with_gradients(F.conv2d, exact_tensors, g.double(), **arguments)
    for mine, reference in zip(with_gradients(FF.conv2d, (x, w, b), g, **arguments), exact, strict=True):
        torch.testing.assert_close(
            mine.double(), reference, rtol=1e-4, atol=1e-4 * max(1.0, float(reference.abs().max()))
        )


@pytest.mark.parametrize(
    "case",
    [
        conv(2, 4, 6, 5, 6, 3, 2, stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2),
        conv(1, 3, 5, 5, 2, 3, 3, padding=1),
        conv(2, 3, 5, 4, 3, 2, 2, groups=3),
        conv(1, 2, 4, 4, 3, 2, 3, padding="same", bias=False),
    ],
    ids=str,
)
def test_conv2d_passes_gradcheck_in_first_and_second_order_and_forward_mode(case: Conv2dCase) -> None:
    tensors = tuple(t.requires_grad_() for t in case.tensors(torch.float64) if t is not None)

    def function(*tensors: torch.Tensor) -> torch.Tensor:
        return FF.conv2d(*tensors, **case.arguments)

    assert gradcheck(function, tensors, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True)
    assert gradgradcheck(function, tensors, check_fwd_over_rev=True, check_rev_over_rev=True)


def test_conv2d_accepts_one_image_without_a_batch_dimension() -> None:
    x, w, b = CONV2D[1].tensors()
    torch.testing.assert_close(FF.conv2d(x[0], w, b), F.conv2d(x[0], w, b), rtol=1e-4, atol=1e-4)


def test_conv2d_without_channels_falls_back_to_pytorch() -> None:
    x, w, b = torch.randn(2, 0, 8, 8), torch.randn(4, 0, 3, 3), torch.randn(4)
    assert torch.equal(FF.conv2d(x, w, b), F.conv2d(x, w, b))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.complex64, torch.int64], ids=str)
def test_conv2d_equals_pytorchs_in_other_dtypes(dtype: torch.dtype) -> None:
    x, w = torch.randn(2, 3, 6, 6).mul(4).to(dtype), torch.randn(4, 3, 3, 3).mul(4).to(dtype)
    assert torch.equal(FF.conv2d(x, w), F.conv2d(x, w))


@pytest.mark.parametrize(("x", "w", "b", "arguments"), REFUSED_CONV2D)
def test_conv2d_raises_pytorchs_errors(
    x: tuple[int, ...], w: tuple[int, ...], b: tuple[int, ...] | None, arguments: dict[str, Any]
) -> None:
    tensors = (torch.randn(x), torch.randn(w), None if b is None else torch.randn(b))
    assert_refused_alike(FF.conv2d, F.conv2d, *tensors, **arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"stride": 1.5},
        {"stride": "1"},
        {"stride": True},
        {"stride": range(1, 3)},
        {"padding": True},
        {"groups": 1.0},
        {"dilation": None},
        {"bias": 3},
    ],
    ids=str,
)
def test_conv2d_refuses_arguments_of_another_type(arguments: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=r"conv2d\(\) received an invalid combination of arguments"):
        FF.conv2d(torch.randn(X), torch.randn(W), **arguments)


@pytest.mark.parametrize("tensors", [(None, torch.ones(W)), (torch.ones(X), None), ([1.0], torch.ones(W))])
def test_conv2d_refuses_arguments_that_are_not_tensors(tensors: Any) -> None:
    with pytest.raises(TypeError, match=r"conv2d\(\) received an invalid combination of arguments"):
        FF.conv2d(*tensors)


def test_autocast_gives_pytorchs_dtype() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x, w = torch.randn(X), torch.randn(W)
        assert_identical([FF.conv2d(x, w)], [F.conv2d(x, w)])


def test_conv2d_refuses_mixed_dtypes_with_pytorchs_message() -> None:
    x, w = torch.randn(X), torch.randn(W, dtype=torch.float64)
    assert_refused_alike(FF.conv2d, F.conv2d, x, w)


@pytest.mark.parametrize(
    "call",
    [
        lambda g, x, w: ours.conv2d_backward_data(g[:, :, 1:], w, x.shape, (1, 1), (0, 0), (1, 1), 1, False),
        lambda g, x, w: ours.conv2d_backward_data(g, w, (2, 4, 8, 8), (1, 1), (0, 0), (1, 1), 1, False),
        lambda g, x, w: ours.conv2d_backward_data(g.double(), w, x.shape, (1, 1), (0, 0), (1, 1), 1, False),
        lambda g, x, w: ours.conv2d_backward_weight(g, x[1:], (3, 3), (1, 1), (0, 0), (1, 1), 1, False),
        lambda g, x, w: ours.conv2d_backward_weight(g, x, (3, 2), (1, 1), (0, 0), (1, 1), 1, False),
        lambda g, x, w: ours.conv2d_backward_weight(g, x, (3, 3), (1, 1), (0, 0), (1, 1), 2, False),
        lambda g, x, w: ours.conv2d_backward_weight(g, x, (3, 3), (0, 1), (0, 0), (1, 1), 1, False),
    ],
)
def test_backward_operators_refuse_sizes_that_do_not_fit(call: Any) -> None:
    with pytest.raises(RuntimeError, match=r"expected|non-positive"):
        call(torch.randn(2, 4, 6, 6), torch.randn(X), torch.randn(W))
