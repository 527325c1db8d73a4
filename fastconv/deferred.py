"""Convolutions that wait for what is done with them, so that ``fastconv.enabled(fuse=True)`` fuses.

In ``relu(conv2d(x, w))``, conv2d does not know of relu. Within ``enabled(fuse=True)`` it therefore answers with a
``Deferred``: a tensor of the right size, dtype, strides and gradient function, that is not computed yet. What can be
folded into the convolution is, and again is a Deferred: a change of layout, a bias that is added afterwards, ReLU. A
max-pool ends it: the fused operator runs. Anything else that looks at a Deferred gets it computed, once (it is
*settled*), by the operator for what has come together so far.

Keras needs the changes of layout: its convolution permutes NHWC images to NCHW and the results back, adds the bias as
an operation of its own, and copies before every pool, and back behind it. So what a pool gives may still wait for its
layout. The textbook's network takes 18 ms a step without all this, and 12 with it.

A Deferred is a tensor subclass. PyTorch's functions settle it through ``__torch_function__``; what reaches it below
those, a user's autograd.Function or C++ code that calls operators, through ``__torch_dispatch__``. What may change a
tensor in place settles all that wait; that an operand was changed unseen is an error. What remains to be told apart by
a program is listed with :class:`fastconv.enabled`, and is why that fuses only when asked.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function, forward_ad
from torch.nn import functional as F
from torch.utils._python_dispatch import _get_current_dispatch_mode
from torch.utils._pytree import tree_map_only

from fastconv import autograd
from fastconv import functional as FF
from fastconv.ops import is_channels_last, suggests_channels_last

__all__ = ["Deferred", "Deferring"]

_MOST_WAITING = 64  # references, most of them dead, before they are looked through
_TO_NHWC, _TO_NCHW = (0, 2, 3, 1), (0, 3, 1, 2)
_PLAIN = (Tensor, nn.Parameter)

#: Input, weight, bias; or what was computed, and None.
Operands = tuple[Tensor, Tensor | None, Tensor | None]


@dataclass(frozen=True)
class Recipe:
    """What is to be computed from input, weight and bias, and how it is to lie.

    Args:
        geometry: of the convolution: stride, padding, dilation and groups. None: there is none, and the input is all.
        rectified: whether ReLU follows.
        axes_last: the channels are the last axis, (N, P, Q, K), and not the second.
        memory_last: the channels of a pixel lie together in memory.
    """

    geometry: tuple[FF.Pair, FF.Pair, FF.Pair, int] | None
    rectified: bool
    axes_last: bool
    memory_last: bool

    def compute(self, input: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        if self.geometry is None:
            y = input
        elif self.rectified:
            y = autograd.conv2d_relu_max_pool2d(input, weight, bias, *self.geometry, None)
        else:
            y = autograd.conv2d(input, weight, bias, *self.geometry)
        y = y.contiguous(memory_format=torch.channels_last if self.memory_last else torch.contiguous_format)
        return y.permute(_TO_NHWC) if self.axes_last else y

    def strides(self, K: int, P: int, Q: int) -> tuple[int, int, int, int]:
        n, k, p, q = (K * P * Q, 1, Q * K, K) if self.memory_last else (K * P * Q, P * Q, Q, 1)
        return (n, p, q, k) if self.axes_last else (n, k, p, q)


class _Defer(Function):
    """Gives the Deferred its gradient function, for those who ask for no value: a user's autograd.Function, say."""

    @staticmethod
    def forward(ctx: Any, recipe: Recipe, size: Sequence[int], *operands: Tensor | None) -> Tensor:
        ctx.recipe = recipe
        ctx.save_for_backward(*operands)
        input, (N, K, P, Q) = operands[0], size
        assert input is not None
        return Tensor._make_wrapper_subclass(
            Deferred,
            (N, P, Q, K) if recipe.axes_last else (N, K, P, Q),
            strides=recipe.strides(K, P, Q),
            dtype=input.dtype,
            device=input.device,
        )

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


class Deferred(Tensor):
    """The result of a convolution that is not computed before its values are needed."""

    _recipe: Recipe
    _size: tuple[int, int, int, int]  # (N, K, P, Q)
    _operands: Operands
    _versions: tuple[int, ...]
    _grad_enabled: bool
    _viewed: Deferred | None  # that this one is a view of
    _node: Any  # its gradient function
    _settled: Tensor | None
    _linked: Tensor | None
    _is_passed_by: bool  # by the gradient of what was made of it: that goes to the operands at once
    _is_given: bool  # its input, as the very result that was asked for

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _GRADIENTS_OF:
            _check_gradients_of(_GRADIENTS_OF[func](*args, **kwargs))
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
                self._linked = torch.ops.aten.alias(self)  # of the value, by __torch_dispatch__, with the new gradient
        return self._linked

    def is_outdated(self) -> bool:
        return self._versions != _versions(self._operands)

    def base(self) -> Deferred:
        """The one of which it is a view, or a view of a view; else itself."""
        return self if self._viewed is None else self._viewed.base()

    def _is_adopted(self) -> bool:
        """Whether a user's autograd.Function returned it, and so gave it another gradient function."""
        with torch._C.DisableTorchFunction():
            return self.grad_fn is not self._node

    def _value(self) -> Tensor:
        with torch._C.DisableTorchFunction():
            if self._settled is None:
                if self.is_outdated():
                    raise RuntimeError(
                        "an input of a convolution has been modified by an inplace operation before its result was"
                        " used: fastconv.enabled() without fuse computes each result at once"
                    )
                # As it was when the convolution was called, whatever mode it is looked at in.
                with torch.inference_mode(False), torch.set_grad_enabled(self._grad_enabled):
                    if self._viewed is not None:
                        y = self._viewed._value()
                        self._settled = y.permute(_TO_NHWC if self._recipe.axes_last else _TO_NCHW)
                    else:
                        self._settled = self._recipe.compute(*self._operands)
                    self._operands, self._versions = (self._settled, None, None), ()
            return self._settled


def _versions(operands: Sequence[Tensor | None]) -> tuple[int, ...]:
    return tuple(t._version for t in operands if t is not None)


def settled(tree: Any) -> Any:
    """``tree`` with each Deferred in it replaced by what it stands for."""
    return tree_map_only(Deferred, Deferred.settle, tree)


def _reads(name: str) -> Callable[..., Any]:
    return getattr(Tensor, name).__get__  # type: ignore[no-any-return]


#: What a Deferred answers as it is.
_METADATA = {
    *map(_reads, ("shape", "dtype", "device", "ndim", "is_meta", "is_cuda", "layout", "requires_grad")),
    *(Tensor.size, Tensor.dim, Tensor.numel, Tensor.stride, Tensor.is_contiguous, Tensor.is_floating_point),
    *(torch.numel, torch.is_floating_point),
}  # fmt: skip
_RELU = {F.relu, torch.relu, Tensor.relu}
_ADD = {torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__}
_PERMUTE = {torch.permute, Tensor.permute}


#: Functions that ask for gradients with respect to some of their arguments, and these.
_GRADIENTS_OF: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.autograd.grad: lambda outputs, inputs, *others, **more: inputs,
    torch.autograd.backward: lambda *others, inputs=None, **more: inputs,
    Tensor.backward: lambda *others, inputs=None, **more: inputs,
    Tensor.register_hook: lambda tensor, hook: tensor,
    Tensor.retain_grad: lambda tensor: tensor,
}


class Deferring:
    """The calls of one thread, within :func:`fastconv.enabled`, as they are seen one after the other.

    Args:
        routes: fastconv's functions, by PyTorch's.
    """

    def __init__(self, routes: Mapping[Callable[..., Any], Callable[..., Any]]) -> None:
        self._routes = routes
        self._waiting: list[weakref.ref[Deferred]] = []

    def call(self, func: Callable[..., Any], types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """``func(*args, **kwargs)``, or what will come to the same."""
        if self._waiting and _changes_something(func, args, kwargs):
            self.settle_all()
        if func in _GRADIENTS_OF:
            _check_gradients_of(_GRADIENTS_OF[func](*args, **kwargs))
            args, kwargs = settled((args, kwargs))
        elif Deferred in types:
            result = self._folded(func, *args, **kwargs)
            if result is not NotImplemented:
                return result
            args, kwargs = settled((args, kwargs))
        if func is torch.conv2d:
            result = self._deferred(*args, **kwargs)
            if result is not NotImplemented:
                return result
        return self._routes.get(func, func)(*args, **kwargs)

    def settle_all(self) -> None:
        waiting, self._waiting = self._waiting, []
        for reference in waiting:
            if (deferred := reference()) is not None:
                deferred.settle()

    def _new(
        self,
        recipe: Recipe,
        size: tuple[int, int, int, int],
        operands: Operands,
        view_of: Deferred | None = None,
    ) -> Deferred:
        if autograd.needs_gradient(operands):
            deferred = super(Function, _Defer).apply(recipe, size, *operands)  # as autograd.apply: half the time
        else:
            deferred = _Defer.forward(_Unused(), recipe, size, *operands)
        deferred._recipe, deferred._size, deferred._operands = recipe, size, operands
        deferred._versions = _versions(operands)
        deferred._grad_enabled = torch.is_grad_enabled()
        with torch._C.DisableTorchFunction():
            deferred._node = deferred.grad_fn
        deferred._viewed = view_of
        deferred._settled = deferred._linked = None
        deferred._is_passed_by = deferred._is_given = False
        if len(self._waiting) > _MOST_WAITING:
            self._waiting = [reference for reference in self._waiting if reference() is not None]
            if len(self._waiting) > _MOST_WAITING // 2:  # they hold their inputs
                self.settle_all()
        self._waiting.append(weakref.ref(deferred))
        return deferred  # type: ignore[no-any-return]

    def _deferred(self, *args: Any, **kwargs: Any) -> Any:
        served = _deferrable(*args, **kwargs)
        if served is None:
            return NotImplemented
        input, weight, bias, *geometry = served
        (N, _, H, W), (K, _, R, S) = input.shape, weight.shape
        P, Q = (
            (size + 2 * z - d * (k - 1) - 1) // u + 1
            for size, k, u, z, d in zip((H, W), (R, S), *served[3:6], strict=True)
        )
        if N < 1 or min(K, P, Q) < 2:  # an error; or strides that say nothing of the order
            return NotImplemented
        last = suggests_channels_last(input) or suggests_channels_last(weight)
        recipe = Recipe(tuple(geometry), False, False, last)  # type: ignore[arg-type]
        return self._new(recipe, (N, K, P, Q), (input, weight, bias))

    def _folded(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What a function of a Deferred gives, if that can go on waiting or be fused."""
        first = args[0] if args else None
        if type(first) is not Deferred or first.base()._settled is not None or first._settled is not None:
            return NotImplemented
        if first._is_adopted():
            return NotImplemented
        if func in _METADATA:
            with torch._C.DisableTorchFunction():
                return func(*args, **kwargs)
        if torch.is_grad_enabled() and not first._grad_enabled:
            return NotImplemented  # what was computed without gradients stays without
        if torch.is_inference_mode_enabled() or first.is_outdated():  # settling says so
            return NotImplemented
        result = self._continued(func, first, *args[1:], **kwargs)
        is_same_memory = result is first or (type(result) is Deferred and result._viewed is first)
        if result is not NotImplemented and not is_same_memory and torch.is_grad_enabled():
            first.base()._is_passed_by = True
        return result

    def _continued(self, func: Callable[..., Any], first: Deferred, *args: Any, **kwargs: Any) -> Any:
        if func in _PERMUTE:
            return self._permuted(first, *args, **kwargs)
        if func is Tensor.to:
            return first if _is_no_change(first, *args, **kwargs) else NotImplemented
        if func is Tensor.contiguous:
            return self._contiguous(first, *args, **kwargs)
        recipe = first._recipe
        if recipe.geometry is None:
            return NotImplemented
        if func in _ADD and len(args) == 1 and not kwargs:
            return self._biased(first, *args)
        if func in _RELU and not any(args) and not kwargs.get("inplace"):
            return self._new(replace(recipe, rectified=True), first._size, first._operands)
        if func is F.max_pool2d and recipe.rectified and not recipe.axes_last:
            return self._pooled(first, *args, **kwargs)
        return NotImplemented

    def _permuted(self, deferred: Deferred, *dims: Any, **kwargs: Any) -> Any:
        order = dims[0] if len(dims) == 1 else dims
        recipe = deferred._recipe
        if kwargs or not isinstance(order, tuple | list):
            return NotImplemented
        if tuple(order) != (_TO_NCHW if recipe.axes_last else _TO_NHWC):
            return NotImplemented
        recipe = replace(recipe, axes_last=not recipe.axes_last)
        return self._new(recipe, deferred._size, deferred._operands, view_of=deferred)

    def _contiguous(self, deferred: Deferred, memory_format: torch.memory_format = torch.contiguous_format) -> Any:
        recipe = deferred._recipe
        if memory_format is torch.contiguous_format:
            memory_last = recipe.axes_last
        elif memory_format is torch.channels_last and not recipe.axes_last:
            memory_last = True
        else:
            return NotImplemented
        if memory_last == recipe.memory_last:
            return deferred
        if recipe.geometry is None:
            return _given(deferred) if memory_last else NotImplemented
        return self._new(replace(recipe, memory_last=memory_last), deferred._size, deferred._operands)

    def _biased(self, deferred: Deferred, other: Any) -> Any:
        input, weight, bias = deferred._operands
        K = deferred._size[1]
        is_bias = type(other) in _PLAIN and other.numel() == K and 0 < other.dim() <= 4
        axis = -1 if deferred._recipe.axes_last else -3
        if not is_bias or other.dim() < -axis or other.shape[axis] != K:
            return NotImplemented
        if deferred._recipe.rectified or bias is not None or (other.dtype, other.device) != (input.dtype, input.device):
            return NotImplemented
        return self._new(deferred._recipe, deferred._size, (input, weight, other.reshape(K)))

    def _pooled(self, deferred: Deferred, *args: Any, **kwargs: Any) -> Any:
        pool, recipe = _pool(*args, **kwargs), deferred._recipe
        if pool is None:
            return NotImplemented
        assert recipe.geometry is not None
        y = autograd.conv2d_relu_max_pool2d(*deferred._operands, *recipe.geometry, pool)
        laid_out = replace(recipe, geometry=None, rectified=False)
        N, K, P, Q = y.shape
        if is_channels_last(y) and not recipe.memory_last and min(K, P, Q) > 1:
            return self._new(laid_out, (N, K, P, Q), (y, None, None))
        return laid_out.compute(y, None, None)


def _given(deferred: Deferred) -> Any:
    """What was computed, in channels_last, to the first who asks for a copy of that order: nobody else sees it."""
    base = deferred.base()
    if base._is_given:
        return NotImplemented
    base._is_given = True
    return base._operands[0]


class _Unused:
    """A ctx where nothing is differentiated."""

    def save_for_backward(self, *tensors: Tensor | None) -> None: ...


def _check_gradients_of(tensors: Any) -> None:
    """
    Raises:
        RuntimeError: if no gradient comes by one of these.
    """
    for tensor in tensors if isinstance(tensors, tuple | list) else (tensors,):
        if type(tensor) is Deferred and tensor.base()._is_passed_by:
            raise RuntimeError(
                "the gradient with respect to the result of a convolution that was fused with what follows is not"
                " computed: ask for it before the result is used, or take fastconv.enabled() without fuse"
            )


def _changes_something(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a function may change a tensor: ``add_``, ``__iadd__``, ``x.data = ``, ``out=``, ``inplace=True``."""
    name = getattr(func, "__name__", "_").partition(".")[0]
    if name.startswith("__"):
        return name.startswith(("__i", "__set"))
    return name.endswith("_") or "out" in kwargs or bool(kwargs.get("inplace")) or any(a is True for a in args)


def _deferrable(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: Any = 1,
) -> FF.Convolution | None:
    """The operator's own arguments, if nothing is wrong with them and nobody but autograd watches."""
    tensors = (input, weight) if bias is None else (input, weight, bias)
    if any(type(t) not in _PLAIN or t.is_inference() for t in tensors) or input.dim() != 4:
        return None
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0 or input.is_meta:
        return None
    if _get_current_dispatch_mode() is not None or torch.is_inference_mode_enabled():
        return None
    served = FF._served_convolution(input, weight, bias, stride, padding, dilation, groups)
    if served is None:
        return None
    x, w, b, strides, paddings, _, _ = served
    fits = x.shape[1] == w.shape[1] * groups and w.shape[0] % groups == 0 and groups > 0
    fits = fits and (b is None or b.shape == w.shape[:1]) and min(strides) > 0 and min(paddings) >= 0
    return served if fits else None


def _pool(
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: Any = False,
    return_indices: Any = False,
) -> autograd.Pool | None:
    return None if return_indices else FF._served_pool(kernel_size, stride, padding, dilation, ceil_mode)


def _is_no_change(deferred: Deferred, *args: Any, **kwargs: Any) -> bool:
    """Whether ``Tensor.to`` with these arguments gives the tensor itself."""
    if kwargs or len(args) != 1:
        return False
    (to,) = args
    with torch._C.DisableTorchFunction():
        if isinstance(to, torch.dtype):
            return to == deferred.dtype
        return isinstance(to, str | torch.device) and torch.device(to) == deferred.device
