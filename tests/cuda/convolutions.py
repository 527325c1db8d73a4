"""Arguments of the convolution operators for the cases of tests/cases.py, and PyTorch's results for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from cases import MEMORY_FORMATS, Conv2dCase, FusedCase
from devices import FLOATING, Device
from sweep import FULL, over
from torch import Tensor
from torch.nn import functional as F

from fastconv._ops.arguments import pad_same

Pair = tuple[int, int]
Tensors = tuple[Tensor, Tensor, Tensor | None]

DEAD = 255


def in_types_and_layouts(cases: Sequence[Any], thorough: Sequence[Any]) -> pytest.MarkDecorator:
    """Parametrize a test over case, dtype and layout, so that every pair, such as a case and a dtype, occurs.

    In ``make test-all`` nearly every combination of all three occurs. The 16-bit types share their kernels and are slow
    to emulate. So they have both layouts in the `thorough` cases only, and one layout each in the other cases.
    """
    if not FULL:
        return over(case=cases, dtype=FLOATING, layout=MEMORY_FORMATS)
    alone = {torch.float16: "channels_last", torch.bfloat16: "contiguous"}
    chosen = [
        pytest.param(case, dtype, layout, id=f"{case}-{layout}-{dtype}")
        for dtype in FLOATING
        for layout in MEMORY_FORMATS
        for case in cases
        if case in thorough or layout == alone.get(dtype, layout)
    ]
    return pytest.mark.parametrize(("case", "dtype", "layout"), chosen)


def pair(value: Any) -> Pair:
    return (value, value) if isinstance(value, int) else tuple(value)  # type: ignore[return-value]


@dataclass(frozen=True)
class Call:
    """Stride, padding, dilation and groups of the convolution, and the arguments of the pool or None."""

    geometry: tuple[Pair, Pair, Pair, int]
    pool: tuple[Pair, Pair, Pair, Pair, bool] | None = None

    def forward(self, device: Device, x: Tensor, w: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor]:
        """Call the fused operator, and return output and argmax."""
        if self.pool is None:
            return device.ops.conv2d_relu(x, w, b, *self.geometry)
        return device.ops.conv2d_relu_max_pool2d(x, w, b, *self.geometry, *self.pool)

    def backward(
        self,
        device: Device,
        g: Tensor,
        argmax: Tensor,
        x: Tensor,
        w: Tensor,
        needs_input: bool = True,
        needs_weight: bool = True,
    ) -> tuple[Tensor, Tensor, Tensor]:
        if self.pool is None:
            return device.ops.conv2d_relu_backward(g, argmax, x, w, needs_input, needs_weight, *self.geometry)
        return device.ops.conv2d_relu_max_pool2d_backward(
            g, argmax, x, w, needs_input, needs_weight, *self.geometry, *self.pool[:4]
        )

    def argmax(self, y: Tensor) -> Tensor:
        """Compute the argmax of the fused operators from the results of the convolution."""
        if self.pool is None:
            return torch.where(y <= 0, DEAD, 0).to(torch.uint8)
        (_, S), (u_h, u_w), (z_h, z_w), (d_h, d_w), _ = self.pool
        values, at = F.max_pool2d(y, *self.pool, return_indices=True)
        rows = at // y.shape[3] + z_h - torch.arange(at.shape[2]).view(-1, 1) * u_h
        columns = at % y.shape[3] + z_w - torch.arange(at.shape[3]) * u_w
        return torch.where(values <= 0, DEAD, rows // d_h * S + columns // d_w).to(torch.uint8)

    def by_decisions(self, argmax: Tensor, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        """Compute the fused function with a given argmax, which picks a pixel or 0 for each output."""
        stride, padding, dilation, groups = self.geometry
        y = F.conv2d(x, w, b, stride, padding, dilation, groups)
        one = (1, 1)
        (_, S), (u_h, u_w), (z_h, z_w), (d_h, d_w) = (one, one, (0, 0), one) if self.pool is None else self.pool[:4]
        position, dead = argmax.long(), argmax == DEAD
        rows = torch.arange(argmax.shape[2]).view(-1, 1) * u_h - z_h + position // S * d_h
        columns = torch.arange(argmax.shape[3]) * u_w - z_w + position % S * d_w
        pixels = torch.where(dead, 0, rows * y.shape[3] + columns)
        return torch.where(dead, 0, y.flatten(2).gather(2, pixels.flatten(2)).view(argmax.shape))

    def composed(self, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        stride, padding, dilation, groups = self.geometry
        y = F.relu(F.conv2d(x, w, b, stride, padding, dilation, groups))
        return y if self.pool is None else F.max_pool2d(y, *self.pool)


def arrange(case: Conv2dCase | FusedCase, tensors: Tensors) -> tuple[Tensors, Call]:
    """Return the arguments for the operators, which take padding as numbers, not as 'same' or 'valid'."""
    conv, pool = (case, None) if isinstance(case, Conv2dCase) else (case.conv, case.pool)
    (x, w, b), given = tensors, conv.arguments
    padding = given.get("padding", 0)
    if padding == "same":
        x, padding = pad_same(x, w, pair(given.get("dilation", 1)))
    geometry = (
        pair(given.get("stride", 1)),
        pair(0 if padding == "valid" else padding),
        pair(given.get("dilation", 1)),
        given.get("groups", 1),
    )
    if pool is None:
        return (x, w, b), Call(geometry)
    kernel = pair(pool["kernel_size"])
    sizes = (kernel, pair(pool.get("stride", kernel)), pair(pool.get("padding", 0)), pair(pool.get("dilation", 1)))
    return (x, w, b), Call(geometry, (*sizes, pool.get("ceil_mode", False)))


def doubles(tensors: Tensors) -> Tensors:
    x, w, b = (None if t is None else t.detach().double().requires_grad_() for t in tensors)
    assert x is not None
    assert w is not None
    return x, w, b


def gradients(y: Tensor, g: Tensor, tensors: Tensors) -> list[Tensor]:
    return list(torch.autograd.grad(y, [t for t in tensors if t is not None], g.to(y.dtype)))
