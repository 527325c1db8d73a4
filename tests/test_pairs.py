"""bfloat16 on a CPU with AVX-512 BF16: the kernels that multiply pairs of channels or pixels."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sweep import FULL
from torch import Tensor

from fastconv import _C

CHANNELS_LAST = torch.channels_last
ALL_PASSES = ("forward", "backward_data", "backward_weight")


def algorithm(pass_: str, x: tuple[int, ...] = (2, 4, 6, 6), w: tuple[int, ...] = (4, 4, 3, 3), **options: Any) -> str:
    return str(_C.plan(pass_, x, w, **{"dtype": "bfloat16", **options})["algorithm"])


pytestmark = pytest.mark.skipif(algorithm("forward") != "pairs", reason="needs a CPU with AVX-512 BF16")


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    level, threads = _C.cpu_capability(), torch.get_num_threads()
    yield
    _C.set_cpu_capability(level)
    _C.set_algorithms({})
    torch.set_num_threads(threads)


def integers(*size: int, most: int = 2) -> Tensor:
    """Small integers, in bfloat16 and channels_last. Every order of summation gives the same float32 sum."""
    values = torch.randint(-most, most + 1, size).bfloat16()
    return values.contiguous(memory_format=CHANNELS_LAST) if len(size) == 4 else values


# Input, weight, stride, padding, dilation. The sizes leave tails in every block: 12 pixels, 16 and 32 output channels.
SHAPES = [
    ((2, 4, 6, 6), (4, 4, 3, 3), (1, 1), (1, 1), (1, 1)),
    ((1, 2, 1, 1), (2, 2, 1, 1), (1, 1), (0, 0), (1, 1)),
    ((3, 6, 5, 7), (34, 6, 1, 1), (1, 1), (0, 0), (1, 1)),
    ((2, 34, 9, 5), (16, 34, 3, 2), (1, 1), (0, 1), (1, 1)),
    ((2, 3, 15, 13), (33, 3, 7, 7), (2, 2), (3, 3), (1, 1)),  # first layers: a kernel row has an odd number of taps
    ((2, 3, 9, 8), (16, 3, 3, 3), (1, 1), (1, 1), (1, 1)),
    ((2, 3, 23, 23), (5, 3, 11, 11), (4, 4), (2, 2), (1, 1)),
    ((1, 1, 17, 16), (1, 1, 15, 15), (1, 1), (0, 0), (1, 1)),
    ((2, 5, 9, 9), (7, 5, 3, 2), (1, 1), (1, 1), (1, 2)),  # each kernel column has an odd number of taps
    ((2, 66, 7, 7), (50, 66, 3, 3), (1, 1), (1, 1), (1, 1)),
    ((2, 8, 11, 10), (18, 8, 3, 3), (2, 1), (1, 2), (1, 1)),
    ((1, 10, 12, 13), (32, 10, 3, 3), (1, 1), (2, 2), (2, 2)),
    ((2, 4, 8, 8), (6, 4, 2, 2), (1, 1), (3, 3), (1, 1)),  # more padding than backward_data can turn around
    ((1, 512, 4, 4), (512, 512, 1, 1), (1, 1), (0, 0), (1, 1)),  # a large weight: packed block by block
    ((5, 16, 3, 3), (12, 16, 3, 3), (1, 1), (0, 0), (1, 1)),  # one output pixel an image
    ((8, 32, 128, 128), (64, 32, 1, 1), (1, 1), (0, 0), (1, 1)),  # a result that is stored past the caches
]


Geometry = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]  # stride, padding, dilation


def assert_all_passes_are_exact(
    x_size: tuple[int, ...], w_size: tuple[int, ...], geometry: Geometry, weight_format: torch.memory_format
) -> None:
    """Sums of small integers are exact in float32. So the results are those of float64, rounded once."""
    x, w, b = integers(*x_size), integers(*w_size).contiguous(memory_format=weight_format), integers(w_size[0], most=9)
    expected = F.conv2d(x.double().contiguous(), w.double().contiguous(), b.double(), *geometry)
    g = integers(*expected.shape, most=1)
    y = torch.ops.fastconv.conv2d(x, w, b, *geometry, 1)
    if x_size[3] > 1:  # PyTorch 2.13 crashes on some channels_last images of one column
        assert y.stride() == F.conv2d(x, w, b, *geometry).stride()
    torch.testing.assert_close(y.double(), expected.bfloat16().double(), rtol=0, atol=0)
    grads = torch.ops.fastconv.conv2d_backward(g, x, w, True, True, *geometry, 1)
    operands = (t.double().contiguous() for t in (g, x, w))
    theirs = torch.ops.aten.convolution_backward(*operands, [len(b)], *geometry, False, [0, 0], 1, [True, True, True])
    for ours, wanted in zip(grads, theirs, strict=True):
        torch.testing.assert_close(ours.double(), wanted.bfloat16().double(), rtol=0, atol=0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("weight_format", [torch.contiguous_format, CHANNELS_LAST])
def test_all_passes_are_exact(shape: tuple[Any, ...], weight_format: torch.memory_format) -> None:
    x_size, w_size, stride, padding, dilation = shape
    assert_all_passes_are_exact(x_size, w_size, (stride, padding, dilation), weight_format)
    chosen = {
        name: algorithm(name, x_size, w_size, stride=stride, padding=padding, dilation=dilation) for name in ALL_PASSES
    }
    assert chosen["forward"] == chosen["backward_weight"] == "pairs"
    if stride == (1, 1) and padding != (3, 3):
        assert chosen["backward_data"] == "pairs"
    else:
        assert chosen["backward_data"] != "pairs"


@pytest.mark.parametrize("part", range(8 if FULL else 1))
def test_random_shapes_are_exact(part: int) -> None:
    """With FASTCONV_ALL_TESTS, 2,000 shapes."""
    random = Random(part)
    torch.manual_seed(part)
    done = 0
    while done < 250:
        x_size = (random.randint(1, 5), random.randint(1, 72), random.randint(1, 15), random.randint(1, 15))
        kernel = random.choice(((1, 1), (3, 3), (2, 3), (5, 5), (1, 3), (3, 2), (7, 7)))
        pairs = ((1, 1, 1, 2, 3), (0, 0, 1, 2, 4), (1, 1, 1, 2))
        stride, padding, dilation = ((random.choice(values), random.choice(values)) for values in pairs)
        w_size = (random.randint(1, 72), x_size[1], *kernel)
        padded = (x_size[2] + 2 * padding[0], x_size[3] + 2 * padding[1])
        if any(size < d * (taps - 1) + 1 for size, d, taps in zip(padded, dilation, kernel, strict=True)):
            continue
        weight_format = random.choice((torch.contiguous_format, CHANNELS_LAST))
        assert_all_passes_are_exact(x_size, w_size, (stride, padding, dilation), weight_format)
        done += 1


def test_only_bfloat16_in_nhwc_with_one_group_is_chosen() -> None:
    assert all(algorithm(name) == "pairs" for name in ALL_PASSES)
    for options in ({"dtype": "float16"}, {"dtype": "float32"}, {"channels_last": False}, {"relu": True}):
        assert all(algorithm(name, **options) != "pairs" for name in ALL_PASSES)
    assert algorithm("forward", w=(4, 2, 3, 3), groups=2) != "pairs"
    assert all(algorithm(name, (2, 3, 6, 6), (5, 3, 3, 3)) == "pairs" for name in ALL_PASSES)
    _C.set_algorithms({"pairs": "never"})
    assert all(algorithm(name) != "pairs" for name in ALL_PASSES)
    _C.set_algorithms({})
    _C.set_cpu_capability("avx2")
    assert all(algorithm(name) != "pairs" for name in ALL_PASSES)


def test_a_tensor_that_begins_between_two_pairs() -> None:
    """A part of a tensor may begin at an address that is no multiple of four."""
    whole = integers(2, 3, 5, 5)
    shifted = torch.empty(whole.numel() + 1, dtype=torch.bfloat16)[1:].as_strided(whole.shape, whole.stride())
    shifted.copy_(whole)
    assert shifted.data_ptr() % 4 == 2
    w = integers(7, 3, 3, 3)
    geometry = ((1, 1), (1, 1), (1, 1), 1)
    conv2d, backward = torch.ops.fastconv.conv2d, torch.ops.fastconv.conv2d_backward
    g = conv2d(whole, w, None, *geometry)
    torch.testing.assert_close(conv2d(shifted, w, None, *geometry), g, rtol=0, atol=0)
    for ours, expected in zip(
        backward(g, shifted, w, True, True, *geometry), backward(g, whole, w, True, True, *geometry), strict=True
    ):
        torch.testing.assert_close(ours, expected, rtol=0, atol=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_reach_the_same_results_as_in_pytorch(value: float) -> None:
    """The last pixel of an odd number is multiplied with a missing one, which must be zero in both operands."""
    x, w, g = integers(1, 6, 7, 7), integers(10, 6, 3, 3) + 3, integers(1, 10, 7, 7)
    x[0, 3, 6, 6] = value
    x[0, 4, 2, 4] = value
    g[0, 7, 5, 1] = value
    g[0, :, 6, 6] = 1
    y = torch.ops.fastconv.conv2d(x, w, None, (1, 1), (1, 1), (1, 1), 1)
    torch.testing.assert_close(y.float(), F.conv2d(x.float(), w.float(), padding=1).bfloat16().float(), equal_nan=True)
    ours = torch.ops.fastconv.conv2d_backward(g, x, w, True, True, (1, 1), (1, 1), (1, 1), 1)
    theirs = torch.ops.aten.convolution_backward(
        g.float(), x.float(), w.float(), [10], (1, 1), (1, 1), (1, 1), False, [0, 0], 1, [True, True, True]
    )
    for found, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found.float(), expected.bfloat16().float(), equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("dilation", [(1, 1), (1, 2)])
def test_the_value_after_an_odd_run_of_taps_is_not_multiplied(dilation: tuple[int, int]) -> None:
    """In memory, it is the next pixel, which belongs to other results."""
    x, w, g = integers(1, 3, 6, 6), integers(2, 3, 3, 3) + 3, integers(1, 2, 6, 6)
    x[0, 0, 2, 3] = float("inf")
    g[0, 1, 4, 2] = float("nan")
    padding = dilation
    y = torch.ops.fastconv.conv2d(x, w, None, (1, 1), padding, dilation, 1)
    expected = F.conv2d(x.float().contiguous(), w.float().contiguous(), padding=padding, dilation=dilation)
    torch.testing.assert_close(y.float(), expected.bfloat16().float(), equal_nan=True, rtol=0, atol=0)
    arguments = ((1, 1), padding, dilation, False, [0, 0], 1, [True, True, True])
    theirs = torch.ops.aten.convolution_backward(
        g.float().contiguous(), x.float().contiguous(), w.float().contiguous(), [2], *arguments
    )
    ours = torch.ops.fastconv.conv2d_backward(g, x, w, True, True, (1, 1), padding, dilation, 1)
    for found, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found.float(), wanted.bfloat16().float(), equal_nan=True, rtol=0, atol=0)


def test_an_infinite_weight_gives_nan_where_it_meets_a_zero() -> None:
    x, w = integers(1, 2, 4, 4).abs() + 1, integers(2, 2, 3, 3)
    x[0, 0, 1, 1] = 0
    w[1, 0, 0, 0] = float("inf")
    y = torch.ops.fastconv.conv2d(x, w, None, (1, 1), (0, 0), (1, 1), 1)
    assert torch.equal(y.isnan(), F.conv2d(x.float(), w.float()).isnan())
    assert torch.equal(y.isinf(), F.conv2d(x.float(), w.float()).isinf())


@pytest.mark.parametrize("channels", [34, 3])
def test_results_do_not_depend_on_the_number_of_threads(channels: int) -> None:
    x, w = (
        torch.randn(size).bfloat16().contiguous(memory_format=CHANNELS_LAST)
        for size in ((9, channels, 13, 11), (50, channels, 3, 3))
    )
    geometry = ((1, 1), (1, 1), (1, 1), 1)
    results = []
    for threads in (1, 2, 3, 8):
        torch.set_num_threads(threads)
        y = torch.ops.fastconv.conv2d(x, w, None, *geometry)
        results.append((y, *torch.ops.fastconv.conv2d_backward(y, x, w, True, True, *geometry)))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_the_error_is_at_most_twice_that_of_pytorch() -> None:
    """With many taps: 9 * 258 products in a sum."""
    x, w = (
        torch.randn(size).bfloat16().contiguous(memory_format=CHANNELS_LAST)
        for size in ((2, 258, 14, 14), (34, 258, 3, 3))
    )
    g = torch.randn(2, 34, 14, 14).bfloat16().contiguous(memory_format=CHANNELS_LAST)
    arguments = ((1, 1), (1, 1), (1, 1), False, [0, 0], 1, [True, True, True])

    def by_pytorch(dtype: torch.dtype) -> list[Tensor]:
        a, b, c = x.to(dtype), w.to(dtype), g.to(dtype)
        grads = torch.ops.aten.convolution_backward(c, a, b, [34], *arguments)
        return [F.conv2d(a, b, padding=1), *grads]

    ours = [
        torch.ops.fastconv.conv2d(x, w, None, (1, 1), (1, 1), (1, 1), 1),
        *torch.ops.fastconv.conv2d_backward(g, x, w, True, True, (1, 1), (1, 1), (1, 1), 1),
    ]
    for found, theirs, exact in zip(ours, by_pytorch(torch.bfloat16), by_pytorch(torch.float64), strict=True):
        assert (found.double() - exact).norm() <= 2 * (theirs.double() - exact).norm()


@pytest.mark.parametrize("activation", [0, 1, 2, 3])
@pytest.mark.parametrize("residual", [False, True])
def test_the_epilogue_of_inference(activation: int, residual: bool) -> None:
    """Batch norm, residual and no activation, ReLU, ReLU6 or leaky ReLU. The last one is not computed with pairs."""
    x, w, b = integers(2, 6, 7, 5), integers(38, 6, 3, 3), integers(38)
    mean, weight, shift = (torch.randint(-3, 4, (38,)).bfloat16() for _ in range(3))
    var = torch.ones(38).bfloat16()
    add = integers(2, 38, 7, 5) if residual else None
    y = torch.ops.fastconv.conv2d_inference(
        x, w, b, mean, var, weight, shift, add, (1, 1), (1, 1), (1, 1), 1, 0.0, activation, 0.5
    )
    expected = F.conv2d(x.double(), w.double(), b.double(), padding=1)
    expected = F.batch_norm(expected, mean.double(), var.double(), weight.double(), shift.double(), eps=0.0)
    expected = expected + (0 if add is None else add.double())
    activations = (lambda t: t, F.relu, F.relu6, lambda t: F.leaky_relu(t, 0.5))
    torch.testing.assert_close(y.double(), activations[activation](expected).bfloat16().double(), rtol=0, atol=0)


def test_a_frozen_network_in_bfloat16_keeps_its_packed_weights() -> None:
    import fastconv

    layers = [
        torch.nn.Conv2d(4, 32, 3, padding=1),
        torch.nn.BatchNorm2d(32),
        torch.nn.ReLU(),
        torch.nn.Conv2d(32, 8, 1),
    ]
    model = torch.nn.Sequential(*layers).bfloat16().eval().to(memory_format=CHANNELS_LAST)
    x = torch.randn(2, 4, 9, 9).bfloat16().contiguous(memory_format=CHANNELS_LAST)
    with torch.inference_mode():
        expected = model.double()(x.double())
        frozen = fastconv.freeze(model.bfloat16())
        first, second = frozen(x), frozen(x)
    assert torch.equal(first, second)
    torch.testing.assert_close(first.double(), expected, rtol=0.02, atol=0.02)
