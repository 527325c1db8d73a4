"""fastconv.reference gives the results of PyTorch, and fastconv those of the reference."""

from __future__ import annotations

import inspect

import pytest
import torch
from cases import CONV2D, FUSED, MAX_POOL2D, Conv2dCase, FusedCase, Pool2dCase, assert_identical, composed
from torch.nn import functional as F

import fastconv.functional as FF
from fastconv import reference

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")


@pytest.mark.parametrize("case", CONV2D, ids=str)
def test_conv2d_equals_the_reference(case: Conv2dCase) -> None:
    tensors = case.tensors(torch.float64)
    expected = reference.conv2d(*tensors, **case.arguments)
    for function in (F.conv2d, FF.conv2d):
        torch.testing.assert_close(function(*tensors, **case.arguments), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("case", [c for c in MAX_POOL2D if len(c.size) == 4 and c.size[-1] < 300], ids=str)
def test_max_pool2d_equals_the_reference(case: Pool2dCase) -> None:
    x = case.tensor()
    x[torch.rand(x.shape) < 0.05] = float("nan")
    expected = reference.max_pool2d(x, **case.arguments, return_indices=True)
    for function in (F.max_pool2d, FF.max_pool2d):
        assert_identical(list(function(x, **case.arguments, return_indices=True)), list(expected))


def test_relu_equals_the_reference() -> None:
    x = torch.randn(1000)
    for function in (F.relu, FF.relu):
        assert_identical([function(x)], [reference.relu(x)])


@pytest.mark.parametrize("case", [case for case in FUSED if case.conv.W < 300], ids=str)
def test_fused_functions_equal_the_reference(case: FusedCase) -> None:
    tensors = case.conv.integers(torch.float64)
    function = reference.conv2d_relu if case.pool is None else reference.conv2d_relu_max_pool2d
    expected = function(*tensors, **case.arguments)
    assert_identical([composed(*tensors, **case.arguments)], [expected])
    assert_identical([case.function(*tensors, **case.arguments)], [expected])


def test_the_reference_has_every_public_function_with_the_same_arguments() -> None:
    assert sorted(reference.__all__) == sorted(FF.__all__)
    for name in FF.__all__:
        theirs, mine = (inspect.signature(getattr(module, name)).parameters for module in (reference, FF))
        assert [(p.name, p.default) for p in theirs.values()] == [(p.name, p.default) for p in mine.values()]
