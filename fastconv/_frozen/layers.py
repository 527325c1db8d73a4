"""The layers of a frozen model. Each holds its values as they were when the model was frozen."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import Enum
from typing import NamedTuple

import numpy
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastconv._ops import linear as _linear
from fastconv._ops.conv2d_chain import conv2d_chain
from fastconv._ops.conv2d_inference import Activation
from fastconv._ops.function import is_transformed
from fastconv._ops.library import _C
from fastconv.linear import linear

__all__ = ["Addition", "FrozenChain", "FrozenLinear", "Step", "freeze_weight"]


def freeze_weight(weight: Tensor) -> Tensor:
    """Return a copy of a weight that the operators pack once, and never compare while the copy exists.

    The memory of the copy belongs to this function. Otherwise, ``share_memory()`` would free it, and the next weight at
    the same address would be mistaken for this one.
    """
    strides = torch.empty_like(weight).stride()
    owner = numpy.empty(weight.numel() * weight.element_size(), numpy.uint8)
    copied = torch.from_numpy(owner).view(weight.dtype).as_strided(weight.shape, strides).copy_(weight.detach())
    if isinstance(weight, nn.Parameter):
        copied = nn.Parameter(copied, requires_grad=False)
    if owner.size > 0:
        _C.freeze_weight(copied.data_ptr())
        weakref.finalize(copied, _release, owner, copied.data_ptr())
    return copied


def _release(_: object, address: int) -> None:
    _C.release_weight(address)


def _runs_as_operator(inputs: Sequence[Tensor], weight: Tensor) -> bool:
    """Return whether the operator computes the call. It has no gradient, and autocast does not cast its inputs."""
    if is_transformed() or torch.is_autocast_enabled("cpu") or torch._C._get_tracing_state() is not None:
        return False
    grad = torch.is_grad_enabled()
    return all(
        type(x) is Tensor and x.dtype is weight.dtype and x.is_cpu and not (grad and x.requires_grad) and x.numel() > 0
        for x in inputs
    )


class Addition(Enum):
    """How the program adds a residual to the result y of a convolution. The strides of PyTorch's sum depend on it."""

    NONE = "none"
    AFTER = "y + residual"
    BEFORE = "residual + y"
    IN_PLACE = "y += residual"


class Step(NamedTuple):
    """A convolution, an addition and an activation. For a batch norm, ``x * weight + bias`` replaces the convolution.

    The values of a chain are numbered: first its inputs, then the result of each step.
    """

    input: int
    residual: int  # the value that is added, or -1
    addition: Addition
    has_norm: bool  # is a batch norm, or has one that is folded: then an input has 4 dimensions
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    activation: Activation
    slope: float
    in_place: bool  # the activation works in place

    def numbers(self) -> list[int]:
        """Return the step as the operator reads it: see ``conv2d_chain`` in csrc/cpu/ops.h."""
        geometry = (*self.stride, *self.padding, *self.dilation, self.groups)
        # PyTorch's ReLU6 returns its input's strides.
        makes_new_tensor = not self.in_place and self.activation not in (Activation.NONE, Activation.RELU6)
        prefers_contiguous = self.has_norm or self.addition in (Addition.AFTER, Addition.BEFORE) or makes_new_tensor
        return [self.input, self.residual, *geometry, int(self.activation), int(prefers_contiguous)]


class FrozenChain(nn.Module):
    """Convolutions and batch norms that follow each other, with additions and activations, as one operator.

    MobileNetV2's 52 convolutions of one image of 128 x 128 pixels take 0.94 ms in one call, and 1.3 to 1.6 ms in 52
    calls (Zen 5, two threads).

    Args:
        steps: the steps, in their order.
        values: the weight and the bias of each step. The weights are frozen.
        results: the numbers of the values that ``forward`` returns: a tensor for one number, else a tuple.
    """

    def __init__(self, steps: Sequence[Step], values: Sequence[tuple[Tensor, Tensor]], results: Sequence[int]) -> None:
        super().__init__()
        self.steps, self.results = list(steps), list(results)
        self.numbers = [number for step in steps for number in step.numbers()]
        self.slopes = [step.slope for step in steps]
        for i, (weight, bias) in enumerate(values):
            self.register_buffer(f"weight_{i}", weight)
            self.register_buffer(f"bias_{i}", bias)
        self.eval()

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        values: list[Tensor] = list(self._buffers.values())  # type: ignore[arg-type]
        weights, biases = values[0::2], values[1::2]
        results = None
        if _runs_as_operator(inputs, weights[0]):
            # PyTorch broadcasts additions, accepts images without a batch, and raises its own errors.
            with suppress(RuntimeError):
                results = conv2d_chain(inputs, weights, biases, self.numbers, self.slopes, self.results)
        if results is None:
            results = self._by_torch(inputs, weights, biases)
        return results[0] if len(results) == 1 else tuple(results)

    def _by_torch(self, inputs: Sequence[Tensor], weights: Sequence[Tensor], biases: Sequence[Tensor]) -> list[Tensor]:
        values = list(inputs)
        for step, weight, bias in zip(self.steps, weights, biases, strict=True):
            x = values[step.input]
            if step.has_norm and x.dim() != 4:
                raise ValueError(f"expected 4D input (got {x.dim()}D input)")
            if weight.dim() == 1:
                zeros = torch.zeros_like(bias)
                y = F.batch_norm(x, zeros, zeros + 1, weight, bias, eps=0)
            else:
                y = F.conv2d(x, weight, bias, step.stride, step.padding, step.dilation, step.groups)
                if step.has_norm and y.numel() == 0:
                    y = F.batch_norm(y, bias, bias, bias, bias)  # for its strides
                elif step.has_norm and y.is_contiguous():  # a batch norm returns such a tensor with NCHW's strides
                    y = y.flatten().view(y.shape)
            y = _sum(y, values, step)
            values.append(_FUNCTIONS[step.activation](y, step.slope, step.in_place))
        return [values[number] for number in self.results]

    def extra_repr(self) -> str:
        return "\n".join(self._line(i, step) for i, step in enumerate(self.steps))

    def _line(self, i: int, step: Step) -> str:
        K, *kernel = self.get_buffer(f"weight_{i}").shape
        addition = "" if step.residual < 0 else ", addition"
        if not kernel:
            return f"({i}): {K} channels{addition}, {step.activation.name}"
        geometry = f"stride={step.stride}, padding={step.padding}, groups={step.groups}"
        return (
            f"({i}): {kernel[0] * step.groups}, {K}, {tuple(kernel[1:])}, {geometry}{addition}, {step.activation.name}"
        )


def _sum(y: Tensor, values: Sequence[Tensor], step: Step) -> Tensor:
    if step.addition is Addition.NONE:
        return y
    residual = values[step.residual]
    if step.addition is Addition.IN_PLACE:
        return y.add_(residual)
    return y + residual if step.addition is Addition.AFTER else residual + y


#: Each takes the input, the slope of a leaky ReLU, and ``in_place``.
_FUNCTIONS: dict[Activation, Callable[[Tensor, float, bool], Tensor]] = {
    Activation.NONE: lambda y, *_: y,
    Activation.RELU: lambda y, _, in_place: F.relu(y, in_place),
    Activation.RELU6: lambda y, _, in_place: F.relu6(y, in_place),
    Activation.LEAKY_RELU: F.leaky_relu,
    Activation.HARDSWISH: lambda y, _, in_place: F.hardswish(y, in_place),
    Activation.SILU: lambda y, _, in_place: F.silu(y, in_place),
}


class FrozenLinear(nn.Module):
    """A linear layer whose weight is packed once. With few rows, most of the time goes into reading it.

    Microseconds of Zen 5, two threads, PyTorch / fastconv:

        1280->1000   1 row 121 / 64    4 rows 261 / 74
        512->1000    1 row  35 / 27
        128->10      1 row   6 / 11
    """

    most_rows = 4
    least_weight = 500_000

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)  # (K, C), frozen
        self.register_buffer("bias", bias)
        self.eval()

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = self.get_buffer("weight"), self.get_buffer("bias")
        few = input.dim() == 2 and 0 < input.shape[0] <= self.most_rows and input.shape[1] == weight.shape[1]
        if few and _runs_as_operator((input,), weight):
            return _linear.linear(input, weight, bias)
        return linear(input, weight, bias)

    def extra_repr(self) -> str:
        K, C = self.get_buffer("weight").shape
        return f"{C}, {K}"
