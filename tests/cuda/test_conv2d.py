from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import CONV2D, LAYOUTS, Conv2dCase, assert_as_accurate, assert_identical, conv
from convolutions import arrange, doubles, gradients, in_types_and_layouts
from devices import FLOATING, Device
from sweep import over
from torch import Tensor
from torch.nn import functional as F

NAN, INF = float("nan"), float("inf")
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")

# Sizes around the edges of tiles (32, 64 and 128 pixels, 16, 32 and 64 channels, 16 and 32 taps, 256 pixels) and of
# vectors of 2, 4 and 8 elements.
TILES = [
    conv(1, 4, 8, 8, 8, 1, 1),
    conv(1, 8, 9, 8, 32, 1, 1, bias=False),
    conv(2, 16, 8, 8, 33, 1, 1),
    conv(1, 32, 8, 16, 64, 1, 1),
    conv(1, 40, 5, 13, 72, 3, 3, padding=1),
    conv(2, 24, 16, 16, 16, 2, 2, groups=2),
    conv(1, 8, 16, 16, 8, 3, 3, padding=1),
    conv(1, 8, 17, 16, 8, 3, 3, padding=1),
    # conv1 and conv3 of MNIST, with fewer images
    conv(1, 1, 14, 13, 32, 3, 3),
    conv(2, 64, 5, 5, 128, 3, 3),
    # groups with few input or output channels, which have their own kernels
    conv(2, 33, 9, 9, 33, 3, 3, groups=33, padding=1, stride=2),
    conv(2, 12, 7, 9, 8, 3, 3, groups=4, padding=1),
    conv(1, 64, 17, 16, 64, 3, 3, groups=64, padding=1),
    conv(1, 6, 40, 20, 42, 2, 3, groups=6, dilation=2),
]
EVERY = [*CONV2D, *TILES]
both_layouts = pytest.mark.parametrize("layout", ["contiguous", "channels_last"])


def three_passes(
    device: Device, case: Conv2dCase, tensors: tuple[Tensor, Tensor, Tensor | None], g: Tensor, nhwc: bool
) -> list[Tensor]:
    """Return the output and the gradients of input, weight and, if there is one, bias."""
    x, w, b = (None if t is None else device.put(t) for t in tensors)
    assert x is not None
    assert w is not None
    _, call = arrange(case, tensors)
    g = device.put(g)
    y = device.ops.conv2d(x, w, b, *call.geometry)
    dx = device.ops.conv2d_backward_data(g, w, x.shape, *call.geometry, nhwc)
    dw, db = device.ops.conv2d_backward_weight(g, x, w.shape[2:], *call.geometry, nhwc)
    memory_format = torch.channels_last if nhwc else torch.contiguous_format
    assert dx.is_contiguous(memory_format=memory_format)
    assert dw.is_contiguous(memory_format=memory_format)
    return [t.cpu() for t in (y, dx, dw, db)[: 3 if b is None else 4]]


@in_types_and_layouts(EVERY, TILES)
def test_three_passes_over_small_integers_are_exact(
    case: Conv2dCase, dtype: torch.dtype, layout: str, device: Device
) -> None:
    """Every sum is exact in float32. It is rounded to the type once."""
    tensors, call = arrange(case, case.integers(dtype))
    exact = doubles(tensors)
    y = F.conv2d(*exact, *call.geometry)
    g = torch.randint(-3, 4, y.shape).to(dtype)
    expected = [y, *gradients(y, g, exact)]
    place = LAYOUTS[layout]
    plain = Conv2dCase(*tensors[0].shape, tensors[1].shape[0], *tensors[1].shape[2:], numbers(call.geometry))
    mine = three_passes(
        device, plain, (place(tensors[0]), place(tensors[1]), tensors[2]), place(g), layout != "contiguous"
    )
    assert_identical(mine, [t.detach().to(dtype) for t in expected])
    assert mine[0].stride() == F.conv2d(place(tensors[0]), place(tensors[1]), tensors[2], *call.geometry).stride()


def numbers(geometry: tuple[Any, ...]) -> dict[str, Any]:
    return dict(zip(("stride", "padding", "dilation", "groups"), geometry, strict=True))


@over(
    case=[case for case in EVERY if case.arguments.get("padding") != "same"],
    layout=["contiguous", "channels_last"],
    dtype=[torch.float32, torch.float64],
)
def test_three_passes_err_at_most_twice_as_much_as_pytorchs(
    case: Conv2dCase, layout: str, dtype: torch.dtype, device: Device
) -> None:
    tensors, call = arrange(case, case.tensors(dtype))
    y = F.conv2d(*tensors, *call.geometry)
    g = torch.randn_like(y)
    exact, same = doubles(tensors), tuple(None if t is None else t.requires_grad_() for t in tensors)
    reference, theirs = F.conv2d(*exact, *call.geometry), F.conv2d(*same, *call.geometry)
    place = LAYOUTS[layout]
    mine = three_passes(device, case, tuple(None if t is None else place(t.detach()) for t in tensors), place(g), False)
    expected, by_pytorch = gradients(reference, g, exact), gradients(theirs, g, same)
    assert_as_accurate(mine[:3], [theirs.detach(), *by_pytorch[:2]], [reference.detach(), *expected[:2]])
    if case.bias:  # db has few values, so PyTorch's error may be small by chance
        within = 8 * torch.finfo(dtype).eps * max(1, g[:, 0].numel()) ** 0.5
        torch.testing.assert_close(mine[3].double(), expected[2], rtol=2 * torch.finfo(dtype).eps, atol=within)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@both_layouts
def test_16_bits_are_summed_in_float_and_rounded_once(dtype: torch.dtype, layout: str, device: Device) -> None:
    case = conv(4, 48, 12, 12, 40, 3, 3, padding=1)
    tensors, call = arrange(case, tuple(None if t is None else t.to(dtype) for t in case.tensors()))
    exact = doubles(tensors)
    y = F.conv2d(*exact, *call.geometry)
    g = torch.randn(y.shape).to(dtype)
    place = LAYOUTS[layout]
    mine = three_passes(device, case, (place(tensors[0]), place(tensors[1]), tensors[2]), place(g), False)
    half_a_unit = torch.finfo(dtype).eps / 2
    for result, reference in zip(mine, [y, *gradients(y, g, exact)], strict=True):
        error = (result.double() - reference).abs()
        assert (error <= half_a_unit * 1.01 * reference.abs() + 1e-4).all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", [CONV2D[1], CONV2D[3], TILES[4], TILES[-3]], ids=str)
def test_every_memory_layout_is_accepted(case: Conv2dCase, layout: str, device: Device) -> None:
    tensors, call = arrange(case, case.integers())
    y = F.conv2d(*tensors, *call.geometry)
    g = torch.randint(-3, 4, y.shape).float()
    plain = three_passes(device, case, tensors, g, False)
    place = LAYOUTS[layout]
    for placed in (
        (place(tensors[0]), tensors[1], g),
        (tensors[0], place(tensors[1]), g),
        (tensors[0], tensors[1], place(g)),
        (place(tensors[0]), tensors[1], place(g)),
        (place(tensors[0]), place(tensors[1]), place(g)),
    ):
        assert_identical(three_passes(device, case, (placed[0], placed[1], tensors[2]), placed[2], False), plain)


def test_a_misaligned_input_gives_pytorchs_output(device: Device) -> None:
    case = conv(2, 8, 6, 6, 8, 3, 3)
    x, w, b = case.integers()
    askew = torch.empty(x.numel() + 1)[1:].view(2, 6, 6, 8).permute(0, 3, 1, 2).copy_(x)
    y = device.ops.conv2d(
        device.put(askew), device.put(LAYOUTS["channels_last"](w)), device.put(b), (1, 1), (0, 0), (1, 1), 1
    )
    assert_identical([y.cpu()], [F.conv2d(x, w, b)])


@over(
    case=[CONV2D[1], conv(2, 8, 9, 9, 16, 3, 3), conv(2, 8, 9, 9, 8, 3, 3, groups=8)],
    special=[NAN, INF, -INF],
    dtype=FLOATING,
)
def test_nan_and_infinity_spread_as_in_pytorch(
    case: Conv2dCase, special: float, dtype: torch.dtype, device: Device
) -> None:
    tensors, call = arrange(case, case.integers(dtype))
    x, w, b = tensors
    x[torch.rand(x.shape) < 0.01] = special
    exact = doubles((x, w, b))
    y = F.conv2d(*exact, *call.geometry)
    g = torch.randint(1, 4, y.shape).to(dtype)
    expected = [y, *gradients(y, g, exact)]
    for layout in ("contiguous", "channels_last"):
        place = LAYOUTS[layout]
        mine = three_passes(device, case, (place(x), place(w), b), place(g), False)
        assert_identical(mine, [t.detach().to(dtype) for t in expected])
    g[torch.rand(g.shape) < 0.01] = special
    y = F.conv2d(*exact, *call.geometry)
    _, dx, dw, db = three_passes(device, case, (x, w, b), g, False)
    expected = gradients(y, g, exact)
    assert_identical([dx, dw, db], [t.to(dtype) for t in expected])


@over(case=[CONV2D[1], CONV2D[-2], TILES[-2]], dtype=FLOATING, layout=["contiguous", "channels_last"])
def test_results_are_the_same_bits_in_every_order_of_threads(
    case: Conv2dCase, dtype: torch.dtype, layout: str, device: Device, emulation: Any
) -> None:
    tensors = tuple(None if t is None else t.to(dtype) for t in case.tensors())
    g = torch.randn_like(F.conv2d(*tensors, **case.arguments))
    place = LAYOUTS[layout]
    results = []
    for seed in (0, 1, 2):
        emulation.fastconv_emulation_set_seed(seed)
        placed = (place(tensors[0]), place(tensors[1]), tensors[2])
        results.append(three_passes(device, case, placed, place(g), False))
    assert_identical(results[0], results[1])
    assert_identical(results[0], results[2])


@over(case=TILES[:-4], dtype=FLOATING, layout=["contiguous", "channels_last"])
def test_results_do_not_depend_on_the_tile(
    case: Conv2dCase, dtype: torch.dtype, layout: str, device: Device, tile: Callable[[int], None]
) -> None:
    """On a GPU, this only shows that the results are the same in every run."""
    tensors = tuple(None if t is None else t.to(dtype) for t in case.tensors())
    g = torch.randn_like(F.conv2d(*tensors, **case.arguments))
    place = LAYOUTS[layout]
    results = []
    for size in (0, 1, 2):
        tile(size)
        placed = (place(tensors[0]), place(tensors[1]), tensors[2])
        results.append(three_passes(device, case, placed, place(g), layout == "channels_last"))
    assert_identical(results[0], results[1])
    assert_identical(results[0], results[2])


def test_without_images_gradients_of_weight_and_bias_are_zero(device: Device) -> None:
    for groups in (1, 8):
        w = device.put(torch.randn(8, 8 // groups, 3, 3))
        x, g = w.new_empty(0, 8, 5, 5), w.new_empty(0, 8, 3, 3)
        geometry = ((1, 1), (0, 0), (1, 1), groups)
        assert device.ops.conv2d(x, w, None, *geometry).shape == (0, 8, 3, 3)
        assert device.ops.conv2d_backward_data(g, w, x.shape, *geometry, False).shape == x.shape
        dw, db = device.ops.conv2d_backward_weight(g, x, (3, 3), *geometry, False)
        assert_identical([dw.cpu(), db.cpu()], [torch.zeros(w.shape), torch.zeros(8)])


@pytest.mark.parametrize("groups", [1, 4])
def test_without_input_channels_the_output_is_the_bias(groups: int, device: Device) -> None:
    x, w = device.put(torch.randn(2, 0, 5, 5)), device.put(torch.randn(8, 0, 3, 3))
    b = device.put(torch.randn(8))
    geometry = ((1, 1), (0, 0), (1, 1), groups)
    y = device.ops.conv2d(x, w, b, *geometry)
    assert_identical([y.cpu()], [b.cpu().view(-1, 1, 1).expand(y.shape)])
    g = torch.randn(y.shape)
    dx = device.ops.conv2d_backward_data(device.put(g), w, x.shape, *geometry, False)
    assert_identical([dx.cpu()], [torch.zeros(x.shape)])
    dw, db = device.ops.conv2d_backward_weight(device.put(g), x, (3, 3), *geometry, False)
    assert dw.shape == w.shape
    torch.testing.assert_close(db.cpu(), g.sum((0, 2, 3)))


@pytest.mark.parametrize("groups", [1, 4])
def test_an_empty_kernel_raises_pytorchs_error(groups: int, device: Device) -> None:
    x, w = device.put(torch.randn(2, 4, 5, 5)), device.put(torch.randn(8, 4 // groups, 0, 3))
    with pytest.raises(RuntimeError, match=r"kernel size should be greater than zero, but got kernel_height: 0"):
        device.ops.conv2d(x, w, None, (1, 1), (0, 0), (1, 1), groups)


def test_invalid_arguments_raise_errors(device: Device) -> None:
    x, w = device.put(torch.randn(2, 3, 8, 8)), device.put(torch.randn(4, 3, 3, 3))
    one, zero = (1, 1), (0, 0)
    with pytest.raises(RuntimeError, match="expected input\\[2, 3, 8, 8\\] to have 6 channels"):
        device.ops.conv2d(x, w.repeat(1, 2, 1, 1), None, one, zero, one, 1)
    with pytest.raises(RuntimeError, match="non-positive stride"):
        device.ops.conv2d(x, w, None, zero, zero, one, 1)
    with pytest.raises(RuntimeError, match="not implemented for"):
        device.ops.conv2d(x.int(), w.int(), None, one, zero, one, 1)
    with pytest.raises(RuntimeError, match="fewer than 2\\^30"):
        device.ops.conv2d(x, w, None, (2**30, 1), (2**30, 0), one, 1)
