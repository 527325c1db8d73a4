"""Choose the steps that one operator computes: a convolution, a batch norm, an addition and an activation.

A *group* is what one call of an operator computes. In inference, the groups of several convolutions in a row are chosen
together.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from fastconv._ahead.layers import ACTIVATION, CONVOLUTION, IDENTITY, KINDS, METHODS, NORM, activation_of
from fastconv._ahead.lookahead import ADDITION, Step
from fastconv._ops.conv2d_inference import Activation
from fastconv._ops.library import _C

__all__ = ["Group", "groups"]

#: The running mean and variance, the weight and bias, and eps of a batch norm.
Norm = tuple[Any, Any, Any, Any, float]
#: A convolution (None if the first layer is a batch norm), a batch norm, a residual, an activation and the slope of a
#: leaky ReLU. Then the number of steps from the first layer of all groups to the end of this one, and whether no
#: variable that is read later holds an earlier result. A NamedTuple would take ten times as long to create.
Group = tuple[Any, Norm | None, Tensor | None, Activation, float, int, bool]

_is_stock = _C.is_stock
_NONE, _RELU = Activation.NONE, Activation.RELU  # A member of an enum takes longer than a variable.


def groups(first: nn.Module, found: Iterable[Step], activations: Sequence[Activation]) -> Sequence[Group]:
    """Choose the steps to compute together with a layer. The last group is clean. Empty if the layer runs alone.

    Args:
        first: a convolution or a batch norm.
        found: the steps that follow. After a batch norm, the steps after the activation stay in the iterator.
        activations: the activations that the operator supports.
    """
    if not _is_stock(first, METHODS[type(first)]):
        return ()
    closed: tuple[Group, ...] = ()
    best: tuple[Group, ...] = ()
    has_norm = is_faster = KINDS[type(first)] is NORM
    convolution: Any = None if has_norm else first
    norm: Norm | None = None
    residual, activation, slope, count = None, _NONE, 0.0, 0
    may_end = False  # the steps so far are clean, and one operator computes the open group faster than its layers
    for user, argument, is_clean in found:
        if may_end and not is_clean:
            best = (*closed, (convolution, norm, residual, activation, slope, count, True))
        cls = type(user)
        kind = KINDS.get(cls)
        if user is ADDITION:
            if not has_norm or activation is not _NONE or residual is not None or type(argument) is not Tensor:
                break
            residual = argument
        elif kind is None or kind is ACTIVATION:
            if activation is not _NONE or (kind is ACTIVATION and (argument or not _is_stock(user, METHODS[cls]))):
                break
            chosen = activation_of(user, argument)
            if chosen[0] not in activations:
                break
            activation, slope = chosen
            is_faster = is_faster or activation is not _RELU  # conv2d_relu is faster, and a pool may follow it
        elif argument or not _is_stock(user, METHODS[cls]):  # called with more than the result, or observed
            break
        elif kind is NORM:
            constants = None if has_norm or activation is not _NONE else _constant(user)
            if constants is None:
                break
            norm, has_norm, is_faster = constants, True, True
        elif kind is CONVOLUTION:
            if convolution is None or not user._fuses or not is_faster:
                break
            closed = (*closed, (convolution, norm, residual, activation, slope, count, may_end))
            best = closed if may_end else best
            convolution, norm, residual, activation, slope = user, None, None, _NONE, 0.0
            has_norm = is_faster = False
        elif kind is not IDENTITY:
            break
        count += kind is not IDENTITY  # which returns its argument
        may_end = is_clean and is_faster and count > 0
        if convolution is None and activation is not _NONE:
            break
    return (*closed, (convolution, norm, residual, activation, slope, count, True)) if may_end else best


def _constant(norm: nn.BatchNorm2d) -> Norm | None:
    """Return the registered constants of a batch norm that uses its running statistics. None for any other one."""
    attributes = norm.__dict__
    if attributes["training"] is not False:
        return None
    parameters, buffers, eps = attributes["_parameters"], attributes["_buffers"], attributes["eps"]
    mean, var = buffers.get("running_mean"), buffers.get("running_var")
    if mean is None or var is None or "weight" not in parameters or "bias" not in parameters:
        return None
    return (mean, var, parameters["weight"], parameters["bias"], eps) if type(eps) is float and eps > 0 else None
