"""Compute a layer together with the steps that provably follow: a batch norm, an addition, an activation, a pool.

``relu(batch_norm(conv(x)))`` runs as one operator in inference, and ``relu(batch_norm(x) + residual)`` or
``max_pool2d(relu(batch_norm(x)))`` in training. The first layer looks ahead (:mod:`fastconv._ahead.lookahead`),
computes the result of all steps, and returns it as an :class:`Ahead`. The program then calls the other layers. Each of
them finds that its work is done and passes the Ahead on. The last one returns the tensor.

Only the analysis of the bytecode is remembered from call to call. No parameter is copied or folded into another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import chain
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from fastconv._ahead.groups import Group, groups
from fastconv._ahead.layers import CALLED, CONVOLUTION, FUNCTIONS, KINDS, LINEAR, NORM, POOLS, activation_of, methods
from fastconv._ahead.lookahead import LAYERS_IN_FRAME, SEQUENTIAL_CALLS, Step, steps
from fastconv._ahead.recompute import note_next, note_source
from fastconv._layer import is_patched
from fastconv._ops import batch_norm as _batch_norm
from fastconv._ops import batch_norm_relu_max_pool2d as _batch_norm_pool
from fastconv._ops.arguments import fused_pool_arguments
from fastconv._ops.conv2d_inference import Activation, conv2d_inference
from fastconv._ops.library import _C, FLOATING_DTYPES
from fastconv._ops.max_pool2d import Pool
from fastconv._ops.memory_format import is_channels_last, suggests_channels_last
from fastconv.normalization import is_supported

__all__ = ["Ahead", "batch_norm_ahead", "convolution_ahead", "may_wait", "note_use", "register_sequential"]


class Ahead:
    """The result of a layer and of the ``steps`` that follow it."""

    __slots__ = ("result", "steps")

    def __init__(self, result: Tensor, steps: int) -> None:
        self.result, self.steps = result, steps

    def passed(self) -> Any:
        """Return the result of the next step: this object, or the tensor after the last step."""
        self.steps -= 1
        return self if self.steps else self.result

    def dim(self) -> int:  # A batch norm asks for it.
        return self.result.dim()

    def relu(self) -> Any:
        return self.passed()

    relu_ = relu

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


def _is_seen() -> bool:
    """Return whether a mode, a hook, a tracer or a transform sees the operations that the program calls."""
    return (
        _len_torch_function_stack() > 0
        or _len_torch_dispatch_stack() > 0
        or not _is_torch_function_enabled()  # an Ahead needs it
        or _are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or _top_saved_tensors_default_hooks(True) is not None
        or _get_tracing_state() is not None
    )


# As variables of this module, they take half as long.
_len_torch_function_stack = torch._C._len_torch_function_stack
_len_torch_dispatch_stack = torch._C._len_torch_dispatch_stack
_is_torch_function_enabled = torch._C._is_torch_function_enabled
_are_functorch_transforms_active = torch._C._are_functorch_transforms_active
_top_saved_tensors_default_hooks = torch._C._autograd._top_saved_tensors_default_hooks
_get_tracing_state = torch._C._get_tracing_state


def convolution_ahead(layer: nn.Conv2d, frame: FrameType, input: Any) -> Ahead | None:
    """Compute a convolution and the steps that follow it, without a gradient. None if the convolution runs alone.

    Other convolutions may be among the steps.

    Args:
        layer: the convolution.
        frame: the frame of its ``forward``.
        input: (N, C, H, W).
    """
    if type(input) is not Tensor or not input.is_cpu or input.dtype not in FLOATING_DTYPES or input.dim() != 4:
        return None
    grad = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    if grad and (input.requires_grad or _requires_grad(layer)):
        return None
    if _is_seen() or is_patched():
        return None
    if input.shape[0] == 0:  # PyTorch computes each step: the strides depend on all of them
        return None
    chosen = groups(layer, steps(layer, frame), _INFERENCE)
    if not chosen:
        return None
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
    ahead, value = None, input
    for group in chosen:
        try:
            result = _compute(group, value, grad, dtype)
        except (RuntimeError, KeyError, TypeError):  # The layer that runs alone raises PyTorch's error.
            break
        if result is None:
            break
        value = result
        if group[6]:
            ahead = Ahead(value, group[5])
    return ahead


def may_wait(layer: nn.Conv2d, frame: FrameType, has_source: bool) -> bool:
    """Return whether the result of a convolution may wait for a ReLU or a pool.

    A waiting result keeps a copy of the convolution's input. If batch norms follow, these copies take half of the
    memory of CIFAR ResNet-20's first steps.

    Args:
        layer: the convolution.
        frame: the frame of its ``forward``.
        has_source: the input need not be kept until backward (:mod:`fastconv._ahead.recompute`). Then the result waits
            only if a ReLU follows.
    """
    user: Any = next((user for user, _, _ in steps(layer, frame)), None)
    if has_source:
        return activation_of(user)[0] is Activation.RELU
    return KINDS.get(type(user)) is not NORM and not _is_compiled(user)


def _is_compiled(user: Any) -> bool:
    """Return whether torch.compile made a module or function. Dynamo compiles no code that uses a waiting result."""
    attributes: Any = getattr(user, "__dict__", {})
    modules = attributes.get("_modules", ())
    is_compiled = attributes.get("_compiled_call_impl") is not None or "_torchdynamo_orig_callable" in attributes
    return is_compiled or "_orig_mod" in modules


def _requires_grad(layer: nn.Conv2d) -> bool:
    parameters = layer.__dict__["_parameters"].values()
    return any(parameter is not None and parameter.requires_grad for parameter in parameters)


def _compute(group: Group, input: Tensor, grad: bool, dtype: torch.dtype | None) -> Tensor | None:
    """Compute a group. None if the operator does not support the tensors.

    The operator itself refuses wrong sizes and layouts. It would read the memory of a tensor on the meta device.

    Args:
        group: begins with a convolution.
        input: (N, C, H, W) on the CPU, without a gradient.
        grad: autograd records operations.
        dtype: the dtype to which autocast casts the operands of a convolution.
    """
    convolution, norm, residual, activation, slope, _, _ = group
    attributes = convolution.__dict__  # much faster than attributes of a module
    parameters = attributes["_parameters"]
    stride, padding, dilation = attributes["stride"], attributes["padding"], attributes["dilation"]
    if attributes["padding_mode"] != "zeros" or not type(stride) is type(padding) is type(dilation) is tuple:
        return None
    weight, bias = parameters["weight"], parameters["bias"]
    if dtype is not None and torch.float64 not in (input.dtype, weight.dtype, getattr(bias, "dtype", None)):
        input, weight, bias = input.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    of_input = input.dtype
    for tensor in (weight, bias):
        if tensor is not None and (
            (type(tensor) is not nn.Parameter and type(tensor) is not Tensor)
            or not tensor.is_cpu
            or tensor.dtype is not of_input
            or (grad and tensor.requires_grad)
        ):
            return None
    of_vectors = of_input if of_input is torch.float64 else torch.float32
    mean, var, norm_weight, norm_bias, eps = _NO_NORM if norm is None else norm
    for tensor in (mean, var, norm_weight, norm_bias):
        if tensor is not None and (
            (type(tensor) is not nn.Parameter and type(tensor) is not Tensor)
            or not tensor.is_cpu
            or (tensor.dtype is not of_input and tensor.dtype is not of_vectors)
            or (grad and tensor.requires_grad)
        ):
            return None
    if residual is not None and ((grad and residual.requires_grad) or not _has_format(residual, input, weight)):
        return None
    result: Tensor = _conv2d_inference(
        input, weight, bias, mean, var, norm_weight, norm_bias, residual, stride, padding, dilation,
        attributes["groups"], eps, activation, slope,
    )  # fmt: skip
    # Otherwise the sum of PyTorch might have other strides.
    return result if residual is None or result.stride() == residual.stride() else None


def _has_format(residual: Tensor, input: Tensor, weight: Tensor) -> bool:
    """Return whether a residual probably has the strides of the convolution's result. The operator checks its size."""
    if not residual.is_cpu or residual.dim() != 4:
        return False
    if residual.is_contiguous() and input.is_contiguous() and weight.is_contiguous():
        return True
    return is_channels_last(residual) == (suggests_channels_last(input) or suggests_channels_last(weight))


#: Without the Python function around it, which takes 1 us. Nothing traces these calls.
_conv2d_inference = conv2d_inference._op
_NO_NORM: tuple[Any, Any, Any, Any, float] = (None, None, None, None, 0.0)


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
    if type(input) is not Tensor or input.is_cuda or _is_seen():
        return None
    following = steps(layer, frame, _ENDS)
    chosen = groups(layer, following, _DIFFERENTIABLE)
    if not chosen or not is_supported(input, running_mean, running_var, weight, bias, training, momentum, eps):
        return None
    _, _, residual, activation, _, count, _ = chosen[-1]
    if residual is not None and not _is_like(residual, tuple(input.shape), input.dtype, is_channels_last(input)):
        return None
    mean, spread = running_mean, running_var
    if training:
        mean, spread = _batch_norm.statistics(input, running_mean, running_var, momentum, eps)
    tensors = input, weight, bias, mean, spread
    if residual is None and activation is Activation.RELU and input.dtype in _batch_norm_pool.DTYPES:
        next_step = next(following, None)
        pool = _pool_of(next_step)
        if pool is not None:
            try:
                return Ahead(_batch_norm_pool.batch_norm_relu_max_pool2d(*tensors, training, eps, pool), count + 1)
            except RuntimeError:  # The pool that runs alone raises PyTorch's error.
                pass
        following = chain((next_step,), following) if next_step is not None else following
    result = _batch_norm.batch_norm(input, weight, bias, residual, mean, spread, training, eps, activation)
    if residual is None and activation is not Activation.NONE and result.requires_grad:
        note_source(result, following, tensors, (training, eps, int(activation)))
    return Ahead(result, count)


def note_use(layer: nn.Module, frame: FrameType, result: Any) -> None:
    """Note whether the program passes the result of a layer through an activation of PyTorch to another layer.

    Args:
        layer: a batch norm or a linear layer.
        frame: the frame of its ``forward``.
        result: its result.
    """
    if type(result) is Tensor and result.requires_grad and not _is_seen():
        note_next(result, steps(layer, frame))


def _pool_of(step: Step | None) -> Pool | None:
    """Return the arguments of a max-pool. None for another step, or if a variable still holds an earlier result."""
    if step is None:
        return None
    user, arguments, is_clean = step
    of_pool = POOLS.get(type(user))
    if of_pool is None or arguments or not is_clean or not _C.is_stock(user, of_pool) or user.return_indices:
        return None
    return fused_pool_arguments(user.kernel_size, user.stride, user.padding, user.dilation, user.ceil_mode)


#: The activations that may follow without a gradient, and those that a batch norm differentiates.
_INFERENCE = tuple(activation for activation in Activation if activation is not Activation.NONE)
_DIFFERENTIABLE = (Activation.RELU, Activation.RELU6)
#: The kinds of layers that end the steps after a batch norm.
_ENDS = (CONVOLUTION, LINEAR, NORM)
#: The functions that the steps call.
_PASSING = {*FUNCTIONS, F.batch_norm, F.hardtanh, Tensor.__add__, Tensor.__radd__, Tensor.add}


def register_sequential(sequential: type[nn.Sequential]) -> None:
    """Add a Sequential whose ``forward`` has the members in ``layers`` and the position of the current one in ``i``."""
    code: CodeType = sequential.forward.__code__
    LAYERS_IN_FRAME[id(code)] = code
    SEQUENTIAL_CALLS.append(methods(sequential, *CALLED, "__iter__"))
