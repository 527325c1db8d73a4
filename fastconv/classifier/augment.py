"""Augmentation: whole batches of training images, moved a little at random, so that no image is seen twice.

Cheap enough for a step of a few milliseconds: a batch of 64 digits is shifted in less than 0.1 ms, and takes 0.2 for a
rotation and a change of size as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional as F

_PIXELS = 2
_DEGREES = 10.0
_ZOOM = 0.1


def shift(images: Tensor, generator: Generator) -> Tensor:
    """Each image moved by up to 2 whole pixels, down and to the right or up and to the left; black comes in.

    Shape:
        (N, C, H, W) -> (N, C, H, W), C x H x W contiguous.

    Example:
        >>> shift(torch.ones(5, 1, 8, 8), torch.Generator().manual_seed(0)).shape
        torch.Size([5, 1, 8, 8])
    """
    N, C, H, W = images.shape
    padded = F.pad(images.contiguous(), (_PIXELS,) * 4)
    corners = 2 * _PIXELS + 1
    # Every window of H x W pixels, without a copy of any: the gather then is the only pass over the images.
    strides = padded.stride()
    windows = padded.as_strided(
        (N, corners, corners, C, H, W), (strides[0], strides[2], strides[3], *strides[1:]), padded.storage_offset()
    )
    down, right = torch.randint(corners, (2, N), generator=generator).numpy()
    # NumPy's indexing copies whole windows: 47 us for 64 digits, and PyTorch's 84.
    return torch.from_numpy(windows.numpy()[np.arange(N), down, right])


def affine(images: Tensor, generator: Generator) -> Tensor:
    """Each image turned by up to 10 degrees, scaled by up to a tenth and moved by up to 2 pixels, bilinearly.

    Shape:
        (N, C, H, W) -> (N, C, H, W).

    Example:
        >>> affine(torch.ones(5, 1, 8, 8), torch.Generator().manual_seed(0)).shape
        torch.Size([5, 1, 8, 8])
    """
    N, _, H, W = images.shape
    turn, zoom, down, right = torch.rand(4, N, generator=generator, dtype=images.dtype).mul_(2).sub_(1)
    angle, scale = turn * math.radians(_DEGREES), 1 + zoom * _ZOOM
    cos, sin = angle.cos() * scale, angle.sin() * scale
    # grid_sample's coordinates go from -1 to 1 over each side: two of them are a whole side.
    rows = torch.stack(
        [cos, -sin * (H / W), right * (2 * _PIXELS / W), sin * (W / H), cos, down * (2 * _PIXELS / H)], 1
    ).to(images.device)
    # Plane by plane, in one product of matrices: 77 us for 128 digits, and 560 in affine_grid, pixel by pixel.
    y, x = (torch.arange(1 - size, size, 2).to(images) / size for size in (H, W))
    pixels = torch.stack([x.repeat(H), y.repeat_interleave(W), torch.ones(H * W).to(images)])
    grid = (rows.view(2 * N, 3) @ pixels).view(N, 2, H, W).permute(0, 2, 3, 1)
    return F.grid_sample(images, grid, align_corners=False)


def flip(images: Tensor, generator: Generator) -> Tensor:
    """Each image moved as :func:`shift` does, and mirrored, left to right, with probability 1/2.

    Shape:
        (N, C, H, W) -> (N, C, H, W).

    Example:
        >>> flip(torch.ones(5, 3, 8, 8), torch.Generator().manual_seed(0)).shape
        torch.Size([5, 3, 8, 8])
    """
    moved = shift(images, generator)  # images of its own: half of them are mirrored in place
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    moved[mirrored] = moved[mirrored].flip(3)
    return moved


#: By the name that ``TrainingConfig.augment`` and ``fastconv train --augment`` take.
AUGMENTATIONS: dict[str, Callable[[Tensor, Generator], Tensor]] = {
    "none": lambda images, generator: images,
    "shift": shift,
    "affine": affine,
    "flip": flip,
}
