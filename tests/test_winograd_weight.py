"""Winograd's gradient of the weight: edges, parts, infinities, and threads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastconv import _C

ops = torch.ops.fastconv
pytestmark = pytest.mark.usefixtures("algorithms_as_measured")


def force(choice: str, side: int = -1) -> None:
    _C.set_algorithms({"winograd": choice, "sparse_gradient": "never"}, side)


def gradients(x: Tensor, g: Tensor, padding: int = 1) -> tuple[Tensor, Tensor]:
    last = x.is_contiguous(memory_format=torch.channels_last)
    grads: tuple[Tensor, Tensor] = ops.conv2d_backward_weight(g, x, (3, 3), (1, 1), (padding, padding), (1, 1), 1, last)
    return grads


def exact(x: Tensor, g: Tensor, padding: int = 1) -> tuple[Tensor, Tensor]:
    weight = torch.zeros(g.shape[1], x.shape[1], 3, 3, dtype=torch.float64)
    arguments = [1, 1], [padding, padding], [1, 1], False, [0, 0], 1, [False, True, True]
    _, dw, db = torch.ops.aten.convolution_backward(g.double(), x.double(), weight, [g.shape[1]], *arguments)
    return dw, db


def assert_close(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], tolerance: float) -> None:
    for a, b in zip(found, expected, strict=True):
        assert (a.double() - b).abs().max() <= tolerance * b.abs().max()


@pytest.mark.parametrize("side", [2, 3, 4])
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 4), (7, 9)])
@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize("channels", [(1, 1), (3, 17), (17, 40), (33, 64)])
def test_all_tiles_channels_and_edges(
    side: int, size: tuple[int, int], padding: int, channels: tuple[int, int]
) -> None:
    force("always", side)
    C, K = channels
    for dtype, tolerance in ((torch.float32, 3e-6), (torch.float64, 1e-14)):
        images = 40  # tiles of 3x3 and 4x4 need 1024 outputs
        height, width = (max(1, n + 2 - 2 * padding) for n in size)
        x = torch.randn(images, C, height, width, dtype=dtype)
        outputs = (height + 2 * padding - 2, width + 2 * padding - 2)
        if min(outputs) < 1:
            continue
        g = torch.randn(images, K, *outputs, dtype=dtype)
        plan = _C.plan("backward_weight", x.shape, (K, C, 3, 3), (1, 1), (padding, padding), channels_last=False)
        assert plan["algorithm"] == "winograd"
        for memory_format in (torch.contiguous_format, torch.channels_last):
            operands = x.to(memory_format=memory_format), g.to(memory_format=memory_format)
            assert_close(gradients(*operands, padding), exact(x, g, padding), tolerance)


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_a_call_of_several_parts_is_bitwise_equal_for_every_number_of_threads(threads: int) -> None:
    """With 16 channels, a part has 4096 tiles of 2x2. Here are 8450."""
    force("always", 2)
    torch.manual_seed(0)
    x, g = torch.randn(2, 16, 130, 130), torch.randn(2, 16, 130, 130)
    torch.set_num_threads(threads)
    found = gradients(x, g)
    torch.set_num_threads(1)
    for a, b in zip(found, gradients(x, g), strict=True):
        assert torch.equal(a, b)
    assert_close(found, exact(x, g), 1e-5)


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1e38])
@pytest.mark.parametrize("where", ["input", "gradient", "corner"])
def test_values_that_are_not_finite_reach_the_taps_that_they_reach_without_winograd(value: float, where: str) -> None:
    x, g = torch.randn(2, 17, 6, 6), torch.randn(2, 33, 6, 6)
    if where == "input":
        x[1, 3, 2, 2] = value
    elif where == "gradient":
        g[0, 5, 3, 4] = value
    else:
        x[0, 0, 0, 0] = value  # reaches four of the nine taps
    force("never")
    expected = gradients(x, g)
    force("always")
    for a, b in zip(gradients(x, g), expected, strict=True):
        torch.testing.assert_close(a, b, equal_nan=True)
        assert torch.equal(a.isfinite(), b.isfinite())


def test_winograd_serves_calls_that_gain() -> None:
    def algorithm(x: tuple[int, ...], K: int, **options: float) -> str:
        return str(_C.plan("backward_weight", x, (K, x[1], 3, 3), (1, 1), (1, 1), **options)["algorithm"])

    if _C.cpu_capability() != "default":
        assert algorithm((8, 64, 32, 32), 64) == "winograd"
    assert algorithm((8, 512, 4, 4), 512) == "winograd"
    assert algorithm((8, 512, 2, 2), 512) == "gemm"  # too few tiles
    assert algorithm((8, 3, 32, 32), 64) == "direct"  # too few channels
    assert algorithm((8, 2048, 8, 8), 2048) == "gemm"  # the sums would not fit in the cache
    assert algorithm((8, 64, 32, 32), 64, nonzero=0.3) == "sparse_gradient"
