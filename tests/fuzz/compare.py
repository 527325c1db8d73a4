"""Comparison of results. fastconv may differ from PyTorch only in these exceptions, which have names:

PADDING   An infinite or NaN factor times padding may be NaN in one library. The other may skip the product.
OVERFLOW  The order of a sum decides whether a partial sum overflows. An element is compared only if the sum of its
          terms' absolute values is below a quarter of the largest number.
WINOGRAD  A tile of Winograd's algorithm mixes its values, so the error of a result is relative to the largest values
          near it (Convolution.largest_near). Integers must be exact in tiles up to 2 x 2, whose points are 0, 1, -1.
SMALL INTEGERS  PyTorch refuses to pool channels_last images of more pixels than their integer type can count.
UNBATCHED For one image without a batch, PyTorch's max_pool2d returns contiguous. The fused one keeps channels_last.
ONE PIXEL The strides of an image of one pixel fit both memory formats. The results computed from it may differ in
          strides. The image is the input, or the result of the convolution that a fused operator pools.
CRASH     PyTorch 2.13 crashes in a float32 convolution with stride and dilation if the images are channels_last and
          have few columns, and the kernel has one. The reference is computed in float64.
NAN BITS  The bits of a NaN may differ.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

TINY = {torch.float16: 2.0**-24, torch.bfloat16: 2.0**-133, torch.float32: 2.0**-149, torch.float64: 2.0**-1074}


class Mismatch(Exception):
    """fastconv and the reference differ."""


def same(name: str, ours: Any, theirs: Any) -> None:
    if ours != theirs:
        raise Mismatch(f"{name}: {ours}, expected {theirs}")


def same_bits(name: str, ours: Tensor, theirs: Tensor) -> None:
    """Require equal bits, where -0.0 differs from 0.0. NAN BITS may differ."""
    same(f"{name} dtype", ours.dtype, theirs.dtype)
    same(f"{name} shape", tuple(ours.shape), tuple(theirs.shape))
    equal = (ours == theirs) & (torch.signbit(ours) == torch.signbit(theirs))
    if ours.is_floating_point():
        equal |= ours.isnan() & theirs.isnan()
    _all(name, equal, ours, theirs)


def same_values(name: str, ours: Tensor, exact: Tensor, ignored: Tensor | None = None) -> None:
    """Require the float64 result, rounded to our dtype. 0.0 and -0.0 are equal."""
    same(f"{name} shape", tuple(ours.shape), tuple(exact.shape))
    expected = exact.to(ours.dtype)
    equal = (ours == expected) | (ours.isnan() & expected.isnan())
    _all(name, equal if ignored is None else equal | ignored, ours, expected)


def close(
    name: str,
    ours: Tensor,
    exact: Tensor,
    size: Tensor,
    terms: int,
    ignored: Tensor | None = None,
    summed: bool = False,
) -> None:
    """Require an error below the bound of the rounding of sums.

    Args:
        exact: the result in float64.
        size: the sum of the absolute values of the result's terms.
        terms: the number of terms. Rounding errors are independent, so errors grow with its square root.
        ignored: the elements that an exception covers.
        summed: the result is the sum of two results, each of which is rounded to the dtype.
    """
    same(f"{name} shape", tuple(ours.shape), tuple(exact.shape))
    most = torch.finfo(ours.dtype).max / 4
    allowed = tolerance(ours.dtype, exact, size, terms, summed)
    number = exact.isfinite()
    good = torch.where(
        number, (ours.double() - exact).abs() <= allowed, (ours == exact) | (ours.isnan() & exact.isnan())
    )
    good |= ~(size <= most)  # OVERFLOW
    _all(name, good if ignored is None else good | ignored, ours, exact)


def tolerance(dtype: torch.dtype, exact: Tensor, size: Tensor, terms: int, summed: bool = False) -> Tensor:
    """The largest error that close() allows."""
    wide = dtype if dtype in (torch.float32, torch.float64) else torch.float32
    allowed = torch.finfo(wide).eps * (4 + 2 * terms**0.5) * size + (terms + 8) * TINY[wide]
    if wide != dtype:  # rounded once, half a unit in the last place
        rounded = 0.51 * exact.abs().nan_to_num(0, 0, 0) + (size if summed else 0)
        allowed = allowed + torch.finfo(dtype).eps * rounded + 2 * TINY[dtype]
    return allowed


def _all(name: str, good: Tensor, ours: Tensor, expected: Tensor) -> None:
    if good.all():
        return
    at = tuple(int(i) for i in (~good).nonzero()[0])
    raise Mismatch(
        f"{name}{list(at)}: {ours[at].item()!r}, expected {expected[at].item()!r}; "
        f"{int((~good).sum())} of {good.numel()} differ"
    )
