"""Positions beyond 2^31. Most pages of these tensors are never touched, so they need little memory."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

import fastconv.functional as FF
from fastconv._ops.conv2d import conv2d_backward_weight

pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's overcommit of memory"),
]

STEP = 2**20
WIDTH = 2**31 + STEP


def zeros_with_a_three_at_the_end() -> torch.Tensor:
    """Return a tensor of size (1, 1, 1, WIDTH) whose last element is 3."""
    try:
        x = np.zeros((1, 1, 1, WIDTH), np.float32)
    except MemoryError:
        pytest.skip("the machine cannot reserve 8 GiB")
    x[..., -1] = 3
    return torch.from_numpy(x)


def test_conv2d_reads_beyond_two_to_the_thirty_one() -> None:
    x = zeros_with_a_three_at_the_end()
    w = torch.tensor([[[[1.0, 2.0]]]])
    y = FF.conv2d(x[..., STEP - 2 :], w, stride=(1, STEP))
    assert y.shape == (1, 1, 1, 2049)
    assert y.flatten().nonzero().tolist() == [[2048]]
    assert y[..., -1].item() == 6


def test_the_gradient_of_the_weight_reads_beyond_two_to_the_thirty_one() -> None:
    x = zeros_with_a_three_at_the_end()[..., STEP - 2 :]
    g = torch.full((1, 1, 1, 2049), 5.0)
    dw, db = conv2d_backward_weight(g, x, (1, 2), (1, STEP), (0, 0), (1, 1), 1, False)
    assert dw.flatten().tolist() == [0, 15]
    assert db.item() == 5 * 2049


def test_max_pool2d_reads_beyond_two_to_the_thirty_one() -> None:
    x = zeros_with_a_three_at_the_end()[..., STEP - 2 :]
    y, indices = FF.max_pool2d(x, (1, 2), (1, STEP), return_indices=True)
    assert y[..., -1].item() == 3
    assert indices[..., -1].item() == x.shape[-1] - 1 > 2**31


def test_the_gradient_of_the_weight_sums_images_of_one_tile_beyond_two_to_the_thirty_one() -> None:
    N, C, H, K = 16, 32, 2125, 1024
    try:
        x = torch.from_numpy(np.zeros((N, H, H, C), np.float32)).permute(0, 3, 1, 2)
    except MemoryError:
        pytest.skip("the machine cannot reserve 9 GiB")
    for n in (0, 15):
        x[n, :, :3, :3] = n + 1
    g = torch.zeros(N, K, 1, 1)
    g[:, ::2] = 1  # half of g is non-zero, so that kernels with lists of non-zeros are chosen
    dw, db = conv2d_backward_weight(g, x, (3, 3), (2200, 2200), (0, 0), (1, 1), 1, False)
    assert dw[0].eq(17).all()
    assert dw[1].eq(0).all()
    assert db[:2].tolist() == [16, 0]
