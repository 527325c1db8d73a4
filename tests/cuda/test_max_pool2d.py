from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import LAYOUTS, MAX_POOL2D, MEMORY_FORMATS, Pool2dCase, assert_identical
from devices import FLOATING, Device
from sweep import over
from torch import Tensor
from torch.nn import functional as F

import fastconv.functional as FF

NAN, INF = float("nan"), float("inf")
every_dtype = pytest.mark.parametrize("dtype", FLOATING, ids=str)
every_case = pytest.mark.parametrize("case", MAX_POOL2D, ids=str)
both_layouts = pytest.mark.parametrize("layout", ["contiguous", "channels_last"])


def pairs(case: Pool2dCase) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Return kernel size, stride, padding and dilation as pairs."""
    given = case.arguments
    values = (given["kernel_size"], given.get("stride", given["kernel_size"]), given.get("padding", 0))
    return tuple(v if isinstance(v, tuple) else (v, v) for v in (*values, given.get("dilation", 1)))  # type: ignore[return-value]


def batch(x: Tensor) -> Tensor:
    """Return the input as a batch, because the operators accept only batches."""
    return x if x.dim() == 4 else x.unsqueeze(0)


def pooled(device: Device, case: Pool2dCase, x: Tensor) -> tuple[Tensor, Tensor]:
    values, indices = device.ops.max_pool2d(device.put(x), *pairs(case), case.arguments.get("ceil_mode", False))
    return values, indices


def assert_like_pytorchs(device: Device, case: Pool2dCase, x: Tensor) -> None:
    expected = F.max_pool2d(x, **case.arguments, return_indices=True)
    for mine, other in zip(pooled(device, case, x), expected, strict=True):
        assert mine.dtype == other.dtype
        assert mine.stride() == other.stride()
        assert_identical([mine.cpu()], [other])


@over(case=MAX_POOL2D, dtype=FLOATING, layout=MEMORY_FORMATS)
def test_max_pool2d_gives_pytorchs_values_and_indices(
    case: Pool2dCase, dtype: torch.dtype, layout: str, device: Device
) -> None:
    assert_like_pytorchs(device, case, LAYOUTS[layout](batch(case.tensor(dtype))))


@every_case
@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "sliced"])
def test_every_memory_layout_gives_pytorchs_result(case: Pool2dCase, layout: str, device: Device) -> None:
    assert_like_pytorchs(device, case, LAYOUTS[layout](batch(case.tensor())))


@over(case=MAX_POOL2D, dtype=FLOATING, layout=MEMORY_FORMATS)
def test_max_pool2d_backward_gives_pytorchs_gradient(
    case: Pool2dCase, dtype: torch.dtype, layout: str, device: Device
) -> None:
    # Sums of small integers are exact in every type.
    x = LAYOUTS[layout](batch(case.tensor(dtype))).requires_grad_()
    y, indices = F.max_pool2d(x, **case.arguments, return_indices=True)
    g = torch.randint(-8, 9, y.shape).to(dtype)
    expected = torch.autograd.grad(y, x, g)
    for grad_layout in ("contiguous", "channels_last", "batch last"):
        gradient = device.ops.max_pool2d_backward(
            device.put(LAYOUTS[grad_layout](g)), device.put(indices), x.shape, *pairs(case), layout == "channels_last"
        )
        assert gradient.is_contiguous(memory_format=getattr(torch, layout.replace("contiguous", "contiguous_format")))
        assert_identical([gradient.cpu()], list(expected))


@over(special=[NAN, -INF, INF], share=[0.02, 0.5, 1.0], dtype=FLOATING, layout=MEMORY_FORMATS)
def test_nan_and_infinity_are_pooled_as_in_pytorch(
    special: float, share: float, layout: str, dtype: torch.dtype, device: Device
) -> None:
    for case in MAX_POOL2D[:9]:
        x = case.tensor(dtype)
        x[torch.rand(x.shape) < share] = special
        assert_like_pytorchs(device, case, LAYOUTS[layout](x))


def test_the_first_maximum_and_the_last_nan_win(device: Device) -> None:
    windows: list[tuple[list[list[float]], float, int]] = [
        ([[1, 2], [2, 2]], 2, 1),
        ([[1, NAN], [3, 4]], NAN, 1),
        ([[2, NAN], [NAN, 1]], NAN, 2),
        ([[-INF, -INF], [-INF, -INF]], -INF, 0),
        ([[-0.0, 0.0], [0.0, -0.0]], -0.0, 0),
    ]
    for window, value, index in windows:
        for layout in ("contiguous", "channels_last"):
            x = LAYOUTS[layout](torch.tensor(window, dtype=torch.float32).expand(1, 4, 2, 2))
            values, indices = pooled(device, Pool2dCase((1, 4, 2, 2), {"kernel_size": 2}), x)
            assert_identical([values.cpu().flatten()], [torch.full((4,), float(value))])
            assert torch.signbit(values.cpu()).eq(torch.signbit(torch.tensor(float(value)))).all()
            assert indices.flatten().tolist() == [index] * 4


@every_dtype
@both_layouts
def test_gradients_of_overlapping_windows_add_up_in_order(dtype: torch.dtype, layout: str, device: Device) -> None:
    case = Pool2dCase((2, 4, 12, 13), {"kernel_size": 5, "stride": 1, "padding": 2})
    x = LAYOUTS[layout](torch.randn(case.size).to(dtype))
    values, indices = F.max_pool2d(x, **case.arguments, return_indices=True)
    g = torch.randn(values.shape).to(dtype)
    gradient = device.ops.max_pool2d_backward(
        device.put(g), device.put(indices), x.shape, *pairs(case), layout == "channels_last"
    ).cpu()
    # The reference computes the same sums of at most 25 terms in float32, and rounds them once.
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    leaf = x.to(wide).requires_grad_()
    (exact,) = torch.autograd.grad(FF.max_pool2d(leaf, **case.arguments), leaf, g.to(wide))
    assert_identical([gradient], [exact.to(dtype)])


def test_a_window_in_the_padding_gives_no_gradient(device: Device) -> None:
    case = Pool2dCase((1, 1, 2, 2), {"kernel_size": 2, "stride": 1, "padding": 1, "dilation": 3})
    x = torch.randn(case.size)
    values, indices = pooled(device, case, x)
    assert torch.equal(values.cpu(), F.max_pool2d(x, **case.arguments))
    gradient = device.ops.max_pool2d_backward(torch.ones_like(values), indices, x.shape, *pairs(case), False)
    assert torch.equal(gradient.cpu(), torch.zeros_like(x))


def test_a_misaligned_input_gives_pytorchs_result(device: Device) -> None:
    case = Pool2dCase((2, 8, 6, 6), {"kernel_size": 2})
    data = torch.randn(2 * 8 * 6 * 6 + 1)
    x = data[1:].view(2, 6, 6, 8).permute(0, 3, 1, 2)
    values, indices = device.ops.max_pool2d(
        device.put(data)[1:].view(2, 6, 6, 8).permute(0, 3, 1, 2), *pairs(case), False
    )
    expected = F.max_pool2d(x, 2, return_indices=True)
    assert_identical([values.cpu(), indices.cpu()], list(expected))


def test_invalid_arguments_raise_pytorchs_errors(device: Device) -> None:
    x = device.put(torch.randn(2, 3, 8, 8))
    one: Any = (1, 1)
    with pytest.raises(RuntimeError, match="stride should not be zero"):
        device.ops.max_pool2d(x, (2, 2), (0, 0), (0, 0), one, False)
    with pytest.raises(RuntimeError, match="Output size is too small"):
        device.ops.max_pool2d(x, (9, 9), one, (0, 0), one, False)
    with pytest.raises(RuntimeError, match="not implemented for"):
        device.ops.max_pool2d(x.int(), (2, 2), (2, 2), (0, 0), one, False)
