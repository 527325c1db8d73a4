"""Large calls are computed in bands (csrc/cpu/memory/bands.h). This saves memory and does not change results."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from cases import CONV2D, FUSED, Conv2dCase, FusedCase, assert_identical, composed, conv, with_gradients
from forked import Python
from sweep import over
from torch import Tensor
from torch.nn import functional as F

import fastconv.functional as FF
from fastconv import _C

pytestmark = pytest.mark.usefixtures("two_threads")

# In 16-bit types, these sizes need several bands, within one image or over several images.
LARGE = [
    conv(1, 16, 260, 200, 24, 3, 3, padding=1),
    conv(1, 32, 331, 300, 32, 1, 1, stride=3),
    conv(1, 16, 260, 301, 16, 1, 1, padding=1, stride=2),
    conv(2, 8, 301, 307, 16, 5, 3, padding=(4, 2), dilation=2),
    conv(2, 64, 150, 150, 64, 3, 3, padding=1, groups=64),
    conv(1, 16, 300, 250, 16, 3, 3, groups=4),
    conv(40, 32, 40, 40, 32, 3, 3, padding=1, bias=False),
    conv(1, 3, 400, 400, 32, 3, 3, padding=1),
    conv(1, 8, 2, 40_000, 60, 2, 3, stride=(1, 2)),
]
POOLS: list[dict[str, Any]] = [
    {},
    {"pool_kernel_size": 3, "pool_stride": 2, "pool_padding": 1},
    {"pool_kernel_size": 2, "pool_stride": 5, "pool_ceil_mode": True},
    {"pool_kernel_size": (1, 2), "pool_stride": 1, "pool_dilation": 2},
]
TYPES = [torch.bfloat16, torch.float16]
FORMATS = [torch.contiguous_format, torch.channels_last]


def layout(x: Tensor, memory_format: torch.memory_format) -> Tensor:
    return x.contiguous(memory_format=memory_format).requires_grad_()


def assert_same_gradients(
    function: Any, reference: Any, tensors: tuple[Tensor | None, ...], dtype: torch.dtype
) -> None:
    """Assert that `function` in `dtype` equals `reference` except for one rounding.

    The reference is in float32, which is exact for small integers and takes a quarter of float64's time.
    """
    rtol = 1e-5 if dtype is torch.float32 else torch.finfo(dtype).eps
    given = [None if t is None else t.detach().requires_grad_() for t in tensors]
    wide = [None if t is None else t.detach().float().requires_grad_() for t in tensors]
    y, expected = function(*given), reference(*wide)
    torch.testing.assert_close(y, expected.to(dtype), rtol=rtol, atol=1e-3)
    g = torch.randint(-1, 2, y.shape).to(dtype) * (torch.rand(y.shape) < 0.05)  # for sums that fit in float16
    y.backward(g)
    expected.backward(g.float())
    for ours, theirs in zip(given, wide, strict=True):
        if ours is not None and theirs is not None:
            assert ours.grad is not None
            assert theirs.grad is not None
            torch.testing.assert_close(ours.grad, theirs.grad.to(dtype), rtol=rtol, atol=1e-3)


@over(case=[*CONV2D, *FUSED], band=[1, 300, 3000], memory_format=FORMATS, dtype=[torch.float32, *TYPES])
@pytest.mark.usefixtures("algorithms_as_measured")
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_bands_of_any_size_give_the_same_results(
    case: Conv2dCase | FusedCase, band: int, memory_format: torch.memory_format, dtype: torch.dtype
) -> None:
    _C.set_algorithms({}, winograd=2, band=band)  # exact for small integers
    if isinstance(case, Conv2dCase):
        function, reference, (x, w, b) = FF.conv2d, F.conv2d, case.integers(dtype)
    else:
        function, reference, (x, w, b) = case.function, composed, case.conv.integers(dtype)
    tensors = (layout(x, memory_format), layout(w, memory_format), b)
    wide = tuple(None if t is None else t.double() for t in tensors)
    y = reference(*wide, **case.arguments)
    g = torch.randint(-1, 2, y.shape) * (torch.rand(y.shape) < 0.3)
    expected = with_gradients(reference, wide, g, **case.arguments)
    for ours, exact in zip(with_gradients(function, tensors, g, **case.arguments), expected, strict=True):
        torch.testing.assert_close(ours, exact.to(dtype), rtol=0, atol=0)


@over(place=["input", "weight"], stride=[3, 5], band=[1, 300], dtype=[torch.float32, *TYPES])
@pytest.mark.usefixtures("algorithms_as_measured")
def test_zero_gradients_between_windows_times_infinity_are_nan(
    place: str, stride: int, band: int, dtype: torch.dtype
) -> None:
    _C.set_algorithms({}, winograd=2, band=band)
    x, w, b = conv(2, 3, 31, 9, 4, 1, 1).integers(dtype)
    {"input": x, "weight": w}[place][1, 1, -1, 0] = torch.inf
    tensors = (layout(x, torch.channels_last), w, b)
    arguments = {"pool_kernel_size": 2, "pool_stride": stride}
    wide = tuple(None if t is None else t.double() for t in tensors)
    g = torch.randint(-1, 2, composed(*wide, **arguments).shape).contiguous(memory_format=torch.channels_last)
    expected = with_gradients(composed, wide, g, **arguments)
    found = with_gradients(FF.conv2d_relu_max_pool2d, tensors, g, **arguments)
    assert_identical(found, [t.to(dtype) for t in expected])


@over(case=LARGE, dtype=TYPES, memory_format=FORMATS)
def test_bands_do_not_change_conv2d_in_16_bits(
    case: Conv2dCase, dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    x, w, b = case.integers(dtype)
    tensors = (layout(x, memory_format), layout(w, memory_format), b)
    assert_same_gradients(
        lambda *t: FF.conv2d(*t, **case.arguments), lambda *t: F.conv2d(*t, **case.arguments), tensors, dtype
    )


@over(case=LARGE[:4], pool=POOLS, memory_format=FORMATS)
def test_bands_do_not_change_the_fused_operators_in_16_bits(
    case: Conv2dCase, pool: dict[str, Any], memory_format: torch.memory_format
) -> None:
    dtype = torch.bfloat16
    x, w, b = case.integers(dtype)
    tensors = (layout(x, memory_format), layout(w, memory_format), b)
    own = {name.removeprefix("pool_"): value for name, value in {"pool_kernel_size": 2, **pool}.items()}
    assert_same_gradients(
        lambda *t: FF.conv2d_relu_max_pool2d(*t, **case.arguments, **pool),
        lambda *t: F.max_pool2d(F.relu(F.conv2d(*t, **case.arguments)), **own),
        tensors,
        dtype,
    )
    if not pool:
        assert_same_gradients(
            lambda *t: FF.conv2d_relu(*t, **case.arguments),
            lambda *t: F.relu(F.conv2d(*t, **case.arguments)),
            tensors,
            dtype,
        )


@pytest.mark.parametrize("case", [conv(1, 32, 720, 600, 16, 3, 3, padding=1), conv(3, 8, 720, 700, 8, 3, 3)], ids=str)
def test_bands_do_not_change_gradients_in_float32(case: Conv2dCase) -> None:
    x, w, b = case.integers()
    tensors = (layout(x, torch.channels_last), layout(w, torch.channels_last), b)
    assert_same_gradients(
        lambda *t: FF.conv2d(*t, **case.arguments),
        lambda *t: F.conv2d(*t, **case.arguments),
        tensors,
        torch.float32,
    )
    assert_same_gradients(
        lambda *t: FF.conv2d_relu_max_pool2d(*t, **case.arguments),
        lambda *t: F.max_pool2d(F.relu(F.conv2d(*t, **case.arguments)), 2),
        tensors,
        torch.float32,
    )


@pytest.mark.parametrize("memory_format", FORMATS, ids=["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize(
    "pool",
    [
        {"kernel_size": 2},
        {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True},
        {"kernel_size": 2, "dilation": 3},
    ],
    ids=str,
)
def test_max_pool2d_in_16_bits_agrees_with_pytorch(
    pool: dict[str, Any], dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    x = torch.randint(-9, 9, (2, 7, 133, 129)).to(dtype)
    x[0, 0, :3, :5] = torch.nan
    ours, theirs = layout(x.clone(), memory_format), layout(x.clone(), memory_format)
    y, indices = FF.max_pool2d(ours, return_indices=True, **pool)
    expected, expected_indices = F.max_pool2d(theirs, return_indices=True, **pool)
    assert torch.equal(indices, expected_indices)
    assert torch.equal(y.nan_to_num(), expected.nan_to_num())
    g = torch.randint(-3, 4, y.shape).to(dtype)
    y.backward(g)
    expected.backward(g)
    assert torch.equal(ours.grad, theirs.grad)


# ---- memory ------------------------------------------------------------------------------------------------------

# Prints two numbers in MiB: how much the resident set grew at most during one call, and how much of that remains after
# the result is deleted.
MEASURE = """
import sys, torch
import torch.nn.functional as F, fastconv.functional as FF

def resident(key):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(key)) / 1024

library, call, backward, channels_last, dtype, size, weight, groups = eval(sys.argv[1])
def tensor(size):
    memory_format = torch.channels_last if channels_last and len(size) == 4 else torch.contiguous_format
    return torch.full(size, 0.01, dtype=getattr(torch, dtype)).contiguous(memory_format=memory_format)
def run(size):
    x, w, b = tensor(size), tensor(weight), tensor(weight[:1])
    ours = library == "fastconv"
    conv = {"padding": 1, "groups": groups}
    functions = {
        "conv2d": lambda: (FF if ours else F).conv2d(x, w, b, **conv),
        "max_pool2d": lambda: (FF if ours else F).max_pool2d(x, 2),
        "conv2d_relu_max_pool2d": lambda: (
            FF.conv2d_relu_max_pool2d(x, w, b, **conv) if ours else F.max_pool2d(F.relu(F.conv2d(x, w, b, **conv)), 2)
        ),
    }
    function = functions[call]
    if backward:
        x.requires_grad_(), w.requires_grad_(), b.requires_grad_()
        y = function()
        g = torch.full_like(y, 0.01)
        function = lambda: y.backward(g)
    before = resident("VmRSS")
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    result = function()
    peak = resident("VmHWM") - before
    del result
    x.grad = None
    return peak, resident("VmRSS") - before
torch.set_num_threads(2)
run((1, size[1], 16, 16))
print(*run(size))
"""


def memory(python: Python, library: str, case: tuple[Any, ...]) -> tuple[float, float]:
    done = python(MEASURE, repr((library, *case)))
    assert done.returncode == 0, done.stderr
    peak, kept = done.stdout.split()
    return float(peak), float(kept)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
@pytest.mark.parametrize(
    "case",
    [
        ("conv2d", False, False, "bfloat16", (1, 32, 1000, 1000), (32, 32, 3, 3), 1),
        ("conv2d", False, True, "bfloat16", (1, 32, 1000, 1000), (32, 32, 3, 3), 1),
        ("conv2d", True, False, "bfloat16", (1, 32, 1000, 1000), (32, 32, 3, 3), 1),
        ("conv2d", True, True, "bfloat16", (1, 32, 1200, 1200), (32, 32, 3, 3), 1),
        ("conv2d", True, False, "float32", (2, 64, 500, 500), (64, 1, 3, 3), 64),
        ("conv2d", True, True, "float32", (2, 64, 700, 700), (64, 1, 3, 3), 64),
        ("max_pool2d", False, False, "bfloat16", (1, 32, 1000, 1000), (1, 1, 1, 1), 1),
        ("max_pool2d", False, True, "bfloat16", (1, 32, 1000, 1000), (1, 1, 1, 1), 1),
        ("conv2d_relu_max_pool2d", True, True, "bfloat16", (1, 32, 1000, 1000), (32, 32, 3, 3), 1),
    ],
    ids=lambda case: "-".join(map(str, case[:4])),
)
def test_a_large_call_takes_at_most_a_tenth_more_memory_than_pytorch_and_keeps_none(
    case: tuple[Any, ...], python: Python
) -> None:
    ours, kept = memory(python, "fastconv", case)
    theirs, _ = memory(python, "torch", case)
    assert ours <= 1.1 * theirs + 4  # MiB for the allocator itself
    assert kept <= 32
