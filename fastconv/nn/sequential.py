"""A Sequential that fuses its members, and the search for blocks of layers that can be fused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import Proxy
from torch.nn.modules import module as torch_module

from fastconv import functional as FF
from fastconv._ahead import Ahead, register_sequential
from fastconv._layer import Layer, is_observed, is_patched, kind, scripted_as
from fastconv._ops.memory_format import suggests_channels_last
from fastconv.nn.activations import ReLU
from fastconv.nn.convolution import Conv2d
from fastconv.nn.layers import MaxPool2d

__all__ = ["ROLES", "Sequential", "flat", "match", "role"]


class Sequential(Layer, torch.nn.Sequential):
    """A :class:`torch.nn.Sequential` that runs a :class:`Conv2d`, a ReLU and a max-pool in a row as one operator.

    It also fuses a :class:`Conv2d` and a ReLU without a pool. The pool may come before the ReLU: the result is the
    same. The layers do not change: they can be indexed, sliced, called one by one and replaced. Each call inspects the
    layers. It runs a layer alone if the layer has a hook, is of another class or has a replaced ``forward``.

    Example:
        >>> layers = Sequential(Conv2d(1, 32, 3), ReLU(), MaxPool2d(2))
        >>> layers(torch.randn(8, 1, 28, 28)).shape, layers[0](torch.randn(8, 1, 28, 28)).shape
        (torch.Size([8, 32, 13, 13]), torch.Size([8, 32, 26, 26]))
    """

    _torch_class = torch.nn.Sequential

    @scripted_as(torch.nn.Sequential.forward)
    def forward(self, input: Tensor) -> Tensor:
        is_other = isinstance(input, Proxy | Ahead) or torch.compiler.is_exporting()  # Proxy: torch.fx
        if is_other or is_patched() or torch_module._has_any_global_hook():
            return super().forward(input)
        layers = flat(self)
        i = 0
        while i < len(layers):
            conv, block = layers[i], match(layers, i, ROLES)
            if len(block) > 1:
                pool = next((layer for layer in block if isinstance(layer, torch.nn.MaxPool2d)), None)
                arguments = conv._arguments(input, conv.weight, conv.bias)
                if pool is None:
                    result = FF.conv2d_relu(*arguments)
                else:
                    pooling: Any = (pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.ceil_mode)
                    result = FF.conv2d_relu_max_pool2d(*arguments, *pooling)
                if _may_have_other_strides(block, result, input):
                    result = input
                    for layer in block:
                        result = layer(result)
                input = result
                i += len(block)
            else:
                input = layers[i](input)
                i += 1
        return input


def _may_have_other_strides(block: list[Any], result: Any, input: Tensor) -> bool:
    """Return whether the layers of a block may return other strides than the fused operator.

    ReLU in place, and ReLU after the pool, may return strides of channels_last if a size fits both memory formats.
    """
    relu = block[1]
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:  # then sizes are symbols or tensors
        return False
    if not isinstance(result, Tensor) or (isinstance(relu, torch.nn.ReLU) and not relu.inplace):
        return False
    fits_both = result.shape[-3] == 1 or result.shape[-2] == result.shape[-1] == 1
    both = (input, block[0].weight)
    return result.numel() == 0 or (
        fits_both and any(tensor.dim() == 4 and suggests_channels_last(tensor) for tensor in both)
    )


register_sequential(Sequential)

#: The classes that a Sequential fuses, and the role of each.
ROLES: dict[type, str] = {
    Conv2d: "conv",
    torch.nn.ReLU: "relu",
    ReLU: "relu",
    torch.nn.MaxPool2d: "pool",
    MaxPool2d: "pool",
}


def flat(layers: torch.nn.Sequential) -> list[Any]:
    """Return the layers, with each Sequential among them replaced by its own layers."""
    result: list[Any] = []
    for layer in layers._modules.values():
        if type(layer) in (Sequential, torch.nn.Sequential) and not is_observed(layer):
            result += flat(layer)  # type: ignore[arg-type]
        else:
            result.append(layer)
    return result


def match(layers: list[Any], i: int, roles: Mapping[type, str]) -> list[Any]:
    """Return the block that starts at layer i: a convolution, ReLU and perhaps a pool. Without one, layer i alone."""
    if role(layers[i], roles) == "conv":
        found = [role(layer, roles) for layer in layers[i + 1 : i + 3]]
        if found in (["relu", "pool"], ["pool", "relu"]):
            return layers[i : i + 3]
        if found[:1] == ["relu"]:
            return layers[i : i + 2]
    return layers[i : i + 1]


def role(layer: Any, roles: Mapping[type, str]) -> str | None:
    """Return the role of a layer in a block. None if the layer is observed, or if it returns indices as well."""
    result = roles.get(kind(layer))
    if result is None or is_observed(layer) or (result == "pool" and layer.return_indices):
        return None
    return result
