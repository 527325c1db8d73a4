"""Layers that work as one: what :func:`fastconv.convert` makes of a convolution whose result, as the model's code
shows, goes to a ReLU and a max-pool and nowhere else.

The convolution does it all, and the other layers hand on what they get. Only while nobody looks between them: a hook on
one of the layers, or another layer in its place, and each does its own work again.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.modules import module as torch_module

from fastconv import nn as fnn

__all__ = ["FusedConv2d", "FusedMaxPool2d", "FusedReLU", "Fusion"]

#: A layer, and where it is found: the module that has it, and its name there.
Member = tuple[Module, str, Module]


class Fusion:
    """The layers that are fused together; those of several blocks, if blocks share a layer.

    Args:
        owner: a module that has them all below it.
        members: the layers and where they are.
    """

    def __init__(self, owner: Module | None, members: list[Member]) -> None:
        self.owner = owner
        self.members = members

    def holds(self) -> bool:
        """Whether the layers are to work as one. All of them ask, so that all agree."""
        if not self.members or torch_module._has_any_global_hook():
            return False
        return not any(
            fnn.is_observed(layer) or parent._modules.get(name) is not layer for parent, name, layer in self.members
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Fusion:
        if id(self.owner) not in memo:  # a layer is copied out of its model: it shall work alone
            return Fusion(None, [])
        twin = Fusion(None, [])
        memo[id(self)] = twin
        twin.owner, twin.members = copy.deepcopy((self.owner, self.members), memo)
        return twin


class FusedConv2d(fnn.Conv2d):
    """A :class:`fastconv.nn.Conv2d` that does the work of the ReLU, and the max-pool, that get its result."""

    fusion: Fusion
    fused_pool: tuple[torch.nn.MaxPool2d, ...]  # a tuple, lest it be a sub-module

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not self.fusion.holds():
            return super()._conv_forward(input, weight, bias)
        return fnn.conv_relu_max_pool(self, input, weight, bias, self.fused_pool[0] if self.fused_pool else None)


class FusedReLU(fnn.ReLU):
    """A ReLU whose work the convolution before it does."""

    fusion: Fusion

    def forward(self, input: Tensor) -> Tensor:
        return input if self.fusion.holds() else super().forward(input)


class FusedMaxPool2d(fnn.MaxPool2d):
    """A max-pool whose work the convolution before it does."""

    fusion: Fusion

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:  # type: ignore[override]
        return input if self.fusion.holds() else super().forward(input)
