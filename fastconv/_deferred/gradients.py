"""Gradients with respect to a Deferred that was fused with the next operation, and so never computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge
from torch.utils.weak import TensorWeakRef

from fastconv._deferred.recipe import Step
from fastconv._deferred.tensor import GRADIENTS, Deferred, settled

__all__ = ["BACKWARD"]


def _as_tuple(tensors: Any) -> tuple[Any, ...]:
    if isinstance(tensors, Mapping):
        return tuple(tensors.values())
    return tuple(tensors) if isinstance(tensors, Sequence) else (tensors,)


def _pull_back(value: Tensor, step: Step, grad: Tensor, create_graph: bool, is_batched: bool = False) -> Tensor:
    """Return the gradient with respect to ``value``, from that of ``step(value)``."""
    with torch.enable_grad():
        start = value.detach().requires_grad_()
        return torch.autograd.grad(step(start), start, grad, create_graph=create_graph, is_grads_batched=is_batched)[0]


def _without_override_check(function: Any) -> Callable[..., Any]:
    """Return ``function`` of torch.autograd without the override protocol, for arguments that are settled already."""
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


def _outside_edges_of(tensor: Any) -> tuple[tuple[GradientEdge, Step], ...]:
    return tensor.outside_edges() if type(tensor) is Deferred else ()


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
    """As :func:`torch.autograd.grad`. Gradients of fused results are carried back to the Deferreds in ``inputs``."""
    inputs = _as_tuple(inputs)
    outputs, grad_outputs = settled((outputs, grad_outputs))  # first, because this may add bypasses
    edges = [(i, edge, step) for i, tensor in enumerate(inputs) for edge, step in _outside_edges_of(tensor)]
    values = settled(inputs)
    if not edges:
        return _run_grad(
            outputs, values, grad_outputs, retain_graph, create_graph, only_inputs,
            allow_unused, is_grads_batched, materialize_grads,
        )  # fmt: skip
    targets = [*values, *(edge for _, edge, _ in edges)]
    found = _run_grad(
        outputs, targets, grad_outputs, retain_graph, create_graph, allow_unused=True, is_grads_batched=is_grads_batched
    )
    grads = list(found[: len(values)])
    for (i, _, step), grad in zip(edges, found[len(values) :], strict=True):
        if grad is not None:
            term = _pull_back(values[i], step, grad, create_graph, is_grads_batched)
            grads[i] = term if grads[i] is None else grads[i] + term
    if materialize_grads:
        return tuple(torch.zeros_like(v) if g is None else g for v, g in zip(values, grads, strict=True))
    if not allow_unused and any(grad is None for grad in grads):
        unused = [grad is None for grad in grads].index(True)
        raise RuntimeError(
            f"The differentiated Tensor at index {unused} appears to not have been used in the graph. Set"
            " allow_unused=True if this is the desired behavior."
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
    bypassed = [tensor for tensor in inputs or () if _outside_edges_of(tensor)]
    others = None if inputs is None else settled([tensor for tensor in inputs if not _outside_edges_of(tensor)])
    retain = True if others else retain_graph
    values = settled(bypassed)
    before = [value.grad if value.retains_grad else None for value in values]
    grads = _grad(tensors, bypassed, grad_tensors, retain, create_graph) if bypassed else ()
    if others or not bypassed:
        _run_backward(tensors, grad_tensors, retain_graph, create_graph, grad_variables, others)
    for tensor, value, kept, grad in zip(bypassed, values, before, grads, strict=True):
        if value.retains_grad:
            value.grad = kept  # without what PyTorch's and fastconv's hooks have just added
        _retain_grad(tensor)  # as PyTorch does
        _accumulate(value, grad)


def _tensor_backward(
    tensor: Tensor, gradient: Any = None, retain_graph: Any = None, create_graph: bool = False, inputs: Any = None
) -> None:
    _backward(tensor, gradient, retain_graph, create_graph, None, inputs)


def _accumulate(tensor: Tensor, grad: Tensor) -> None:
    tensor.grad = grad.contiguous() if tensor.grad is None else tensor.grad + grad


def _retain_grad(deferred: Deferred) -> None:
    value = deferred.settle()
    if value.retains_grad:
        return
    value.retain_grad()
    edges = deferred.outside_edges()
    deferred.follow_value()
    reference = TensorWeakRef(value)
    for edge, step in edges:

        def hook(grads: Sequence[Tensor | None], at: int = edge.output_nr, step: Step = step) -> None:
            grad = grads[at]
            value = reference()
            if grad is not None and value is not None:
                _accumulate(value, _pull_back(value, step, grad, torch.is_grad_enabled()))

        edge.node.register_prehook(hook)


def _register_hook(deferred: Deferred, hook: Callable[..., Any]) -> Any:
    if deferred._bypasses:
        raise RuntimeError(
            "a hook of a convolution's result was registered after the result was fused with the next operation:"
            " register it before, or use fastconv.enabled() without fuse, or fastconv.revert(model)"
        )
    for edge, _ in deferred.outside_edges():
        node: Any = edge.node
        node.is_unhooked = True
    deferred.follow_value()
    return deferred.settle().register_hook(hook)


def _grad_fn(deferred: Deferred) -> Any:
    deferred.follow_value()  # the program may register a hook
    return deferred.settle().grad_fn


#: Functions that run a backward pass.
BACKWARD: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.autograd.grad: _grad,
    torch.autograd.backward: _backward,
    Tensor.backward: _tensor_backward,
}
#: Functions that ask for the gradient with respect to a Deferred.
_TABLE: dict[Callable[..., Any], Callable[..., Any]] = {
    **BACKWARD,
    Tensor.retain_grad: _retain_grad,
    Tensor.register_hook: _register_hook,
    Tensor.grad_fn.__get__: _grad_fn,  # type: ignore[union-attr]
}
GRADIENTS.update(_TABLE)
