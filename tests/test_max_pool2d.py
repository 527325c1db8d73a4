from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import (
    LAYOUTS,
    LEVELS,
    MAX_POOL2D,
    MEMORY_FORMATS,
    THREADS,
    Pool2dCase,
    assert_identical,
    assert_refused_alike,
    with_gradients,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from sweep import over
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F

import fastconv.functional as FF

NAN, INF = float("nan"), float("inf")
DTYPES = [torch.float32, torch.float64, torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64]
every_case = pytest.mark.parametrize("case", MAX_POOL2D, ids=str)


def assert_like_pytorchs(x: torch.Tensor, **arguments: Any) -> None:
    # For channels_last images of bytes, PyTorch counts pixels in bytes and refuses more than 127 or 255.
    known = x.to(torch.int16) if x.dtype in (torch.int8, torch.uint8) else x
    expected = F.max_pool2d(known, **arguments, return_indices=True)
    expected = (expected[0].to(x.dtype), expected[1])
    result = FF.max_pool2d(x, **arguments, return_indices=True)
    for mine, other in zip(result, expected, strict=True):
        assert mine.dtype == other.dtype
        assert mine.stride() == other.stride()
    assert_identical(list(result), list(expected))


@over(case=MAX_POOL2D, dtype=DTYPES, level=LEVELS)
def test_max_pool2d_gives_pytorchs_values_and_indices(case: Pool2dCase, dtype: torch.dtype, level: str) -> None:
    for layout in ("contiguous", "channels_last"):
        assert_like_pytorchs(LAYOUTS[layout](case.tensor(dtype)), **case.arguments)


@every_case
@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "sliced"])
def test_max_pool2d_accepts_any_layout_and_returns_pytorchs(case: Pool2dCase, layout: str) -> None:
    assert_like_pytorchs(LAYOUTS[layout](case.tensor()), **case.arguments)


@over(case=MAX_POOL2D, layout=LAYOUTS, dtype=[torch.float32, torch.float64], level=LEVELS)
def test_the_gradient_goes_to_pytorchs_maxima(case: Pool2dCase, layout: str, dtype: torch.dtype, level: str) -> None:
    x = LAYOUTS[layout](case.tensor(dtype))
    g = torch.randint(-8, 9, F.max_pool2d(x, **case.arguments).shape).to(dtype)
    expected = with_gradients(F.max_pool2d, (x,), g, **case.arguments)
    for grad_layout in ("contiguous", "channels_last", "batch last"):
        assert_identical(with_gradients(FF.max_pool2d, (x,), LAYOUTS[grad_layout](g), **case.arguments), expected)


@over(special=[NAN, -INF, INF], share=[0.02, 0.5, 1.0], layout=MEMORY_FORMATS, level=LEVELS)
def test_nan_and_infinity_are_pooled_as_by_pytorch(special: float, share: float, layout: str, level: str) -> None:
    for case in MAX_POOL2D[:9]:
        x = case.tensor()
        x[torch.rand(x.shape) < share] = special
        assert_like_pytorchs(LAYOUTS[layout](x), **case.arguments)


@pytest.mark.parametrize(
    ("window", "value", "index"),
    [
        ([[1, 2], [2, 2]], 2, 1),
        ([[1, NAN], [3, 4]], NAN, 1),
        ([[2, NAN], [NAN, 1]], NAN, 2),
        ([[-INF, -INF], [-INF, -INF]], -INF, 0),
        ([[-0.0, 0.0], [0.0, -0.0]], -0.0, 0),
    ],
)
def test_the_first_maximum_and_the_last_nan_win(
    window: list[list[float]], value: float, index: int, level: str
) -> None:
    for channels in (1, 3, 40):
        x = torch.tensor(window).expand(1, channels, 2, 2)
        for layout in ("contiguous", "channels_last"):
            values, indices = FF.max_pool2d(LAYOUTS[layout](x), 2, return_indices=True)
            assert_identical([values.flatten()], [torch.full((channels,), value)])
            assert torch.signbit(values).eq(torch.signbit(torch.tensor(value))).all()
            assert indices.flatten().tolist() == [index] * channels


@pytest.mark.parametrize("dtype", DTYPES[2:], ids=str)
def test_the_lowest_integer_is_pooled(dtype: torch.dtype, level: str) -> None:
    x = torch.full((1, 5, 6, 6), torch.iinfo(dtype).min, dtype=dtype)
    for layout in ("contiguous", "channels_last"):
        assert_like_pytorchs(LAYOUTS[layout](x), kernel_size=3, stride=2, padding=1)


@every_case
def test_max_pool2d_is_bitwise_the_same_for_every_number_of_threads(case: Pool2dCase) -> None:
    x = torch.randn(case.size)
    results = []
    for threads in THREADS:
        torch.set_num_threads(threads)
        results += [
            with_gradients(FF.max_pool2d, (LAYOUTS[layout](x),), **case.arguments)
            for layout in ("contiguous", "channels_last")
        ]
    for other in results[2:]:
        assert_identical(results[0], other)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_max_pool2d_agrees_with_pytorch_on_random_valid_arguments(data: Any) -> None:
    draw = data.draw
    kernel = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    dilation = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    # Padding is at most half of the kernel. For windows entirely in the padding, PyTorch's index is outside the image.
    padding = draw(st.integers(0, kernel[0] // 2)), draw(st.integers(0, kernel[1] // 2))
    size = (
        draw(st.integers(1, 3)),
        draw(st.integers(1, 40)),
        draw(st.integers(reach[0], 20)),
        draw(st.integers(reach[1], 40)),
    )
    torch.manual_seed(draw(st.integers(0, 2**16)))
    x = LAYOUTS[draw(st.sampled_from(["contiguous", "channels_last", "transposed"]))](
        torch.randint(-3, 4, size).float()
    )
    stride = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    assert_like_pytorchs(
        x, kernel_size=kernel, stride=stride, padding=padding, dilation=dilation, ceil_mode=draw(st.booleans())
    )


def test_a_window_entirely_in_the_padding_gets_no_gradient() -> None:
    x = torch.randn(1, 1, 2, 2, requires_grad=True)
    arguments = {"kernel_size": 2, "stride": 1, "padding": 1, "dilation": 3}
    y = FF.max_pool2d(x, **arguments)
    assert torch.equal(y, F.max_pool2d(x, **arguments))
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], torch.zeros_like(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_window_wholly_in_the_padding_may_give_its_gradient_to_the_next_row(
    memory_format: torch.memory_format, dtype: torch.dtype
) -> None:
    """Its index is that of column `width`: the first pixel of the next row. After the last row, it is ignored."""
    x = torch.randn(2, 3, 200, 100).to(dtype).contiguous(memory_format=memory_format).requires_grad_()
    y, indices = FF.max_pool2d(x, (1, 2), 1, (0, 1), (1, 101), return_indices=True)
    assert torch.equal(indices[0, 0, :, 0], 100 * torch.arange(1, 201))
    (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert torch.equal(dx[..., 1:, 0], torch.ones_like(dx[..., 1:, 0]))
    assert dx.sum() == 2 * 3 * 199


@pytest.mark.parametrize("case", [c for c in MAX_POOL2D if 0 < torch.Size(c.size).numel() <= 400], ids=str)
def test_max_pool2d_passes_gradcheck_in_first_and_second_order_and_forward_mode(case: Pool2dCase) -> None:
    # A tie has no derivative, so values are further apart than the step of the finite differences.
    x = torch.randperm(torch.Size(case.size).numel()).double().view(case.size).requires_grad_()

    def function(x: torch.Tensor) -> torch.Tensor:
        return FF.max_pool2d(x, **case.arguments)

    assert gradcheck(function, (x,), check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(function, (x,))


@pytest.mark.parametrize(
    ("size", "arguments"),
    [
        ((2, 3, 8, 8), {"kernel_size": 0}),
        ((2, 3, 8, 8), {"kernel_size": 2, "stride": 0}),
        ((2, 3, 8, 8), {"kernel_size": 2, "stride": -1}),
        ((2, 3, 8, 8), {"kernel_size": 2, "padding": -1}),
        ((2, 3, 8, 8), {"kernel_size": 2, "padding": 2}),
        ((2, 3, 8, 8), {"kernel_size": 2, "dilation": 0}),
        ((2, 3, 8, 8), {"kernel_size": (2, 2, 2)}),
        ((2, 3, 8, 8), {"kernel_size": 2, "stride": (1, 1, 1)}),
        ((2, 3, 8, 8), {"kernel_size": 2, "padding": (1, 1, 1)}),
        ((2, 3, 8, 8), {"kernel_size": 2, "dilation": (1, 1, 1)}),
        ((1, 2, 2), {"kernel_size": 3}),
        ((2, 1, 2, 2), {"kernel_size": 3}),
        ((8, 8), {"kernel_size": 2}),
        ((1, 2, 3, 8, 8), {"kernel_size": 2}),
        ((2, 0, 8, 8), {"kernel_size": 2}),
        ((0, 8, 8), {"kernel_size": 2}),
        ((3, 0, 8), {"kernel_size": 2}),
        ((2, 3, 8, 8), {"kernel_size": 2, "ceil_mode": 1}),
        ((2, 3, 8, 8), {"kernel_size": 2, "ceil_mode": None}),
        ((2, 3, 0, 8), {"kernel_size": 2}),
    ],
    ids=str,
)
def test_max_pool2d_raises_pytorchs_errors(size: tuple[int, ...], arguments: dict[str, Any]) -> None:
    x = torch.randn(size)
    assert_refused_alike(FF.max_pool2d, F.max_pool2d, x, **arguments)


@pytest.mark.parametrize("dtype", [torch.bool, torch.complex64], ids=str)
def test_max_pool2d_refuses_the_dtypes_that_pytorch_refuses(dtype: torch.dtype) -> None:
    x = torch.ones(1, 1, 4, 4, dtype=dtype)
    assert_refused_alike(FF.max_pool2d, F.max_pool2d, x, 2)


def test_numbers_too_large_for_any_image_are_refused() -> None:
    x = torch.ones(1, 1, 8, 8)
    for arguments in ({"kernel_size": 3, "dilation": 2**63 - 1}, {"kernel_size": (2**62 + 1, 1), "dilation": (4, 1)}):
        assert_refused_alike(FF.max_pool2d, F.max_pool2d, x, **arguments)
    with pytest.raises(RuntimeError, match=r"at most 2\^40"):
        FF.conv2d(x, torch.ones(1, 1, 3, 3), padding=2**63 - 1)


def test_dilated_windows_wider_than_the_image_do_not_read_beyond_it() -> None:
    assert_like_pytorchs(torch.randn(2, 3, 12, 6), kernel_size=4, stride=1, padding=2, dilation=3)
