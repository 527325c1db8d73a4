"""The weights of frozen layers, with the batch norms after them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastconv._frozen.layers import freeze_weight

__all__ = ["Folded", "folded_values", "scale_and_shift"]

#: Maps the tensors of a layer and its batch norm to the frozen weight and bias. All graphs of a model share it.
Folded = dict[tuple[object, ...], tuple[Tensor, Tensor, list[Tensor]]]


def folded_values(layer: nn.Conv2d | nn.Linear, norm: nn.Module | None, folded: Folded) -> tuple[Tensor, Tensor]:
    """Return the frozen weight and bias of a layer and a batch norm."""
    read = [t for part in (layer, norm) if part is not None for t in (*part.parameters(), *part.buffers())]
    key = (*map(id, read), getattr(norm, "eps", None))
    if key not in folded:
        weight, bias = layer.weight.detach(), layer.bias
        if norm is None:
            bias = weight.new_zeros(len(weight)) if bias is None else bias.detach().clone()
        else:  # in float64 until they are rounded
            scale, shift = scale_and_shift(norm)
            bias = (shift if bias is None else shift + bias.detach().double() * scale).to(weight.dtype)
            weight = (weight.double() * scale.view(-1, 1, 1, 1)).to(weight.dtype)
        folded[key] = freeze_weight(weight), bias, read
    return folded[key][:2]


def scale_and_shift(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Return the constants of ``x * scale + shift``, which a batch norm computes in evaluation, in float64."""
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = torch.rsqrt(norm.running_var.double() + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = -norm.running_mean.double() * scale
    return scale, shift if norm.bias is None else shift + norm.bias.detach().double()
