"""Tests of the kernels for tensor cores: the three passes against float64, for every way to copy an operand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cases import LAYOUTS, Conv2dCase, FusedCase, assert_identical, conv, fused
from convolutions import Call, arrange, doubles, gradients
from devices import Device
from sweep import over
from torch import Tensor
from torch.nn import functional as F

from fastconv import _C

DTYPES = [torch.float16, torch.bfloat16, torch.float32]
LARGE, MIDDLE, SMALL = 0, 1, 2  # places in the list of tiles: 128, 64 and 32 rows and columns

# A chunk has 32 steps of depth, in TF32 16.
CASES = [
    # one step of depth, one chunk, several chunks with a remainder
    conv(1, 8, 5, 5, 8, 1, 1),
    conv(2, 1, 9, 8, 16, 3, 3, padding=1),
    conv(1, 3, 9, 9, 24, 3, 3, bias=False),
    conv(1, 16, 6, 7, 16, 3, 3, padding=1),
    # remainders of rows and columns
    conv(1, 24, 9, 8, 72, 1, 1),
    conv(1, 72, 5, 13, 8, 1, 1),
    # channels that do not fill a vector
    conv(1, 5, 7, 9, 9, 3, 2),
    # strides, padding, dilation
    conv(2, 8, 9, 8, 16, 3, 3, stride=2, padding=1),
    conv(1, 8, 9, 11, 8, 2, 3, stride=(1, 2), padding=(0, 2), dilation=(2, 1)),
    # groups
    conv(2, 16, 6, 6, 32, 3, 3, groups=2),
    conv(1, 27, 5, 5, 30, 2, 2, groups=3),
]
LARGE_TILES = [
    conv(1, 16, 12, 11, 136, 1, 1),
    conv(1, 136, 11, 12, 16, 1, 1),
    conv(1, 9, 9, 9, 130, 2, 2, padding=1),
    conv(1, 130, 5, 5, 66, 1, 1),
]
POOLS = [
    fused(conv(1, 8, 10, 10, 16, 3, 3), kernel_size=2),
    fused(conv(1, 1, 11, 12, 8, 3, 3), kernel_size=2),
    fused(conv(1, 8, 9, 9, 8, 3, 3, padding=1), kernel_size=3, stride=2, padding=1),
    fused(conv(1, 8, 9, 9, 8, 2, 2), kernel_size=3, stride=1),
    fused(conv(1, 3, 9, 9, 72, 1, 1), kernel_size=3),
    fused(conv(2, 8, 6, 6, 16, 3, 3)),
]
both_layouts = pytest.mark.parametrize("layout", ["contiguous", "channels_last"])


@pytest.fixture
def tiles(device: Device, tile: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    """Turn the kernels on. Calling the fixture sets the size of the tiles in the emulation, and TF32."""
    if device.name == "cuda":
        if _C.environment()["FASTCONV_TENSOR_CORES"] != "1":
            pytest.skip("a GPU needs FASTCONV_TENSOR_CORES=1")
        with torch.backends.cudnn.flags(allow_tf32=True):
            yield lambda place, tf32=True: setattr(torch.backends.cudnn, "allow_tf32", tf32)
        return
    emulation = request.getfixturevalue("emulation")

    def choose(place: int, tf32: bool = True) -> None:
        emulation.fastconv_emulation_set_tensor_cores(True, tf32)
        tile(place)

    yield choose
    emulation.fastconv_emulation_set_tensor_cores(False, False)


def three_passes(device: Device, call: Call, tensors: Any, g: Tensor, layout: str) -> list[Tensor]:
    """Return the output and the gradients of input, weight and bias."""
    x, w = (device.put(LAYOUTS[layout](t)) for t in tensors[:2])
    g = device.put(LAYOUTS[layout](g))
    nhwc = layout == "channels_last"
    y = device.ops.conv2d(x, w, None if tensors[2] is None else device.put(tensors[2]), *call.geometry)
    dx = device.ops.conv2d_backward_data(g, w, x.shape, *call.geometry, nhwc)
    dw, db = device.ops.conv2d_backward_weight(g, x, w.shape[2:], *call.geometry, nhwc)
    return [t.cpu() for t in (y, dx, dw, db)]


def assert_three_passes_are_exact(case: Conv2dCase, dtype: torch.dtype, layout: str, device: Device) -> None:
    tensors, call = arrange(case, case.integers(dtype))
    exact = doubles(tensors)
    y = F.conv2d(*exact, *call.geometry)
    g = torch.randint(-3, 4, y.shape).to(dtype)
    expected = [y, *gradients(y, g, exact)[:2], g.double().sum((0, 2, 3))]
    mine = three_passes(device, call, tensors, g, layout)
    assert_identical(mine, [t.detach().to(dtype) for t in expected])


@over(case=CASES, dtype=DTYPES, layout=["contiguous", "channels_last"], place=[MIDDLE, SMALL])
def test_three_passes_over_small_integers_are_exact(
    case: Conv2dCase, dtype: torch.dtype, layout: str, place: int, device: Device, tiles: Any
) -> None:
    tiles(place)
    assert_three_passes_are_exact(case, dtype, layout, device)


@over(case=LARGE_TILES, dtype=DTYPES, layout=["contiguous", "channels_last"])
def test_large_tiles_are_exact(case: Conv2dCase, dtype: torch.dtype, layout: str, device: Device, tiles: Any) -> None:
    tiles(LARGE)
    assert_three_passes_are_exact(case, dtype, layout, device)


@over(case=POOLS, dtype=DTYPES, layout=["contiguous", "channels_last"], size=[MIDDLE, SMALL])
def test_pooled_output_argmax_and_gradients_are_exact(
    case: FusedCase, dtype: torch.dtype, layout: str, size: int, device: Device, tiles: Any
) -> None:
    tiles(size)
    tensors, call = arrange(case, case.conv.integers(dtype))
    place, exact = LAYOUTS[layout], doubles(tensors)
    at = call.argmax(F.conv2d(*exact, *call.geometry).detach().to(dtype).double())
    expected = call.composed(*exact)
    g = torch.randint(-3, 4, expected.shape).to(dtype)
    x, w = (device.put(place(t)) for t in tensors[:2])
    y, argmax = call.forward(device, x, w, device.put(tensors[2]))
    assert_identical([y.cpu(), argmax.cpu()], [expected.detach().to(dtype), at])
    results = call.backward(device, device.put(place(g)), argmax, x, w)
    by_hand = gradients(call.by_decisions(at, *exact), g, exact)
    assert_identical([t.cpu() for t in results], [t.to(dtype) for t in by_hand])


@over(case=[CASES[3], CASES[6]], dtype=DTYPES, layout=["contiguous", "channels_last"])
def test_inputs_are_rounded_to_the_type_and_sums_are_float32(
    case: Conv2dCase, dtype: torch.dtype, layout: str, device: Device, tiles: Any
) -> None:
    tiles(SMALL)
    tensors, call = arrange(case, tuple(None if t is None else t.to(dtype) for t in case.tensors()))
    g = torch.randn(F.conv2d(*tensors, *call.geometry).shape).to(dtype)

    def rounded(t: Tensor) -> Tensor:
        """Return the values that tensor cores multiply. TF32 has 10 bits of mantissa."""
        if dtype != torch.float32:
            return t.double()
        mantissa, exponent = t.double().abs().frexp()
        return ((mantissa * 2**11 + 0.5).floor() / 2**11).ldexp(exponent).copysign(t)

    x, w, b = tensors
    exact = doubles((rounded(x), rounded(w), b))
    y = F.conv2d(*exact, *call.geometry)
    expected = [y, *gradients(y, rounded(g), exact)[:2], g.double().sum((0, 2, 3))]
    eps = torch.finfo(dtype).eps
    for result, reference in zip(three_passes(device, call, tensors, g, layout), expected, strict=True):
        torch.testing.assert_close(result.double(), reference.detach(), rtol=eps, atol=3e-5)


def test_float32_uses_tf32_only_if_pytorch_allows_it(device: Device, tiles: Any) -> None:
    case = CASES[3]
    tensors, call = arrange(case, case.tensors())
    reference = F.conv2d(*doubles(tensors), *call.geometry).detach()
    x, w, b = (device.put(t) for t in tensors)
    errors = []
    for tf32 in (False, True):
        tiles(SMALL, tf32)
        errors.append((device.ops.conv2d(x, w, b, *call.geometry).cpu() - reference).abs().max().item())
    assert errors[0] < 3e-5 < 3e-4 < errors[1] < 0.1


@over(case=[CASES[3], CASES[6]], dtype=DTYPES, layout=["contiguous", "channels_last"])
def test_results_are_the_same_bits_in_every_order_of_threads_and_for_all_tiles(
    case: Conv2dCase, dtype: torch.dtype, layout: str, device: Device, emulation: Any, tiles: Any
) -> None:
    tensors, call = arrange(case, tuple(None if t is None else t.to(dtype) for t in case.tensors()))
    g = torch.randn_like(F.conv2d(*tensors, *call.geometry))
    results = []
    for seed, size in ((0, SMALL), (1, SMALL), (2, MIDDLE), (3, LARGE)):
        emulation.fastconv_emulation_set_seed(seed)
        tiles(size)
        results.append(three_passes(device, call, tensors, g, layout))
    for others in results[1:]:
        assert_identical(results[0], others)


def test_tf32_is_allowed_as_in_pytorchs_settings() -> None:
    conv = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = conv.fp32_precision
    try:
        for precision, allowed in (("tf32", True), ("ieee", False), ("tf32", True)):
            conv.fp32_precision = precision
            assert _C.allows_tf32() is allowed
    finally:
        conv.fp32_precision = before
    with torch.backends.cudnn.flags(allow_tf32=False):
        assert not _C.allows_tf32()
    assert _C.allows_tf32()
