"""One table of cases for each operator, and functions that compare results. All tests share them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import fastconv.functional as FF
from fastconv import _C

THREADS = (1, 2, 3, 8)
LEVELS = _C.cpu_capabilities()
MEMORY_FORMATS = ("contiguous", "channels_last")


@dataclass(frozen=True)
class Conv2dCase:
    """The sizes of a convolution, and the arguments of conv2d."""

    N: int
    C: int
    H: int
    W: int
    K: int
    R: int
    S: int
    arguments: dict[str, Any] = field(default_factory=dict)
    bias: bool = True

    def __str__(self) -> str:
        arguments = "-".join(f"{name}{value}" for name, value in self.arguments.items())
        sizes = f"{self.N}x{self.C}x{self.H}x{self.W}-{self.K}x{self.R}x{self.S}"
        return "-".join(filter(None, [sizes, arguments, "" if self.bias else "nobias"])).replace(" ", "")

    def tensors(self, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return a random input, weight and bias."""
        groups = self.arguments.get("groups", 1)
        x = torch.randn(self.N, self.C, self.H, self.W, dtype=dtype)
        w = torch.randn(self.K, self.C // groups, self.R, self.S, dtype=dtype)
        return x, w, torch.randn(self.K, dtype=dtype) if self.bias else None

    def integers(self, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the tensors filled with small integers. Sums are exact, except in Winograd's tiles above 2 x 2."""
        x, w, b = (None if t is None else t.shape for t in self.tensors())
        assert x is not None
        assert w is not None
        bias = None if b is None else torch.randint(-6, 7, b).to(dtype)
        return torch.randint(-3, 4, x).to(dtype), torch.randint(-2, 3, w).to(dtype), bias


def conv(N: int, C: int, H: int, W: int, K: int, R: int, S: int, bias: bool = True, **arguments: Any) -> Conv2dCase:
    return Conv2dCase(N, C, H, W, K, R, S, arguments, bias)


CONV2D = [
    # the layers of MnistCNN, with a smaller batch that leaves remainders of pixels
    conv(3, 1, 28, 28, 32, 3, 3),
    conv(3, 32, 13, 13, 64, 3, 3),
    conv(5, 64, 5, 5, 128, 3, 3),
    # numbers of channels around the widths of vectors and blocks
    *[
        conv(2, C, 7, 6, K, 3, 3, padding=1)
        for C, K in [(1, 1), (3, 5), (5, 3), (16, 17), (17, 16), (31, 33), (33, 31)]
    ],
    *[conv(2, C, 6, 5, K, 2, 2) for C, K in [(2, 15), (4, 47), (48, 2), (8, 49), (65, 8)]],
    # sizes of kernels
    conv(2, 8, 9, 9, 16, 1, 1),
    conv(2, 19, 9, 9, 7, 1, 1, stride=2, bias=False),
    conv(2, 3, 12, 11, 8, 5, 5, padding=2),
    conv(2, 4, 11, 12, 9, 3, 2, padding=(2, 1)),
    conv(1, 2, 9, 30, 5, 1, 7),
    conv(1, 2, 30, 9, 5, 7, 1, padding=(3, 0)),
    conv(2, 3, 4, 5, 6, 4, 5),
    conv(1, 3, 3, 3, 4, 7, 7, padding=5),
    # more padding than image: some tiles, and some outputs, read padding only
    conv(1, 3, 1, 1, 4, 3, 3, padding=40),
    conv(2, 3, 2, 1, 4, 1, 1, padding=8, stride=40),
    # stride, dilation, 'same', 'valid'
    conv(2, 6, 14, 13, 20, 3, 3, stride=2, padding=1),
    conv(2, 6, 14, 13, 20, 3, 3, stride=(3, 1), padding=(0, 2)),
    conv(2, 6, 17, 18, 10, 3, 3, stride=(1, 2), dilation=(2, 3), padding=(2, 4)),
    conv(2, 40, 10, 10, 12, 3, 3, dilation=2),
    conv(2, 5, 9, 8, 6, 3, 3, padding="same"),
    conv(2, 5, 9, 8, 6, 4, 3, padding="same", dilation=(1, 3)),
    conv(2, 5, 9, 8, 6, 3, 4, padding="valid", stride=(2, 3)),
    conv(1, 2, 5, 5, 3, 2, 2, stride=4),
    # groups, depthwise with and without a multiplier
    conv(2, 12, 8, 8, 18, 3, 3, groups=3, padding=1),
    conv(2, 34, 6, 7, 66, 3, 3, groups=2),
    conv(2, 8, 9, 9, 8, 3, 3, groups=8, padding=1),
    conv(2, 37, 9, 8, 37, 3, 3, groups=37, padding=1, stride=2),
    conv(2, 16, 10, 10, 16, 5, 3, groups=16, dilation=2, bias=False),
    conv(2, 5, 8, 8, 15, 3, 3, groups=5),
    # depthwise: kernels of 5, 7 and other sizes, strides with all phases of dx and with phases that have no taps,
    # a common factor of stride and dilation, padding larger than the kernel, several tiles of rows
    conv(1, 20, 9, 7, 20, 5, 5, groups=20, padding=2, stride=2),
    conv(1, 17, 7, 15, 17, 7, 7, groups=17, padding=3),
    conv(1, 9, 11, 12, 9, 4, 2, groups=9, stride=3, padding=(2, 1)),
    conv(2, 4, 7, 6, 4, 1, 1, groups=4, stride=2),
    conv(1, 18, 12, 13, 18, 3, 3, groups=18, stride=2, dilation=2, padding=2),
    conv(1, 3, 5, 4, 3, 2, 3, groups=3, padding=(3, 4)),
    conv(1, 6, 70, 65, 6, 3, 3, groups=6, padding=1, stride=(1, 2)),
    # groups of 2, 4 and 8 input and output channels
    conv(2, 18, 9, 8, 18, 3, 3, groups=9, padding=1),
    conv(1, 36, 8, 9, 36, 3, 3, groups=9, padding=1, stride=2),
    conv(2, 24, 7, 7, 24, 5, 2, groups=3, padding=(2, 1), dilation=(1, 2)),
    conv(1, 32, 40, 33, 32, 3, 3, groups=8, bias=False),
    # few outputs with many channels: the algorithm that reads the weight without packing it
    conv(1, 64, 3, 3, 33, 3, 3, padding=1),
    conv(2, 64, 5, 6, 7, 3, 3, stride=2, bias=False),
    # the last block of a tile has 4, 8 or 12 pixels; the weight is packed block by block
    conv(1, 32, 4, 5, 33, 3, 3, padding=1),
    conv(1, 20, 4, 4, 70, 1, 1),
    conv(1, 300, 5, 4, 40, 1, 1, bias=False),
    conv(1, 32, 6, 6, 5, 3, 2, dilation=(1, 2), padding=1),
    # no image, one image, more images than a batch is cut into pieces (16); a large image
    conv(0, 3, 8, 8, 4, 3, 3),
    conv(1, 16, 9, 9, 32, 3, 3, padding=1),
    conv(37, 3, 6, 6, 4, 3, 3),
    conv(1, 4, 70, 65, 6, 3, 3, padding=1),
]

#: A weight of more than 1 MB: it is packed block by block.
LARGE_WEIGHT = conv(1, 256, 8, 8, 120, 3, 3, padding=1)


@dataclass(frozen=True)
class Pool2dCase:
    """The size of the input, and the arguments of max_pool2d."""

    size: tuple[int, ...]
    arguments: dict[str, Any]

    def __str__(self) -> str:
        arguments = "-".join(f"{name}{value}" for name, value in self.arguments.items())
        return f"{'x'.join(map(str, self.size))}-{arguments}".replace(" ", "")

    def tensor(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return random small integers, so that windows have ties in every dtype."""
        return torch.randint(0 if dtype == torch.uint8 else -4, 5, self.size).to(dtype)


def pool(*size: int, **arguments: Any) -> Pool2dCase:
    return Pool2dCase(size, arguments)


MAX_POOL2D = [
    pool(3, 32, 26, 26, kernel_size=2),
    pool(3, 64, 11, 11, kernel_size=2),
    pool(2, 5, 9, 10, kernel_size=3),
    pool(2, 17, 9, 10, kernel_size=3, stride=2, padding=1),
    pool(2, 3, 10, 9, kernel_size=(2, 3), stride=(1, 2), padding=(1, 1)),
    pool(2, 3, 12, 40, kernel_size=3, stride=1, padding=1),
    pool(2, 33, 12, 13, kernel_size=(3, 2), dilation=(2, 3), padding=1),
    pool(2, 4, 5, 5, kernel_size=2, ceil_mode=True),
    pool(2, 4, 6, 7, kernel_size=3, stride=2, padding=1, ceil_mode=True),
    pool(2, 4, 7, 7, kernel_size=2, stride=3, ceil_mode=True),
    pool(2, 4, 8, 8, kernel_size=5, stride=5, padding=2),
    pool(1, 1, 1, 1, kernel_size=1),
    pool(1, 300, 4, 4, kernel_size=2, stride=1),
    pool(1, 2, 40, 300, kernel_size=4, stride=3),
    pool(40, 2, 4, 4, kernel_size=2),
    pool(0, 3, 8, 8, kernel_size=2),
    pool(5, 8, 8, kernel_size=2),
]


#: Sizes of an input and a weight that fit, and calls of conv2d that PyTorch refuses: input, weight, bias, arguments.
X, W = (2, 3, 8, 8), (4, 3, 3, 3)
REFUSED_CONV2D: list[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...] | None, dict[str, Any]]] = [
    ((2, 5, 8, 8), W, None, {}),
    ((2, 3, 2, 2), W, None, {}),
    ((8, 8), W, None, {}),
    ((1, 2, 3, 8, 8), W, None, {}),
    (X, (4, 3, 3), None, {}),
    (X, W, (5,), {}),
    (X, W, (4, 1), {}),
    (X, W, None, {"padding": -1}),
    (X, W, None, {"stride": 0}),
    (X, W, None, {"stride": -1}),
    (X, W, None, {"dilation": 0}),
    (X, W, None, {"groups": 0}),
    (X, W, None, {"groups": 2}),
    (X, W, None, {"groups": 3}),
    (X, W, None, {"groups": 8}),
    (X, W, None, {"stride": (1, 1, 1)}),
    (X, W, None, {"padding": (1, 1, 1)}),
    (X, W, None, {"dilation": (1, 1, 1)}),
    (X, W, None, {"padding": "full"}),
    (X, W, None, {"padding": "same", "stride": 2}),
    ((2, 3, 0, 8), W, None, {}),
    ((2, 3, 0, 8), W, None, {"padding": 2}),
    (X, (0, 3, 3, 3), None, {}),
    (X, (4, 3, 0, 3), None, {}),
    ((5, 8, 8), W, None, {}),
]


@dataclass(frozen=True)
class FusedCase:
    """A convolution, and the arguments of max_pool2d. None means that there is no pooling."""

    conv: Conv2dCase
    pool: dict[str, Any] | None = None

    def __str__(self) -> str:
        pool = "-".join(f"{name}{value}" for name, value in (self.pool or {}).items())
        return "-".join(filter(None, [str(self.conv), "pool" if pool else "", pool])).replace(" ", "")

    @property
    def function(self) -> Callable[..., Tensor]:
        return FF.conv2d_relu if self.pool is None else FF.conv2d_relu_max_pool2d

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of `function` after its tensors."""
        return {**self.conv.arguments, **{f"pool_{name}": value for name, value in (self.pool or {}).items()}}


def fused(conv: Conv2dCase, **pool: Any) -> FusedCase:
    return FusedCase(conv, pool or None)


def composed(*tensors: Tensor | None, **arguments: Any) -> Tensor:
    """Call the two or three functions of PyTorch that a fused function replaces, with its arguments."""
    pool = {name.removeprefix("pool_"): value for name, value in arguments.items() if name.startswith("pool_")}
    rest = {name: value for name, value in arguments.items() if not name.startswith("pool_")}
    activations = F.relu(F.conv2d(*tensors, **rest))  # type: ignore[arg-type]
    return F.max_pool2d(activations, **pool) if pool else activations


FUSED = [
    # the layers of MnistCNN with a smaller batch
    fused(conv(3, 1, 28, 28, 32, 3, 3), kernel_size=2),
    fused(conv(3, 32, 13, 13, 64, 3, 3), kernel_size=2),
    fused(conv(5, 64, 5, 5, 128, 3, 3)),
    # numbers of channels around the widths of vectors and blocks; odd sizes
    *[
        fused(conv(2, C, 7, 6, K, 3, 3, padding=1), kernel_size=2)
        for C, K in [(1, 1), (3, 5), (5, 3), (15, 16), (16, 15), (16, 17), (17, 16), (31, 33), (33, 31), (48, 65)]
    ],
    *[fused(conv(2, C, 7, 8, K, 3, 3)) for C, K in [(2, 15), (16, 16), (17, 33), (33, 48), (65, 31)]],
    # few input channels
    *[fused(conv(2, C, 9, 10, K, 3, 3), kernel_size=2) for C, K in [(1, 17), (2, 16), (3, 33), (4, 31), (5, 32)]],
    fused(conv(3, 1, 12, 13, 48, 5, 5), kernel_size=2),
    fused(conv(2, 3, 9, 9, 5, 5, 5, padding=2), kernel_size=(1, 2)),
    fused(conv(2, 2, 11, 11, 18, 3, 3, padding=1), kernel_size=3),
    fused(conv(2, 4, 6, 7, 19, 3, 3)),
    # many output channels; windows of one or two columns
    fused(conv(2, 17, 8, 9, 130, 3, 3, padding=1), kernel_size=2),
    fused(conv(2, 16, 9, 9, 70, 3, 3), kernel_size=(3, 2), stride=1),
    fused(conv(3, 18, 6, 7, 33, 3, 3, padding=3), kernel_size=(2, 1)),
    # sizes of kernels
    fused(conv(2, 20, 9, 9, 33, 1, 1), kernel_size=2),
    fused(conv(2, 3, 6, 6, 4, 2, 4), kernel_size=3),
    fused(conv(2, 16, 12, 11, 20, 5, 5, padding=2), kernel_size=2),
    fused(conv(1, 2, 30, 9, 5, 7, 1, padding=(3, 0), bias=False), kernel_size=(3, 2)),
    fused(conv(1, 3, 1, 1, 40, 3, 3, padding=8), kernel_size=2),
    # few outputs with many channels: the algorithm that reads the weight without packing it
    fused(conv(1, 64, 2, 4, 48, 3, 3, padding=1), kernel_size=2),
    fused(conv(1, 64, 3, 4, 17, 3, 3, padding=1), kernel_size=3, stride=2, padding=1),
    fused(conv(2, 48, 4, 5, 19, 3, 3, padding=(1, 0), bias=False)),
    # windows of pools: adjacent, overlapping, with gaps, of one pixel, padded, dilated, beyond the edge, large
    fused(conv(2, 18, 11, 11, 20, 3, 3), kernel_size=3),
    fused(conv(2, 16, 12, 13, 35, 3, 3, padding=1), kernel_size=3, stride=2, padding=1),
    fused(conv(2, 3, 9, 10, 17, 3, 3), kernel_size=2, stride=1),
    fused(conv(2, 17, 9, 10, 16, 3, 3), kernel_size=2, stride=3),
    fused(conv(2, 16, 9, 10, 34, 3, 3, padding=1), kernel_size=1, stride=2),
    fused(conv(2, 16, 8, 8, 33, 3, 3), kernel_size=(3, 1), stride=(1, 2), padding=(1, 0)),
    fused(conv(2, 5, 11, 12, 6, 3, 3, padding=1), kernel_size=2, padding=1),
    fused(conv(2, 16, 12, 13, 16, 3, 3), kernel_size=(3, 2), dilation=(2, 3), padding=1),
    fused(conv(2, 16, 9, 9, 33, 3, 3), kernel_size=2, ceil_mode=True),
    fused(conv(2, 4, 9, 9, 8, 3, 3, bias=False), kernel_size=2, stride=3, ceil_mode=True),
    fused(conv(2, 16, 8, 9, 17, 3, 3), kernel_size=3, stride=2, padding=1, ceil_mode=True),
    fused(conv(2, 17, 12, 17, 16, 3, 3), kernel_size=5),
    fused(conv(2, 2, 12, 13, 17, 3, 3), kernel_size=(4, 5), stride=(3, 2)),
    fused(conv(1, 3, 17, 19, 4, 3, 3), kernel_size=(15, 17), stride=1),
    fused(conv(1, 3, 20, 20, 4, 3, 3), kernel_size=16, stride=2),  # positions that do not fit in a byte
    # stride, dilation, 'same', 'valid'
    fused(conv(2, 16, 14, 13, 20, 3, 3, stride=2, padding=1), kernel_size=2),
    fused(conv(2, 6, 17, 18, 10, 3, 3, stride=(1, 2), dilation=(2, 3), padding=(2, 4)), kernel_size=2),
    fused(conv(2, 40, 10, 10, 12, 3, 3, dilation=2)),
    fused(conv(2, 17, 9, 8, 16, 3, 3, padding="same"), kernel_size=2),
    fused(conv(2, 5, 9, 8, 6, 4, 3, padding="same", dilation=(1, 3)), kernel_size=3, stride=2),
    fused(conv(2, 5, 9, 8, 6, 3, 4, padding="valid", stride=(2, 3))),
    # groups, depthwise with and without a multiplier
    fused(conv(2, 34, 9, 8, 66, 3, 3, groups=2), kernel_size=2),
    fused(conv(2, 12, 8, 8, 18, 3, 3, groups=3, padding=1)),
    fused(conv(2, 37, 9, 8, 37, 3, 3, groups=37, padding=1), kernel_size=2),
    fused(conv(2, 16, 13, 10, 16, 5, 3, groups=16, dilation=2, bias=False), kernel_size=3, stride=2),
    fused(conv(2, 8, 9, 9, 8, 3, 3, groups=8)),
    fused(conv(2, 5, 8, 8, 15, 3, 3, groups=5), kernel_size=2),
    fused(conv(2, 20, 9, 8, 20, 3, 3, groups=5, padding=1), kernel_size=2),
    # no image, one image, more images than a batch is cut into pieces (16); large images
    fused(conv(0, 16, 8, 8, 17, 3, 3), kernel_size=2),
    fused(conv(0, 3, 8, 8, 4, 3, 3)),
    fused(conv(1, 16, 9, 9, 32, 3, 3, padding=1)),
    fused(conv(37, 3, 6, 6, 4, 3, 3), kernel_size=2),
    fused(conv(37, 16, 6, 6, 16, 3, 3), kernel_size=2),
    fused(conv(1, 3, 70, 65, 6, 3, 3, padding=1), kernel_size=2),
    fused(conv(1, 16, 9, 300, 17, 3, 3), kernel_size=2),
    fused(conv(1, 16, 9, 300, 16, 3, 3)),
]

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda t: t.contiguous(),
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t,
    "every second column": lambda t: torch.stack([t, t], -1).flatten(-2)[..., ::2],
    "transposed": lambda t: t.transpose(-1, -2).contiguous().transpose(-1, -2),
    "sliced": lambda t: torch.cat([t, t], 1)[:, : t.shape[1]],
    "batch last": lambda t: t.movedim(0, -1).contiguous().movedim(-1, 0),
}


def with_gradients(
    function: Callable[..., Tensor],
    tensors: tuple[Tensor | None, ...],
    grad_output: Tensor | None = None,
    **arguments: Any,
) -> list[Tensor]:
    """Return the result of a function and the gradient of each tensor that is not None."""
    leaves = [None if t is None else t.detach().requires_grad_() for t in tensors]
    output = function(*leaves, **arguments)
    if grad_output is None:
        grad_output = torch.ones_like(output)
    wanted = [leaf for leaf in leaves if leaf is not None]
    return [output.detach(), *torch.autograd.grad(output, wanted, grad_output.to(output.dtype))]


def root_mean_square(t: Tensor) -> float:
    return float(t.double().pow(2).mean().sqrt()) if t.numel() else 0.0


def assert_as_accurate(ours: list[Tensor], theirs: list[Tensor], exact: list[Tensor]) -> None:
    """Assert that our error against float64 is at most twice PyTorch's, plus one unit in the last place.

    The unit is 2^-23 of the result's root mean square plus 1. The 1 is for sums whose terms cancel.
    """
    for mine, other, reference in zip(ours, theirs, exact, strict=True):
        assert mine.shape == reference.shape
        allowed = 2 * root_mean_square(other - reference) + 2**-23 * (root_mean_square(reference) + 1)
        assert root_mean_square(mine - reference) <= allowed


def assert_identical(a: list[Tensor], b: list[Tensor]) -> None:
    """Assert that results have the same values, and NaN in the same places."""
    for first, second in zip(a, b, strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=0, equal_nan=True)


def pytorchs_words(error: BaseException) -> str:
    """The message of an exception of PyTorch's. torch 2.10 has other words for a number above 32 bits."""
    return str(error).replace("integer out of range", "value cannot be converted to type int without overflow")


def assert_refused_alike(ours: Callable[..., Any], theirs: Callable[..., Any], *arguments: Any, **named: Any) -> None:
    """Assert that a call fails with the same type of exception and the same message in both libraries."""
    with pytest.raises(Exception) as expected:  # noqa: PT011  any exception of PyTorch's
        theirs(*arguments, **named)
    with pytest.raises(type(expected.value)) as found:
        ours(*arguments, **named)
    assert str(found.value) == pytorchs_words(expected.value)


def has_wide_avx512() -> bool:
    """Whether the level in use is avx512, on an AMD CPU of family 26 (Zen 5) or later."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    family = re.search(r"cpu family\s*: (\d+)", text)
    return "AuthenticAMD" in text and family is not None and int(family[1]) >= 26 and _C.cpu_capability() == "avx512"
