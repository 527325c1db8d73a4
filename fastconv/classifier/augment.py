"""Augmentation: small random changes of a batch of training images."""

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
    """Move each image by up to 2 whole pixels in each direction. New pixels are black.

    Shape:
        (N, C, H, W) -> (N, C, H, W), C x H x W contiguous.

    Example:
        >>> shift(torch.ones(5, 1, 8, 8), torch.Generator().manual_seed(0)).shape
        torch.Size([5, 1, 8, 8])
    """
    N, C, H, W = images.shape
    padded = F.pad(images.contiguous(), (_PIXELS,) * 4)
    corners = 2 * _PIXELS + 1
    # Make a view of all windows of H x W pixels, so that one indexing operation copies the chosen windows.
    strides = padded.stride()
    windows = padded.as_strided(
        (N, corners, corners, C, H, W), (strides[0], strides[2], strides[3], *strides[1:]), padded.storage_offset()
    )
    down, right = torch.randint(corners, (2, N), generator=generator).to(images.device)
    if not images.is_cpu:
        return windows[torch.arange(N, device=images.device), down, right]
    # NumPy's indexing is faster than PyTorch's, because it copies a window at a time.
    return torch.from_numpy(windows.numpy()[np.arange(N), down.numpy(), right.numpy()])


def affine(images: Tensor, generator: Generator) -> Tensor:
    """Rotate each image by up to 10 degrees, scale it by up to 10 %, and move it by up to 2 pixels (bilinear).

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
    # grid_sample's coordinates run from -1 to 1, so a side has the length 2.
    rows = torch.stack(
        [cos, -sin * (H / W), right * (2 * _PIXELS / W), sin * (W / H), cos, down * (2 * _PIXELS / H)], 1
    ).to(images.device)
    # One matrix product for all pixels is faster than affine_grid.
    y, x = (torch.arange(1 - size, size, 2).to(images) / size for size in (H, W))
    pixels = torch.stack([x.repeat(H), y.repeat_interleave(W), torch.ones(H * W).to(images)])
    grid = (rows.view(2 * N, 3) @ pixels).view(N, 2, H, W).permute(0, 2, 3, 1)
    return F.grid_sample(images, grid, align_corners=False)


def flip(images: Tensor, generator: Generator) -> Tensor:
    """Move each image as :func:`shift` does, and mirror it left to right with probability 1/2.

    Shape:
        (N, C, H, W) -> (N, C, H, W).

    Example:
        >>> flip(torch.ones(5, 3, 8, 8), torch.Generator().manual_seed(0)).shape
        torch.Size([5, 3, 8, 8])
    """
    moved = shift(images, generator)  # a copy, so half of its images can be mirrored in place
    mirrored = (torch.rand(len(images), generator=generator) < 0.5).to(images.device)
    moved[mirrored] = moved[mirrored].flip(3)
    return moved


#: The functions by their names in ``TrainingConfig.augment`` and ``fastconv train --augment``.
AUGMENTATIONS: dict[str, Callable[[Tensor, Generator], Tensor]] = {
    "none": lambda images, generator: images,
    "shift": shift,
    "affine": affine,
    "flip": flip,
}
