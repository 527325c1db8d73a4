"""The training step that benchmarks time."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastconv import optim

BATCH = 64


def batches(images: Tensor) -> Sequence[Tensor]:
    """Return the image indices of each batch, in a random order that is the same for all variants."""
    return torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).split(BATCH)[:-1]


def adam(backend: str) -> type[torch.optim.Adam]:
    """Return the Adam that belongs to the layers of ``backend``: fastconv's or PyTorch's."""
    return torch.optim.Adam if backend == "torch" else optim.Adam


def training_step(
    network: nn.Module, images: Tensor, labels: Tensor, kind: type[torch.optim.Adam] = torch.optim.Adam
) -> Callable[[], float]:
    """Return a function that gathers the next batch, does a step of Adam on it, and returns the loss.

    Args:
        network: returns logits (N, classes).
        images: (N, C, H, W), on the network's device.
        labels: (N,), int64, on the same device.
        kind: the class of the optimizer.

    Example::

        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
        >>> step = training_step(network, torch.rand(200, 1, 28, 28), torch.arange(200) % 10)
        >>> step() > 0
        True
    """
    optimizer = kind(network.parameters(), fused=True)
    order = [batch.to(images.device) for batch in batches(images)]
    steps = 0

    def step() -> float:
        nonlocal steps
        batch = order[steps % len(order)]
        steps += 1
        loss = F.cross_entropy(network(images.index_select(0, batch)), labels.index_select(0, batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step
