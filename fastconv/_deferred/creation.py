"""Make a Deferred: from the arguments of a convolution, or from one more operation on another Deferred."""

from __future__ import annotations

from collections.abc import Sequence
from threading import RLock
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.graph import GradientEdge
from torch.utils.weak import TensorWeakRef

from fastconv._deferred.history import check_history
from fastconv._deferred.recipe import Operands, Recipe, Step, in_sequence, snapshot
from fastconv._deferred.tensor import Deferred, DeferringLayer, is_watched, sources
from fastconv._ops import gpu
from fastconv._ops.function import needs_gradient
from fastconv._ops.memory_format import suggests_channels_last
from fastconv._ops.sizes import conv2d_output
from fastconv.functional import Convolution, convolution_arguments

__all__ = ["PLAIN", "defer", "new_deferred"]

PLAIN = (Tensor, nn.Parameter)


def defer(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: Any = 1,
    *,
    layer: DeferringLayer | None = None,
) -> Deferred | None:
    """Return the result of ``conv2d`` with these arguments, to be computed later.

    Args:
        input, weight, bias, stride, padding, dilation, groups: those of :func:`torch.nn.functional.conv2d`.
        layer: the layer to notify when the result is computed, fused or not.

    Returns:
        None if the convolution should run at once: something besides autograd watches the call, the operands are large
        compared with the result, or the arguments are invalid and the operator raises the error.
    """
    if type(input) is Deferred:
        input = input.settle()
    convolution = None
    if _are_copies_small(input, weight):
        convolution = _deferrable(input, weight, bias, stride, padding, dilation, groups)
    if convolution is None:
        return None
    x, w, b, strides, paddings, dilations, groups = convolution
    (N, _, H, W), (K, _, R, S) = x.shape, w.shape
    P, Q = conv2d_output((H, W), (R, S), strides, paddings, dilations)
    if N < 1 or min(K, P, Q) < 2:  # an error, or a size of 1: then strides do not determine the layout
        return None
    if any(t is not None and t.numel() > _MOST_COPIED * N * K * P * Q for t in (x, w, b)):
        return None
    if N * K * P * Q >= 2**60:  # an error: no memory holds the result, and no tensor has such strides
        return None
    kept = tuple(None if t is None else snapshot(t) for t in (x, w, b))
    last = suggests_channels_last(x) or suggests_channels_last(w)
    recipe = Recipe((strides, paddings, dilations, groups), last, last)
    return new_deferred(recipe, (N, K, P, Q), kept, layer)  # type: ignore[arg-type]


def _are_copies_small(input: Any, weight: Any) -> bool:
    """Return whether the copies of the operands take little time, compared with the convolution. False if unclear.

    A result has about as many pixels as the input, or fewer. This test takes 1 us, and all others together take 10.
    """
    if type(input) not in PLAIN or type(weight) not in PLAIN or input.dim() != 4 or weight.dim() != 4:
        return False
    if input.is_nested or weight.is_nested:
        return False
    if torch._C._get_tracing_state() is not None:  # then sizes are tensors
        return False
    N, _, H, W = input.shape
    of_image: int = weight.numel() // max(1, weight.shape[0])
    return of_image <= _MOST_COPIED * N * H * W


#: The operands are copied if each of them has at most this many elements for an element of the result.
_MOST_COPIED = 4


def _deferrable(
    input: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, groups: Any
) -> Convolution | None:
    """Return the operator's arguments if they are valid and only autograd watches the call."""
    tensors = (input, weight) if bias is None else (input, weight, bias)
    if any(type(t) not in PLAIN for t in tensors) or input.is_meta or is_watched():
        return None
    # On a GPU, the copies of the operands would take as long as fusion saves.
    if input.is_cuda and not gpu.computes_all():
        return None
    if not torch.is_inference_mode_enabled() and any(t.is_inference() for t in tensors):
        return None
    convolution = convolution_arguments(input, weight, bias, stride, padding, dilation, groups)
    if convolution is None:
        return None
    x, w, b, strides, paddings, _, _ = convolution
    fits = groups > 0 and x.shape[1] == w.shape[1] * groups and w.shape[0] % groups == 0
    fits = fits and (b is None or b.shape == w.shape[:1]) and min(strides) > 0 and min(paddings) >= 0
    return convolution if fits else None


def new_deferred(
    recipe: Recipe,
    size: tuple[int, int, int, int],
    operands: Operands,
    layer: DeferringLayer | None = None,
    source: tuple[Deferred, Step] | None = None,
    view_of: Deferred | None = None,
) -> Deferred:
    grad_enabled = torch.is_grad_enabled()
    if grad_enabled and needs_gradient(operands):
        deferred = super(Function, _Defer).apply(recipe, size, *operands)  # twice as fast: see differentiable
        with torch._C.DisableTorchFunction():
            deferred._node = deferred.grad_fn
        deferred._node.deferred = TensorWeakRef(deferred)
    else:
        deferred = _placeholder(recipe, size, operands[0])
    deferred._recipe, deferred._size, deferred._operands = recipe, size, operands
    deferred._lock = RLock() if source is None else source[0]._lock
    deferred._grad_enabled, deferred._inference = grad_enabled, torch.is_inference_mode_enabled()
    if layer is not None:
        deferred._layer = layer
    if source is not None:
        deferred._source = source
        source[0]._derived = (*source[0]._derived, TensorWeakRef(deferred))
        if deferred._node is not None:
            _note_node(deferred._node, source)
    if view_of is not None:
        deferred._viewed = view_of
    return deferred  # type: ignore[no-any-return]


def _note_node(node: Any, source: tuple[Deferred, Step]) -> None:
    """Note the gradient function of a new Deferred in each Deferred that it was made from."""
    before, node.step = source  # ReLU in place replaces the step
    edge = GradientEdge(node, 0)
    for deferred, step in ((before, lambda tensor: tensor), *sources(before._source)):
        steps = in_sequence((step, lambda tensor: node.step(tensor)))
        deferred._waiting_nodes = (*deferred._waiting_nodes, (edge, steps))


class _Defer(Function):
    """The gradient function of a Deferred, for code that uses one without settling it, such as a user's Function."""

    @staticmethod
    def forward(ctx: Any, recipe: Recipe, size: Sequence[int], *operands: Tensor | None) -> Tensor:
        ctx.recipe = recipe
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*operands)
        return _placeholder(recipe, size, operands[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 5
        check_history(ctx)
        create_graph = torch.is_grad_enabled()
        saved = ctx.saved_tensors  # read once, because hooks such as those of checkpoint unpack only once
        with torch.enable_grad():
            y = ctx.recipe.compute(*saved)
        wanted = [i for i, needed in enumerate(ctx.needs_input_grad[2:]) if needed]
        inputs = [saved[i] for i in wanted]
        grads: list[Tensor | None] = [None] * 5
        for i, found in zip(wanted, torch.autograd.grad(y, inputs, grad, create_graph=create_graph), strict=True):
            grads[2 + i] = found
        return tuple(grads)


def _placeholder(recipe: Recipe, size: Sequence[int], operand: Tensor | None) -> Tensor:
    assert operand is not None
    N, K, P, Q = size
    placeholder = Tensor._make_wrapper_subclass(
        Deferred,
        (N, P, Q, K) if recipe.axes_nhwc else (N, K, P, Q),
        strides=recipe.strides(K, P, Q),
        dtype=operand.dtype,
        device=operand.device,
    )
    # C++ code that asks for the address gets an error, and not a null pointer.
    torch._C._set_throw_on_mutable_data_ptr(placeholder)
    return placeholder
