"""Compute a layer together with the steps that provably follow: a batch norm, an addition, an activation.

``relu(batch_norm(conv(x)))`` runs as one operator in inference, and ``relu(batch_norm(x) + residual)`` in training. The
first layer looks ahead (:mod:`fastconv._ahead.lookahead`), computes the result of all steps, and returns it as an
:class:`Ahead`. The program then calls the other layers. Each of them finds that its work is done and passes the Ahead on,
and the last one returns the tensor. So the program's own code runs in every call, but it runs between the steps only
where it does nothing else.

Nothing is cached from call to call except the analysis of the bytecode. No parameter is copied or folded into another.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from fastconv import functional as FF
from fastconv._ahead.lookahead import Addition, steps
from fastconv._ops import batch_norm as _batch_norm
from fastconv._ops.conv2d_inference import Activation
from fastconv._ops.conv2d_inference import conv2d_inference as _conv2d_inference
from fastconv._ops.function import needs_gradient
from fastconv._ops.memory_format import is_channels_last, suggests_channels_last
from fastconv._ops.sizes import conv2d_output
from fastconv._ops.library import FLOATING_DTYPES
from fastconv.normalization import is_supported

__all__ = ["Ahead", "activation_of", "batch_norm_ahead", "convolution_ahead", "register"]

#: The most steps after a convolution: a batch norm, an addition, an activation, and an nn.Identity between them.
_MOST_STEPS = 4


class Ahead:
    """The result of a layer and of the ``steps`` that follow it."""

    __slots__ = ("result", "steps")

    def __init__(self, result: Tensor, steps: int) -> None:
        self.result, self.steps = result, steps

    def passed(self) -> Any:
        """Return what a step returns: the same, or the tensor if it is the last step."""
        self.steps -= 1
        return self if self.steps else self.result

    # What a batch norm asks for.
    def dim(self) -> int:
        return self.result.dim()

    def __add__(self, other: Any) -> Any:
        return self.passed()

    __radd__ = __iadd__ = __add__

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        found = next(a for a in (*args, *(kwargs or {}).values()) if type(a) is Ahead)
        return found.passed()


#: How many steps are computed with a layer; the batch norm, the residual, the activation and its slope.
_Fusion = tuple[int, Any, Tensor | None, Activation, float]


def _choose(found: list[Any], norm: bool, activations: Collection[Activation]) -> _Fusion:
    """Choose the steps to compute with a layer: a batch norm if ``norm``, an addition and an activation, in this order."""
    chosen, batch_norm, residual = 0, None, None
    can_add = not norm
    for i, step in enumerate(found):
        cls = type(step)
        if cls in _BATCH_NORMS:
            if not norm or batch_norm is not None or residual is not None:
                break
            buffers = step._buffers
            if step.training or buffers.get("running_mean") is None or buffers.get("running_var") is None:
                break
            if "weight" not in step._parameters or "bias" not in step._parameters:  # parametrised
                break
            batch_norm, can_add = step, True
        elif cls is Addition:
            if not can_add or residual is not None or type(step.other) is not Tensor:
                break
            residual = step.other
        elif cls is not nn.Identity:
            activation, slope = activation_of(step)
            if activation is Activation.NONE or activation not in activations:
                break
            return i + 1, batch_norm, residual, activation, slope
        chosen = i + 1
    return chosen, batch_norm, residual, Activation.NONE, 0.0


def activation_of(step: Any) -> tuple[Activation, float]:
    """Return the activation that a layer or a function computes, with the slope of a leaky ReLU. NONE for others."""
    if not isinstance(step, nn.Module):
        try:
            return _FUNCTIONS.get(step, Activation.NONE), 0.01
        except TypeError:  # not hashable
            return Activation.NONE, 0.0
    activation = _LAYERS.get(type(step), Activation.NONE)
    if activation is Activation.RELU6 and (step.min_val, step.max_val) != (0, 6):
        return Activation.NONE, 0.0
    return activation, float(step.negative_slope) if activation is Activation.LEAKY_RELU else 0.0


def _is_seen() -> bool:
    """Return whether a mode, a tracer or a transform sees the operations that the program calls."""
    return (
        torch._C._len_torch_function_stack() > 0
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or torch._C._get_tracing_state() is not None
    )


def convolution_ahead(layer: nn.Conv2d, frame: FrameType, input: Any) -> Ahead | Tensor | None:
    """Compute a convolution and the steps that follow it, without a gradient. None if the convolution runs alone.

    Args:
        layer: the convolution.
        frame: the frame of its ``forward``.
        input: (N, C, H, W).
    """
    parameters, padding = layer._parameters, layer.padding  # layer.weight takes a call of __getattr__
    if "weight" not in parameters:  # parametrised
        return None
    weight, bias = parameters["weight"], parameters["bias"]
    if type(input) is not Tensor or not input.is_cpu or layer.padding_mode != "zeros" or type(padding) is str:
        return None
    dtype = input.dtype
    is_plain = dtype in FLOATING_DTYPES and input.dim() == 4 and input.layout is torch.strided and not input.is_nested
    if not is_plain or needs_gradient((input, weight, bias)) or _is_seen() or torch.is_autocast_enabled("cpu"):
        return None
    found = steps(frame, _MOST_STEPS)
    if not found:
        return None
    count, norm, residual, activation, slope = _choose(found, True, _INFERENCE)
    if norm is None:
        if count == 0 or activation is Activation.RELU:
            return None  # conv2d_relu is faster, and a pool may follow
        vectors: tuple[Tensor | None, ...] = (None,) * 4
        eps = 0.0
    else:
        parameters, buffers = norm._parameters, norm._buffers
        vectors = (buffers["running_mean"], buffers["running_var"], parameters["weight"], parameters["bias"])
        eps = norm.eps
    if not _are_vectors((weight, bias, *vectors), dtype):
        return None
    stride, dilation, groups = layer.stride, layer.dilation, layer.groups
    if residual is not None:
        size = (
            input.shape[0],
            weight.shape[0],
            *conv2d_output(input.shape[2:], weight.shape[2:], stride, padding, dilation),
        )
        last = suggests_channels_last(input) or suggests_channels_last(weight)
        if not _is_like(residual, size, dtype, last) or needs_gradient((residual,)):
            return None
    result: Tensor = _conv2d_inference(
        input, weight, bias, *vectors, residual, stride, padding, dilation, groups, eps, activation, slope
    )
    return Ahead(result, count)


def _are_vectors(tensors: tuple[Tensor | None, ...], dtype: torch.dtype) -> bool:
    """Return whether the operator takes these: weight and bias of the convolution, and the vectors of a batch norm.

    The operator checks the sizes.
    """
    for i, tensor in enumerate(tensors):
        if tensor is None:
            continue
        if not tensor.is_cpu or tensor.layout is not torch.strided or (i > 1 and tensor.dim() != 1):
            return False
        if tensor.dtype != dtype and (i < 2 or tensor.dtype != torch.float32 or dtype == torch.float64):
            return False
    return not needs_gradient(tensors[2:])


def _is_like(tensor: Tensor, size: tuple[int, ...], dtype: torch.dtype, channels_last: bool) -> bool:
    same = tuple(tensor.shape) == size and tensor.dtype == dtype and tensor.is_cpu and tensor.layout is torch.strided
    return same and (is_channels_last(tensor) if channels_last else tensor.is_contiguous())


def batch_norm_ahead(
    frame: FrameType | None, input: Any, running_mean: Any, running_var: Any, weight: Any, bias: Any, training: bool,
    momentum: float, eps: float,
) -> Ahead | Tensor | None:  # fmt: skip
    """Compute a batch norm and the steps that follow it. None if the batch norm runs alone.

    Args:
        frame: the frame of the layer's ``forward``.
        input to eps: the arguments of :func:`fastconv.functional.batch_norm`.
    """
    if type(input) is not Tensor or _is_seen():
        return None
    found = steps(frame, _MOST_STEPS)
    if not found:
        return None
    count, _, residual, activation, _ = _choose(found, False, _DIFFERENTIABLE)
    if count == 0 or not is_supported(input, running_mean, running_var, weight, bias, training, momentum, eps):
        return None
    if residual is not None and not _is_like(residual, tuple(input.shape), input.dtype, is_channels_last(input)):
        return None
    mean, spread = running_mean, running_var
    if training:
        mean, spread = _batch_norm.statistics(input, running_mean, running_var, momentum, eps)
    result = _batch_norm.batch_norm(input, weight, bias, residual, mean, spread, training, eps, activation)
    return Ahead(result, count)


#: The activations that may follow without a gradient, and those that a batch norm differentiates.
_INFERENCE = frozenset(Activation)
_DIFFERENTIABLE = frozenset({Activation.RELU, Activation.RELU6})
#: The exact classes that may follow. fastconv.nn adds its own.
_BATCH_NORMS: set[type] = {nn.BatchNorm2d}
_LAYERS: dict[type, Activation] = {
    nn.ReLU: Activation.RELU,
    nn.ReLU6: Activation.RELU6,
    nn.LeakyReLU: Activation.LEAKY_RELU,
    nn.Hardswish: Activation.HARDSWISH,
    nn.SiLU: Activation.SILU,
}
_FUNCTIONS: dict[Any, Activation] = {
    FF.relu: Activation.RELU,
    F.relu: Activation.RELU,
    torch.relu: Activation.RELU,
    F.relu6: Activation.RELU6,
    F.leaky_relu: Activation.LEAKY_RELU,
    F.hardswish: Activation.HARDSWISH,
    F.silu: Activation.SILU,
}


def register(batch_norm: type[nn.BatchNorm2d], activations: Mapping[type, Activation]) -> None:
    """Add layers that may follow."""
    _BATCH_NORMS.add(batch_norm)
    _LAYERS.update(activations)
