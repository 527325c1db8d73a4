"""image_filter, whose lanes are pixels: every shape that it accepts, against float64."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fastconv.functional as FF
from fastconv import _C

pytestmark = pytest.mark.usefixtures("algorithms_as_measured")

FORCED = {"image_filter": "always", "torch": "never", "sparse_gradient": "never"}
POOLS = [(2, 2, 0), (2, 1, 1), (3, 1, 1), (3, 2, 1), (4, 1, 2)]  # kernel, stride, padding


def passes(convolve: Any, x: Tensor, w: Tensor, b: Tensor | None, g: Tensor, *numbers: Any) -> list[Tensor]:
    """Return the result and the gradients of all operands."""
    operands = [t.detach().requires_grad_() for t in (x, w, b) if t is not None]
    y = convolve(*operands, *(() if b is not None else (None,)), *numbers)
    return [y, *torch.autograd.grad(y, operands, g)]


def random_call(number: int, dtype: torch.dtype) -> tuple[Any, ...]:
    draw = random.Random(number)
    groups, C, K = draw.choice([1, 1, 2, 3, 4]), draw.choice([1, 1, 2, 3, 9]), draw.choice([1, 1, 2, 3])
    R, S, dilation = draw.randint(1, 9), draw.randint(1, 13), (draw.choice([1, 1, 2, 3]), draw.choice([1, 1, 2]))
    padding = draw.randint(0, R), draw.randint(0, S)
    H = draw.randint(max(1, (R - 1) * dilation[0] + 1 - 2 * padding[0]), 40)
    W = draw.randint(max(1, (S - 1) * dilation[1] + 1 - 2 * padding[1]), 70)
    generator = torch.Generator().manual_seed(number)

    def tensor(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator).to(dtype)

    x, w = tensor(draw.choice([1, 2, 5]), groups * C, H, W), tensor(groups * K, C, R, S)
    b = tensor(groups * K) if draw.random() < 0.5 else None
    numbers = 1, padding, dilation, groups
    y = F.conv2d(x.double(), w.double(), None, *numbers)
    return x, w, b, tensor(*y.shape), *numbers


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_random_calls_are_exact(dtype: torch.dtype, channels_last: bool, level: str) -> None:
    _C.set_algorithms(FORCED)
    for number in range(40):
        x, w, b, g, *numbers = random_call(number, dtype)
        if channels_last:
            x, g = (t.contiguous(memory_format=torch.channels_last) for t in (x, g))
        assert _C.plan("forward", x.shape, w.shape, (1, 1), *numbers[1:])["algorithm"] == "image_filter"
        found = passes(FF.conv2d, x, w, b, g, *numbers)
        wide = [None if t is None else t.double() for t in (x, w, b, g)]
        for ours, exact in zip(found, (t.detach() for t in passes(F.conv2d, *wide, *numbers)), strict=True):
            assert ours.dtype == dtype
            scale = max(1.0, float(exact.abs().max()))
            torch.testing.assert_close(
                ours.detach().double() / scale, exact / scale, rtol=0, atol=200 * torch.finfo(dtype).eps
            )


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("pass_", ["forward", "backward_data", "backward_weight"])
def test_filters_of_many_taps_are_computed_in_bfloat16(pass_: str, channels_last: bool) -> None:
    _C.set_algorithms({"torch": "measured"})
    options: Any = {"dtype": "bfloat16", "channels_last": channels_last}
    try:
        for x, w, groups in [((1, 1, 99, 99), (1, 1, 15, 15), 1), ((2, 3, 80, 80), (3, 1, 5, 5), 3)]:
            plan = _C.plan(pass_, x, w, (1, 1), (2, 2), (1, 1), groups, **options)
            assert plan["algorithm"] == "image_filter"
        plan = _C.plan(pass_, (8, 64, 128, 128), (3, 64, 3, 3), (1, 1), (1, 1), **options)
        assert plan["algorithm"] != "image_filter"
    finally:
        _C.set_algorithms({})


def test_every_number_of_threads_gives_the_same_bits() -> None:
    _C.set_algorithms(FORCED)
    x, w, b, g = torch.randn(3, 3, 70, 90), torch.randn(3, 1, 7, 7), torch.randn(3), torch.randn(3, 3, 70, 90)
    before, found = torch.get_num_threads(), []
    for threads in (1, 2, 3, 8):
        torch.set_num_threads(threads)
        found.append(passes(FF.conv2d, x, w, b, g, 1, 3, 1, 3))
    torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(*pair) for pair in zip(found[0], other, strict=True))


def test_an_infinity_reaches_only_the_results_that_use_it() -> None:
    """The last column of x is not in the window of the last result, but in the vector after it."""
    _C.set_algorithms(FORCED)
    x, w, g = torch.randn(1, 1, 5, 20), torch.randn(1, 1, 1, 3), torch.randn(1, 1, 5, 9)
    x[..., 9] = torch.inf
    y, dx, dw = passes(FF.conv2d, x[..., :11], w, None, g, 1, 0, 1, 1)
    expected = passes(F.conv2d, x[..., :11], w, None, g, 1, 0, 1, 1)
    for ours, theirs in zip((y, dx, dw), expected, strict=True):
        torch.testing.assert_close(ours, theirs, equal_nan=True)
    assert dw[0, 0, 0, 0].isfinite()


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize(("C", "K", "groups"), [(1, 4, 1), (3, 3, 3), (12, 3, 1)])
def test_fused_operators_are_exact(C: int, K: int, groups: int, pool: Any, channels_last: bool) -> None:
    """They never use image_filter. Windows of a pool may overlap, and may be larger than the convolution's."""
    x, w = torch.randint(-2, 3, (2, C, 28, 30)).double(), torch.randint(-2, 3, (K, C // groups, 3, 3)).double()
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    x.requires_grad_(), w.requires_grad_()
    expected = F.max_pool2d(F.relu(F.conv2d(x, w, None, 1, 1, 1, groups)), *pool)
    found = FF.conv2d_relu_max_pool2d(x, w, None, 1, 1, 1, groups, *pool)
    g = torch.randint(-2, 3, expected.shape).double()
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    for ours, theirs in zip(
        torch.autograd.grad(found, (x, w), g), torch.autograd.grad(expected, (x, w), g), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
