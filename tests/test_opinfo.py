"""PyTorch's own samples and error inputs for conv2d, max_pool2d and relu give the same results with fastconv.

Each test calls the function of ``torch.nn.functional``, outside and inside ``fastconv.enabled()``. The calls must agree
in values, dtypes, shapes, strides, gradients, second gradients, and the type and text of errors. One exception: the
second gradient of max-pooling is zeros in PyTorch. fastconv has none, because it would have to keep the input for it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from sweep import FULL
from torch import Tensor
from torch.testing import assert_close
from torch.utils._pytree import tree_flatten

import fastconv

REAL = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
INTEGERS = (torch.int16, torch.int32, torch.int64, torch.int8, torch.uint8)
#: Known before op_db is imported, which takes 3 seconds: only the processes that run these tests import it.
DTYPES = {
    "nn.functional.conv2d": (*REAL, torch.complex64, torch.complex128, torch.int64),
    "nn.functional.max_pool2d": (*REAL, *INTEGERS),
    "nn.functional.relu": (*REAL, *INTEGERS),
}
CASES = [(name, dtype) for name, dtypes in DTYPES.items() for dtype in dtypes]
#: Relative to the largest value. The libraries add in different orders.
TOLERANCES = {torch.float64: 1e-12, torch.complex128: 1e-12, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}

pytestmark = [
    pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@functools.cache
def ops() -> dict[str, Any]:
    from torch.testing._internal.common_methods_invocations import op_db

    return {op.name: op for op in op_db if op.name in DTYPES}


def samples(name: str, dtype: torch.dtype, requires_grad: bool, part: int = 0) -> Iterator[Any]:
    """The samples of PyTorch. Of the 1,440 samples of max_pool2d, each dtype takes every 13th, or every 7th in
    ``make test-all``.

    The dtypes begin at different samples. In ``make test-all`` they take all samples together. 7 and 13 have no factor
    in common with 1,440, so each value of each argument occurs with each dtype.
    """
    torch.manual_seed(0)
    found = list(ops()[name].sample_inputs("cpu", dtype, requires_grad=requires_grad))
    assert len(found) == {"nn.functional.conv2d": 30, "nn.functional.max_pool2d": 1440, "nn.functional.relu": 4}[name]
    if name == "nn.functional.max_pool2d":
        step = 7 if FULL else 13
        found = found[part % step :: step]
    yield from found


def part_of(name: str, dtype: torch.dtype) -> int:
    return [d for n, d in CASES if n == name].index(dtype)


def tensors(result: Any) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(result)[0] if isinstance(leaf, Tensor)]


def assert_same(ours: Any, torchs: Any, sample: Any, strides: bool = True) -> None:
    """Assert equal types, numbers, shapes and strides of tensors, and values that differ only by rounding."""
    what = str(sample.summary())
    assert type(ours) is type(torchs), what
    assert len(tensors(ours)) == len(tensors(torchs)), what
    for a, b in zip(tensors(ours), tensors(torchs), strict=True):
        if b.dtype.is_floating_point or b.dtype.is_complex:
            tolerance = TOLERANCES.get(b.dtype, 1e-5)
            atol = tolerance * max(1.0, b.detach().abs().nan_to_num(0, 0).max().item()) if b.numel() else 0.0
        else:
            tolerance = atol = 0.0
        assert_close(
            a, b, rtol=tolerance, atol=atol, equal_nan=True, check_stride=strides,
            msg=lambda text: f"{what}\n{text}",
        )  # fmt: skip


def call(name: str, sample: Any) -> Any:
    return ops()[name].op(sample.input, *sample.args, **sample.kwargs)


def test_op_db_has_all_three_functions_and_their_dtypes() -> None:
    assert {name: set(op.dtypes) for name, op in ops().items()} == {name: set(found) for name, found in DTYPES.items()}


@pytest.mark.parametrize(("name", "dtype"), CASES, ids=str)
def test_results_agree(name: str, dtype: torch.dtype) -> None:
    for sample in samples(name, dtype, requires_grad=False, part=part_of(name, dtype)):
        expected = call(name, sample)
        with fastconv.enabled():
            found = call(name, sample)
        assert_same(found, expected, sample)


def gradients(name: str, sample: Any, second: bool) -> tuple[list[Tensor], list[Tensor]]:
    """The gradients of the sample's tensors and, with `second`, the gradients of the squared norm of those."""
    inputs = [t for t in (sample.input, *tensors([sample.args, sample.kwargs])) if t.requires_grad]
    output = tensors(call(name, sample))[0]
    torch.manual_seed(1)
    first = torch.autograd.grad(output, inputs, torch.randn_like(output), create_graph=second)
    if not second:
        return list(first), []
    loss = sum((g.abs() ** 2).sum() for g in first)
    assert isinstance(loss, Tensor)
    if name == "nn.functional.max_pool2d" and not loss.requires_grad:
        return list(first), [torch.zeros_like(t) for t in inputs]
    return list(first), list(torch.autograd.grad(loss, inputs, allow_unused=True))


@pytest.mark.parametrize(("name", "dtype"), [(n, d) for n, d in CASES if d.is_floating_point or d.is_complex], ids=str)
@pytest.mark.parametrize("second", [False, True], ids=["first", "second"])
def test_gradients_agree(name: str, dtype: torch.dtype, second: bool) -> None:
    assert dtype in ops()[name].supported_backward_dtypes("cpu")
    for sample in samples(name, dtype, requires_grad=True, part=part_of(name, dtype) + 3 * second):
        expected = gradients(name, sample, second)
        with fastconv.enabled():
            found = gradients(name, sample, second)
        # Strides are compared for first gradients only. Second gradients of PyTorch have arbitrary strides.
        assert_same(found, expected, sample, strides=not second)


@pytest.mark.parametrize("name", ["nn.functional.conv2d", "nn.functional.max_pool2d"])
def test_error_inputs_raise_the_same_errors(name: str) -> None:
    cases = list(ops()[name].error_inputs("cpu"))
    assert len(cases) == {"nn.functional.conv2d": 10, "nn.functional.max_pool2d": 7}[name]
    for case in cases:
        with pytest.raises(case.error_type, match=case.error_regex) as expected:
            call(name, case.sample_input)
        with pytest.raises(case.error_type, match=case.error_regex) as found, fastconv.enabled():
            call(name, case.sample_input)
        assert str(found.value) == str(expected.value), str(case.sample_input)
