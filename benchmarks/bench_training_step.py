"""Whole training steps of MnistCNN, batch 64: gather, forward, loss, backward, Adam.

The images are random; nothing in these unfused layers depends on what they show.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

import fastconv
from fastconv.models import MnistCNN

BATCH = 64
IMAGES = 4096


def training_step(layers: Any, memory_format: torch.memory_format) -> Callable[[], object]:
    torch.manual_seed(0)
    model = MnistCNN(layers=layers).to(memory_format=memory_format)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    images = torch.rand(IMAGES, 1, 28, 28).to(memory_format=memory_format)
    labels = torch.randint(10, (IMAGES,))
    order = torch.randperm(IMAGES).split(BATCH)
    step = 0

    def run() -> float:
        nonlocal step
        batch = order[step % len(order)]
        step += 1
        loss = F.cross_entropy(model(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return run


def test_training_step(alternate: Any) -> None:
    alternate(
        {
            "torch NCHW": training_step(torch.nn, torch.contiguous_format),
            "torch channels_last": training_step(torch.nn, torch.channels_last),
            "fastconv NCHW": training_step(fastconv.nn, torch.contiguous_format),
            "fastconv channels_last": training_step(fastconv.nn, torch.channels_last),
        }
    )
