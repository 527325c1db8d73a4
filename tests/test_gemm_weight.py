"""The gradient of the weight as a matrix product: blocks, runs of taps, groups, pieces, and threads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastconv import _C

ops = torch.ops.fastconv
pytestmark = pytest.mark.usefixtures("algorithms_as_measured")

#: Images, channels, output channels, height, width, kernel, stride, padding, dilation, groups.
CASES = {
    "one panel, all rows of a block": (2, 32, 12, 9, 8, (1, 1), 1, 0, 1, 1),
    "a third of a block": (2, 16, 3, 9, 8, (1, 1), 1, 0, 1, 1),
    "two thirds of a block": (1, 40, 19, 9, 8, (1, 1), 2, 0, 1, 1),
    "one tap": (3, 1, 1, 5, 6, (1, 1), 1, 0, 1, 1),
    "runs of kernel rows": (2, 3, 20, 11, 9, (5, 4), 2, 2, 1, 1),
    "runs of channels": (2, 21, 7, 11, 9, (3, 3), 1, 2, 2, 1),
    "one piece, which is the gradient itself": (2, 600, 900, 4, 3, (1, 1), 1, 0, 1, 1),
    "one piece, several taps": (2, 256, 256, 3, 4, (3, 3), 2, 1, 1, 1),
    "groups": (3, 54, 39, 10, 7, (3, 3), 1, 1, 1, 3),
    "large groups": (3, 36, 60, 10, 7, (3, 2), (1, 2), (1, 0), 1, 2),
    "tiles of several images": (70, 17, 14, 3, 3, (2, 2), 1, 0, 1, 1),
    "wide rows": (2, 20, 14, 3, 500, (1, 3), 1, (0, 1), 1, 1),
}


def force(choice: str) -> None:
    _C.set_algorithms({"gemm": choice, "winograd": "never", "sparse_gradient": "never", "thin_groups": "never"})


def pair(value: int | tuple[int, int]) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


def operands(name: str, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, tuple[object, ...]]:
    """Small integers, so that every order of summation gives the same result."""
    N, C, K, H, W, kernel, *geometry, groups = CASES[name]
    stride, padding, dilation = (pair(value) for value in geometry)
    x = torch.randint(-3, 4, (N, C, H, W)).to(dtype)
    w = torch.zeros(K, C // groups, *kernel, dtype=dtype)
    g = torch.randint_like(torch.nn.functional.conv2d(x, w, None, stride, padding, dilation, groups), -3, 4)
    return x, w, g, (stride, padding, dilation, groups)


def gradients(x: Tensor, g: Tensor, w: Tensor, geometry: tuple[object, ...]) -> tuple[Tensor, Tensor]:
    last = x.is_contiguous(memory_format=torch.channels_last)
    grads: tuple[Tensor, Tensor] = ops.conv2d_backward_weight(g, x, w.shape[2:], *geometry, last)
    return grads


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", CASES)
def test_every_shape_is_exact(name: str, memory_format: torch.memory_format, level: str) -> None:
    force("always")
    for dtype in (torch.float32, torch.float64):
        x, w, g, geometry = operands(name, dtype)
        *rest, groups = geometry
        assert _C.plan("backward_weight", x.shape, w.shape, *geometry)["algorithm"] == "gemm"
        expected = torch.ops.aten.convolution_backward(
            g, x, w, [w.shape[0]], *rest, False, [0, 0], groups, [False, True, True]
        )[1:]
        found = gradients(
            x.contiguous(memory_format=memory_format), g.contiguous(memory_format=memory_format), w, geometry
        )
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("name", CASES)
def test_results_are_bitwise_equal_for_every_number_of_threads(name: str) -> None:
    force("always")
    x, w, g, geometry = operands(name, torch.float32)
    x, g = torch.randn_like(x), torch.randn_like(g)
    torch.set_num_threads(1)
    expected = gradients(x, g, w, geometry)
    for threads in (2, 3, 8):
        torch.set_num_threads(threads)
        for ours, theirs in zip(gradients(x, g, w, geometry), expected, strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_values_that_are_not_finite_reach_only_their_own_taps_and_channels(value: float) -> None:
    """Unused rows and lanes of a block multiply what lies beside the operands. Their sums must not be stored."""
    x, g, w = torch.randn(2, 17, 6, 6), torch.randn(2, 33, 6, 6), torch.zeros(33, 17, 3, 3)
    geometry = ([1, 1], [1, 1], [1, 1], 1)
    x[0, 3, 2, 2] = value
    g[1, 5, 3, 4] = value
    force("never")
    expected = gradients(x, g, w, geometry)
    force("always")
    for ours, theirs in zip(gradients(x, g, w, geometry), expected, strict=True):
        assert torch.equal(ours.isfinite(), theirs.isfinite())
        torch.testing.assert_close(ours, theirs, equal_nan=True)


def test_the_plan_chooses_gemm_where_the_taps_fill_vectors() -> None:
    def algorithm(C: int, K: int, kernel: int) -> str:
        return str(_C.plan("backward_weight", (8, C, 32, 32), (K, C, kernel, kernel), (2, 2))["algorithm"])

    assert algorithm(64, 64, 3) == "gemm"
    assert algorithm(512, 128, 1) == "gemm"
    assert algorithm(3, 64, 7) == "direct"
    if _C.cpu_capability() == "avx512":
        assert algorithm(24, 144, 1) == "direct"
