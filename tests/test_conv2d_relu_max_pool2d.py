"""The fused operators give the results of the PyTorch functions that they replace.

Rounding can decide which element is the maximum, or the sign of an input of ReLU. Then the gradients in float32 and
float64 differ, and neither is wrong. So most tests use small integers: their sums are exact, and results must be equal
bit for bit. Tests with random numbers compute the expected gradients from the maxima that the operator chose.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import (
    FUSED,
    LAYOUTS,
    LEVELS,
    MEMORY_FORMATS,
    REFUSED_CONV2D,
    THREADS,
    FusedCase,
    W,
    X,
    assert_as_accurate,
    assert_identical,
    assert_refused_alike,
    composed,
    conv,
    fused,
    pytorchs_words,
    with_gradients,
)
from forked import Python
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sweep import over
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F

import fastconv.functional as FF
from fastconv import _C

ours = torch.ops.fastconv
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")

NAN, INF = float("nan"), float("inf")
DEAD = 255
FLOATS = [torch.float32, torch.float64]
Tensors = tuple[Tensor, Tensor, Tensor | None]

NETWORK = FUSED[:3]
every_case = pytest.mark.parametrize("case", FUSED, ids=str)
every_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=str)


def exact(case: FusedCase, tensors: Tensors, g: Tensor | None = None) -> list[Tensor]:
    """Return the values and gradients of PyTorch, computed in float64."""
    doubles = tuple(None if t is None else t.detach().double() for t in tensors)
    results = with_gradients(composed, doubles, None if g is None else g.double(), **case.arguments)
    return [result.to(tensors[0].dtype) for result in results]


def integers_like(output: Tensor) -> Tensor:
    return torch.randint(-3, 4, output.shape).to(output.dtype)


def is_composed(case: FusedCase) -> bool:
    """Whether the fused function calls several operators.

    PyTorch computes empty batches. Positions in the window of 16 x 16 do not fit in a byte.
    """
    return case.conv.N == 0 or case.pool == {"kernel_size": 16, "stride": 2}


# ---- values and gradients --------------------------------------------------------------------------------------------


@over(case=FUSED, dtype=FLOATS, level=LEVELS)
@pytest.mark.usefixtures("exact_for_integers")
def test_values_and_gradients_of_small_integers_are_pytorchs_bit_for_bit(
    case: FusedCase, dtype: torch.dtype, level: str
) -> None:
    tensors = case.conv.integers(dtype)
    g = integers_like(composed(*tensors, **case.arguments))
    for layout in ("contiguous", "channels_last"):
        x, w, b = LAYOUTS[layout](tensors[0]), LAYOUTS[layout](tensors[1]), tensors[2]
        mine = with_gradients(case.function, (x, w, b), LAYOUTS[layout](g), **case.arguments)
        assert_identical(mine, exact(case, tensors, g))


@every_case
def test_the_first_maximum_gets_the_gradient_and_outputs_of_zero_get_none(case: FusedCase, level: str) -> None:
    x, w, b = case.conv.integers()
    w *= torch.rand_like(w) < 2 / w[0].numel()  # few taps are non-zero, so that many sums are equal
    b = torch.zeros(len(w)) if b is None else b.sign()
    for channel, constant in enumerate((0, 1, -1)[: len(w) - 1]):  # channels where all outputs are 0, 1 or -1
        w[channel], b[channel] = 0, constant
    y = composed(x, w, b, **case.arguments)
    g = integers_like(y)
    mine = with_gradients(case.function, (x, w, b), g, **case.arguments)
    assert_identical(mine, exact(case, (x, w, b), g))
    if len(w) > 3:
        assert mine[3][0] == mine[3][2] == 0
        assert mine[3][1] == g[:, 1].sum()


def by_decisions(case: FusedCase, argmax: Tensor) -> Callable[..., Tensor]:
    """Return the fused function in plain PyTorch, with the maxima that `argmax` names. Where it is DEAD, y is 0."""

    def pair(name: str, default: int) -> tuple[int, int]:
        value = (case.pool or {}).get(name, default)
        return (value, value) if isinstance(value, int) else value

    (_, S), (z_h, z_w), (d_h, d_w) = pair("kernel_size", 1), pair("padding", 0), pair("dilation", 1)
    u_h, u_w = pair("stride", 1) if case.pool is None or "stride" in case.pool else pair("kernel_size", 1)
    position, dead = argmax.long(), argmax == DEAD
    rows = torch.arange(argmax.shape[2]).view(-1, 1) * u_h - z_h + position // S * d_h
    columns = torch.arange(argmax.shape[3]) * u_w - z_w + position % S * d_w

    def function(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        y = F.conv2d(x, w, b, **case.conv.arguments)
        pixels = torch.where(dead, 0, rows * y.shape[3] + columns)
        return torch.where(dead, 0, y.flatten(2).gather(2, pixels.flatten(2)).view(argmax.shape))

    return function


@over(case=[case for case in FUSED if not is_composed(case)], layout=MEMORY_FORMATS, level=LEVELS)
def test_values_and_gradients_err_at_most_twice_as_much_as_pytorchs(case: FusedCase, layout: str, level: str) -> None:
    x, w, b = case.conv.tensors()
    tensors = (LAYOUTS[layout](x).requires_grad_(), LAYOUTS[layout](w), b)
    doubles = tuple(None if t is None else t.detach().double() for t in tensors)
    output = case.function(*tensors, **case.arguments)
    decisions = by_decisions(case, output.grad_fn.saved_tensors[-1])  # type: ignore[union-attr]
    g = torch.randn_like(output)

    values = composed(*doubles, **case.arguments)
    mine = with_gradients(case.function, tensors, g, **case.arguments)
    theirs = with_gradients(decisions, tensors, g)
    assert_as_accurate(mine, theirs, [values, *with_gradients(decisions, doubles, g)[1:]])
    # The chosen maxima are right, except where the choice depends on rounding.
    torch.testing.assert_close(decisions(*doubles), values, rtol=1e-5, atol=1e-4)


@every_case
@pytest.mark.usefixtures("exact_for_integers")
def test_gradients_with_create_graph_are_the_same(case: FusedCase, level: str) -> None:
    tensors = case.conv.integers()
    leaves = [t.requires_grad_() for t in tensors if t is not None]
    output = case.function(*tensors, **case.arguments)
    g = integers_like(output)
    gradients = torch.autograd.grad(output, leaves, g, create_graph=True)
    assert_identical([output, *gradients], exact(case, tensors, g))


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2), (1, 2)], ids=str)
@pytest.mark.parametrize("case", [*NETWORK, fused(conv(2, 12, 8, 8, 18, 3, 3, groups=3, padding=1))], ids=str)
@pytest.mark.usefixtures("exact_for_integers")
def test_each_gradient_can_be_computed_without_the_others(case: FusedCase, wanted: tuple[int, ...]) -> None:
    tensors = case.conv.integers()
    leaves = [t.requires_grad_() for i, t in enumerate(tensors) if t is not None and i in wanted]
    output = case.function(*tensors, **case.arguments)
    expected = exact(case, tensors)[1:]
    assert_identical(list(torch.autograd.grad(output.sum(), leaves)), [expected[i] for i in wanted])


# ---- layouts and threads ---------------------------------------------------------------------------------------------


@over(case=FUSED, layout=LAYOUTS, other_layouts=[*zip(LAYOUTS, [*LAYOUTS][::-1], strict=True)])
@pytest.mark.usefixtures("exact_for_integers")
def test_any_layout_is_accepted_and_pytorchs_is_returned(
    case: FusedCase, layout: str, other_layouts: tuple[str, str]
) -> None:
    tensors = case.conv.integers()
    g = integers_like(composed(*tensors, **case.arguments))
    weight_layout, grad_layout = other_layouts
    x, w, b = LAYOUTS[layout](tensors[0]), LAYOUTS[weight_layout](tensors[1]), tensors[2]
    mine = with_gradients(case.function, (x, w, b), LAYOUTS[grad_layout](g), **case.arguments)
    assert mine[0].stride() == composed(x, w, b, **case.arguments).stride()
    assert_identical(mine, exact(case, tensors, g))


@pytest.mark.parametrize("case", [*NETWORK, fused(conv(2, 12, 8, 8, 18, 3, 3, groups=3, padding=1))], ids=str)
@every_dtype
def test_gradients_have_the_layout_of_their_tensors(case: FusedCase, dtype: torch.dtype) -> None:
    tensors = case.conv.integers(dtype)
    for x_layout in ("contiguous", "channels_last"):
        for w_layout in ("contiguous", "channels_last"):
            x, w = LAYOUTS[x_layout](tensors[0]), LAYOUTS[w_layout](tensors[1])
            _, dx, dw, _ = with_gradients(case.function, (x, w, tensors[2]), **case.arguments)
            assert dx.stride() == x.stride()
            assert dw.stride() == w.stride()


@every_case
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_results_are_bitwise_the_same_for_every_number_of_threads(case: FusedCase, layout: str) -> None:
    x, w, b = case.conv.tensors()
    x, w = LAYOUTS[layout](x), LAYOUTS[layout](w)
    g = torch.randn(composed(x, w, b, **case.arguments).shape)
    results = []
    for threads in THREADS:
        torch.set_num_threads(threads)
        results.append(with_gradients(case.function, (x, w, b), g, **case.arguments))
    for other in results[1:]:
        assert_identical(results[0], other)


# ---- NaN and infinity ------------------------------------------------------------------------------------------------

SPECIAL = [
    FUSED[0],
    fused(conv(2, 32, 9, 9, 33, 3, 3), kernel_size=2),
    fused(conv(2, 16, 10, 9, 32, 3, 3, padding=1), kernel_size=2),
    fused(conv(2, 17, 8, 9, 16, 3, 3)),
    fused(conv(2, 16, 9, 8, 20, 3, 3, padding=(1, 2))),
    fused(conv(2, 16, 10, 9, 18, 3, 3, padding=1), kernel_size=3, stride=2, padding=1),
    fused(conv(2, 16, 11, 9, 18, 3, 3), kernel_size=3),
    fused(conv(2, 3, 11, 12, 17, 5, 5), kernel_size=2),
    fused(conv(2, 4, 9, 8, 16, 3, 3)),
    fused(conv(2, 16, 12, 13, 20, 5, 5, padding=2, stride=2), kernel_size=2),
    fused(conv(2, 40, 9, 10, 36, 3, 3, groups=2), kernel_size=2),
    fused(conv(2, 17, 9, 10, 17, 3, 3, groups=17), kernel_size=2),
    fused(conv(2, 20, 9, 10, 17, 1, 1), kernel_size=2),
]


@over(case=SPECIAL, special=[NAN, INF, -INF], place=["input", "weight", "bias"], dtype=FLOATS, level=LEVELS)
def test_nan_and_infinity_reach_the_same_results_as_in_pytorch(
    case: FusedCase, special: float, place: str, dtype: torch.dtype, level: str
) -> None:
    x, w, b = case.conv.integers(dtype)
    assert b is not None
    {"input": x[1, 1 % x.shape[1], 4:5], "weight": w[2, 0, 0:1], "bias": b}[place][..., 3 % w.shape[3]] = special
    g = integers_like(composed(x, w, b, **case.arguments))
    mine = with_gradients(case.function, (x, w, b), g, **case.arguments)
    assert_identical(mine, exact(case, (x, w, b), g))


@over(case=SPECIAL, share=[0.01, 0.3, 1.0], dtype=FLOATS, level=LEVELS)
def test_nan_and_infinity_in_grad_output_reach_what_they_reach_in_pytorch(
    case: FusedCase, share: float, dtype: torch.dtype, level: str
) -> None:
    x, w, b = case.conv.integers(dtype)
    y = composed(x, w, b, **case.arguments)
    g = integers_like(y)
    for special in (NAN, INF, -INF):
        g[torch.rand(g.shape) < share / 3] = special
    mine = with_gradients(case.function, (x, w, b), g, **case.arguments)
    assert_identical(mine, exact(case, (x, w, b), g))


@pytest.mark.parametrize("case", SPECIAL, ids=str)
def test_nan_in_the_gradient_of_windows_that_relu_zeroed_is_ignored(case: FusedCase, level: str) -> None:
    x, w, b = case.conv.integers()
    assert b is not None
    b[::2] -= 1000
    y = composed(x, w, b, **case.arguments)
    g = torch.where(y == 0, NAN, integers_like(y))
    mine = with_gradients(case.function, (x, w, b), g, **case.arguments)
    assert not any(t.isnan().any() for t in mine)
    assert_identical(mine, exact(case, (x, w, b), torch.where(y == 0, 0, g)))


@over(case=SPECIAL, share=[0.02, 0.5], level=LEVELS)
def test_the_last_of_several_nan_in_a_window_gets_the_gradient(case: FusedCase, share: float, level: str) -> None:
    x, w, b = case.conv.integers()
    x[torch.rand(x.shape) < share / w[0].numel()] = NAN
    g = integers_like(composed(x, w, b, **case.arguments))
    mine = with_gradients(case.function, (x, w, b), g, **case.arguments)
    assert_identical(mine, exact(case, (x, w, b), g))


@over(
    special=[NAN, INF, -INF],
    pixel=[(0, 0), (3, 4), (4, 3), (7, 8)],
    function=[F.conv2d, F.relu, F.max_pool2d],
    level=LEVELS,
)
def test_nan_and_infinity_reach_only_the_outputs_that_read_them(
    function: Callable[..., Tensor], pixel: tuple[int, int], special: float, level: str
) -> None:
    """Winograd's tiles of 4x4 pixels could spread NaN and infinity to neighbouring pixels of images 1 and 2."""
    x, w, b = conv(3, 17, 8, 9, 18, 3, 3).integers()
    x[1:, 16, pixel[0], pixel[1]] = special
    b += 50
    if function is F.conv2d:
        y = FF.conv2d(x, w, b, padding=1)
        assert_identical([y], [F.conv2d(x.double(), w.double(), b.double(), padding=1).float()])
    else:
        case = fused(conv(3, 17, 8, 9, 18, 3, 3, padding=1), **({} if function is F.relu else {"kernel_size": 2}))
        y = case.function(x, w, b, **case.arguments)
        assert_identical([y], [composed(x.double(), w.double(), b.double(), **case.arguments).float()])
    assert y[0].isfinite().all()
    assert all(0 < (~image.isfinite()).sum() < image.numel() for image in y[1:])


@over(special=[NAN, INF, -INF], pixel=[(0, 0), (3, 4), (4, 3), (7, 8)], live=[1.0, 0.1], level=LEVELS)
def test_nan_and_infinity_reach_only_the_gradients_that_read_them(
    live: float, pixel: tuple[int, int], special: float, level: str
) -> None:
    g, w, _ = conv(3, 18, 8, 9, 17, 3, 3).integers()
    w = w.transpose(0, 1)
    g[g == 0] = 1
    g *= torch.rand_like(g) < live
    g[1:, 16, pixel[0], pixel[1]] = special
    dx = ours.conv2d_backward_data(g, w, (3, 17, 8, 9), (1, 1), (1, 1), (1, 1), 1, False)
    expected = F.conv_transpose2d(g.double(), w.double(), padding=1).float()
    assert_identical([dx], [expected])
    assert dx[0].isfinite().all()
    assert all(0 < (~image.isfinite()).sum() < image.numel() for image in dx[1:])


def test_results_near_the_largest_number_do_not_overflow(level: str) -> None:
    """Winograd adds inputs before it multiplies, and these sums can overflow where the convolution does not."""
    x, w = torch.full((1, 16, 6, 6), 2.0**127), torch.zeros(16, 16, 3, 3)
    w[:, 0, 1, 1] = 1
    for y in (FF.conv2d(x, w), FF.conv2d_relu(x, w), FF.conv2d_relu_max_pool2d(x, w)):
        assert torch.equal(y, torch.full_like(y, 2.0**127))
    dx = ours.conv2d_backward_data(x, w.transpose(0, 1), x.shape, (1, 1), (1, 1), (1, 1), 1, False)
    assert torch.equal(dx, x)


# ---- random valid arguments ------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_fused_functions_agree_with_pytorch_on_random_valid_arguments(data: Any) -> None:
    draw = data.draw

    def pair(low: int, high: int) -> tuple[int, int]:
        return draw(st.integers(low, high)), draw(st.integers(low, high))

    groups, group_C, group_K = draw(st.sampled_from([1, 1, 2, 3])), draw(st.integers(1, 36)), draw(st.integers(1, 36))
    common = draw(st.booleans())  # the geometry with fast kernels
    R, S = (3, 3) if common else pair(1, 5)
    stride, dilation = ((1, 1), (1, 1)) if common else (pair(1, 3), pair(1, 2))
    H, W, padding = draw(st.integers(1, 16)), draw(st.integers(1, 16)), pair(0, 3)
    conv2d = conv(
        draw(st.integers(1, 4)), groups * group_C, H, W, groups * group_K, R, S, bias=draw(st.booleans()),
        stride=stride, padding=padding, dilation=dilation, groups=groups,
    )  # fmt: skip
    P, Q = (
        (size + 2 * z - d * (k - 1) - 1) // u + 1
        for size, z, d, k, u in zip((H, W), padding, dilation, (R, S), stride, strict=True)
    )
    assume(P >= 1 and Q >= 1)
    pool: dict[str, Any] = {}
    if draw(st.booleans()):
        kernel = (2, 2) if draw(st.booleans()) else pair(1, 5)
        pool = {"kernel_size": kernel}
        if draw(st.booleans()):
            # For windows entirely in the padding see test_a_window_entirely_in_the_padding_gets_no_gradient.
            pool["padding"] = draw(st.integers(0, kernel[0] // 2)), draw(st.integers(0, kernel[1] // 2))
            pool.update(stride=pair(1, 4), dilation=pair(1, 3), ceil_mode=draw(st.booleans()))
        reach = [d * (k - 1) + 1 for d, k in zip(pool.get("dilation", (1, 1)), kernel, strict=True)]
        assume(reach[0] <= P and reach[1] <= Q)
    case = fused(conv2d, **pool)
    dtype, few = draw(st.sampled_from(FLOATS)), draw(st.booleans())
    layouts = [LAYOUTS[draw(st.sampled_from(list(LAYOUTS)))] for _ in range(3)]
    torch.manual_seed(draw(st.integers(0, 2**16)))
    x, w, b = case.conv.integers(dtype)
    if few:  # ties
        w *= torch.rand_like(w) < 2 / w[0].numel()
    # Winograd's large tiles round even for integers. A bias of halves keeps results away from zero, so that rounding
    # does not change which outputs pass the ReLU.
    rounds = common and groups == 1 and group_C >= 32 and not pool
    if rounds:
        b = torch.randint(-6, 6, (group_K,)).to(dtype) + 0.5
    g = integers_like(composed(x, w, b, **case.arguments))
    before = _C.cpu_capability()
    _C.set_cpu_capability(draw(st.sampled_from(_C.cpu_capabilities())))
    try:
        mine = with_gradients(case.function, (layouts[0](x), layouts[1](w), b), layouts[2](g), **case.arguments)
    finally:
        _C.set_cpu_capability(before)
    expected = exact(case, (x, w, b), g)
    if rounds:
        torch.testing.assert_close(mine[0], expected[0], rtol=0, atol=1e-3)
        mine, expected = mine[1:], expected[1:]
    assert_identical(mine, expected)


def test_a_window_entirely_in_the_padding_gets_no_gradient() -> None:
    x, w = torch.randn(1, 1, 2, 2, requires_grad=True), torch.ones(1, 1, 1, 1)
    arguments = {"pool_kernel_size": 2, "pool_stride": 1, "pool_padding": 1, "pool_dilation": 3}
    y = FF.conv2d_relu_max_pool2d(x, w, **arguments)
    assert torch.equal(y, composed(x, w, **arguments))
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], torch.zeros_like(x))


@pytest.mark.parametrize("case", NETWORK, ids=str)
def test_one_image_needs_no_batch_dimension(case: FusedCase, level: str) -> None:
    x, w, b = case.conv.integers()
    y = composed(x[0], w, b, **case.arguments)
    g = integers_like(y)
    assert case.function(x[0], w, b, **case.arguments).shape == y.shape
    assert_identical(with_gradients(case.function, (x[0], w, b), g, **case.arguments), exact(case, (x[0], w, b), g))


def test_the_pool_is_2_x_2_by_default() -> None:
    x, w, b = FUSED[0].conv.integers()
    assert torch.equal(FF.conv2d_relu_max_pool2d(x, w, b), composed(x, w, b, pool_kernel_size=2))


# ---- autograd --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case",
    [
        fused(conv(2, 4, 6, 6, 6, 3, 2, stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2)),
        fused(conv(1, 3, 6, 5, 2, 3, 3, padding=1), kernel_size=2),
        fused(conv(2, 3, 5, 4, 3, 2, 2, groups=3), kernel_size=3, stride=2, padding=1, ceil_mode=True),
        fused(conv(1, 2, 5, 6, 3, 2, 3, padding="same", bias=False), kernel_size=(1, 2), dilation=(1, 3)),
        fused(conv(1, 1, 7, 7, 2, 3, 3), kernel_size=2),
    ],
    ids=str,
)
def test_fused_functions_pass_gradcheck_in_first_and_second_order_and_forward_mode(case: FusedCase) -> None:
    tensors = tuple(t.requires_grad_() for t in case.conv.tensors(torch.float64) if t is not None)
    # Ties and zeros have no derivative. Results are further from both than the step of the finite differences.
    results = F.conv2d(*tensors, **case.conv.arguments).flatten()
    assert torch.cat([results, results.new_zeros(1)]).sort().values.diff().min() > 1e-5

    def function(*tensors: Tensor) -> Tensor:
        return case.function(*tensors, **case.arguments)

    # With pooling, PyTorch's own functions fail check_batched_forward_grad.
    assert gradcheck(
        function, tensors, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=case.pool is None
    )
    assert gradgradcheck(function, tensors, check_fwd_over_rev=True, check_rev_over_rev=True)


@pytest.mark.parametrize("case", [case for case in FUSED[:40:3] if not is_composed(case)], ids=str)
def test_only_input_weight_and_a_byte_per_output_are_saved(case: FusedCase) -> None:
    x, w, b = (None if t is None else t.requires_grad_() for t in case.conv.tensors())
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = case.function(x, w, b, **case.arguments)
    assert [t.dtype for t in saved] == [torch.float32, torch.float32, torch.uint8]
    assert [t.data_ptr() for t in saved[:2]] == [x.data_ptr(), w.data_ptr()]  # type: ignore[union-attr]
    assert saved[2].shape == y.shape


@pytest.mark.parametrize("case", NETWORK, ids=str)
def test_values_are_the_same_without_gradients(case: FusedCase) -> None:
    x, w, b = case.conv.tensors()
    expected = case.function(x.requires_grad_(), w, b, **case.arguments)
    assert expected.requires_grad
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            y = case.function(x, w, b, **case.arguments)
        assert not y.requires_grad
        assert torch.equal(y, expected)


def test_an_input_changed_before_backward_is_an_error() -> None:
    x, w, b = FUSED[0].conv.tensors()
    y = FF.conv2d_relu_max_pool2d(x, w.requires_grad_(), b)
    x.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


# ---- other dtypes, fallbacks and errors ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int64], ids=str)
@pytest.mark.parametrize("case", [fused(conv(2, 3, 6, 6, 4, 3, 3)), fused(conv(2, 3, 6, 6, 4, 3, 3), kernel_size=2)])
def test_results_equal_pytorchs_in_other_dtypes(case: FusedCase, dtype: torch.dtype) -> None:
    x, w, b = case.conv.integers(dtype)
    assert_identical([case.function(x, w, b, **case.arguments)], [composed(x, w, b, **case.arguments)])
    if dtype.is_floating_point:
        assert_identical(
            with_gradients(case.function, (x, w, b), **case.arguments),
            with_gradients(composed, (x, w, b), **case.arguments),
        )


@pytest.mark.parametrize("case", [fused(conv(2, 3, 6, 6, 4, 3, 3)), fused(conv(2, 3, 6, 6, 4, 3, 3), kernel_size=2)])
def test_autocast_gives_pytorchs_dtype(case: FusedCase) -> None:
    x, w, b = case.conv.tensors()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mine, theirs = case.function(x, w, b, **case.arguments), composed(x, w, b, **case.arguments)
    assert mine.dtype == torch.bfloat16
    assert_identical([mine], [theirs])


def test_inputs_without_channels_fall_back_to_pytorch() -> None:
    x, w, b = torch.randn(2, 0, 8, 8), torch.randn(4, 0, 3, 3), torch.randn(4)
    assert torch.equal(FF.conv2d_relu(x, w, b), composed(x, w, b))
    assert_all_refused((x, w, b), {"pool_kernel_size": 2})


def assert_all_refused(tensors: tuple[Any, ...], arguments: dict[str, Any]) -> None:
    pooled = any(name.startswith("pool_") for name in arguments)
    for function in [FF.conv2d_relu_max_pool2d] if pooled else [FF.conv2d_relu, FF.conv2d_relu_max_pool2d]:
        assert_refused_alike(function, composed, *tensors, **arguments)


@pytest.mark.parametrize(
    ("x", "w", "b", "arguments"),
    [
        *REFUSED_CONV2D,
        *[
            (X, W, None, {"pool_kernel_size": 2, **pool})
            for pool in (
                {"pool_kernel_size": 0},
                {"pool_kernel_size": (2, 0)},
                {"pool_kernel_size": -2},
                {"pool_kernel_size": (-2, -2)},
                {"pool_kernel_size": 7},
                {"pool_kernel_size": 300},
                {"pool_kernel_size": (2, 2, 2)},
                {"pool_kernel_size": ()},
                {"pool_kernel_size": "2"},
                {"pool_kernel_size": 2.0},
                {"pool_kernel_size": None},
                {"pool_kernel_size": True},
                {"pool_stride": 0},
                {"pool_stride": -1},
                {"pool_stride": (1, 1, 1)},
                {"pool_stride": "1"},
                {"pool_stride": 1.5},
                {"pool_padding": -1},
                {"pool_padding": 2},
                {"pool_padding": (1, 1, 1)},
                {"pool_padding": "same"},
                {"pool_padding": None},
                {"pool_dilation": 0},
                {"pool_dilation": -1},
                {"pool_dilation": 6},
                {"pool_dilation": (1, 1, 1)},
                {"pool_dilation": 1.0},
                {"pool_ceil_mode": 1},
                {"pool_ceil_mode": None},
                {"pool_ceil_mode": "yes"},
            )
        ],
        # the error of the convolution comes first
        ((2, 5, 8, 8), W, None, {"pool_kernel_size": 0}),
        (X, W, (5,), {"pool_kernel_size": 2, "pool_padding": 2}),
        (X, W, None, {"stride": 0, "pool_kernel_size": 2, "pool_stride": 0}),
        ((3, 8, 8), W, None, {"pool_kernel_size": 7}),
    ],
    ids=str,
)
def test_invalid_arguments_raise_pytorchs_errors(
    x: tuple[int, ...], w: tuple[int, ...], b: tuple[int, ...] | None, arguments: dict[str, Any]
) -> None:
    assert_all_refused((torch.randn(x), torch.randn(w), None if b is None else torch.randn(b)), arguments)


@pytest.mark.parametrize("function", [FF.conv2d_relu, FF.conv2d_relu_max_pool2d])
@pytest.mark.parametrize(
    "arguments",
    [{"stride": 1.5}, {"stride": "1"}, {"stride": True}, {"groups": 1.0}, {"dilation": None}, {"bias": 3}],
    ids=str,
)
def test_arguments_of_another_type_are_refused(function: Callable[..., Tensor], arguments: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=r"conv2d\(\) received an invalid combination of arguments"):
        function(torch.randn(X), torch.randn(W), **arguments)


@pytest.mark.parametrize("function", [FF.conv2d_relu, FF.conv2d_relu_max_pool2d])
@pytest.mark.parametrize("tensors", [(None, torch.ones(W)), (torch.ones(X), None), ([1.0], torch.ones(W))])
def test_arguments_that_are_not_tensors_are_refused(function: Callable[..., Tensor], tensors: Any) -> None:
    with pytest.raises(TypeError, match=r"conv2d\(\) received an invalid combination of arguments"):
        function(*tensors)


@pytest.mark.parametrize("arguments", [{}, {"pool_kernel_size": 2}], ids=str)
def test_mixed_and_complex_dtypes_raise_pytorchs_errors(arguments: dict[str, Any]) -> None:
    x, w = torch.randn(X), torch.randn(W)
    for tensors in ((x, w.double()), (x, w, torch.randn(4).double()), (x.cfloat(), w.cfloat()), (x.bool(), w.bool())):
        assert_all_refused(tensors, arguments)


def test_numbers_too_large_for_any_image_are_refused() -> None:
    x, w = torch.ones(1, 1, 8, 8), torch.ones(1, 1, 3, 3)
    with pytest.raises(RuntimeError, match=r"at most 2\^40"):
        FF.conv2d_relu_max_pool2d(x, w, padding=2**63 - 1)
    for arguments in ({"kernel_size": 3, "dilation": 2**63 - 1}, {"kernel_size": 2, "stride": 2**32}):
        with pytest.raises(RuntimeError) as expected:
            F.max_pool2d(x, **arguments)
        with pytest.raises(RuntimeError) as found:
            FF.conv2d_relu_max_pool2d(x, w, **{f"pool_{name}": value for name, value in arguments.items()})
        assert str(found.value) == pytorchs_words(expected.value)


def backward(
    g: Tensor,
    argmax: Tensor,
    x: Tensor,
    w: Tensor,
    *,
    needed: tuple[bool, bool] = (True, True),
    stride: Any = (1, 1),
    padding: Any = (0, 0),
    dilation: Any = (1, 1),
    groups: int = 1,
    pool: Any = ((2, 2), (2, 2), (0, 0), (1, 1)),
) -> tuple[Tensor, Tensor, Tensor]:
    geometry = (stride, padding, dilation, groups)
    if pool is None:
        return ours.conv2d_relu_backward(g, argmax, x, w, *needed, *geometry)
    return ours.conv2d_relu_max_pool2d_backward(g, argmax, x, w, *needed, *geometry, *pool)


@pytest.mark.parametrize("needed", [(True, True), (True, False), (False, True), (False, False)], ids=str)
@pytest.mark.parametrize(
    "arguments",
    [
        {"g": (2, 4, 3, 2)},
        {"g": (3, 4, 3, 3)},
        {"g": (2, 4, 3)},
        {"argmax": (2, 4, 3, 2)},
        {"argmax": (2, 3, 3, 3)},
        {"argmax": (2, 4, 9)},
        {"stride": (0, 1)},
        {"stride": (1,)},
        {"padding": (-1, 0)},
        {"dilation": (1, 0)},
        {"groups": 0},
        {"groups": 2},
        {"pool": ((0, 2), (2, 2), (0, 0), (1, 1))},
        {"pool": ((-1, -1), (2, 2), (0, 0), (1, 1))},
        {"pool": ((16, 16), (2, 2), (0, 0), (1, 1))},
        {"pool": ((2, 2), (0, 2), (0, 0), (1, 1))},
        {"pool": ((2, 2), (2, 2), (0, 0), (0, 1))},
        {"pool": ((2,), (2, 2), (0, 0), (1, 1))},
        {"g": (2, 5, 3, 3), "argmax": (2, 5, 3, 3)},
        {"x": (2, 4, 8, 8)},
        {"x": (2, 3, 8)},
        {"x": (3, 3, 8, 8)},
        {"w": (4, 3, 3)},
        {"w": (4, 3, 9, 9)},
        {"pool": None},
        # more windows or fewer than the pool has; a convolution without outputs
        {"g": (2, 4, 5, 5), "argmax": (2, 4, 5, 5)},
        {"g": (2, 4, 1, 1), "argmax": (2, 4, 1, 1)},
        {"dilation": (9, 9)},
    ],
    ids=str,
)
def test_backward_operators_refuse_sizes_that_do_not_fit(needed: tuple[bool, bool], arguments: dict[str, Any]) -> None:
    sizes = {"g": (2, 4, 3, 3), "argmax": (2, 4, 3, 3), "x": X, "w": W}
    rest = {name: value for name, value in arguments.items() if name not in sizes}
    tensors = {name: torch.zeros(arguments.get(name, size)) for name, size in sizes.items()}
    tensors["argmax"] = tensors["argmax"].byte()
    with pytest.raises(RuntimeError):
        backward(**tensors, **rest, needed=needed)


def test_backward_operators_refuse_other_dtypes() -> None:
    g, at, x, w = torch.ones(2, 4, 3, 3), torch.zeros(2, 4, 3, 3, dtype=torch.uint8), torch.ones(X), torch.ones(W)
    backward(g, at, x, w)
    for tensors in [
        (g, at.long(), x, w),
        (g, at.char(), x, w),
        (g.double(), at, x, w),
        (g, at, x.double(), w),
        (g, at, x, w.double()),
        (g.long(), at, x.long(), w.long()),
    ]:
        with pytest.raises(RuntimeError):
            backward(*tensors)


def integers_of_backward(case: FusedCase, live: float) -> tuple[list[Tensor], list[Tensor]]:
    """Return small integers for a backward operator, and PyTorch's gradients, computed in float64."""
    x, w, b = case.conv.integers()
    y = composed(x, w, b, **case.arguments)
    at = torch.randint(0, 1 if case.pool is None else 4, y.shape).byte().masked_fill(torch.rand(y.shape) >= live, DEAD)
    g = integers_like(y)
    doubles = (x.double(), w.double(), torch.zeros(w.shape[0]).double())
    expected = [t.float() for t in with_gradients(by_decisions(case, at), doubles, g)[1:]]
    return [g, at, x, w], expected


@pytest.mark.parametrize("pool", [None, ((2, 2), (2, 2), (0, 0), (1, 1))])
def test_gradients_have_the_layout_of_input_and_weight_and_only_needed_ones_are_computed(pool: Any, level: str) -> None:
    case = fused(conv(3, 16, 9, 9, 16, 3, 3), **({} if pool is None else {"kernel_size": 2}))
    (g, at, x, w), expected = integers_of_backward(case, 0.5)
    for place_x, place_w in itertools.product(LAYOUTS.values(), repeat=2):
        placed = place_x(x), place_w(w)
        both = backward(g, at, *placed, pool=pool)
        assert_identical(list(both), expected)
        for gradient, tensor in zip(both[:2], placed, strict=True):
            nhwc = not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)
            assert gradient.is_contiguous(memory_format=torch.channels_last if nhwc else torch.contiguous_format)
        dx, *nothing = backward(g, at, *placed, pool=pool, needed=(True, False))
        none, *of_weight = backward(g, at, *placed, pool=pool, needed=(False, True))
        assert_identical([dx, *of_weight], expected)
        assert [t.numel() for t in (none, *nothing)] == [0, 0, 0]


@pytest.mark.parametrize("case", [case for case in FUSED if not is_composed(case)], ids=str)
def test_backward_survives_any_saved_bytes(case: FusedCase, level: str) -> None:
    window = 1 if case.pool is None else torch.ones(case.pool["kernel_size"]).numel()
    layouts = ["contiguous", "channels_last", "contiguous", "channels_last"]
    dtypes = [torch.float32, torch.float32, torch.float64, torch.float32]
    for value, layout, dtype in zip((window, 7, 254, None), layouts, dtypes, strict=True):
        tensors = case.conv.tensors(dtype)
        x, w = (LAYOUTS[layout](t).requires_grad_() for t in tensors[:2])
        with torch.autograd.graph.saved_tensors_hooks(lambda saved: saved, nonsense(value)):
            y = case.function(x, w, tensors[2], **case.arguments)
        gradients = torch.autograd.grad(y.sum(), (x, w))
        assert [t.shape for t in gradients] == [x.shape, w.shape]


def nonsense(value: int | None) -> Callable[[Tensor], Tensor]:
    """Return an unpack hook that replaces the saved bytes by one value, or by random ones."""

    def unpack(saved: Tensor) -> Tensor:
        if saved.dtype != torch.uint8:
            return saved
        return torch.randint_like(saved, 256) if value is None else torch.full_like(saved, value)

    return unpack


@pytest.mark.parametrize("live", [0.1, 1.0])  # kernels that use lists of non-zeros, and dense kernels
@pytest.mark.parametrize(
    "case",
    [
        fused(conv(4, 32, 13, 13, 64, 3, 3), kernel_size=2),
        fused(conv(4, 1, 28, 28, 35, 3, 3), kernel_size=2),  # few input channels
        fused(conv(4, 64, 5, 5, 130, 3, 3)),
        fused(conv(1, 48, 9, 9, 17, 3, 3)),
    ],
    ids=str,
)
def test_backward_does_not_add_to_earlier_results(case: FusedCase, live: float, level: str) -> None:
    (g, at, x, w), expected = integers_of_backward(case, live)
    pool = None if case.pool is None else ((2, 2), (2, 2), (0, 0), (1, 1))
    backward(torch.full_like(g, float("nan")), torch.zeros_like(at), x, w, pool=pool)
    assert_identical(list(backward(g, at, x, w, pool=pool)), expected)


@pytest.mark.parametrize("threads", [1, 2])  # PyTorch's error depends on the number of threads
def test_one_large_image_errs_at_most_twice_as_much_as_pytorch(threads: int, level: str) -> None:
    x, w, b = torch.randn(1, 3, 70, 65), torch.randn(6, 3, 3, 3), torch.randn(6)
    output = FF.conv2d_relu_max_pool2d(x.requires_grad_(), w, b, padding=1)
    decided = by_decisions(
        fused(conv(1, 3, 70, 65, 6, 3, 3, padding=1), kernel_size=2),
        output.grad_fn.saved_tensors[-1],  # type: ignore[union-attr]
    )
    g = torch.randn_like(output)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        mine = with_gradients(lambda *t: FF.conv2d_relu_max_pool2d(*t, padding=1), (x, w, b), g)
        theirs = with_gradients(decided, (x, w, b), g)
    finally:
        torch.set_num_threads(before)
    assert_as_accurate(mine, theirs, with_gradients(decided, (x.double(), w.double(), b.double()), g))


@pytest.mark.parametrize("stride", [(2**31 - 1, 2**31 - 1), (2**31 - 1, 1)])
def test_a_huge_pool_stride_equals_a_stride_as_large_as_the_image(stride: tuple[int, int]) -> None:
    x, w = torch.randn(1, 16, 9, 9), torch.randn(16, 16, 3, 3)
    y = FF.conv2d_relu_max_pool2d(x, w, pool_stride=stride)
    expected = F.max_pool2d(F.relu(F.conv2d(x, w)), 2, tuple(min(s, 100) for s in stride))
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    at = torch.zeros(y.shape, dtype=torch.uint8)
    backward(torch.ones_like(y), at, x, w, pool=((2, 2), stride, (0, 0), (1, 1)))


def test_nan_in_one_image_does_not_change_other_images(level: str) -> None:
    x, w = torch.randn(9, 32, 13, 13), torch.randn(64, 32, 3, 3)
    spoilt = x.clone()
    spoilt[4, 3, 5, 6] = float("nan")
    others = [0, 1, 2, 3, 5, 6, 7, 8]
    for function in (FF.conv2d, FF.conv2d_relu, FF.conv2d_relu_max_pool2d):
        a, b = function(x, w), function(spoilt, w)
        assert_identical([a[others]], [b[others]])
        assert b[4].isnan().any()
        assert not b[4].isnan().all()


def test_in_windows_of_equal_pixels_the_first_gets_the_gradient(level: str) -> None:
    """The background of a digit has such windows. Equal pixels must give exactly equal results."""
    x, w, b = torch.rand(9, 32, 1, 1).expand(9, 32, 13, 13).contiguous(), torch.randn(64, 32, 3, 3), torch.randn(64)
    y = FF.conv2d_relu_max_pool2d(x, w, b)
    _, argmax = ours.conv2d_relu_max_pool2d(x, w, b)
    assert (y > 0).any()
    assert set(argmax.unique().tolist()) == {0, 255}


@pytest.mark.skipif(set(_C.cpu_capabilities()) == {"default"}, reason="without AVX2, tiles are at most 2 x 2")
def test_fastconv_winograd_limits_the_tiles(python: Python, monkeypatch: pytest.MonkeyPatch) -> None:
    """0 turns Winograd off, and each result is exact. 4 allows larger tiles than 3, the default."""
    program = """
import torch, fastconv.functional as FF
torch.manual_seed(0)
x, w = torch.randn(8, 32, 14, 14).relu(), torch.nn.init.dirac_(torch.empty(32, 32, 3, 3))
print(FF.conv2d(x, w, None, 1, 1).sub(x).abs().sum().item())
"""
    for name in ("FASTCONV_WINOGRAD", "FASTCONV_CPU_CAPABILITY"):
        monkeypatch.delenv(name, raising=False)

    def error(**environment: str) -> float:
        done = python(program, environment=environment)
        assert done.returncode == 0, done.stderr
        return float(done.stdout)

    default = error()
    of = {value: error(FASTCONV_WINOGRAD=value) for value in ("0", "2", "3", "4", "")}
    assert of["0"] == 0 < of["2"] < default < of["4"]
    assert of[""] == of["3"] == default  # test_environment.py tests other values
