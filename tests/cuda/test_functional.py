"""Tests of the public functions and their gradients. The emulated CUDA operators replace the CPU operators here.

test_gpu.py has the same tests on a GPU.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import CONV2D, FUSED, MAX_POOL2D, Conv2dCase, FusedCase, composed, with_gradients
from devices import FLOATING
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F

import fastconv.functional as FF

pytestmark = pytest.mark.usefixtures("emulated_operators")
every_dtype = pytest.mark.parametrize("dtype", FLOATING, ids=str)
#: Four times the machine epsilon. For the 16-bit types, the machine epsilon.
EPSILON = {torch.float64: 2**-50, torch.float32: 2**-21, torch.float16: 2**-10, torch.bfloat16: 2**-7}


def assert_right(function: Any, reference: Any, tensors: tuple[Any, ...], dtype: torch.dtype, **arguments: Any) -> None:
    expected = with_gradients(reference, tensors, **arguments)
    narrow = tuple(None if t is None else t.to(dtype) for t in tensors)
    for mine, other in zip(with_gradients(function, narrow, **arguments), expected, strict=True):
        assert mine.dtype == dtype
        scale = max(1.0, float(other.abs().max())) if other.numel() else 1.0
        torch.testing.assert_close(mine.double(), other, rtol=0, atol=2 * EPSILON[dtype] * scale)


@every_dtype
@pytest.mark.parametrize("case", CONV2D[3:30:5], ids=str)
def test_conv2d_and_its_gradients(case: Conv2dCase, dtype: torch.dtype) -> None:
    assert_right(FF.conv2d, F.conv2d, case.integers(torch.float64), dtype, **case.arguments)


@every_dtype
@pytest.mark.parametrize("case", FUSED[3:50:8], ids=str)
def test_fused_convolutions_and_their_gradients(case: FusedCase, dtype: torch.dtype) -> None:
    assert_right(case.function, composed, case.conv.integers(torch.float64), dtype, **case.arguments)


@every_dtype
def test_max_pool2d_and_relu_and_their_gradients(dtype: torch.dtype) -> None:
    for case in MAX_POOL2D[2:8]:
        x = case.tensor(torch.float64)
        assert_right(FF.max_pool2d, F.max_pool2d, (x,), dtype, **case.arguments)
        assert_right(FF.relu, F.relu, (x,), dtype)


def test_gradients_to_the_second_order() -> None:
    x, w, b = (torch.randn(size, dtype=torch.float64) for size in ((1, 2, 6, 5), (3, 2, 3, 2), (3,)))
    tensors = tuple(t.requires_grad_() for t in (x, w, b))
    for function in (FF.conv2d, FF.conv2d_relu, FF.conv2d_relu_max_pool2d):
        assert gradcheck(function, tensors)
        assert gradgradcheck(function, tensors)
