"""FF.batch_norm, FF.batch_norm_relu and their operators, against PyTorch and float64."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import (
    LAYOUTS,
    LEVELS,
    THREADS,
    assert_as_accurate,
    assert_identical,
    root_mean_square,
    with_gradients,
)
from sweep import FULL, over
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F

import fastconv.functional as FF
from fastconv import reference

ours = torch.ops.fastconv
NAN, INF = float("nan"), float("inf")
#: (N, C), (N, C, L), images with tails of channels, planes and blocks, one pixel, one channel, 5-D.
SIZES = [
    (9, 5), (2, 70), (3, 17, 1), (4, 5, 9), (3, 16, 7, 5), (2, 33, 8, 9), (3, 1, 13, 11), (1, 65, 3, 3), (5, 37, 1, 1),
    (2, 3, 70, 65), (2, 4, 3, 5, 6), (1, 257, 2, 3), (130, 2, 1, 3),
]  # fmt: skip
#: The types of the input and of the vectors.
TYPES = [
    (torch.float32, torch.float32), (torch.float64, torch.float64), (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float16), (torch.bfloat16, torch.float32), (torch.float16, torch.float32),
]  # fmt: skip
#: Whether batch_norm_relu is called, with a residual, and with weight and bias.
KINDS = [
    (relu, residual, affine)
    for relu, residual, affine in itertools.product((0, 1), (0, 1), (0, 1))
    if relu or not residual
]


def composed(*args: Any, residual: Tensor | None = None, **kwargs: Any) -> Tensor:
    """PyTorch's functions in place of FF.batch_norm_relu."""
    y = F.batch_norm(*args, **kwargs)
    return F.relu(y if residual is None else y + residual)


def results(
    relu: Any, function: Callable[..., Tensor], x: Tensor, g: Tensor, vectors: list[Tensor | None],
    residual: Tensor | None = None, training: bool = True, eps: float = 1e-5,
) -> list[Tensor]:  # fmt: skip
    """Return y, the gradients of x, weight, bias and residual, and the running statistics after the call."""
    mean, var, weight, bias = (None if v is None else v.clone() for v in vectors)
    extra = {"residual": None} if relu else {}

    def call(x: Tensor, weight: Tensor | None, bias: Tensor | None, *residuals: Tensor) -> Tensor:
        extra.update(residual=residuals[0]) if residuals else None
        return function(x, mean, var, weight, bias, training, 0.3, eps, **extra)

    found = with_gradients(call, (x, weight, bias, *([] if residual is None else [residual])), g)
    return [*found, *(v for v in (mean, var) if v is not None)]


def vectors_of(channels: int, dtype: torch.dtype, affine: Any = True) -> list[Tensor | None]:
    """Running statistics, weight and bias."""
    parameters = [torch.randn(channels).to(dtype), torch.randn(channels).to(dtype)] if affine else [None, None]
    return [torch.randn(channels).to(dtype), (torch.rand(channels) + 0.5).to(dtype), *parameters]


def compare(
    kind: Any, x: Tensor, dtype: torch.dtype, training: bool, layout: Callable[[Tensor], Tensor] = lambda t: t,
    g: Tensor | None = None,
) -> None:  # fmt: skip
    """Compare every result with float64. Our error may be twice PyTorch's."""
    relu, has_residual, affine = kind
    vectors = vectors_of(x.shape[1], dtype, affine)
    g = torch.randn(x.shape).to(x.dtype) if g is None else g
    r = torch.randn(x.shape).to(x.dtype) if has_residual else None
    double = [None if v is None else v.double() for v in vectors]
    mine, theirs = (FF.batch_norm_relu, composed) if relu else (FF.batch_norm, F.batch_norm)
    exact = results(relu, theirs, x.double(), g.double(), double, None if r is None else r.double(), training)
    expected = results(relu, theirs, x, g, vectors, r, training)
    found = results(relu, mine, x, layout(g), vectors, None if r is None else layout(r), training)
    assert [t.dtype for t in found] == [t.dtype for t in expected]
    if x.dtype == torch.float64:
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)
    else:
        assert_as_accurate(found, expected, exact)


# Not every combination: with one channel, or where 16 bits round to the limit of ReLU, a small error may be more than
# twice an even smaller one.
@over(full=False, size=SIZES, types=TYPES, kind=KINDS, training=[True, False], layout=LAYOUTS, level=LEVELS)
def test_batch_norm_is_as_accurate_as_pytorchs(
    size: Any, types: Any, kind: Any, training: bool, layout: str, level: str
) -> None:
    compare(kind, LAYOUTS[layout](torch.randn(size).to(types[0]) * 3 + 1), types[1], training, LAYOUTS[layout])


@over(size=SIZES, layout=[*LAYOUTS, "depth last"], training=[True, False])
def test_the_results_have_pytorchs_strides(size: Any, layout: str, training: bool) -> None:
    last = [0, -1, *range(1, len(size) - 1)]  # channels_last of any number of dimensions
    x = (
        torch.randn([size[0], *size[2:], size[1]]).permute(last)
        if layout == "depth last"
        else LAYOUTS[layout](torch.randn(size))
    )
    g, vectors = torch.randn(size), vectors_of(size[1], torch.float32)
    found = results(0, FF.batch_norm, x, g, vectors, training=training)
    expected = results(0, F.batch_norm, x, g, vectors, training=training)
    if x[0, 0].numel() > 1:
        assert found[0].stride() == expected[0].stride()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("channels_last", [False, True])
def test_every_number_of_channels_and_pixels_has_its_tail(channels_last: bool, level: str) -> None:
    """The kernels compute whole vectors of channels or of pixels of a plane, and then the rest."""
    sizes = [(3, C, 2, 3) for C in range(1, 71)] + [(2, 2, 1, plane) for plane in range(1, 201 if FULL else 140)]
    for size in [*sizes, (3, 3, 65, 64), (2, 2, 100, 83)]:
        x = LAYOUTS["channels_last" if channels_last else "contiguous"](torch.randn(size))
        vectors = vectors_of(size[1], torch.float32)
        tensors = (x, torch.randn(size), vectors, torch.randn(size))
        expected = results(
            1, composed, *[t.double() for t in tensors[:2]], [v.double() for v in vectors], tensors[3].double()
        )  # type: ignore[union-attr]
        for a, b in zip(results(1, FF.batch_norm_relu, *tensors), expected, strict=True):
            torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5 * size[3] ** 0.5)


@over(
    size=[(37, 19), (40, 7, 130), (16, 33, 28, 28), (3, 5, 100, 90), (64, 100, 7, 7)],
    dtype=[torch.float32, torch.bfloat16],
    channels_last=[False, True],
)
def test_batch_norm_is_bitwise_the_same_for_every_number_of_threads(
    size: Any, dtype: torch.dtype, channels_last: bool
) -> None:
    layout = LAYOUTS["channels_last" if channels_last else "contiguous"]
    x, g, r = (layout(torch.randn(size).to(dtype)) for _ in range(3))
    vectors, found = vectors_of(size[1], torch.float32), []
    for threads in THREADS:
        torch.set_num_threads(threads)
        found.append(results(1, FF.batch_norm_relu, x, g, vectors, r))
    for other in found[1:]:
        assert_identical(found[0], other)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("size", [(16, 20, 28, 28), (512, 20), (1, 3, 9, 211)], ids=str)
def test_statistics_are_accurate_if_the_mean_is_large(size: Any, channels_last: bool, level: str) -> None:
    x = LAYOUTS["channels_last" if channels_last else "contiguous"](torch.randn(size) + 1e4)
    wide = x.double().transpose(0, 1).flatten(1)
    mean, inverse = ours.batch_norm_statistics(x, None, None, 0.1, 1e-5)
    torch.testing.assert_close(mean.double(), wide.mean(1), rtol=2**-23, atol=0)
    torch.testing.assert_close(inverse.double(), (wide.var(1, correction=0) + 1e-5).rsqrt(), rtol=1e-6, atol=0)
    compare((1, 1, 1), x, torch.float32, True)
    mean, inverse = ours.batch_norm_statistics(torch.full(size, 0.1), None, None, 0.1, 1e-30)  # no variance at all
    assert torch.equal(mean.float(), torch.full((size[1],), 0.1))
    assert inverse.isfinite().all()


@over(
    full=False,  # for the same reason
    value=[NAN, INF, -INF],
    relu=[0, 1],
    training=[True, False],
    layout=["contiguous", "channels_last"],
    dtype=[torch.float32, torch.float64, torch.bfloat16],
    level=LEVELS,
)
def test_nan_and_infinity_give_pytorchs_results(
    value: float, relu: int, training: bool, layout: str, dtype: torch.dtype, level: str
) -> None:
    for size in ((2, 19, 9, 8), (70, 19)):
        x = LAYOUTS[layout](torch.randn(size).to(dtype))
        x[1, ::5] = value
        g, vectors = torch.randn(size).to(dtype), vectors_of(19, dtype)
        g[0, 3] = value
        vectors[2][10] = 0  # type: ignore[index]  zero times infinity
        functions = (FF.batch_norm_relu, composed) if relu else (FF.batch_norm, F.batch_norm)
        found, expected = (results(relu, f, x, g, vectors, training=training) for f in functions)
        tolerance = 3e-2 if dtype == torch.bfloat16 else 1e-4
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


def test_a_batch_of_nan_takes_no_longer_than_a_few_passes() -> None:
    """One pass in double computes all channels whose sums are not finite, and not a pass for each of them."""
    x = torch.full((8, 4096, 4, 4), NAN).contiguous(memory_format=torch.channels_last)
    mean, inverse = ours.batch_norm_statistics(x, None, None, 0.1, 1e-5)
    assert mean.isnan().all()
    assert inverse.isnan().all()


@pytest.mark.parametrize("scale", [1e20, 1e30, 1e-20])
@pytest.mark.parametrize("channels_last", [False, True])
def test_huge_and_tiny_values_do_not_overflow(scale: float, channels_last: bool, level: str) -> None:
    x = LAYOUTS["channels_last" if channels_last else "contiguous"](torch.randn(4, 19, 9, 8) * scale)
    g, vectors = torch.randn(x.shape), vectors_of(19, torch.float32)
    found = results(0, FF.batch_norm, x, g, vectors, eps=1e-45)
    exact = results(0, F.batch_norm, x.double(), g.double(), [v.double() for v in vectors if v is not None], eps=1e-45)
    unit = [1, scale, 1, 1, scale, 1]
    for a, b, u in list(zip(found, exact, unit, strict=True))[: 5 if scale > 1 else 6]:
        error, size = a.double() * u - b * u, root_mean_square(b * u)
        assert root_mean_square(error) <= 2e-6 * (size + 1e-3)
    assert scale < 1 or found[5].isinf().all()  # as PyTorch's


@pytest.mark.parametrize("kind", [(0, 0), (1, 0), (1, 1)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_gradients_whose_sums_overflow_have_the_right_input_gradient(
    kind: Any, channels_last: bool, level: str
) -> None:
    relu, has_residual = kind
    x = LAYOUTS["channels_last" if channels_last else "contiguous"](torch.randn(4, 19, 40, 40))
    g, r = (1 + torch.rand(x.shape)) * 2e37, torch.randn(x.shape) if has_residual else None
    vectors = vectors_of(19, torch.float32)
    found = results(relu, FF.batch_norm_relu if relu else FF.batch_norm, x, g, vectors, r)
    doubles = [v.double() for v in vectors if v is not None]
    reference = composed if relu else F.batch_norm
    exact = results(relu, reference, x.double(), g.double(), doubles, None if r is None else r.double())
    assert (exact[3] > 3.4e38).all()  # the gradient of the bias: the sum of g
    assert root_mean_square(found[1].double() - exact[1]) <= 2e-6 * root_mean_square(exact[1])


@pytest.mark.parametrize("size", [(3, 4), (2, 3, 5), (2, 3, 3, 2)], ids=str)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", [(0, 0), (1, 0), (1, 1)])
def test_batch_norm_passes_gradcheck_in_first_and_second_order_and_forward_mode(
    size: Any, training: bool, kind: Any
) -> None:
    vectors = [v.requires_grad_(i > 1) for i, v in enumerate(vectors_of(size[1], torch.float64)) if v is not None]
    x, r = (
        torch.randn(size, dtype=torch.float64, requires_grad=True),
        torch.randn(size, dtype=torch.float64, requires_grad=True),
    )

    def function(x: Tensor, weight: Tensor, bias: Tensor, r: Tensor) -> Tensor:
        arguments = (x, None if training else vectors[0], None if training else vectors[1], weight, bias, training)
        if not kind[0]:
            return FF.batch_norm(*arguments)
        return FF.batch_norm_relu(*arguments, residual=r if kind[1] else None)

    inputs = (x, *vectors[2:], r) if kind[1] else (x, *vectors[2:], r.detach())
    assert gradcheck(function, inputs, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(function, inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_second_gradients_of_mixed_types_are_as_accurate_as_pytorchs(dtype: torch.dtype) -> None:
    x, vectors = torch.randn(4, 5, 6, 7).to(dtype), vectors_of(5, torch.float32)

    def penalty(function: Any, wide: bool) -> list[Tensor]:
        leaf = (x.double() if wide else x).requires_grad_()
        w, b = (v.double() if wide else v.detach() for v in vectors[2:])  # type: ignore[union-attr]
        y = function(leaf, None, None, w.requires_grad_(), b.requires_grad_(), True)
        first = torch.autograd.grad((y.float() if not wide else y).square().sum(), (leaf, w, b), create_graph=True)
        second = torch.autograd.grad(sum(t.square().sum() for t in first), (leaf, w))
        return [t.detach() for t in (*first, *second)]

    found, expected, exact = penalty(FF.batch_norm_relu, False), penalty(composed, False), penalty(composed, True)
    assert [t.dtype for t in found] == [t.dtype for t in expected]
    assert_as_accurate([t / root_mean_square(e) for t, e in zip(found, exact, strict=True)],
                       [t / root_mean_square(e) for t, e in zip(expected, exact, strict=True)],
                       [e / root_mean_square(e) for e in exact])  # fmt: skip


@pytest.mark.parametrize("size", [(5, 3), (2, 3, 4), (2, 3, 4, 5), (2, 3, 2, 3, 4)], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_equals_the_reference(size: Any, training: bool) -> None:
    x, vectors = torch.randn(size, dtype=torch.float64), vectors_of(3, torch.float64)
    for name in ("batch_norm", "batch_norm_relu"):
        found, expected = (
            results(name == "batch_norm_relu", getattr(m, name), x, x.sin(), vectors, training=training)
            for m in (FF, reference)
        )
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
