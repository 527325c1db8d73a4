"""Comparison of results, and everything in which fastconv may differ from PyTorch.

Exceptions, by name. Nothing else is excluded.

PADDING   An infinite or NaN factor over padding makes NaN here; elsewhere it may be left out, or the other way round.
OVERFLOW  The order of a sum decides whether it overflows on the way. An element is compared only if the sum of its
          terms' absolute values is below a quarter of the largest number.
WINOGRAD  A result of Winograd's algorithm is as exact as the largest values near it (Convolution.largest_near): a tile
          mixes them. Exact integers are asked for up to tiles of 2 x 2, whose points are 0, 1 and -1.
SMALL INTEGERS  PyTorch refuses to pool channels_last images of more pixels than their integer type can count.
UNBATCHED PyTorch's max_pool2d makes one image without a batch contiguous, the fused operator keeps channels_last.
ONE PIXEL Strides of an image of one pixel are those of both memory formats.
CRASH     PyTorch 2.13 ends with a segmentation fault in float32 convolutions of channels_last images of one column with
          kernels of one column, a stride and a dilation. The reference is computed in float64.
NAN BITS  The bits inside a NaN.
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
    """Equal, -0.0 is not 0.0, NAN BITS."""
    same(f"{name} dtype", ours.dtype, theirs.dtype)
    same(f"{name} shape", tuple(ours.shape), tuple(theirs.shape))
    equal = (ours == theirs) & (torch.signbit(ours) == torch.signbit(theirs))
    if ours.is_floating_point():
        equal |= ours.isnan() & theirs.isnan()
    _all(name, equal, ours, theirs)


def same_values(name: str, ours: Tensor, exact: Tensor, ignored: Tensor | None = None) -> None:
    """Equal to float64's result in our type; of zeros, any."""
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
    """Within the bound of the sums' rounding.

    Args:
        exact: the result in float64.
        size: the sum of the absolute values of its terms.
        terms: their number. Roundings are independent, so errors grow with its square root.
        ignored: the elements of an exception.
        summed: the result is the sum of two, each of which is rounded to its type.
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
    """See close()."""
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
