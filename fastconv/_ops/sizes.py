"""Output sizes of convolution and max-pooling."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["Ints", "are_numbers", "conv2d_output", "pool_output"]

Ints = Sequence[int]


def are_numbers(*sizes: Ints) -> bool:
    """Return whether all sizes are numbers, and not the symbols of torch.compile."""
    return all(type(size) is int for given in sizes for size in given)


def conv2d_output(image: Ints, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints) -> tuple[int, int]:
    """Return height and width (P, Q) of a convolution's output. Less than 1 if the kernel is larger than the image."""
    P, Q = (
        (size + 2 * pad - step * (taps - 1) - 1) // jump + 1
        for size, taps, jump, pad, step in zip(image, kernel, stride, padding, dilation, strict=True)
    )
    return P, Q


def pool_output(size: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool) -> int:
    """Return the number of windows of a max-pool along one axis. Less than 1 if no window fits."""
    span = size + 2 * padding - dilation * (kernel - 1) - 1
    if not ceil_mode:
        return span // stride + 1
    windows = (span + stride - 1) // stride + 1
    # PyTorch drops a last window that would start beyond the input and its left padding.
    return windows - 1 if (windows - 1) * stride >= size + padding else windows
