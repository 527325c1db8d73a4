"""Thin groups in bfloat16 and half: tensors are converted tile by tile."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fuzz.draw import LEVELS
from sweep import FULL
from torch import Tensor

from fastconv import _C

DTYPES = [torch.bfloat16, torch.float16]
FORMATS = [torch.contiguous_format, torch.channels_last]
ALL_PASSES = ("forward", "backward_data", "backward_weight")
ONES = (1, 1)


@pytest.fixture(autouse=True)
def _only_fastconvs_kernels() -> Iterator[None]:
    level, threads = _C.cpu_capability(), torch.get_num_threads()
    _C.set_algorithms({"torch": "never"})
    yield
    _C.set_algorithms({})
    _C.set_cpu_capability(level)
    torch.set_num_threads(threads)


def draw_call(random: Random) -> tuple[Any, ...] | None:
    """Sizes of input and weight, stride, padding, dilation and groups, or None if the kernel does not fit."""
    in_group = random.choice((1, 1, 2, 4, 8, 16))
    groups = random.randint(2, 80 // in_group)
    kernel = random.choice(((1, 1), (3, 3), (3, 3), (5, 5), (2, 3), (7, 7), (3, 1), (1, 4)))
    stride, padding, dilation = (
        (random.choice(values), random.choice(values)) for values in ((1, 1, 2, 3), (0, 1, 2, 4), (1, 1, 2))
    )
    size = (random.randint(1, 40), random.randint(1, 40))
    shape = zip(size, padding, dilation, kernel, strict=True)
    if any(n + 2 * pad < d * (taps - 1) + 1 for n, pad, d, taps in shape):
        return None
    channels = in_group * groups
    return (random.randint(1, 3), channels, *size), (channels, in_group, *kernel), stride, padding, dilation, groups


def by_fastconv(x: Tensor, w: Tensor, b: Tensor, g: Tensor, geometry: tuple[Any, ...]) -> list[Tensor]:
    gradients = torch.ops.fastconv.conv2d_backward(g, x, w, True, True, *geometry)
    return [torch.ops.fastconv.conv2d(x, w, b, *geometry), *gradients]


def by_pytorch(
    x: Tensor, w: Tensor, b: Tensor, g: Tensor, geometry: tuple[Any, ...], dtype: torch.dtype
) -> list[Tensor]:
    x, w, b, g = (t.to(dtype).contiguous() for t in (x, w, b, g))
    *rest, groups = geometry
    backward = torch.ops.aten.convolution_backward
    gradients = backward(g, x, w, [len(b)], *rest, False, [0, 0], groups, [True, True, True])
    return [F.conv2d(x, w, b, *geometry), *gradients]


@pytest.mark.parametrize("part", range(8 if FULL else 1))
def test_random_calls_equal_those_of_float64_rounded_once(part: int) -> None:
    """With FASTCONV_ALL_TESTS, 2,000 calls."""
    random, done = Random(part), 0
    torch.manual_seed(part)
    while done < 250:
        call = draw_call(random)
        if call is None:
            continue
        x_size, w_size, *geometry = call
        dtype, memory_format = random.choice(DTYPES), random.choice(FORMATS)
        _C.set_cpu_capability(random.choice(LEVELS))
        for pass_ in ALL_PASSES:
            plan = _C.plan(pass_, x_size, w_size, *geometry, dtype=str(dtype).removeprefix("torch."))
            if w_size[1] <= 4:  # groups must fit in a vector
                assert plan["algorithm"] == "thin_groups"
        x, w, b = (torch.randn(size).to(dtype) for size in (x_size, w_size, (w_size[0],)))
        w = w.contiguous(memory_format=random.choice(FORMATS))
        x = x.contiguous(memory_format=memory_format)
        result = F.conv2d(x.float().contiguous(), w.float().contiguous(), b.float(), *geometry)
        g = torch.randn_like(result).to(dtype).contiguous(memory_format=memory_format)
        if random.random() < 0.1:  # a part of a larger tensor
            x = torch.cat([x, x], 3)[..., : x_size[3]]
        exact = by_pytorch(x, w, b, g, tuple(geometry), torch.float64)
        for found, expected in zip(by_fastconv(x, w, b, g, tuple(geometry)), exact, strict=True):
            assert found.dtype is dtype
            error = (found.double() - expected).abs().max()
            assert error <= torch.finfo(dtype).eps * expected.abs().max(), call  # rounding to nearest errs by eps / 2
        done += 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
def test_results_do_not_depend_on_the_number_of_threads(dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    x, w, b = (torch.randn(size).to(dtype) for size in ((5, 72, 33, 19), (72, 1, 3, 3), (72,)))
    x = x.contiguous(memory_format=memory_format)
    geometry = ((1, 1), (1, 1), (1, 1), 72)
    results = []
    for threads in (1, 2, 3, 8):
        torch.set_num_threads(threads)
        results.append(by_fastconv(x, w, b, x.flip(0), geometry))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("of", ["input", "weight", "gradient"])
def test_values_that_are_not_finite_reach_the_same_results_as_in_pytorch(
    dtype: torch.dtype, of: str, level: str
) -> None:
    padding = 0 if of == "weight" else 1  # an infinite weight gives NaN where it meets the zeros of the padding
    sizes = ((1, 36, 9, 9), (36, 1, 3, 3), (36,), (1, 36, 7 + 2 * padding, 7 + 2 * padding))
    x, w, b, g = (torch.randint(1, 4, size).to(dtype) for size in sizes)
    changed = {"input": x[0], "weight": w[:, 0], "gradient": g[0]}[of]
    changed[3, 1, 2], changed[17, 1, 2], changed[35, 1, 2] = float("inf"), float("nan"), -float("inf")
    x = x.contiguous(memory_format=torch.channels_last)
    geometry = (ONES, (padding, padding), ONES, 36)
    for found, expected in zip(
        by_fastconv(x, w, b, g, geometry), by_pytorch(x, w, b, g, geometry, torch.float32), strict=True
    ):
        torch.testing.assert_close(found.float(), expected.to(dtype).float(), equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_16_bit_value_survives_a_depthwise_convolution_with_ones(dtype: torch.dtype, level: str) -> None:
    x = (
        torch.arange(65536)
        .to(torch.int16)
        .view(dtype)
        .view(1, 32, 64, 32)
        .contiguous(memory_format=torch.channels_last)
    )
    for memory_format in FORMATS:
        found = torch.ops.fastconv.conv2d(
            x.contiguous(memory_format=memory_format),
            torch.ones(32, 1, 1, 1, dtype=dtype),
            None,
            ONES,
            (0, 0),
            ONES,
            32,
        )
        number = ~x.isnan() & (x != 0)  # 0 + -0 is 0
        assert torch.equal(found.view(torch.int16)[number], x.view(torch.int16)[number])
        assert torch.equal(found.isnan(), x.isnan())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("activation", [0, 1, 2, 3])
@pytest.mark.parametrize("residual", [False, True])
def test_the_epilogue_of_inference(
    dtype: torch.dtype, memory_format: torch.memory_format, activation: int, residual: bool
) -> None:
    """Batch norm, residual and no activation, ReLU, ReLU6 or leaky ReLU, of small integers: exact in float32."""

    def integers(*size: int) -> Tensor:
        return torch.randint(-2, 3, size).to(dtype)

    x = integers(2, 42, 17, 9).contiguous(memory_format=memory_format)
    w, b, mean, weight, shift, var = integers(42, 1, 3, 3), *(integers(42) for _ in range(4)), torch.ones(42).to(dtype)
    add = integers(2, 42, 17, 9) if residual else None
    y = torch.ops.fastconv.conv2d_inference(
        x, w, b, mean, var, weight, shift, add, ONES, ONES, ONES, 42, 0.0, activation, 0.5
    )
    expected = F.conv2d(x.double(), w.double(), b.double(), padding=1, groups=42)
    expected = F.batch_norm(expected, mean.double(), var.double(), weight.double(), shift.double(), eps=0.0)
    expected = expected + (0 if add is None else add.double())
    activations = (lambda t: t, F.relu, F.relu6, lambda t: F.leaky_relu(t, 0.5))
    torch.testing.assert_close(y.double(), activations[activation](expected).to(dtype).double(), rtol=0, atol=0)
