"""A tensor that is computed when it is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from threading import RLock
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.graph import GradientEdge, get_gradient_edge, saved_tensors_hooks
from torch.utils._python_dispatch import _get_current_dispatch_mode
from torch.utils._pytree import tree_map_only
from torch.utils.weak import TensorWeakRef

from fastconv._deferred.history import Adopt, Follow, version_of
from fastconv._deferred.recipe import TO_NCHW, TO_NHWC, Operands, Recipe, Step, in_sequence
from fastconv._ops.overrides import register_type

__all__ = [
    "FOLDS", "GRADIENTS", "Deferred", "DeferringLayer", "compute_deferred", "is_watched", "note_bypass",
    "settled", "sources",
]  # fmt: skip

#: Operations that join the recipe of a Deferred: :mod:`fastconv._deferred.folding` fills this table.
FOLDS: dict[Callable[..., Any], Callable[..., Any]] = {}
#: Functions that ask for the gradient with respect to a Deferred: :mod:`fastconv._deferred.gradients` fills this table.
GRADIENTS: dict[Callable[..., Any], Callable[..., Any]] = {}
_top_saved_tensors_hooks = torch._C._autograd._top_saved_tensors_default_hooks


class DeferringLayer(Protocol):
    """A layer that returns Deferred results."""

    def _note_fusion(self, fused: bool) -> None: ...


class Deferred(Tensor):
    """The result of a convolution that is computed when it is needed."""

    _recipe: Recipe
    _size: tuple[int, int, int, int]  # (N, K, P, Q)
    _operands: Operands
    _grad_enabled: bool
    _inference: bool
    _lock: RLock  # several threads may use a result. Views and Deferreds that were made from one another share a lock.
    _layer: DeferringLayer | None = None
    _source: tuple[Deferred, Step] | None = None  # the Deferred that this one was computed from, and how
    _viewed: Deferred | None = None  # the Deferred that this one is a view of
    _is_viewed = False  # by another Deferred
    _derived: tuple[TensorWeakRef, ...] = ()  # the Deferreds that were made from this one
    _node: Any = None  # its gradient function
    _follows = False  # the gradient function passes the gradient to the value
    _settled: Tensor | None = None
    _history: Any = None  # the gradient function of the value when _node was set
    _version_of_value: int | None = None  # when this tensor's version was set
    #: A fused operator computes later results without computing this tensor. For each such result: its gradient edge,
    #: and the step from this tensor to it.
    _bypasses: tuple[tuple[GradientEdge, Step], ...] = ()
    #: For each Deferred that was made from this one: the edge of its own gradient function, and the step to it.
    _waiting_nodes: tuple[tuple[GradientEdge, Step], ...] = ()

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        fold = FOLDS.get(func)
        if fold is not None and args and type(args[0]) is Deferred:
            with args[0]._lock:
                result = fold(args[0], *args[1:], **kwargs) if args[0]._can_fold() else NotImplemented
            if result is not NotImplemented:
                return result
        gradients = GRADIENTS.get(func)
        if gradients is not None:
            return gradients(*args, **kwargs)
        found: list[Deferred] = []

        def settle(deferred: Deferred) -> Tensor:
            found.append(deferred)
            return deferred.settle()

        args, kwargs = tree_map_only(Deferred, settle, (args, kwargs))
        for deferred in found:
            deferred._follow(is_late=True)
        result = func(*args, **kwargs)
        for deferred in found:
            deferred._follow()
            if result is deferred._settled and not torch.is_grad_enabled() and deferred._node is not None:
                return deferred  # A user's autograd.Function has to return its argument if it changed it in place.
        return result

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if getattr(func, "overloadpacket", None) is torch.ops.aten.set_:  # exchanges the memory of the value itself
            args = tree_map_only(Deferred, Deferred._value, args)
        args, kwargs = tree_map_only(Deferred, lambda d: d._value().detach(), (args, kwargs or {}))
        return func(*args, **kwargs)

    def settle(self) -> Tensor:
        """Return the computed tensor: the same at each call."""
        value = self._value()
        if self._is_adopted():
            with self._lock:
                if self._is_adopted():  # unless another thread was faster
                    self._adopt(value)
        return self._value()

    def as_subclass(self, cls: Any) -> Any:
        """As :meth:`torch.Tensor.as_subclass`, which does not call ``__torch_function__``."""
        return self.settle().as_subclass(cls)

    def base(self) -> Deferred:
        """Follow the views to the Deferred that is not a view itself."""
        return self if self._viewed is None else self._viewed.base()

    def _is_adopted(self) -> bool:
        """Return whether a user's autograd.Function returned this tensor, and so gave it another gradient function."""
        with torch._C.DisableTorchFunction():
            return self.grad_fn is not self._node

    def _adopt(self, value: Tensor) -> None:
        """Give the value the gradient function of this tensor, which is that of a user's autograd.Function.

        A Function that changes its argument assigns to ``_backward_hooks``, so this runs before a view is used.
        """
        if self._node is not None:
            if value.grad_fn is not self._history:
                self._node.is_wrong = True
            self._node.deferred = lambda: None  # later changes of the value do not make it wrong
        self._bypasses = self._waiting_nodes = ()  # earlier uses have used other values
        if self._node is None and value._is_view():  # a view that was made without gradients cannot get one
            self._settled = value = value.detach()
        # A view asks for its new gradient function if the version of the value has changed.
        unchanged = (self, value) if self._node is None else (self,)
        preserve = torch.autograd.grad_mode._unsafe_preserve_version_counter
        with torch._C.DisableTorchFunction(), torch.enable_grad(), preserve(unchanged):
            if self.grad_fn is None:
                value.detach_()
            else:
                Adopt.apply(value, self)
            self._follow_value(value)
        self._version_of_value = version_of(value)

    def _can_fold(self) -> bool:
        """Return whether an operation may join the recipe."""
        if self._settled is not None or self.base()._settled is not None or self._is_adopted():
            return False
        if self._settled_source() is not None:
            return False
        # A result that was computed without gradients stays without them.
        if torch.is_grad_enabled() and not self._grad_enabled:
            return False
        return torch.is_inference_mode_enabled() == self._inference and not is_watched()

    def _settled_source(self) -> tuple[Deferred, tuple[Step, ...]] | None:
        """Return the nearest settled Deferred that this one was computed from, and the steps from there.

        The program has read that Deferred or asked for its gradient, so this one is computed from its value.
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
            with self._lock, torch._C.DisableTorchFunction():
                if self._settled is None:  # else another thread has computed it meanwhile
                    self._compute()
        assert self._settled is not None
        return self._settled

    def _compute(self) -> None:
        if self._viewed is not None:
            y = self._viewed._value()  # may compute this one, too: see the end of this function
            if self._settled is not None:
                return
            with torch.set_grad_enabled(self._grad_enabled):
                value = y.permute(TO_NHWC if self._recipe.axes_nhwc else TO_NCHW)
        elif (found := self._settled_source()) is not None:
            deferred, steps = found
            # set_grad_enabled takes effect when it is constructed: construct it inside inference_mode.
            with torch.inference_mode(self._inference), torch.set_grad_enabled(self._grad_enabled):
                value = in_sequence(steps)(deferred._value())
        else:
            value = compute_deferred(self._recipe, self, self._source, self._grad_enabled)
        self._history, self._version_of_value = value.grad_fn, version_of(value)
        self._settled = value  # after _history, because other threads read it without the lock
        self._operands = (value, None, None)
        self._source = None  # releases the operands of the Deferreds before this one
        # The program may now write to this value. Tensors that were made from it before must not change.
        for derived in self._waiting():
            derived._value()

    def outside_edges(self) -> tuple[tuple[GradientEdge, Step], ...]:
        """Return the gradient edges that take a part of the gradient past the value, and the steps to them.

        An autograd.Function passes the gradient of a Deferred to that tensor's own gradient function.
        """
        if self._node is None or self._follows or self._is_adopted():
            return (*self._bypasses, *self._waiting_nodes)
        return (*self._bypasses, *self._waiting_nodes, (GradientEdge(self._node, 0), lambda tensor: tensor))

    def follow_value(self) -> None:
        """Send the gradients of later uses to the value, which has a hook, also those that settle nothing."""
        derived = [deferred for reference in self._derived if (deferred := reference()) is not None]
        value = self.settle()
        for deferred in derived:
            deferred.follow_value()
        if self._node is not None and not self._follows and not self._is_adopted():
            self._waiting_nodes = (*self._waiting_nodes, (GradientEdge(self._node, 0), lambda tensor: tensor))
            with torch.autograd.grad_mode._unsafe_preserve_version_counter(self):
                self._follow_value(value)

    def _follow(self, is_late: bool = False) -> None:
        """Give this tensor the gradient function of its value if an operation in place has changed that one.

        Args:
            is_late: the value changed through a view, before this call. Code that does not settle this tensor may have
                used the old gradient function since.
        """
        value = self._settled
        if value is None or (self._viewed is not None and not self._grad_enabled):
            return
        with torch._C.DisableTorchFunction():
            version = version_of(value)
            if version != self._version_of_value:  # a Function that has saved this tensor finds out
                self._version_of_value = version
                torch.autograd.graph.increment_version(self)
            if value.grad_fn is self._history and value.requires_grad == self.requires_grad:
                return
        if self._is_adopted():
            return
        if is_late and self._node is not None:
            self._node.is_wrong = True
        self._bypasses = self._waiting_nodes = ()  # earlier uses have used other values
        self._follow_value(value)

    def _follow_value(self, value: Tensor) -> None:
        self._follows = True
        with torch._C.DisableTorchFunction(), torch.enable_grad():
            if not value.requires_grad:
                self.detach_()
            else:
                Follow.apply(self, value)
            self._node = self.grad_fn
        self._history = value.grad_fn

    def _waiting(self) -> list[Deferred]:
        """Return the Deferreds that were made from this one, are still in use, and are not computed yet."""
        alive = [reference() for reference in self._derived]
        return [deferred for deferred in alive if deferred is not None and deferred._settled is None]


register_type(Deferred)


def _exclude_from_compilation() -> None:
    """Let Dynamo compile neither the methods that PyTorch calls, nor what they call. It runs them at a graph break.

    Settling changes the Deferred. Dynamo traces code twice, and the second trace would take other branches.
    """
    eval_frame = torch._C._dynamo.eval_frame
    if not hasattr(eval_frame, "set_code_exec_strategy"):  # another release of torch
        return
    skip = eval_frame._FrameExecStrategy(eval_frame._FrameAction.SKIP, eval_frame._FrameAction.SKIP)
    for method in (Deferred.__torch_function__, Deferred.__torch_dispatch__):
        function: Any = method.__func__  # type: ignore[attr-defined]
        function._torchdynamo_disable = True
        eval_frame.set_code_exec_strategy(function.__code__, skip)


_exclude_from_compilation()


def compute_deferred(
    recipe: Recipe, deferred: Deferred, source: tuple[Deferred, Step] | None, grad_enabled: bool
) -> Tensor:
    """Run ``recipe`` in the modes (inference, gradient, autocast) of the deferred call, not in the current ones.

    Args:
        recipe: the recipe of ``deferred``, or the same with one more step.
        source: the Deferred that the result is computed from.
        grad_enabled: the gradient mode of the last step.
    """
    inference = deferred._inference
    device = deferred._operands[0].device.type
    casts, hooks = torch.is_autocast_enabled(device), _top_saved_tensors_hooks(True) is not None
    if (inference, grad_enabled) == (torch.is_inference_mode_enabled(), torch.is_grad_enabled()) and not casts | hooks:
        y = recipe.compute(*deferred._operands)  # without a context, which takes 3 us
    else:
        # At the deferred call, autocast has already cast the operands, and no hooks were active.
        hooks_off = saved_tensors_hooks(lambda t: t, lambda t: t) if hooks else nullcontext()
        casts_off = torch.autocast(device, enabled=False) if casts else nullcontext()
        with torch.inference_mode(inference), torch.set_grad_enabled(grad_enabled), hooks_off, casts_off:
            y = recipe.compute(*deferred._operands)
    if deferred._layer is not None:
        deferred._layer._note_fusion(recipe.relu)
    note_bypass(source, y)
    return y


def settled(tree: Any) -> Any:
    """Return ``tree`` with each Deferred in it replaced by its computed tensor."""
    return tree_map_only(Deferred, Deferred.settle, tree)


def is_watched() -> bool:
    """Return whether a transform, a dispatch mode, a tracer or activation checkpointing observes each operation."""
    return (
        torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or _get_current_dispatch_mode() is not None
        or _top_saved_tensors_hooks(True) is not None
        or torch._C._get_tracing_state() is not None
    )


def note_bypass(source: tuple[Deferred, Step] | None, y: Tensor) -> None:
    """Note the gradient edge of ``y`` in each Deferred that ``y`` was computed from without using its value."""
    if source is None or not y.requires_grad:
        return
    if y._base is not None:  # permuted. A change in place replaces the gradient function of y, but not the base's one
        y, source = y._base, (source[0], in_sequence((source[1], lambda tensor: tensor.permute(TO_NCHW))))
    edge = get_gradient_edge(y)
    for deferred, step in sources(source):
        deferred._bypasses = (*deferred._bypasses, (edge, step))


def sources(source: tuple[Deferred, Step] | None) -> Iterator[tuple[Deferred, Step]]:
    """Yield each Deferred before a result, nearest first, and the step from there to the result."""
    steps: tuple[Step, ...] = ()
    while source is not None:
        deferred, step = source
        steps = (step, *steps)
        yield deferred, in_sequence(steps)
        source = deferred._source
