"""Time the three convolution blocks of MnistCNN, batch 64: PyTorch's composition and the fused operators.

Zeros make backward faster, so the share of zeros is that of training. The biases are set so that in every channel the
stated share of the windows is above zero. The input of a block is the output of the previous block. grad_output is
random and dense. conv1 has no grad_input, because its input is the images. The C allocator keeps its pages
(conftest.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from bench_operators import BATCH, CONV1, CONV2, CONV3, Layer
from ratios import size_claim
from torch import Tensor
from torch.nn import functional as F

import fastconv.functional as FF
from fastconv.benchmarking.ratios import VARIANTS

pytestmark = pytest.mark.usefixtures("keep_pages")


@dataclass(frozen=True)
class Block:
    """A convolution with ReLU and perhaps 2x2 pooling. `live` is the share of windows above zero."""

    layer: Layer
    pooled: bool
    live: float

    def __str__(self) -> str:
        return self.layer.name

    def torch(self, x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        y = F.relu(F.conv2d(x, w, b))
        return F.max_pool2d(y, 2) if self.pooled else y

    def fastconv(self, x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return FF.conv2d_relu_max_pool2d(x, w, b) if self.pooled else FF.conv2d_relu(x, w, b)


# The rounded shares of MnistCNN after 750 steps of training (`live` in the JSON of bench_training_step.py).
BLOCK1, BLOCK2, BLOCK3 = BLOCKS = (Block(CONV1, True, 0.6), Block(CONV2, True, 0.5), Block(CONV3, False, 0.3))


def block_tensors(block: Block) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return input, weight, bias and the gradient of the output."""
    torch.manual_seed(0)
    x = torch.rand(BATCH, 1, 28, 28)
    for each in BLOCKS:
        layer = each.layer
        w = torch.randn(layer.K, layer.C, 3, 3) / (3 * layer.C**0.5)
        maxima = F.conv2d(x, w)
        if each.pooled:
            maxima = F.max_pool2d(maxima, 2)
        b = -maxima.transpose(0, 1).flatten(1).quantile(1 - each.live, dim=1)
        y = each.torch(x, w, b)
        live = float((y > 0).float().mean())
        assert abs(live - each.live) < 0.005, live
        if each == block:
            break
        x = y
    return x, w, b, torch.randn_like(y)


def runs(block: Block, backward: bool) -> dict[str, Callable[[], object]]:
    """Return the four variants of forward and backward, or of forward alone, which records the graph for backward."""
    x, w, b, g = block_tensors(block)

    def variant(function: Callable[..., Tensor], memory_format: torch.memory_format) -> Callable[[], object]:
        x_, w_, g_ = (t.clone(memory_format=memory_format) for t in (x, w, g))
        b_ = b.clone().requires_grad_()
        w_.requires_grad_()
        x_.requires_grad_(block != BLOCK1)
        if not backward:
            return lambda: function(x_, w_, b_)
        inputs = (w_, b_) if block == BLOCK1 else (x_, w_, b_)
        return lambda: torch.autograd.grad(function(x_, w_, b_), inputs, g_)

    return {
        "torch NCHW": variant(block.torch, torch.contiguous_format),
        "torch channels_last": variant(block.torch, torch.channels_last),
        "fastconv NCHW": variant(block.fastconv, torch.contiguous_format),
        "fastconv channels_last": variant(block.fastconv, torch.channels_last),
    }


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_block_forward_backward(block: Block, alternate: Any) -> None:
    what = f"{block} + ReLU{' + pool' if block.pooled else ''}, {block.live:.0%} live: forward + backward"
    alternate(runs(block, backward=True), what)


def test_block_forward(alternate: Any) -> None:
    alternate(runs(BLOCK2, backward=False), f"{BLOCK2} + ReLU + pool: forward")


def saved_bytes(variant: str) -> int:
    """Return the bytes that the blocks save for backward, including images and weights. Each storage counts once."""
    memory_format = torch.channels_last if variant.endswith("channels_last") else torch.contiguous_format
    x = block_tensors(BLOCK1)[0].clone(memory_format=memory_format)
    storages: dict[int, torch.UntypedStorage] = {}  # kept alive, so that no address is used again

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        for block in BLOCKS:
            _, w, b, _ = block_tensors(block)
            w = w.clone(memory_format=memory_format).requires_grad_()
            function = block.torch if variant.startswith("torch") else block.fastconv
            x = function(x, w, b.requires_grad_())
    return sum(storage.nbytes() for storage in storages.values())


def test_saved_bytes(benchmark: Any) -> None:
    sizes = {variant: saved_bytes(variant) for variant in VARIANTS[:-1]}
    sizes[VARIANTS[-1]] = benchmark.pedantic(saved_bytes, args=(VARIANTS[-1],), rounds=1, iterations=1)
    benchmark.extra_info["bytes"] = sizes
    what = "saved for backward by the three blocks, images and weights included"
    benchmark.extra_info["claims"] = [size_claim(what, sizes)]
