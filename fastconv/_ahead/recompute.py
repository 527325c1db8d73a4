"""Compute the input of a convolution or linear layer again in backward, where it is the result of an activation.

A layer needs its input for the gradient of its weight. A batch norm needs its input for its gradients. So PyTorch keeps
two tensors per block of a ResNet until backward. The first follows from the second by one pass over memory (Chen et
al., "Training Deep Nets with Sublinear Memory Cost", arXiv 1604.06174). In the same way, GELU keeps its argument, and
the next linear layer keeps GELU's result. Memory of a training step, divided by PyTorch's, without and with this
module: DenseNet-121 1.02 and 0.54, ConvNeXt-T 0.93 and 0.71.

A layer notes the source of its result, if the program provably calls another layer with the result next. So nothing
writes to the result in between. The other layer removes the note, so one call uses it:

* :func:`note_source`: a batch norm together with its activation (:mod:`fastconv._ahead.fusion`). Its result has the
  note.
* :func:`note_next`: a layer before an activation of PyTorch. Its node in the graph has the note. From there, the
  activation's node has a link to it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastconv._ahead.layers import CONVOLUTION, IDENTITY, KINDS, LINEAR, METHODS, keeps_argument
from fastconv._ahead.lookahead import Step, first_layer
from fastconv._ops import batch_norm as _batch_norm
from fastconv._ops.conv2d import Conv2d
from fastconv._ops.library import _C
from fastconv._ops.linear import MAY_BE_FASTER, Linear

__all__ = ["Source", "keep_source", "note_next", "note_source", "take_source"]

_is_stock = _C.is_stock
_NAME = "_fastconv_source"
#: The nodes of layers that keep their input, with the places of the gradients that need it.
_NODES_WITH_INPUT: dict[Any, slice] = {Conv2d._backward_cls: slice(1, 3), Linear._backward_cls: slice(1, 2)}  # type: ignore[attr-defined]
#: The nodes of layers that note the next layer.
_NODES = (_batch_norm.BatchNorm._backward_cls, Linear._backward_cls)  # type: ignore[attr-defined]
#: PyTorch's activations that keep their argument, by the names of their nodes.
_ACTIVATIONS: dict[str, Callable[..., Tensor]] = {
    "GeluBackward0": F.gelu, "HardswishBackward0": F.hardswish, "SiluBackward0": F.silu,
}  # fmt: skip
#: The least number of products of the layer per input element. With fewer, as in a depthwise convolution, computing the
#: input again takes as long as the gradients. Milliseconds of a training step (Zen 5, 2 threads) if all inputs are
#: kept, with a limit of 64, and without a limit: MobileNetV2 46, 47, 57; ResNet-50 200, 205, 205. With 16 instead of
#: 64, RegNetY needs 0.87 of the memory and 1.03 of the time, MobileNetV2 0.88 and 1.03.
_LEAST_PRODUCTS = 16


class Source:
    """A function, and the tensors from which it computes a result again."""

    __slots__ = ("function", "tensors", "versions")

    def __init__(self, function: Callable[..., Tensor], *tensors: Tensor | None) -> None:
        self.function = function
        self.tensors = tuple(None if t is None else t.detach() for t in tensors)
        self.versions = self._current()

    def _current(self) -> tuple[int | None, ...]:
        return tuple(None if t is None or t.is_inference() else t._version for t in self.tensors)

    def compute(self) -> Tensor:
        """Return the same result again, bit by bit.

        Raises:
            RuntimeError: a tensor was modified in place since the forward pass.
        """
        if self._current() != self.versions:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an inplace operation: an "
                "operand of a layer whose result is computed again in backward"
            )
        return self.function(*self.tensors)


def note_source(
    result: Tensor, following: Iterator[Step], tensors: tuple[Tensor | None, ...], numbers: tuple[bool, float, int]
) -> None:
    """Attach its source to the result of a batch norm, if a layer is called with the result next.

    Args:
        result: the result of the batch norm and an activation.
        following: the steps that use it.
        tensors: input, weight, bias, mean and spread of the batch norm.
        numbers: training, eps and the activation.
    """
    if _next_layer(following, result.shape[1]) is None:
        return
    input, weight, bias, mean, spread = tensors
    assert mean is not None
    assert spread is not None
    # An optimizer may change the weight before backward. PyTorch keeps the result, which does not change.
    weight = None if weight is None else weight.detach().clone()
    copies = _batch_norm.copies_for_backward(bias, mean, spread, numbers[0])

    def compute(input: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, spread: Tensor) -> Tensor:
        return _batch_norm.batch_norm(input, weight, bias, None, mean, spread, *numbers)

    setattr(result, _NAME, Source(compute, input, weight, *copies))


def note_next(result: Tensor, following: Iterator[Step]) -> None:
    """Note the layer that is called with the activation of a result, in the node of the result.

    Args:
        result: of a layer of fastconv, with a gradient.
        following: the steps that use it.
    """
    node: Any = result.grad_fn
    if type(node) not in _NODES:  # PyTorch has computed the layer
        return
    user, _, is_clean = next(following, (None, (), False))
    if not is_clean or not keeps_argument(user):
        return
    if type(user) in METHODS and not _is_stock(user, METHODS[type(user)]):
        return
    layer = _next_layer(following, result.shape[1])
    if layer is not None:
        setattr(node, _NAME, layer)


def _next_layer(following: Iterator[Step], channels: int) -> Any:
    """Return the layer that is called with the result, if its input is worth computing again. Else None."""
    for user, arguments, _ in following:
        layer = first_layer(user)
        if layer is None or arguments or not _is_stock(layer, METHODS[type(layer)]):
            return None
        kind = KINDS[type(layer)]
        if kind is not IDENTITY:
            is_counted = (kind is CONVOLUTION or (kind is LINEAR and MAY_BE_FASTER)) and layer._fuses
            return layer if is_counted and _products(layer, kind, channels) >= _LEAST_PRODUCTS else None
    return None


def _products(layer: Any, kind: str, channels: int) -> float:
    """Return the number of products for each element of the input. 0 if the program has set unusual attributes."""
    weight = layer._parameters.get("weight")
    if weight is None or weight.dim() != (2 if kind is LINEAR else 4):
        return 0.0
    if kind is LINEAR:
        return weight.shape[0]  # type: ignore[no-any-return]
    if type(layer.stride) is not tuple or set(map(type, layer.stride)) != {int}:
        return 0.0
    return weight.numel() / max(1, channels * math.prod(layer.stride))  # type: ignore[no-any-return]


def take_source(layer: Any, input: Any) -> Source | None:
    """Return the source of a layer's argument, and remove the note."""
    if type(input) is not Tensor:
        return None
    source = input.__dict__.pop(_NAME, None)
    # Without a gradient, PyTorch does not ask for the node. It raises an error for some views that were written to.
    node: Any = input.grad_fn if torch.is_grad_enabled() else None
    function = None if node is None else _ACTIVATIONS.get(node.name())
    if function is None:
        return source
    before: Any = node.next_functions[0][0]
    if type(before) not in _NODES or before.__dict__.pop(_NAME, None) is not layer:
        return None
    if function is F.gelu:
        function = functools.partial(function, approximate=node._saved_approximate)
    return Source(function, node._saved_self)


def keep_source(output: Any, input: Tensor, source: Source) -> None:
    """Replace the input that a layer keeps for the gradient of its weight by its source.

    Args:
        output: the result of the layer.
        input: its argument. The layer keeps another tensor if it has padded the argument or changed its dtype.
        source: what the argument was computed from.
    """
    if type(output) is not Tensor:  # a Deferred, which would be computed here
        return
    node: Any = output.grad_fn
    # Without these gradients, a layer uses only the size of its input.
    gradients = _NODES_WITH_INPUT.get(type(node))
    if gradients is None or not any(node.needs_input_grad[gradients]):
        return
    place = _place(input)  # The hook stays until backward. It must not refer to the input.

    def pack(kept: Tensor) -> Tensor | Source:
        return source if _place(kept) == place else kept

    def unpack(kept: Tensor | Source) -> Tensor:
        return kept.compute() if isinstance(kept, Source) else kept

    node._raw_saved_tensors[0].register_hooks(pack, unpack)


def _place(tensor: Tensor) -> tuple[object, ...]:
    """Return where a tensor's elements are and how they are read."""
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype
