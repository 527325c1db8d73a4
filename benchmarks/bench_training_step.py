"""Whole training steps of MnistCNN, batch 64: gather, forward, loss, backward, Adam.

On real images, and after an epoch's worth of training: how many zeros the gradients have decides how long backward takes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

import fastconv
from fastconv.mnist import data
from fastconv.models import MnistCNN

BATCH = 64
STEPS_BEFORE = 60


def training_step(layers: Any, memory_format: torch.memory_format) -> Callable[[], object]:
    torch.manual_seed(0)
    model = MnistCNN(layers=layers).to(memory_format=memory_format)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    digits = data.load("mnist5k")
    images, labels = digits.train_images.to(memory_format=memory_format), digits.train_labels
    order = torch.randperm(len(images)).split(BATCH)[:-1]
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

    for _ in range(STEPS_BEFORE):
        run()
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
