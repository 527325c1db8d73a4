"""Compute the input of a convolution again in backward, where it is the result of a batch norm and an activation.

A convolution needs its input for the gradient of its weight. A batch norm needs its input for its gradients. So PyTorch
keeps two tensors per block of a ResNet until backward. The first follows from the second by one pass over memory (Chen
et al., "Training Deep Nets with Sublinear Memory Cost", arXiv 1604.06174). A training step of DenseNet-121 needs 0.83
of PyTorch's memory with this module, and 1.02 without it.

The batch norm notes in its result how it was computed, if the program provably calls a convolution with the result
next. So nothing writes to the result in between. The convolution removes the note, so one call uses it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from fastconv._ahead.layers import CONVOLUTION, IDENTITY, KINDS, METHODS
from fastconv._ahead.lookahead import Step, first_layer
from fastconv._ops import batch_norm as _batch_norm
from fastconv._ops.conv2d import Conv2d
from fastconv._ops.library import _C

__all__ = ["Source", "keep_source", "note_source", "take_source"]

_is_stock = _C.is_stock
_NAME = "_fastconv_source"
#: The least number of products of the convolution per input element. With fewer, as in a depthwise convolution,
#: computing the input again takes as long as the gradients. Milliseconds of a training step (Zen 5, 2 threads) if all
#: inputs are kept, with this limit, and without it: MobileNetV2 46, 47, 57; ResNet-50 200, 205, 205.
_LEAST_PRODUCTS = 64


class Source:
    """The operands from which the result of a batch norm can be computed again."""

    __slots__ = ("numbers", "tensors", "versions")

    def __init__(self, tensors: tuple[Tensor | None, ...], numbers: tuple[bool, float, int]) -> None:
        input, weight, bias, mean, spread = (None if t is None else t.detach() for t in tensors)
        assert mean is not None
        assert spread is not None
        # An optimizer may change the weight before backward. PyTorch keeps the result, which does not change.
        weight = None if weight is None else weight.clone()
        self.tensors = input, weight, *_batch_norm.copies_for_backward(bias, mean, spread, numbers[0])
        self.numbers = numbers
        self.versions = self._current()

    def _current(self) -> tuple[int | None, ...]:
        return tuple(None if t is None or t.is_inference() else t._version for t in self.tensors)

    def compute(self) -> Tensor:
        """Return the same result again, bit by bit.

        Raises:
            RuntimeError: an operand was modified in place since the forward pass.
        """
        if self._current() != self.versions:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an inplace operation: an "
                "operand of a batch norm whose result is computed again in backward"
            )
        input, weight, bias, mean, spread = self.tensors
        assert input is not None
        assert mean is not None
        assert spread is not None
        return _batch_norm.batch_norm(input, weight, bias, None, mean, spread, *self.numbers)


def note_source(
    result: Tensor, following: Iterator[Step], tensors: tuple[Tensor | None, ...], numbers: tuple[bool, float, int]
) -> None:
    """Attach its source to the result of a batch norm, if a convolution is called with the result next.

    Args:
        result: the result of the batch norm and an activation.
        following: the steps that use it.
        tensors: input, weight, bias, mean and spread of the batch norm.
        numbers: training, eps and the activation.
    """
    for user, arguments, _ in following:
        layer = first_layer(user)
        if layer is None or arguments or not _is_stock(layer, METHODS[type(layer)]):
            return
        kind = KINDS[type(layer)]
        if kind is CONVOLUTION and layer._fuses and _products(layer, result.shape[1]) >= _LEAST_PRODUCTS:
            setattr(result, _NAME, Source(tensors, numbers))
        if kind is not IDENTITY:
            return


def _products(convolution: Any, channels: int) -> float:
    """Return the number of products for each element of the input. 0 if the program has set unusual attributes."""
    weight, stride = convolution._parameters.get("weight"), convolution.stride
    if weight is None or type(stride) is not tuple:
        return 0.0
    return weight.numel() / channels / max(1, math.prod(stride))  # type: ignore[no-any-return]


def take_source(input: Any) -> Source | None:
    """Return the source of a convolution's argument, and detach it from the argument."""
    return input.__dict__.pop(_NAME, None) if type(input) is Tensor else None


def keep_source(output: Any, input: Tensor, source: Source) -> None:
    """Replace the input that a convolution keeps for the gradient of its weight by its source.

    Args:
        output: the result of the convolution.
        input: its argument. The convolution keeps another tensor if it has padded the argument or changed its dtype.
        source: what the argument was computed from.
    """
    if type(output) is not Tensor:  # a Deferred, which would be computed here
        return
    node: Any = output.grad_fn
    # Without a gradient of the weight or the bias, only the input's size is used.
    is_own = type(node) is Conv2d._backward_cls  # type: ignore[attr-defined]
    if not is_own or not any(node.needs_input_grad[1:3]):
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
