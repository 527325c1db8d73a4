"""Code that the autograd Functions of all operators share.

Every Function has ``setup_context`` and ``vmap``, so ``torch.func`` and ``torch.compile`` work with it. Its ``jvp``,
which forward-mode AD needs, is in a subclass, because Dynamo does not trace a Function that defines ``jvp``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

__all__ = [
    "differentiable",
    "is_differentiated_again",
    "is_final_gradient",
    "is_transformed",
    "needs_gradient",
    "save",
    "tie",
    "vmap_batch",
    "vmap_loop",
]


def differentiable(
    operator: Callable[..., Any], function: type[Function], function_with_jvp: type[Function]
) -> Callable[..., Any]:
    """Return a function that calls the operator and records its gradient where one is needed.

    Args:
        operator: computes the result without a gradient.
        function: the operator's Function.
        function_with_jvp: its subclass with ``jvp``.
    """

    def call(*args: Any) -> Any:
        if not (
            torch.is_grad_enabled() or torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
        ):
            return operator(*args)
        if torch._C._are_functorch_transforms_active():
            if torch.compiler.is_compiling():
                torch._dynamo.graph_break()  # Otherwise Dynamo traces the Function and loses the transform's gradient.
            return function_with_jvp.apply(*args)
        if torch.compiler.is_compiling():
            return function.apply(*args)
        if forward_ad._current_level >= 0:
            return function_with_jvp.apply(*args)
        for argument in args:  # needs_gradient, without one more function in every call (tests/test_call_path.py)
            if isinstance(argument, Tensor) and argument.requires_grad and not torch.is_inference_mode_enabled():
                if argument.is_inference() and _are_all_inference(args):
                    return operator(*args)
                # This skips the part of Function.apply that only transforms need. That part binds the arguments to the
                # signature of forward, which takes longer than a small convolution.
                return super(Function, function).apply(*args)  # type: ignore[misc]
        return operator(*args)

    return call


def needs_gradient(args: Sequence[Any]) -> bool:
    """Return whether autograd records a call with these arguments."""
    if torch.is_grad_enabled():
        for argument in args:  # A loop is twice as fast as any() here.
            if isinstance(argument, Tensor) and argument.requires_grad:
                if argument.is_inference() and _are_all_inference(args):
                    return False
                return not torch.is_inference_mode_enabled()
    return False


def _are_all_inference(args: Sequence[Any]) -> bool:
    """Return whether all tensors were made in inference mode. Autograd then records nothing, not even errors."""
    return all(argument.is_inference() for argument in args if isinstance(argument, Tensor))


def save(ctx: Any, *tensors: Tensor) -> None:
    """Save tensors for backward and jvp. A missing gradient stays None: as zeros, times infinity, it would be NaN."""
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)
    ctx.set_materialize_grads(False)


def is_transformed() -> bool:
    """Return whether the call is part of a transform, a compilation or forward-mode AD."""
    return (
        torch._C._are_functorch_transforms_active() or torch.compiler.is_compiling() or forward_ad._current_level >= 0
    )


def is_differentiated_again() -> bool:
    """Return whether backward runs with ``create_graph=True``, outside of transforms, which need no :func:`tie`."""
    return torch.is_grad_enabled() and not is_transformed()


def is_final_gradient() -> bool:
    """Return whether nothing differentiates, maps or dualises the gradient that a backward computes."""
    return not (
        torch.is_grad_enabled() or torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    )


def vmap_batch(
    function: Callable[..., Any], in_dim: int | None, batch: Tensor, *args: Any
) -> tuple[Any, int | tuple[int, ...]]:
    """The vmap rule if only the batched tensor is mapped: merge the mapped dimension into the batch."""
    assert in_dim is not None
    examples = batch.movedim(in_dim, 0)
    results = function(examples.flatten(0, 1), *args)
    if isinstance(results, tuple):
        return tuple(result.unflatten(0, examples.shape[:2]) for result in results), (0,) * len(results)
    return results.unflatten(0, examples.shape[:2]), 0


def vmap_loop(
    function: Callable[..., Any], info: Any, in_dims: Sequence[int | None], *args: Any
) -> tuple[Any, int | tuple[int, ...]]:
    """The fallback vmap rule: apply the function to each example in a loop."""
    results = [
        function(*(a.select(d, i) if isinstance(d, int) else a for a, d in zip(args, in_dims, strict=True)))
        for i in range(info.batch_size)
    ]
    if isinstance(results[0], tuple):
        return tuple(torch.stack(column) for column in zip(*results, strict=True)), (0,) * len(results[0])
    return torch.stack(results), 0


class _Tie(Function):
    """Adds tensors to the graph of a gradient whose values do not depend on them.

    PyTorch's backward operators have such inputs. A second backward therefore treats the tensors as used. It gives them
    what PyTorch gives them: zeros if ``zeros``, else None.
    """

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, zeros: bool, *tensors: Tensor | None) -> Tensor:
        ctx.like = [t if zeros and t is not None and t.requires_grad else None for t in tensors]
        # The gradient itself, and not a view of it: the program may change its gradients in place.
        ctx.mark_dirty(gradient)
        return gradient

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad, None, *(None if t is None else torch.zeros_like(t) for t in ctx.like)


def tie(gradient: Any, *tensors: Tensor | None, zeros: bool = False) -> Any:
    """Return the gradient with the tensors in its graph: see :class:`_Tie`."""
    return None if gradient is None else _Tie.apply(gradient, zeros, *tensors)
