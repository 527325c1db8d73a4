"""Compute a layer together with the steps that provably follow: a batch norm, an addition, an activation.

``relu(batch_norm(conv(x)))`` runs as one operator in inference, and ``relu(batch_norm(x) + residual)`` in training. The
first layer looks ahead (:mod:`fastconv._ahead.lookahead`), computes the result of all steps, and returns it as an
:class:`Ahead`. The program then calls the other layers. Each of them finds that its work is done and passes the Ahead
on. The last one returns the tensor.

Only the analysis of the bytecode is remembered from call to call. No parameter is copied or folded into another.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from types import BuiltinFunctionType, CodeType, FrameType, FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from fastconv import functional as FF
from fastconv._ahead.lookahead import LAYERS_IN_FRAME, Addition, Step, runs_stock_code, steps
from fastconv._ops import batch_norm as _batch_norm
from fastconv._ops.conv2d_inference import Activation
from fastconv._ops.conv2d_inference import conv2d_inference as _conv2d_inference
from fastconv._ops.function import needs_gradient
from fastconv._ops.library import FLOATING_DTYPES
from fastconv._ops.memory_format import is_channels_last, suggests_channels_last
from fastconv._ops.sizes import conv2d_output
from fastconv.normalization import is_supported

__all__ = ["Ahead", "activation_of", "batch_norm_ahead", "convolution_ahead", "register", "register_sequential"]


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
        if func not in _PASSING:
            raise RuntimeError(
                f"fastconv expected no call of {func} here. Please report this program. fastconv.convert(model, "
                "fuse=False) avoids the error"
            )
        found = next(a for a in (*args, *(kwargs or {}).values()) if type(a) is Ahead)
        return found.passed()


class _Fusion(NamedTuple):
    """The steps to compute with a layer."""

    steps: int = 0
    norm: Any = None
    residual: Tensor | None = None
    activation: Activation = Activation.NONE
    slope: float = 0.0


_NOTHING = _Fusion()


def _choose(found: Iterator[Step], with_norm: bool, activations: Collection[Activation]) -> _Fusion:
    """Choose the steps to compute with a layer, in this order: a batch norm, an addition, an activation.

    Args:
        found: the steps that follow.
        with_norm: begin with a batch norm. Without one, there is no addition.
        activations: those that the operator computes.
    """
    chosen, count, norm, residual = _NOTHING, 0, None, None
    activation, slope = Activation.NONE, 0.0
    for step, is_clean in found:
        cls = type(step)
        if cls is Addition:
            if residual is not None or (with_norm and norm is None) or type(step.other) is not Tensor:
                break
            residual = step.other
        elif cls in _FORWARDS and not runs_stock_code(step, _FORWARDS[cls]):
            break
        elif cls in _BATCH_NORMS:
            if not with_norm or norm is not None or residual is not None or not _is_constant(step):
                break
            norm = step
        elif cls is not nn.Identity:
            activation, slope = activation_of(step)
            if activation not in activations:
                break
        count += cls is not nn.Identity  # which returns its argument
        if is_clean:
            chosen = _Fusion(count, norm, residual, activation, slope)
        if activation is not Activation.NONE:
            break
    return chosen


def _is_constant(norm: nn.BatchNorm2d) -> bool:
    """Return whether a batch norm uses its running statistics, and its tensors are what it has registered."""
    parameters, buffers = norm._parameters, norm._buffers
    has_statistics = buffers.get("running_mean") is not None and buffers.get("running_var") is not None
    is_known = "weight" in parameters and "bias" in parameters and type(norm.eps) is float and norm.eps > 0
    return has_statistics and is_known and norm.training is False


def activation_of(step: Any) -> tuple[Activation, float]:
    """Return the activation that a layer or a function computes, with the slope of a leaky ReLU. NONE for others."""
    layer: Any = step
    if not isinstance(step, nn.Module):
        is_function = isinstance(step, FunctionType | BuiltinFunctionType)
        return (_FUNCTIONS.get(step, Activation.NONE) if is_function else Activation.NONE), 0.01
    activation = _LAYERS.get(type(step), Activation.NONE)
    if activation is Activation.RELU6 and (layer.min_val, layer.max_val) != (0, 6):
        return Activation.NONE, 0.0
    if activation is Activation.LEAKY_RELU:
        slope = layer.negative_slope
        return (activation, float(slope)) if type(slope) in (float, int) else (Activation.NONE, 0.0)
    return activation, 0.0


def _is_seen() -> bool:
    """Return whether a mode, a hook, a tracer or a transform sees the operations that the program calls."""
    return (
        torch._C._len_torch_function_stack() > 0
        or torch._C._len_torch_dispatch_stack() > 0
        or not torch._C._is_torch_function_enabled()  # an Ahead needs it
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
        or torch._C._get_tracing_state() is not None
    )


def convolution_ahead(layer: nn.Conv2d, frame: FrameType, input: Any) -> Ahead | None:
    """Compute a convolution and the steps that follow it, without a gradient. None if the convolution runs alone.

    Args:
        layer: the convolution.
        frame: the frame of its ``forward``.
        input: (N, C, H, W).
    """
    if type(input) is not Tensor or not input.is_cpu or input.dtype not in FLOATING_DTYPES:
        return None
    attributes = vars(layer)  # much faster than attributes of a module
    parameters = attributes["_parameters"]
    weight, bias = parameters.get("weight"), parameters.get("bias")  # None: parametrised
    if weight is None or needs_gradient((input, weight, bias)) or input.dim() != 4 or weight.dim() != 4:
        return None
    is_plain = attributes["padding_mode"] == "zeros" and input.layout is torch.strided and not input.is_nested
    if not is_plain or _is_seen() or torch.is_autocast_enabled("cpu"):
        return None
    geometry = attributes["stride"], attributes["padding"], attributes["dilation"]
    if any(type(pair) is not tuple for pair in geometry):
        return None
    count, norm, residual, activation, slope = _choose(steps(layer, frame), True, _INFERENCE)
    if norm is None:
        if count == 0 or activation is Activation.RELU:
            return None  # conv2d_relu is faster, and a pool may follow
        vectors: tuple[Tensor | None, ...] = (None,) * 4
        eps = 0.0
    else:
        parameters, buffers = vars(norm)["_parameters"], vars(norm)["_buffers"]
        vectors = (buffers["running_mean"], buffers["running_var"], parameters["weight"], parameters["bias"])
        eps = norm.eps
    if not _are_vectors((weight, bias, *vectors), input.dtype) or not _fits(residual, input, weight, *geometry):
        return None
    try:
        result = _conv2d_inference(
            input, weight, bias, *vectors, residual, *geometry, attributes["groups"], eps, activation, slope
        )
    except RuntimeError:  # The layer that runs alone raises PyTorch's error.
        return None
    return Ahead(result, count)


def _fits(residual: Tensor | None, input: Tensor, weight: Tensor, stride: Any, padding: Any, dilation: Any) -> bool:
    """Return whether a convolution's result has the size, dtype and layout of ``residual``."""
    if residual is None:
        return True
    if min(*stride, *dilation) <= 0 or needs_gradient((residual,)):
        return False
    size = input.shape[0], weight.shape[0], *conv2d_output(input.shape[2:], weight.shape[2:], stride, padding, dilation)
    return _is_like(residual, size, input.dtype, suggests_channels_last(input) or suggests_channels_last(weight))


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
    layer: nn.BatchNorm2d, frame: FrameType, input: Any, running_mean: Any, running_var: Any, weight: Any, bias: Any,
    training: bool, momentum: float, eps: float,
) -> Ahead | None:  # fmt: skip
    """Compute a batch norm and the steps that follow it. None if the batch norm runs alone.

    Args:
        layer: the batch norm.
        frame: the frame of its ``forward``.
        input to eps: the arguments of :func:`fastconv.functional.batch_norm`.
    """
    if type(input) is not Tensor or _is_seen():
        return None
    count, _, residual, activation, _ = _choose(steps(layer, frame), False, _DIFFERENTIABLE)
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
_INFERENCE = frozenset(Activation) - {Activation.NONE}
_DIFFERENTIABLE = frozenset({Activation.RELU, Activation.RELU6})
#: The exact classes that may follow. fastconv.nn adds its own.
_BATCH_NORMS: set[type[nn.Module]] = {nn.BatchNorm2d}
_LAYERS: dict[type[nn.Module], Activation] = {
    nn.ReLU: Activation.RELU,
    nn.ReLU6: Activation.RELU6,
    nn.LeakyReLU: Activation.LEAKY_RELU,
    nn.Hardswish: Activation.HARDSWISH,
    nn.SiLU: Activation.SILU,
}
#: The code of their ``forward`` at import.
_FORWARDS: dict[type, CodeType] = {}
_FUNCTIONS: dict[Any, Activation] = {
    FF.relu: Activation.RELU,
    F.relu: Activation.RELU,
    torch.relu: Activation.RELU,
    F.relu6: Activation.RELU6,
    F.leaky_relu: Activation.LEAKY_RELU,
    F.hardswish: Activation.HARDSWISH,
    F.silu: Activation.SILU,
}
#: The functions that the steps call.
_PASSING = {*_FUNCTIONS, F.batch_norm, F.hardtanh, Tensor.__add__, Tensor.__radd__, Tensor.add}


def register(batch_norm: type[nn.BatchNorm2d], activations: Mapping[type[nn.Module], Activation]) -> None:
    """Add layers that may follow."""
    _BATCH_NORMS.add(batch_norm)
    _LAYERS.update(activations)
    _FORWARDS.update({cls: cls.forward.__code__ for cls in (batch_norm, *activations)})


def register_sequential(sequential: type[nn.Sequential]) -> None:
    """Add a Sequential whose ``forward`` has the members in ``layers`` and the position of the current one in ``i``."""
    LAYERS_IN_FRAME.add(sequential.forward.__code__)
