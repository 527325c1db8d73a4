"""Operations that join the recipe of a Deferred. A function returns NotImplemented if the Deferred has to settle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastconv import functional as FF
from fastconv._deferred.creation import PLAIN, new_deferred
from fastconv._deferred.recipe import TO_NCHW, TO_NHWC, Operands, Recipe, Step, snapshot
from fastconv._deferred.tensor import FOLDS, Deferred, compute_deferred, note_bypass
from fastconv._ops.arguments import fused_pool_arguments
from fastconv._ops.max_pool2d import Pool
from fastconv._ops.sizes import pool_output

__all__: list[str] = []


def _append(deferred: Deferred, recipe: Recipe, step: Step, operands: Operands | None = None) -> Deferred:
    """Return ``step(deferred)`` as a new Deferred."""
    operands = deferred._operands if operands is None else operands
    return new_deferred(recipe, deferred._size, operands, deferred._layer, (deferred, step))


def _fold_relu(deferred: Deferred, inplace: Any = False) -> Any:
    recipe = deferred._recipe
    if inplace is True:
        return _fold_relu_in_place(deferred)
    if inplace is not False or recipe.geometry is None:
        return NotImplemented
    rectified = _append(deferred, recipe._replace(relu=True), torch.relu)
    return rectified if recipe.pool is None else rectified.settle()


def _fold_relu_in_place(deferred: Deferred) -> Any:
    recipe = deferred._recipe
    shared = deferred._is_viewed or deferred._viewed is not None or deferred._bypasses or deferred._waiting()
    if recipe.geometry is None or shared or torch.is_grad_enabled() != deferred._grad_enabled:
        return NotImplemented
    deferred._recipe = recipe._replace(relu=True)
    if deferred._source is not None:
        source, step = deferred._source
        deferred._source = source, lambda tensor: torch.relu(step(tensor))
    if deferred._node is not None:
        if deferred._source is not None:
            deferred._node.step = deferred._source[1]
        deferred._node.recipe = deferred._recipe
    return deferred


def _fold_max_pool(
    deferred: Deferred,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: Any = False,
    return_indices: Any = False,
) -> Any:
    if isinstance(stride, list | tuple) and not stride:  # the default of torch.max_pool2d
        stride = None
    pool = None if return_indices else fused_pool_arguments(kernel_size, stride, padding, dilation, ceil_mode)
    recipe = deferred._recipe
    if pool is None or recipe.geometry is None or recipe.pool is not None or recipe.axes_nhwc:
        return NotImplemented

    def step(tensor: Tensor) -> Tensor:
        return F.max_pool2d(tensor, *pool)

    pooled = recipe._replace(pool=pool)
    if not recipe.relu:
        N, K, H, W = deferred._size
        P, Q = _windows(H, pool, 0), _windows(W, pool, 1)
        if min(P, Q) < 2:  # an error, or a size of 1: then strides do not determine the layout
            return NotImplemented
        return new_deferred(pooled, (N, K, P, Q), deferred._operands, deferred._layer, (deferred, step))
    if recipe.operator_channels_last == recipe.channels_last:
        return compute_deferred(pooled, deferred, (deferred, step), torch.is_grad_enabled())
    y = compute_deferred(
        pooled._replace(channels_last=recipe.operator_channels_last),
        deferred,
        (deferred, step),
        torch.is_grad_enabled(),
    )
    N, K, P, Q = y.shape
    if recipe.operator_channels_last and min(K, P, Q) > 1:
        return new_deferred(Recipe(None, True, False), (N, K, P, Q), (y, None, None))
    return y.contiguous(memory_format=torch.channels_last if recipe.channels_last else torch.contiguous_format)


def _windows(size: int, pool: Pool, axis: int) -> int:
    """Return the number of a pool's windows along one axis of ``size`` pixels; 0 if the pool's arguments are wrong."""
    kernel, stride, padding, dilation = (numbers[axis] for numbers in pool[:4])
    if min(kernel, stride, dilation) < 1 or not 0 <= 2 * padding <= kernel:
        return 0
    return pool_output(size, kernel, stride, padding, dilation, pool[4])


def _fold_permute(deferred: Deferred, *dims: Any, **kwargs: Any) -> Any:
    order = dims[0] if len(dims) == 1 else dims
    recipe = deferred._recipe
    if kwargs or not isinstance(order, tuple | list):
        return NotImplemented
    order = tuple(order)
    if order != (TO_NCHW if recipe.axes_nhwc else TO_NHWC):
        return NotImplemented
    deferred._is_viewed = True
    source: tuple[Deferred, Step] = (deferred, lambda t: t.permute(order))
    recipe = recipe._replace(axes_nhwc=not recipe.axes_nhwc)
    return new_deferred(recipe, deferred._size, deferred._operands, deferred._layer, source, view_of=deferred)


def _fold_contiguous(deferred: Deferred, memory_format: torch.memory_format = torch.contiguous_format) -> Any:
    recipe = deferred._recipe
    if memory_format is torch.contiguous_format:
        channels_last = recipe.axes_nhwc
    elif memory_format is torch.channels_last and not recipe.axes_nhwc:
        channels_last = True
    else:
        return NotImplemented
    if channels_last == recipe.channels_last:
        return deferred

    def step(tensor: Tensor) -> Tensor:
        return tensor.contiguous(memory_format=memory_format)

    if recipe.geometry is not None:
        return _append(deferred, recipe._replace(channels_last=channels_last), step)
    if not channels_last:
        return NotImplemented
    # The operator's result already has this layout, so the two copies that PyTorch makes are not needed. Copy-on-write
    # is safe here, because nothing else refers to this memory.
    y = torch._lazy_clone(deferred.base()._operands[0])
    note_bypass((deferred, step), y)
    return y


def _fold_bias(deferred: Deferred, other: Any, **kwargs: Any) -> Any:
    input, weight, bias = deferred._operands
    recipe, K = deferred._recipe, deferred._size[1]
    axis = -1 if recipe.axes_nhwc else -3
    if kwargs or recipe.geometry is None or recipe.relu or recipe.pool is not None or bias is not None:
        return NotImplemented
    if type(other) not in PLAIN or other.numel() != K or not -axis <= other.dim() <= 4 or other.shape[axis] != K:
        return NotImplemented
    if (other.dtype, other.device) != (input.dtype, input.device) or (other.is_inference() and not deferred._inference):
        return NotImplemented
    kept = snapshot(other)
    return _append(deferred, recipe, lambda t: t + kept, (input, weight, kept.reshape(K)))


def _fold_to(deferred: Deferred, *args: Any, **kwargs: Any) -> Any:
    """Fold a ``Tensor.to`` that returns the tensor itself."""
    if kwargs or len(args) != 1:
        return NotImplemented
    (to,) = args
    with torch._C.DisableTorchFunction():
        if isinstance(to, torch.dtype):
            unchanged = to == deferred.dtype
        else:
            unchanged = isinstance(to, str | torch.device) and torch.device(to) == deferred.device
    return deferred if unchanged else NotImplemented


def _metadata(function: Callable[..., Any]) -> Callable[..., Any]:
    def read(*args: Any, **kwargs: Any) -> Any:
        with torch._C.DisableTorchFunction():
            return function(*args, **kwargs)

    return read


def _reads(name: str) -> Callable[..., Any]:
    return getattr(Tensor, name).__get__  # type: ignore[no-any-return]


#: Functions that read only metadata. A Deferred answers them without settling.
_METADATA: tuple[Callable[..., Any], ...] = (
    *map(_reads, ("shape", "dtype", "device", "ndim", "is_meta", "is_cuda", "layout", "requires_grad")),
    *(Tensor.size, Tensor.dim, Tensor.numel, Tensor.stride, Tensor.is_contiguous, Tensor.is_floating_point),
    *(torch.numel, torch.is_floating_point),
)
_TABLE: dict[Callable[..., Any], Callable[..., Any]] = {
    **dict.fromkeys((FF.relu, F.relu), _fold_relu),
    **dict.fromkeys((torch.relu, Tensor.relu), lambda deferred: _fold_relu(deferred)),
    **dict.fromkeys((torch.relu_, Tensor.relu_), lambda deferred: _fold_relu(deferred, True)),
    **dict.fromkeys((FF.max_pool2d, F.max_pool2d, torch.max_pool2d), _fold_max_pool),
    **dict.fromkeys((torch.permute, Tensor.permute), _fold_permute),
    **dict.fromkeys((torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__), _fold_bias),
    Tensor.contiguous: _fold_contiguous,
    Tensor.to: _fold_to,
    **{function: _metadata(function) for function in _METADATA},
}
FOLDS.update(_TABLE)
