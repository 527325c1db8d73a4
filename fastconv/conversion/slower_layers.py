"""The layers that PyTorch computes faster. :func:`fastconv.convert` does not convert these.

``python benchmarks/convert_layers.py`` measured these figures on one thread of Zen 4 (AVX-512, float32). Each is
PyTorch's time divided by fastconv's, both in their faster memory format. Each layer has three figures: a training step
on a batch, inference of a batch, and inference of one image. A batch has at most 64 images and 0.3e9 multiplications. A
conversion knows neither the size of the images nor the batch, so PyTorch computes a layer if the three figures together
favour it. A layer with 1 or 3 input channels is a first layer, whose input has no gradient.

    alone, 3x3         64: train  infer   1: infer       with ReLU: train  infer  1: infer
      1->32   32x32        1.92   1.40    0.85                      1.72   2.23   1.56
      3->32   32x32        1.13   1.10    1.02                      0.94   1.67   1.23
      8->8    28x28        0.62   0.95    0.94                      0.44   0.95   1.26
      16->16  28x28        1.01   1.04    1.37                      0.71   1.26   1.99
      32->32  28x28        1.29   1.49    1.43                      1.07   1.58   2.09
      64->64  14x14        1.22   1.48    1.38                      1.26   1.67   2.02
      256->256 14x14       1.24   1.54    1.38                      1.32   1.53   1.33
      256->512 4x4         1.07   1.15    0.62                      1.20   1.24   0.86
      512->512 7x7         0.87   0.78    0.91                      0.97   0.78   0.92
      512->512 4x4         0.90   0.61    0.67                      0.90   0.62   0.71
      stride 2: 64->128    0.98   0.94    1.17     128->256 0.97 0.86 1.41     256->512 0.88 0.78 0.98
    alone, 1x1
      64->64  14x14        0.98   0.82    0.81                      0.94   1.10   0.83
      256->256 14x14       0.88   0.90    0.94                      0.89   0.94   0.91
      stride 2: 16->32     1.47   1.08    2.08     64->128  1.08 1.15 1.70     256->512 0.82 0.98 0.89
    alone, 5x5
      3->32   32x32        1.15   1.15    1.55                      0.82   1.33   1.83
      6->16   14x14        0.60   1.02    2.10                      0.45   1.02   1.77
      16->16  28x28        0.83   0.98    1.24                      1.00   1.01   1.37
      64->64  14x14        0.88   0.87    1.10                      1.05   0.90   1.16
    alone, 7x7
      3->32   32x32        1.00   1.00    1.34                      0.74   1.12   1.68
      16->16  28x28        0.80   0.92    1.01                      1.03   0.95   1.11
      64->64  14x14        0.84   0.82    0.99                      1.00   0.85   1.24
    with ReLU and a pool of 2x2: 1.3 to 9, except
      8->8 3x3 28x28       0.65   1.25   1.70     16->16 1x1  0.90  1.65  0.85
    groups, 3x3
      64 in 2              1.00   1.04    1.10     128 in 8 0.91 0.87 1.01
      groups of n input and n output channels (n = 1, 2, 4, 8 or 16), from benchmarks/bench_layers.py, geometric means:
      depthwise, 20 layers: training step 2.04, inference 1.22     n = 4 to 16, 7 layers: 1.29, 1.31
    ReLU                   0.71-0.94  0.91-0.95  0.74-0.77
    max-pool of 2x2, NCHW  1.11-5.05  1.53-5.95  0.75-2.16    channels_last  0.88-1.07  0.86-1.23  0.57-0.87
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import torch

from fastconv._deferred import Fusion

__all__ = ["FASTCONV", "Choice", "choose", "torch_is_faster"]


@dataclass(frozen=True)
class Choice:
    """Which library computes a layer: fastconv, or PyTorch with the reason."""

    fastconv: bool
    reason: str = ""


FASTCONV = Choice(fastconv=True)


def torch_is_faster(conv: torch.nn.Conv2d) -> frozenset[Fusion]:
    """Return the combinations of a convolution that PyTorch computes faster.

    Example:
        >>> sorted(torch_is_faster(torch.nn.Conv2d(64, 64, 1)))
        ['ReLU', 'alone']
    """
    return frozenset(fusion for fusion in get_args(Fusion) if not choose(conv, fusion).fastconv)


def choose(module: torch.nn.Module, fusion: Fusion = "alone") -> Choice:
    """Choose the faster library for a layer.

    Args:
        module: a convolution, max-pool or ReLU of :mod:`torch.nn`.
        fusion: what a convolution runs with: 'alone', 'ReLU', or 'pool' (a ReLU and a max-pool).

    Example:
        >>> choose(torch.nn.Conv2d(64, 64, 3))
        Choice(fastconv=True, reason='')
        >>> choose(torch.nn.Conv2d(64, 64, 1)).reason
        'PyTorch is faster at 1x1 kernels of stride 1'
    """
    if isinstance(module, torch.nn.ReLU):
        return Choice(False, "PyTorch is faster at ReLU alone")
    if not isinstance(module, torch.nn.Conv2d) or module.in_channels == 0:  # 0: LazyConv2d
        return FASTCONV
    slow = _slow_convolution(module, fusion)
    if not slow:
        return FASTCONV
    together = f", even with {fusion}" if fusion != "alone" and "with" not in slow else ""
    return Choice(False, f"PyTorch is faster at {slow}{together}")


def _slow_convolution(module: torch.nn.Conv2d, fusion: Fusion) -> str:
    """Describe a convolution that PyTorch computes faster. Empty for other convolutions."""
    R, S = module.kernel_size
    with_relu = fusion != "alone"
    taps, strided, C = R * S, module.stride not in ((1, 1), 1), module.in_channels // module.groups
    if module.groups > 1 and C < 32:
        thin = C in (1, 2, 4, 8, 16) and module.out_channels == module.in_channels  # csrc/cpu/kernels/thin_groups.h
        return "" if thin else f"groups of {C} input channels"
    if fusion == "pool":
        return ""
    kernel = f"{R}x{S} kernels"
    if taps == 1:
        if not strided:
            return "1x1 kernels of stride 1"
        return f"{kernel} on {C} channels" if C >= 256 or with_relu else ""
    if C <= 4:
        return f"{kernel} on {C} channels with ReLU" if with_relu and taps * C > 32 else ""
    if taps <= 9:
        least, most = (32 if with_relu else 16), (256 if strided else 512)
    else:
        least, most = (16, 512) if with_relu and taps <= 25 else (5, 5)
    return "" if least <= C < most else f"{kernel} on {C} channels"
