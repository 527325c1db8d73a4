"""Convolution results that wait for the next operation, so that both can run as one operator.

In ``relu(conv2d(x, w))``, conv2d does not know that relu follows. A converted convolution, and every convolution within
``fastconv.enabled(fuse=True)``, therefore returns a :class:`Deferred`: a tensor with the right size, dtype, strides and
gradient function, whose values are not computed yet. The program decides what happens next:

* ReLU, a max-pool, a bias or a change of layout is added to the recipe, and the fused operator runs.
* Any other operation *settles* the tensor: the plain convolution runs, once, and the operation gets its result.

So the program's own code runs in every call. No trace and no guess about it can go stale.

A Deferred holds copies of its operands (:func:`snapshot`), so it always has the values of the call that made it,
whatever the program writes to the operands meanwhile. Where copies are expensive, the convolution runs at once.

A Deferred is a tensor subclass. PyTorch's functions settle it through ``__torch_function__``. Code below those, such as
a user's autograd.Function or a C++ operator, settles it through ``__torch_dispatch__``. docs/convert.md lists what a
program can still tell.

Keras needs the changes of layout: its convolution permutes NHWC images to NCHW and the results back, adds the bias as
an operation of its own, and copies before and after every pool. So the result of a pool may wait for its layout, too.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from types import FunctionType
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.autograd import Function, forward_ad
from torch.autograd.graph import GradientEdge, get_gradient_edge, saved_tensors_hooks
from torch.nn import functional as F
from torch.utils._python_dispatch import _get_current_dispatch_mode
from torch.utils._pytree import tree_map_only

from fastconv import functional as FF
from fastconv._ops import conv2d as _conv2d
from fastconv._ops import conv2d_relu_max_pool2d as _fused
from fastconv._ops.arguments import fused_pool_arguments
from fastconv._ops.conv2d import Geometry
from fastconv._ops.function import needs_gradient
from fastconv._ops.max_pool2d import Pool
from fastconv._ops.memory_format import suggests_channels_last

__all__ = ["BACKWARD", "Deferred", "Producer", "defer", "settled"]

_TO_NHWC, _TO_NCHW = (0, 2, 3, 1), (0, 3, 1, 2)
_PLAIN = (Tensor, nn.Parameter)
#: Input, weight, bias; or a computed result, None, None.
Operands = tuple[Tensor, Tensor | None, Tensor | None]
#: From the value of a Deferred to a value that was computed without it.
Step = Callable[[Tensor], Tensor]


class Producer(Protocol):
    """A layer whose results wait. It learns whether waiting paid off."""

    def _was_fused(self, fused: bool) -> None: ...


def snapshot(tensor: Tensor, result_elements: int) -> Tensor | None:
    """A copy of ``tensor``, with the gradient of a clone; None if it is expensive beside a result of this size.

    A copy is the only safe snapshot. A version counter does not see NumPy, other processes and raw pointers. PyTorch's
    copy-on-write tensors (``torch._lazy_clone``) move the original when it is written to, and a NumPy array that shares
    its memory then points to freed memory.
    """
    return tensor.clone() if tensor.numel() <= 4 * result_elements else None


class Recipe(NamedTuple):
    """The operations that wait: a convolution, then ReLU and max-pool in either order, then the layout."""

    #: Stride, padding, dilation and groups. None: the operand is the result already, and only the layout waits.
    geometry: Geometry | None
    #: Whether the operator's own result is channels_last.
    natural_last: bool
    #: Whether the channels of a pixel are adjacent in memory.
    memory_last: bool
    #: Whether the channels are the last axis, (N, P, Q, K), rather than the second.
    axes_last: bool = False
    rectified: bool = False
    pool: Pool | None = None
    #: The combinations that PyTorch computes faster, see :func:`fastconv.served.left_to_torch`.
    left_to_torch: Collection[str] = ()

    def is_fused(self) -> bool:
        return self.rectified and ("pool" if self.pool else "ReLU") not in self.left_to_torch

    def compute(self, input: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        y = input if self.geometry is None else self._convolve(input, weight, bias)
        y = y.contiguous(memory_format=torch.channels_last if self.memory_last else torch.contiguous_format)
        return y.permute(_TO_NHWC) if self.axes_last else y

    def _convolve(self, input: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        assert self.geometry is not None
        assert weight is not None
        if self.is_fused():
            return _fused.conv2d_relu_max_pool2d(input, weight, bias, *self.geometry, self.pool)
        convolve = F.conv2d if "alone" in self.left_to_torch else _conv2d.conv2d
        y = convolve(input, weight, bias, *self.geometry)
        if self.rectified:
            y = F.relu(y)
        return y if self.pool is None else FF.max_pool2d(y, *self.pool)

    def strides(self, K: int, P: int, Q: int) -> tuple[int, int, int, int]:
        n, k, p, q = (K * P * Q, 1, Q * K, K) if self.memory_last else (K * P * Q, P * Q, Q, 1)
        return (n, p, q, k) if self.axes_last else (n, k, p, q)


class _Defer(Function):
    """The gradient function of a Deferred, for code that uses one without settling it, such as a user's Function."""

    @staticmethod
    def forward(ctx: Any, recipe: Recipe, size: Sequence[int], *operands: Tensor | None) -> Tensor:
        ctx.recipe = recipe
        ctx.save_for_backward(*operands)
        return _placeholder(recipe, size, operands[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        create_graph = torch.is_grad_enabled()
        with torch.enable_grad():
            y = ctx.recipe.compute(*ctx.saved_tensors)
        wanted = [i for i, needed in enumerate(ctx.needs_input_grad[2:]) if needed]
        inputs = [ctx.saved_tensors[i] for i in wanted]
        grads: list[Tensor | None] = [None] * 5
        for i, found in zip(wanted, torch.autograd.grad(y, inputs, grad, create_graph=create_graph), strict=True):
            grads[2 + i] = found
        return tuple(grads)


def _placeholder(recipe: Recipe, size: Sequence[int], operand: Tensor | None) -> Tensor:
    assert operand is not None
    N, K, P, Q = size
    return Tensor._make_wrapper_subclass(
        Deferred,
        (N, P, Q, K) if recipe.axes_last else (N, K, P, Q),
        strides=recipe.strides(K, P, Q),
        dtype=operand.dtype,
        device=operand.device,
    )


class Deferred(Tensor):
    """The result of a convolution that is computed when it is needed."""

    _recipe: Recipe
    _size: tuple[int, int, int, int]  # (N, K, P, Q)
    _operands: Operands
    _grad_enabled: bool
    _inference: bool
    _layer: Producer | None = None
    _source: tuple[Deferred, Step] | None = None  # the Deferred that this one was made of
    _viewed: Deferred | None = None  # the Deferred that this one is a view of
    _is_viewed = False  # by another Deferred
    _node: Any = None  # its gradient function
    _settled: Tensor | None = None
    _linked: Tensor | None = None
    #: Gradients of results that were computed without this one's value, and the steps that lead to these results.
    _passed: tuple[tuple[GradientEdge, Step], ...] = ()

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        fold = _FOLDS.get(func)
        if fold is not None and args and type(args[0]) is Deferred and args[0]._may_go_on():
            result = fold(args[0], *args[1:], **kwargs)
            if result is not NotImplemented:
                return result
        gradients = _GRADIENTS.get(func)
        if gradients is not None:
            return gradients(*args, **kwargs)
        args, kwargs = settled((args, kwargs))
        return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        args, kwargs = tree_map_only(Deferred, lambda d: d._value().detach(), (args, kwargs or {}))
        return func(*args, **kwargs)

    def settle(self) -> Tensor:
        """The tensor that this one stands for: the same at each call."""
        if not self._is_adopted():
            return self._value()
        if self._linked is None:
            with torch._C.DisableTorchFunction():
                self._linked = torch.ops.aten.alias(self)  # the value, by __torch_dispatch__, with the new gradient
        return self._linked

    def base(self) -> Deferred:
        """The Deferred that this one is a view of, directly or not; else itself."""
        return self if self._viewed is None else self._viewed.base()

    def _is_adopted(self) -> bool:
        """Whether a user's autograd.Function returned it, and so gave it another gradient function."""
        with torch._C.DisableTorchFunction():
            return self.grad_fn is not self._node

    def _may_go_on(self) -> bool:
        """Whether an operation may be added to the recipe."""
        if self._settled is not None or self.base()._settled is not None or self._is_adopted():
            return False
        if self._settled_source() is not None:
            return False
        # A result that was computed without gradients stays without them.
        if torch.is_grad_enabled() and not self._grad_enabled:
            return False
        return torch.is_inference_mode_enabled() == self._inference and not _is_watched()

    def _settled_source(self) -> tuple[Deferred, tuple[Step, ...]] | None:
        """The nearest settled Deferred that this one was made of, and the steps from there.

        Something has read it, or has asked for its gradient: so this one is computed from its value.
        """
        steps: tuple[Step, ...] = ()
        source = self._source
        while source is not None:
            deferred, step = source
            steps = (step, *steps)
            if deferred._settled is not None:
                return deferred, steps
            source = deferred._source
        return None

    def _value(self) -> Tensor:
        if self._settled is None:
            with torch._C.DisableTorchFunction():
                if self._viewed is not None:
                    y = self._viewed._value()
                    with torch.set_grad_enabled(self._grad_enabled):
                        self._settled = y.permute(_TO_NHWC if self._recipe.axes_last else _TO_NCHW)
                elif (found := self._settled_source()) is not None:
                    deferred, steps = found
                    modes = torch.inference_mode(self._inference), torch.set_grad_enabled(self._grad_enabled)
                    with modes[0], modes[1]:
                        self._settled = _in_a_row(steps)(deferred.settle())
                else:
                    self._settled = _compute(self._recipe, self, self._source, self._grad_enabled)
                self._operands = (self._settled, None, None)
                self._source = None  # lets go of the operands of the Deferreds that this one was made of
        return self._settled


def _compute(recipe: Recipe, deferred: Deferred, source: tuple[Deferred, Step] | None, grad_enabled: bool) -> Tensor:
    """Runs ``recipe`` as if at the time of the deferred call: with the modes of then, and without those of now.

    Args:
        recipe: that of ``deferred``, or with one more step.
        source: the Deferred that the result was made of.
        grad_enabled: the gradient mode of the last step.
    """
    inference = deferred._inference
    device = deferred._operands[0].device.type
    casts, hooks = torch.is_autocast_enabled(device), _has_saved_tensors_hooks()
    if (inference, grad_enabled) == (torch.is_inference_mode_enabled(), torch.is_grad_enabled()) and not casts | hooks:
        y = recipe.compute(*deferred._operands)  # a context takes 3 us
    else:
        # The call cast its operands, and there were no hooks.
        hooks_off = saved_tensors_hooks(lambda t: t, lambda t: t) if hooks else nullcontext()
        casts_off = torch.autocast(device, enabled=False) if casts else nullcontext()
        with torch.inference_mode(inference), torch.set_grad_enabled(grad_enabled), hooks_off, casts_off:
            y = recipe.compute(*deferred._operands)
    if deferred._layer is not None:
        deferred._layer._was_fused(recipe.is_fused())
    _note_that_gradients_pass(source, y)
    return y


def settled(tree: Any) -> Any:
    """``tree`` with each Deferred in it replaced by the tensor that it stands for."""
    return tree_map_only(Deferred, Deferred.settle, tree)


def _has_saved_tensors_hooks() -> bool:
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


def _is_watched() -> bool:
    """Whether somebody looks at each operation: a transform, a dispatch mode, a tracer, activation checkpointing."""
    return (
        torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or _get_current_dispatch_mode() is not None
        or _has_saved_tensors_hooks()
        or torch._C._get_tracing_state() is not None
    )


# ---- making one --------------------------------------------------------------------------------------------------


def defer(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: Any = 1,
    *,
    layer: Producer | None = None,
    left_to_torch: Collection[str] = (),
) -> Deferred | None:
    """The result of ``conv2d`` with these arguments, to be computed later.

    Args:
        input, weight, bias, stride, padding, dilation, groups: those of :func:`torch.nn.functional.conv2d`.
        layer: is told whether the convolution was fused with anything.
        left_to_torch: see :class:`Recipe`.

    Returns:
        None where the convolution should run at once, because something watches it, because its operands are large
        beside its result, or because its arguments are wrong and the operator will say so.
    """
    if type(input) is Deferred:
        input = input.settle()
    convolution = _deferrable(input, weight, bias, stride, padding, dilation, groups)
    if convolution is None:
        return None
    x, w, b, strides, paddings, dilations, groups = convolution
    (N, _, H, W), (K, _, R, S) = x.shape, w.shape
    P = (H + 2 * paddings[0] - dilations[0] * (R - 1) - 1) // strides[0] + 1
    Q = (W + 2 * paddings[1] - dilations[1] * (S - 1) - 1) // strides[1] + 1
    if N < 1 or min(K, P, Q) < 2:  # an error, or strides that do not tell the order
        return None
    kept = tuple(None if t is None else snapshot(t, N * K * P * Q) for t in (x, w, b))
    if any(k is None and t is not None for k, t in zip(kept, (x, w, b), strict=True)):
        return None
    last = suggests_channels_last(x) or suggests_channels_last(w)
    recipe = Recipe((strides, paddings, dilations, groups), last, last, left_to_torch=left_to_torch)
    return _new(recipe, (N, K, P, Q), kept, layer)  # type: ignore[arg-type]


def _deferrable(
    input: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, groups: Any
) -> FF.Convolution | None:
    """The operator's own arguments, if they are right and nothing but autograd watches."""
    tensors = (input, weight) if bias is None else (input, weight, bias)
    if any(type(t) not in _PLAIN for t in tensors) or input.dim() != 4 or input.is_meta or _is_watched():
        return None
    if not torch.is_inference_mode_enabled() and any(t.is_inference() for t in tensors):
        return None
    convolution = FF.convolution_arguments(input, weight, bias, stride, padding, dilation, groups)
    if convolution is None:
        return None
    x, w, b, strides, paddings, _, _ = convolution
    fits = groups > 0 and x.shape[1] == w.shape[1] * groups and w.shape[0] % groups == 0
    fits = fits and (b is None or b.shape == w.shape[:1]) and min(strides) > 0 and min(paddings) >= 0
    return convolution if fits else None


def _new(
    recipe: Recipe,
    size: tuple[int, int, int, int],
    operands: Operands,
    layer: Producer | None = None,
    source: tuple[Deferred, Step] | None = None,
    view_of: Deferred | None = None,
) -> Deferred:
    grad_enabled = torch.is_grad_enabled()
    if grad_enabled and needs_gradient(operands):
        deferred = super(Function, _Defer).apply(recipe, size, *operands)  # as autograd.apply: half the time
        with torch._C.DisableTorchFunction():
            deferred._node = deferred.grad_fn
    else:
        deferred = _placeholder(recipe, size, operands[0])
    deferred._recipe, deferred._size, deferred._operands = recipe, size, operands
    deferred._grad_enabled, deferred._inference = grad_enabled, torch.is_inference_mode_enabled()
    if layer is not None:
        deferred._layer = layer
    if source is not None:
        deferred._source = source
    if view_of is not None:
        deferred._viewed = view_of
    return deferred  # type: ignore[no-any-return]


# ---- operations that are added to the recipe; NotImplemented: settle -----------------------------------------------


def _go_on(deferred: Deferred, recipe: Recipe, step: Step, operands: Operands | None = None) -> Deferred:
    """``step`` of ``deferred``, a tensor of its own."""
    operands = deferred._operands if operands is None else operands
    return _new(recipe, deferred._size, operands, deferred._layer, (deferred, step))


def _rectified(deferred: Deferred, inplace: Any = False) -> Any:
    recipe = deferred._recipe
    if inplace is True:
        return _rectified_in_place(deferred)
    if inplace is not False or recipe.geometry is None:
        return NotImplemented
    rectified = _go_on(deferred, recipe._replace(rectified=True), torch.relu)
    return rectified if recipe.pool is None else rectified.settle()


def _rectified_in_place(deferred: Deferred) -> Any:
    recipe = deferred._recipe
    shared = deferred._is_viewed or deferred._viewed is not None or deferred._passed
    if recipe.geometry is None or shared or torch.is_grad_enabled() != deferred._grad_enabled:
        return NotImplemented
    deferred._recipe = recipe._replace(rectified=True)
    if deferred._node is not None:
        deferred._node.recipe = deferred._recipe
    return deferred


def _max_pooled(
    deferred: Deferred,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: Any = False,
    return_indices: Any = False,
) -> Any:
    if isinstance(stride, list | tuple) and not stride:  # as torch.max_pool2d writes "none"
        stride = None
    pool = None if return_indices else fused_pool_arguments(kernel_size, stride, padding, dilation, ceil_mode)
    recipe = deferred._recipe
    if pool is None or recipe.geometry is None or recipe.pool is not None or recipe.axes_last:
        return NotImplemented

    def step(tensor: Tensor) -> Tensor:
        return F.max_pool2d(tensor, *pool)

    pooled = recipe._replace(pool=pool)
    if not recipe.rectified:
        N, K, H, W = deferred._size
        P, Q = _windows(H, pool, 0), _windows(W, pool, 1)
        if min(P, Q) < 2:  # an error, or strides that do not tell the order
            return NotImplemented
        return _new(pooled, (N, K, P, Q), deferred._operands, deferred._layer, (deferred, step))
    if recipe.natural_last == recipe.memory_last:
        return _compute(pooled, deferred, (deferred, step), torch.is_grad_enabled())
    y = _compute(pooled._replace(memory_last=recipe.natural_last), deferred, (deferred, step), torch.is_grad_enabled())
    N, K, P, Q = y.shape
    if recipe.natural_last and min(K, P, Q) > 1:
        return _new(Recipe(None, True, False), (N, K, P, Q), (y, None, None))
    return y.contiguous(memory_format=torch.channels_last if recipe.memory_last else torch.contiguous_format)


def _windows(size: int, pool: Pool, axis: int) -> int:
    """The number of a pool's windows along one axis of ``size`` pixels; 0 if the pool's arguments are wrong."""
    kernel, stride, padding, dilation = (numbers[axis] for numbers in pool[:4])
    if min(kernel, stride, dilation) < 1 or not 0 <= 2 * padding <= kernel:
        return 0
    ceil_mode = pool[4]
    span = size + 2 * padding - dilation * (kernel - 1) - 1
    windows = (span + (stride - 1 if ceil_mode else 0)) // stride + 1
    return windows - 1 if ceil_mode and (windows - 1) * stride >= size + padding else windows


def _permuted(deferred: Deferred, *dims: Any, **kwargs: Any) -> Any:
    order = dims[0] if len(dims) == 1 else dims
    recipe = deferred._recipe
    if kwargs or not isinstance(order, tuple | list):
        return NotImplemented
    order = tuple(order)
    if order != (_TO_NCHW if recipe.axes_last else _TO_NHWC):
        return NotImplemented
    deferred._is_viewed = True
    source: tuple[Deferred, Step] = (deferred, lambda t: t.permute(order))
    recipe = recipe._replace(axes_last=not recipe.axes_last)
    return _new(recipe, deferred._size, deferred._operands, deferred._layer, source, view_of=deferred)


def _contiguous(deferred: Deferred, memory_format: torch.memory_format = torch.contiguous_format) -> Any:
    recipe = deferred._recipe
    if memory_format is torch.contiguous_format:
        memory_last = recipe.axes_last
    elif memory_format is torch.channels_last and not recipe.axes_last:
        memory_last = True
    else:
        return NotImplemented
    if memory_last == recipe.memory_last:
        return deferred

    def step(tensor: Tensor) -> Tensor:
        return tensor.contiguous(memory_format=memory_format)

    if recipe.geometry is not None:
        return _go_on(deferred, recipe._replace(memory_last=memory_last), step)
    if not memory_last:
        return NotImplemented
    # The result lies as it is asked for: the copy that PyTorch makes there and back is spared.
    # Nothing else has seen this memory, so copy-on-write is safe.
    y = torch._lazy_clone(deferred.base()._operands[0])
    _note_that_gradients_pass((deferred, step), y)
    return y


def _biased(deferred: Deferred, other: Any, **kwargs: Any) -> Any:
    input, weight, bias = deferred._operands
    recipe, K = deferred._recipe, deferred._size[1]
    axis = -1 if recipe.axes_last else -3
    if kwargs or recipe.geometry is None or recipe.rectified or recipe.pool is not None or bias is not None:
        return NotImplemented
    if type(other) not in _PLAIN or other.numel() != K or not -axis <= other.dim() <= 4 or other.shape[axis] != K:
        return NotImplemented
    if (other.dtype, other.device) != (input.dtype, input.device) or (other.is_inference() and not deferred._inference):
        return NotImplemented
    kept = snapshot(other, K * 4)
    assert kept is not None
    return _go_on(deferred, recipe, lambda t: t + kept, (input, weight, kept.reshape(K)))


def _to(deferred: Deferred, *args: Any, **kwargs: Any) -> Any:
    """``Tensor.to`` where it gives the tensor itself."""
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


#: What a Deferred answers without being computed.
_METADATA: tuple[Callable[..., Any], ...] = (
    *map(_reads, ("shape", "dtype", "device", "ndim", "is_meta", "is_cuda", "layout", "requires_grad")),
    *(Tensor.size, Tensor.dim, Tensor.numel, Tensor.stride, Tensor.is_contiguous, Tensor.is_floating_point),
    *(torch.numel, torch.is_floating_point),
)
_FOLDS: dict[Callable[..., Any], Callable[..., Any]] = {
    **dict.fromkeys((FF.relu, F.relu), _rectified),
    **dict.fromkeys((torch.relu, Tensor.relu), lambda deferred: _rectified(deferred)),
    **dict.fromkeys((torch.relu_, Tensor.relu_), lambda deferred: _rectified(deferred, True)),
    **dict.fromkeys((FF.max_pool2d, F.max_pool2d, torch.max_pool2d), _max_pooled),
    **dict.fromkeys((torch.permute, Tensor.permute), _permuted),
    **dict.fromkeys((torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__), _biased),
    Tensor.contiguous: _contiguous,
    Tensor.to: _to,
    **{function: _metadata(function) for function in _METADATA},
}


# ---- gradients with respect to a Deferred that was fused with the next operation -----------------------------------


def _note_that_gradients_pass(source: tuple[Deferred, Step] | None, y: Tensor) -> None:
    """Tells the Deferreds that ``y`` was made of, and that were not computed for it, about its gradient."""
    if source is None or not y.requires_grad:
        return
    edge = get_gradient_edge(y)
    steps: tuple[Step, ...] = ()
    while source is not None:
        deferred, step = source
        steps = (step, *steps)
        deferred._passed = (*deferred._passed, (edge, _in_a_row(steps)))
        source = deferred._source


def _in_a_row(steps: Sequence[Step]) -> Step:
    def run(tensor: Tensor) -> Tensor:
        for step in steps:
            tensor = step(tensor)
        return tensor

    return run


def _as_tuple(tensors: Any) -> tuple[Any, ...]:
    if isinstance(tensors, Mapping):
        return tuple(tensors.values())
    return tuple(tensors) if isinstance(tensors, Sequence) else (tensors,)


def _pull_back(value: Tensor, step: Step, grad: Tensor, create_graph: bool) -> Tensor:
    """The gradient with respect to ``value`` from that of ``step(value)``."""
    with torch.enable_grad():
        start = value.detach().requires_grad_()
        return torch.autograd.grad(step(start), start, grad, create_graph=create_graph)[0]


def _without_override_check(function: Any) -> Callable[..., Any]:
    """``function`` of torch.autograd, which does not ask the override protocol again: its arguments are settled."""
    unchecked = FunctionType(
        function.__code__,
        {**function.__globals__, "has_torch_function": lambda tensors: False},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    unchecked.__kwdefaults__ = function.__kwdefaults__
    return unchecked


_run_grad = _without_override_check(torch.autograd.grad)
_run_backward = _without_override_check(torch.autograd.backward)


def _passed(tensor: Any) -> tuple[tuple[GradientEdge, Step], ...]:
    return tensor._passed if type(tensor) is Deferred else ()


def _grad(
    outputs: Any,
    inputs: Any,
    grad_outputs: Any = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    only_inputs: bool = True,
    allow_unused: bool | None = None,
    is_grads_batched: bool = False,
    materialize_grads: bool = False,
) -> Any:
    """As :func:`torch.autograd.grad`: of a fused result, the gradient is carried back to the input that asks."""
    inputs = _as_tuple(inputs)
    outputs, grad_outputs = settled((outputs, grad_outputs))  # before the edges are known
    edges = [(i, edge, step) for i, tensor in enumerate(inputs) for edge, step in _passed(tensor)]
    values = settled(inputs)
    if not edges:
        return _run_grad(
            outputs, values, grad_outputs, retain_graph, create_graph, only_inputs,
            allow_unused, is_grads_batched, materialize_grads,
        )  # fmt: skip
    if is_grads_batched:
        raise RuntimeError(
            "batched gradients with respect to a convolution's result that was fused with the next operation are not"
            " supported: use fastconv.enabled() without fuse, or fastconv.revert(model)"
        )
    targets = [*values, *(edge for _, edge, _ in edges)]
    found = _run_grad(outputs, targets, grad_outputs, retain_graph, create_graph, allow_unused=True)
    grads = list(found[: len(values)])
    for (i, _, step), grad in zip(edges, found[len(values) :], strict=True):
        if grad is not None:
            term = _pull_back(values[i], step, grad, create_graph)
            grads[i] = term if grads[i] is None else grads[i] + term
    if materialize_grads:
        return tuple(torch.zeros_like(v) if g is None else g for v, g in zip(values, grads, strict=True))
    if not allow_unused and any(grad is None for grad in grads):
        raise RuntimeError(
            "One of the differentiated Tensors appears to not have been used in the graph. Set allow_unused=True if"
            " this is the desired behavior."
        )
    return tuple(grads)


def _backward(
    tensors: Any,
    grad_tensors: Any = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    grad_variables: Any = None,
    inputs: Any = None,
) -> None:
    """As :func:`torch.autograd.backward`."""
    inputs = None if inputs is None else _as_tuple(inputs)
    tensors, grad_tensors, grad_variables = settled((tensors, grad_tensors, grad_variables))
    late = [tensor for tensor in inputs or () if _passed(tensor)]
    for tensor, grad in zip(late, _grad(tensors, late, grad_tensors, True, create_graph) if late else (), strict=True):
        _accumulate(tensor.settle(), grad)
    others = None if inputs is None else settled([tensor for tensor in inputs if not _passed(tensor)])
    if others or not late:
        _run_backward(tensors, grad_tensors, retain_graph, create_graph, grad_variables, others)


def _tensor_backward(
    tensor: Tensor, gradient: Any = None, retain_graph: Any = None, create_graph: bool = False, inputs: Any = None
) -> None:
    _backward(tensor, gradient, retain_graph, create_graph, None, inputs)


def _accumulate(tensor: Tensor, grad: Tensor) -> None:
    tensor.grad = grad if tensor.grad is None else tensor.grad + grad


def _retain_grad(deferred: Deferred) -> None:
    value = deferred.settle()
    if value.retains_grad:
        return
    value.retain_grad()
    for edge, step in deferred._passed:

        def hook(grads: Sequence[Tensor | None], at: int = edge.output_nr, step: Step = step) -> None:
            grad = grads[at]
            if grad is not None:
                _accumulate(value, _pull_back(value, step, grad, torch.is_grad_enabled()))

        edge.node.register_prehook(hook)


def _register_hook(deferred: Deferred, hook: Callable[..., Any]) -> Any:
    if deferred._passed:
        raise RuntimeError(
            "a hook of a convolution's result was registered after the result was fused with the next operation:"
            " register it before, or use fastconv.enabled() without fuse, or fastconv.revert(model)"
        )
    return deferred.settle().register_hook(hook)


#: Functions that run a backward pass.
BACKWARD: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.autograd.grad: _grad,
    torch.autograd.backward: _backward,
    Tensor.backward: _tensor_backward,
}
#: Functions that ask for the gradient with respect to a Deferred.
_GRADIENTS: dict[Callable[..., Any], Callable[..., Any]] = {
    **BACKWARD,
    Tensor.retain_grad: _retain_grad,
    Tensor.register_hook: _register_hook,
}
