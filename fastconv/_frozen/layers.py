"""The layers of a frozen model. Each holds its values as they were when the model was frozen."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastconv._ops.conv2d_chain import conv2d_chain
from fastconv._ops.conv2d_inference import Activation
from fastconv._ops.function import is_transformed
from fastconv._ops.library import _C

__all__ = ["FrozenChain", "FrozenLinear", "Step", "freeze_weight"]


def freeze_weight(module: nn.Module, weight: Tensor) -> None:
    """Have the operators pack this weight once, while the module exists."""
    alias = weight.detach()  # keeps the memory, even if the parameter gets other values
    _C.freeze_weight(alias.data_ptr())
    weakref.finalize(module, _release, alias)


def _release(alias: Tensor) -> None:
    _C.release_weight(alias.data_ptr())


def _runs_as_operator(inputs: Sequence[Tensor], weight: Tensor) -> bool:
    """Return whether the operator accepts the inputs. It has no gradient, and autocast does not see its tensors."""
    if is_transformed() or torch.is_autocast_enabled("cpu"):
        return False
    grad = torch.is_grad_enabled()
    return all(
        type(x) is Tensor and x.dtype is weight.dtype and x.is_cpu and not (grad and x.requires_grad) for x in inputs
    )


class Step(NamedTuple):
    """A convolution, an addition and an activation. Or ``x * weight + bias`` in place of the convolution: a batch norm.

    The values of a chain are numbered: first its inputs, then the result of each step.
    """

    input: int
    residual: int  # the value that is added, or -1
    in_place: bool  # the program adds it in place: the sum has the size and dtype of the convolution's result
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    activation: Activation
    slope: float

    def numbers(self) -> list[int]:
        """Return the step as the operator reads it (csrc/cpu/conv2d_chain.h)."""
        geometry = (*self.stride, *self.padding, *self.dilation, self.groups)
        return [self.input, self.residual, *geometry, int(self.activation)]


class FrozenChain(nn.Module):
    """Convolutions and batch norms that follow each other, with additions and activations, as one operator.

    MobileNetV2's 52 convolutions of one image of 128 x 128 pixels take 0.94 ms in one call, and 1.3 to 1.6 ms in 52
    calls (Zen 5, two threads).

    Args:
        steps: the steps, in their order.
        values: the weight and the bias of each step.
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
            if weight.dim() == 4:
                freeze_weight(self, weight)
        self.eval()

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        values: list[Tensor] = list(self._buffers.values())  # type: ignore[arg-type]
        weights, biases = values[0::2], values[1::2]
        try:
            if not _runs_as_operator(inputs, weights[0]):
                raise RuntimeError
            results = conv2d_chain(inputs, weights, biases, self.numbers, self.slopes, self.results)
        except (
            RuntimeError
        ):  # PyTorch may broadcast an addition, or accept an image without a batch, or has its own error
            results = self._by_torch(inputs, weights, biases)
        return results[0] if len(results) == 1 else tuple(results)

    def _by_torch(self, inputs: Sequence[Tensor], weights: Sequence[Tensor], biases: Sequence[Tensor]) -> list[Tensor]:
        values = list(inputs)
        for step, weight, bias in zip(self.steps, weights, biases, strict=True):
            x = values[step.input]
            if weight.dim() == 1:
                y = x * weight[:, None, None] + bias[:, None, None]
            else:
                y = F.conv2d(x, weight, bias, step.stride, step.padding, step.dilation, step.groups)
            if step.residual >= 0:
                y = y.add_(values[step.residual]) if step.in_place else y + values[step.residual]
            values.append(_FUNCTIONS[step.activation](y, step.slope))
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


_FUNCTIONS: dict[Activation, Callable[[Tensor, float], Tensor]] = {
    Activation.NONE: lambda y, _: y,
    Activation.RELU: lambda y, _: F.relu(y),
    Activation.RELU6: lambda y, _: F.relu6(y),
    Activation.LEAKY_RELU: F.leaky_relu,
    Activation.HARDSWISH: lambda y, _: F.hardswish(y),
    Activation.SILU: lambda y, _: F.silu(y),
}


class FrozenLinear(nn.Module):
    """A linear layer. For few rows, it is a 1x1 convolution of one pixel, whose weight is packed.

    The weight is then the largest tensor that is read, and a packed weight is read by all threads, in order. 1280->1000
    takes 64 us instead of 121 for one row, 74 instead of 261 for four and 226 instead of 229 for eight. 512->1000 and
    one row: 27 instead of 35. 128->10: 11 instead of 6 (Zen 5, two threads).
    """

    most_rows = 4
    least_weight = 500_000

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        K, C = layer.weight.shape
        bias = layer.weight.new_zeros(K) if layer.bias is None else layer.bias.detach().clone()
        self.register_buffer("weight", layer.weight.detach().clone().view(K, C, 1, 1))
        self.register_buffer("bias", bias)
        freeze_weight(self, self.get_buffer("weight"))
        self.eval()

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = self.get_buffer("weight"), self.get_buffer("bias")
        few = input.dim() == 2 and 0 < input.shape[0] <= self.most_rows
        if not few or not _runs_as_operator((input,), weight):
            return F.linear(input, weight.flatten(1), bias)
        return conv2d_chain([input[:, :, None, None]], [weight], [bias], _ONE_STEP, [0.0], [1])[0].flatten(1)

    def extra_repr(self) -> str:
        K, C, _, _ = self.get_buffer("weight").shape
        return f"{C}, {K}"


_ONE_STEP = Step(0, -1, False, (1, 1), (0, 0), (1, 1), 1, Activation.NONE, 0.0).numbers()
