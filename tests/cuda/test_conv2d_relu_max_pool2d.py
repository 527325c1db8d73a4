from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import FUSED, LAYOUTS, MEMORY_FORMATS, FusedCase, assert_as_accurate, assert_identical, conv, fused
from convolutions import DEAD, Call, Tensors, arrange, doubles, gradients, in_types_and_layouts
from devices import FLOATING, Device
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from sweep import over
from torch import Tensor
from torch.nn import functional as F

NAN, INF = float("nan"), float("inf")
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")

# The fused operator needs window positions that fit in a byte. For larger windows, fastconv.functional calls two
# operators.
SMALL_WINDOWS = [case for case in FUSED if case.pool != {"kernel_size": 16, "stride": 2}]
TILES = [
    # windows that fill a tile of 64 rows, windows that leave rows empty, vectors, a last tile that is not full
    fused(conv(1, 8, 18, 18, 32, 3, 3), kernel_size=2),
    fused(conv(1, 8, 18, 19, 40, 1, 1), kernel_size=3),
    fused(conv(1, 8, 17, 17, 24, 3, 3, padding=1), kernel_size=4),
    fused(conv(2, 8, 12, 12, 16, 3, 3, padding=1), kernel_size=3, stride=2, padding=1),
    fused(conv(2, 16, 9, 9, 16, 2, 2, groups=2), kernel_size=2),
    # overlapping windows, which a second kernel pools, and vectors in backward
    fused(conv(2, 8, 9, 9, 16, 3, 3), kernel_size=3, stride=1),
    fused(conv(1, 8, 13, 13, 8, 1, 1), kernel_size=(5, 4), dilation=(1, 2), padding=1),
    fused(conv(2, 8, 9, 9, 16, 3, 3)),
    # groups with few channels
    fused(conv(1, 33, 9, 9, 33, 3, 3, groups=33, padding=1), kernel_size=3, stride=1, padding=1),
]
EVERY = [*SMALL_WINDOWS, *TILES]
NETWORK = FUSED[:3]
every_dtype = pytest.mark.parametrize("dtype", FLOATING, ids=str)
both_layouts = pytest.mark.parametrize("layout", ["contiguous", "channels_last"])


def run(
    device: Device, call: Call, tensors: Tensors, g: Tensor, layout: str, argmax: Tensor | None = None
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return output, argmax, and the gradients of input, weight and, if there is one, bias."""
    place = LAYOUTS[layout]
    x, w = (device.put(place(t)) for t in tensors[:2])
    b = None if tensors[2] is None else device.put(tensors[2])
    y, at = call.forward(device, x, w, b)
    assert at.is_contiguous(memory_format=torch.channels_last)
    results = call.backward(device, device.put(place(g)), at if argmax is None else device.put(argmax), x, w)
    return y.cpu(), at.cpu(), [t.cpu() for t in results[: 2 if b is None else 3]]


def assert_exact(device: Device, call: Call, tensors: Tensors, layout: str) -> None:
    dtype = tensors[0].dtype
    exact = doubles(tensors)
    expected = call.composed(*exact)
    # Results are rounded to the type before their maximum is taken.
    at = call.argmax(F.conv2d(*exact, *call.geometry).detach().to(dtype).double())
    g = torch.randint(-3, 4, expected.shape).to(dtype)
    decided = call.by_decisions(at, *exact)
    y, argmax, results = run(device, call, tensors, g, layout)
    assert_identical([y, argmax], [expected.detach().to(dtype), at])
    assert_identical(results, [t.to(dtype) for t in gradients(decided, g, exact)])


@in_types_and_layouts(EVERY, [*NETWORK, *TILES])
def test_output_argmax_and_gradients_of_small_integers_are_exact(
    case: FusedCase, dtype: torch.dtype, layout: str, device: Device
) -> None:
    tensors, call = arrange(case, case.conv.integers(dtype))
    assert_exact(device, call, tensors, layout)


@over(case=[*NETWORK, *TILES], dtype=FLOATING, layout=MEMORY_FORMATS, size=[0, 1, 2])
def test_the_first_maximum_gets_the_gradient_unless_it_is_zero_or_negative(
    case: FusedCase, dtype: torch.dtype, layout: str, size: int, device: Device, tile: Callable[[int], None]
) -> None:
    tile(size)
    (x, w, b), call = arrange(case, case.conv.integers(dtype))
    w *= torch.rand(w.shape) < 2 / w[0].numel()  # few taps are non-zero, so that many sums are equal
    b = torch.zeros(len(w), dtype=dtype) if b is None else b.sign()
    for channel, constant in enumerate((0, 1, -1)):  # channels where all outputs are 0, 1 or -1
        w[channel], b[channel] = 0, constant
    assert_exact(device, call, (x, w, b), layout)
    # The composition in PyTorch has the same gradients.
    leaves = doubles((x, w, b))
    y = call.composed(*leaves)
    g = torch.randint(-3, 4, y.shape).to(dtype)
    _, argmax, results = run(device, call, (x, w, b), g, layout)
    assert_identical(results, [t.to(dtype) for t in gradients(y, g, leaves)])
    assert (argmax[:, 0] == DEAD).all()
    assert (argmax[:, 1] != DEAD).all()
    assert (argmax[:, 2] == DEAD).all()


@pytest.mark.parametrize("case", EVERY, ids=str)
@both_layouts
def test_values_and_gradients_err_at_most_twice_as_much_as_pytorchs(
    case: FusedCase, layout: str, device: Device
) -> None:
    tensors, call = arrange(case, case.conv.tensors())
    exact, same = doubles(tensors), tuple(None if t is None else t.detach().requires_grad_() for t in tensors)
    reference, theirs = call.composed(*exact), call.composed(*same)
    g = torch.randn_like(theirs)
    y, argmax, results = run(device, call, tensors, g, layout)
    assert_as_accurate([y], [theirs.detach()], [reference.detach()])
    decided = call.by_decisions(argmax, *exact)
    # argmax is right, except where the maximum depends on rounding.
    torch.testing.assert_close(decided, reference, rtol=1e-5, atol=1e-4)
    by_pytorch = gradients(call.by_decisions(argmax, *same), g, same)
    assert_as_accurate(results[:2], by_pytorch[:2], gradients(decided, g, exact)[:2])


@over(case=[NETWORK[1], NETWORK[2], *TILES[:6]], special=[NAN, INF, -INF], dtype=FLOATING, layout=MEMORY_FORMATS)
def test_nan_and_infinity_are_pooled_as_in_pytorch(
    case: FusedCase, special: float, dtype: torch.dtype, layout: str, device: Device
) -> None:
    (x, w, b), call = arrange(case, case.conv.integers(dtype))
    x[torch.rand(x.shape) < 0.005] = special
    exact = doubles((x, w, b))
    expected = call.composed(*exact)
    at = call.argmax(F.conv2d(*exact, *call.geometry).detach().to(dtype).double())
    g = torch.randint(1, 4, expected.shape).to(dtype)
    y, argmax, _ = run(device, call, (x, w, b), g, layout)
    assert_identical([y, argmax], [expected.detach().to(dtype), at])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_valid_arguments_give_exact_results(device: Device, tile: Callable[[int], None], data: Any) -> None:
    draw = data.draw
    tile(draw(st.sampled_from([-1, 0, 1, 2])))

    def pair(low: int, high: int) -> tuple[int, int]:
        return draw(st.integers(low, high)), draw(st.integers(low, high))

    groups, group_C, group_K = (
        draw(st.sampled_from([1, 1, 2, 3, 8])),
        draw(st.integers(1, 18)),
        draw(st.integers(1, 18)),
    )
    if draw(st.booleans()):  # multiples of the vector width
        group_C, group_K = 8 * (1 + group_C // 8), 8 * (1 + group_K // 8)
    (R, S), stride, dilation, padding = pair(1, 5), pair(1, 3), pair(1, 3), pair(0, 3)
    (H, W), kernel, steps, gaps = pair(1, 16), pair(1, 5), pair(1, 5), pair(1, 2)
    P, Q = (
        (size + 2 * z - d * (k - 1) - 1) // u + 1
        for size, z, d, k, u in zip((H, W), padding, dilation, (R, S), stride, strict=True)
    )
    margin = draw(st.integers(0, kernel[0] // 2)), draw(st.integers(0, kernel[1] // 2))
    # The next test has windows entirely in the padding.
    assume(gaps[0] * (kernel[0] - 1) < P and gaps[1] * (kernel[1] - 1) < Q)
    bias, ceil_mode = draw(st.booleans()), draw(st.booleans())
    case = fused(
        conv(draw(st.integers(1, 3)), groups * group_C, H, W, groups * group_K, R, S, bias,
             stride=stride, padding=padding, dilation=dilation, groups=groups),
        kernel_size=kernel, stride=steps, padding=margin, dilation=gaps, ceil_mode=ceil_mode,
    )  # fmt: skip
    torch.manual_seed(draw(st.integers(0, 2**16)))
    tensors, call = arrange(case, case.conv.integers(draw(st.sampled_from(FLOATING))))
    assert_exact(device, call, tensors, draw(st.sampled_from(["contiguous", "channels_last"])))


def test_a_window_in_the_padding_is_minus_infinity_and_gets_no_gradient(device: Device) -> None:
    for groups in (1, 2):
        call = Call(((1, 1), (0, 0), (1, 1), groups), ((2, 2), (1, 1), (1, 1), (3, 3), False))
        x, w = torch.randn(1, 2, 2, 2), torch.randn(2, 2 // groups, 1, 1)
        y = call.composed(x, w, None)
        mine, argmax, results = run(device, call, (x, w, None), torch.ones_like(y), "contiguous")
        assert_identical([mine], [y])
        assert torch.isinf(mine).any()
        assert ((argmax == DEAD) == (y <= 0)).all()
        assert all(torch.equal(t, torch.zeros_like(t)) for t in results)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", [NETWORK[1], TILES[3], TILES[-1]], ids=str)
def test_every_memory_layout_is_accepted(case: FusedCase, layout: str, device: Device) -> None:
    tensors, call = arrange(case, case.conv.integers())
    g = torch.randint(-3, 4, call.composed(*tensors).shape).float()
    y, argmax, results = run(device, call, tensors, g, "contiguous")
    mine, places, others = run(device, call, tensors, g, layout, LAYOUTS[layout](argmax))
    assert_identical([mine, places, *others], [y, argmax, *results])
    _, _, others = run(device, call, tensors, LAYOUTS[layout](g), "contiguous")
    assert_identical(others, results)


@every_dtype
@pytest.mark.parametrize("case", [TILES[3], TILES[5]], ids=str)
def test_a_misaligned_gradient_or_argmax_gives_the_same_gradients(
    case: FusedCase, dtype: torch.dtype, device: Device
) -> None:
    tensors, call = arrange(case, case.conv.integers(dtype))
    x, w, b = (device.put(LAYOUTS["channels_last"](t)) if t.dim() == 4 else device.put(t) for t in tensors)
    y, argmax = call.forward(device, x, w, b)
    g = device.put(LAYOUTS["channels_last"](torch.randint(-3, 4, y.shape).to(dtype)))
    expected = [t.cpu() for t in call.backward(device, g, argmax, x, w)]

    def shifted(tensor: Tensor, by: int) -> Tensor:
        memory = torch.empty(tensor.numel() + by, dtype=tensor.dtype, device=tensor.device)
        return memory[by:].as_strided(tensor.shape, tensor.stride()).copy_(tensor)

    for by in (1, 2, 4, 8):
        assert_identical([t.cpu() for t in call.backward(device, g, shifted(argmax, by), x, w)], expected)
        assert_identical([t.cpu() for t in call.backward(device, shifted(g, by), argmax, x, w)], expected)


@every_dtype
@pytest.mark.parametrize("case", [NETWORK[1], TILES[3], TILES[5]], ids=str)
def test_results_are_the_same_bits_in_every_order_of_threads(
    case: FusedCase, dtype: torch.dtype, device: Device, emulation: Any
) -> None:
    tensors, call = arrange(case, tuple(None if t is None else t.to(dtype) for t in case.conv.tensors()))
    g = torch.randn_like(call.composed(*tensors))
    for layout in ("contiguous", "channels_last"):
        results = []
        for seed in (0, 1, 2):
            emulation.fastconv_emulation_set_seed(seed)
            y, argmax, others = run(device, call, tensors, g, layout)
            results.append([y, argmax, *others])
        assert_identical(results[0], results[1])
        assert_identical(results[0], results[2])


def test_16_bit_values_are_rounded_before_they_are_compared(device: Device) -> None:
    """1 and 1 + 2^-12 are equal in half, so the first one wins, as in the composition."""
    x = torch.tensor([1.0, 1.0, 0.5, 1.0]).view(1, 1, 2, 2).half().repeat(1, 2, 1, 1)
    x[0, 1] = torch.tensor([0.0, 2**-12, 0.0, 0.0]).view(2, 2)
    w = torch.ones(1, 2, 1, 1).half()
    call = Call(((1, 1), (0, 0), (1, 1), 1), ((2, 2), (2, 2), (0, 0), (1, 1), False))
    y, argmax, _ = run(device, call, (x, w, None), torch.ones(1, 1, 1, 1).half(), "contiguous")
    assert y.item() == 1
    assert argmax.item() == 0


def test_without_images_gradients_of_weight_and_bias_are_zero(device: Device) -> None:
    for case in (fused(conv(0, 8, 8, 8, 16, 3, 3), kernel_size=2), fused(conv(0, 8, 8, 8, 8, 3, 3, groups=8))):
        tensors, call = arrange(case, case.conv.tensors())
        y, _, (dx, dw, db) = run(device, call, tensors, call.composed(*tensors), "channels_last")
        assert y.numel() == dx.numel() == 0
        assert_identical([dw, db], [torch.zeros_like(dw), torch.zeros_like(db)])


@pytest.mark.parametrize("pool", [None, ((2, 2), (2, 2), (0, 0), (1, 1), False)])
def test_gradients_have_the_memory_formats_of_input_and_weight(pool: Any, device: Device) -> None:
    x, w = torch.randint(-3, 4, (2, 8, 9, 9)).float(), torch.randint(-3, 4, (16, 8, 3, 3)).float()
    call = Call(((1, 1), (0, 0), (1, 1), 1), pool)
    y, argmax = call.forward(device, device.put(x), device.put(w), None)
    g = device.put(torch.randint(-3, 4, y.shape).float())
    expected = [t.cpu() for t in call.backward(device, g, argmax, device.put(x), device.put(w))]
    for place_x, place_w in itertools.product(LAYOUTS.values(), repeat=2):
        placed = device.put(place_x(x)), device.put(place_w(w))
        both = call.backward(device, g, argmax, *placed)
        assert_identical([t.cpu() for t in both], expected)
        for gradient, tensor in zip(both[:2], placed, strict=True):
            nhwc = not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)
            assert gradient.is_contiguous(memory_format=torch.channels_last if nhwc else torch.contiguous_format)
        dx, *nothing = call.backward(device, g, argmax, *placed, needs_weight=False)
        none, *of_weight = call.backward(device, g, argmax, *placed, needs_input=False)
        assert_identical([t.cpu() for t in (dx, *of_weight)], expected)
        assert [t.numel() for t in (none, *nothing)] == [0, 0, 0]


def test_invalid_arguments_raise_errors(device: Device) -> None:
    x, w = device.put(torch.randn(2, 3, 8, 8)), device.put(torch.randn(4, 3, 3, 3))
    one, zero = (1, 1), (0, 0)
    with pytest.raises(RuntimeError, match="a pool of at most 255 pixels"):
        device.ops.conv2d_relu_max_pool2d(x, w, None, one, zero, one, 1, (16, 16), one, (8, 8), one, False)
    call = Call((one, zero, one, 1), ((2, 2), (2, 2), zero, one, False))
    y, argmax = call.forward(device, x, w, None)
    with pytest.raises(RuntimeError, match="expected argmax of type Byte"):
        call.backward(device, y, argmax.long(), x, w)
    with pytest.raises(RuntimeError, match="expected grad_output and argmax of size"):
        call.backward(device, y[:, :, 1:], argmax, x, w)
