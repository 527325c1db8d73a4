r"""Batch normalisation as in :func:`torch.nn.functional.batch_norm`, and with a residual and ReLU in one operator.

``fastconv.functional`` exports these functions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import has_torch_function

from fastconv._ops import batch_norm as _batch_norm
from fastconv._ops.conv2d_inference import Activation
from fastconv._ops.function import is_transformed
from fastconv._ops.library import FLOATING_DTYPES
from fastconv._ops.overrides import handle_override

__all__ = ["batch_norm", "batch_norm_relu"]

_REDUCED = (torch.bfloat16, torch.float16)
#: PyTorch's functions for the activations that have a gradient after a batch norm.
_ACTIVATIONS = {Activation.NONE: None, Activation.RELU: F.relu, Activation.RELU6: F.relu6}


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    r"""Batch normalisation, as :func:`torch.nn.functional.batch_norm`.

    .. math::
        y = \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} \gamma + \beta

    with the mean and variance of each channel: those of the batch with ``training``, else the running ones (Ioffe and
    Szegedy, "Batch Normalization", arXiv 1502.03167).

    Args:
        input: (N, C), (N, C, L), (N, C, H, W) or (N, C, D, H, W). fastconv computes floating types on the CPU, in
            float32 if the type has 16 bits. PyTorch computes the rest.
        running_mean, running_var: (C,). With ``training``, they are updated in place, or None.
        weight, bias: (C,), or None. With an input of 16 bits, all four vectors may be float32.
        training: use the statistics of the batch.
        momentum: the share of the batch in the updated running statistics.
        eps: is added to the variance.

    Returns:
        The input's shape, dtype and memory format.

    Raises:
        ValueError: one value per channel with ``training``, or a negative eps, with PyTorch's message.
        RuntimeError: invalid sizes or dtypes, with PyTorch's message.

    Example:
        >>> y = batch_norm(torch.randn(8, 3, 32, 32), None, None, training=True)
        >>> y.std().round()
        tensor(1.)
    """
    tensors = tuple(t for t in (input, running_mean, running_var, weight, bias) if t is not None)
    if has_torch_function(tensors):
        return handle_override(
            batch_norm, F.batch_norm, tensors, input, running_mean, running_var, weight=weight, bias=bias,
            training=training, momentum=momentum, eps=eps,
        )  # fmt: skip
    return normalized(input, running_mean, running_var, weight, bias, training, momentum, eps)


def batch_norm_relu(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    residual: Tensor | None = None,
) -> Tensor:
    r"""``relu(batch_norm(...) + residual)`` in one operator.

    The input is saved for backward, and the output if there is a residual. The normalised values are not stored.

    Args and raised errors: see :func:`batch_norm`.
        residual: a tensor of the input's shape and dtype, or None.

    Returns:
        The input's shape, dtype and memory format. Values and gradients equal those of the composition up to rounding.

    Example:
        >>> x = torch.randn(8, 3, 32, 32)
        >>> batch_norm_relu(x, None, None, training=True, residual=x).min()
        tensor(0.)
    """
    tensors = tuple(t for t in (input, running_mean, running_var, weight, bias, residual) if t is not None)
    if has_torch_function(tensors):
        return handle_override(
            batch_norm_relu, _composed, tensors, input, running_mean, running_var, weight=weight, bias=bias,
            training=training, momentum=momentum, eps=eps, residual=residual,
        )  # fmt: skip
    return normalized(
        input, running_mean, running_var, weight, bias, training, momentum, eps, residual, Activation.RELU
    )


def normalized(
    input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None, bias: Tensor | None,
    training: bool, momentum: float, eps: float, residual: Tensor | None = None,
    activation: Activation = Activation.NONE,
) -> Tensor:  # fmt: skip
    """Return ``activation(batch_norm(...) + residual)``, by the operator if it supports the arguments."""
    if not is_supported(input, running_mean, running_var, weight, bias, training, momentum, eps) or not _fits(
        residual, input
    ):
        arguments = input, running_mean, running_var, weight, bias, training, momentum, eps
        return _composed(*arguments, residual=residual, activation=activation)
    if training:
        mean, spread = _batch_norm.statistics(input, running_mean, running_var, momentum, eps)
    else:
        assert running_mean is not None
        assert running_var is not None
        mean, spread = running_mean, running_var
    return _batch_norm.batch_norm(input, weight, bias, residual, mean, spread, training, eps, activation)


def _composed(*args: Any, residual: Any = None, activation: Activation = Activation.RELU, **kwargs: Any) -> Any:
    """Return ``activation(batch_norm(...) + residual)`` by PyTorch's functions."""
    y = F.batch_norm(*args, **kwargs)
    y = y if residual is None else y + residual
    function = _ACTIVATIONS[activation]
    return y if function is None else function(y)


def is_supported(
    input: Any, running_mean: Any, running_var: Any, weight: Any, bias: Any, training: Any, momentum: Any, eps: Any
) -> bool:
    """Return whether the operator supports a call. PyTorch handles the others, which include all invalid ones."""
    if (
        is_transformed()
        or torch._C._get_tracing_state() is not None  # then sizes are tensors, and comparing them warns
        or not isinstance(input, Tensor)
        or not (input.is_cpu or input.is_meta)
        or input.dtype not in FLOATING_DTYPES
        or input.layout is not torch.strided
        or input.is_nested
        or not 2 <= input.dim() <= 5
        or (input.dim() == 5 and input.stride(1) == 1 and not input.is_contiguous())  # channels_last_3d
        or input.numel() == 0
        or type(training) is not bool
        or type(momentum) not in (float, int)
        or type(eps) not in (float, int)
        or not eps > 0
    ):
        return False
    C = input.shape[1]
    if input.numel() == C and training:
        return False
    if (running_mean is None) != (running_var is None) or (running_mean is None and not training):
        return False
    of_input, device, dtype = input.dtype, input.device, None
    for vector in (running_mean, running_var, weight, bias):
        if vector is None:
            continue
        if not isinstance(vector, Tensor) or vector.shape != (C,) or vector.device != device:
            return False
        of_vector = vector.dtype
        if vector.layout is not torch.strided:  # The operator would refuse it after it has updated the statistics.
            return False
        if of_vector is not of_input and not (of_input in _REDUCED and of_vector is torch.float32):
            return False
        if dtype is not None and of_vector is not dtype:
            return False
        dtype = of_vector
    return _is_running_vector(running_mean) and _is_running_vector(running_var)


def _is_running_vector(t: Tensor | None) -> bool:
    """Return whether the operator can update running statistics in place."""
    if t is None:
        return True
    is_frozen = t.requires_grad or (t.is_inference() and not torch.is_inference_mode_enabled())
    return not is_frozen and t.is_contiguous()


def _fits(residual: Any, input: Tensor) -> bool:
    return residual is None or (
        isinstance(residual, Tensor)
        and residual.shape == input.shape
        and residual.dtype == input.dtype
        and residual.device == input.device
        and residual.layout is torch.strided
        and not residual.is_nested
    )
