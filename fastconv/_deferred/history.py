"""The gradient functions of a Deferred and of its value, after either has changed in place."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd import Function
from torch.utils.weak import TensorWeakRef

__all__ = ["Adopt", "Follow", "check_history", "version_of"]


def version_of(tensor: Tensor) -> int | None:
    """Return how often a tensor was changed in place. None for a tensor of inference mode, which does not count."""
    return None if tensor.is_inference() else tensor._version


def check_history(node: Any) -> None:
    """Raise an error if the gradient function of a Deferred may not be that of its value."""
    deferred = node.deferred()
    value = None if deferred is None else deferred._settled
    changed = deferred is not None and value is not None and value.grad_fn is not deferred._history
    if changed or hasattr(node, "is_wrong"):
        raise RuntimeError(
            "the result of a convolution was changed in place through a view, and passed to an autograd.Function or a "
            "C++ operator. fastconv.convert and fastconv.enabled(fuse=True) do not support this. Pass a copy: y.clone()"
        )
    if hasattr(node, "is_unhooked"):
        raise RuntimeError(
            "a hook of a convolution's result was registered after the result was passed to an autograd.Function or a "
            "C++ operator: register it before, or use fastconv.enabled() without fuse, or fastconv.revert(model)"
        )


class Follow(Function):
    """The gradient function of a Deferred whose value has changed in place: it passes the gradient to the value."""

    @staticmethod
    def forward(ctx: Any, deferred: Any, _: Tensor) -> Any:
        ctx.deferred = TensorWeakRef(deferred)
        ctx.mark_dirty(deferred)
        return deferred

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:  # type: ignore[override]
        check_history(ctx)
        return None, grad


class Adopt(Function):
    """The gradient function of the value of a Deferred that a user's autograd.Function has changed in place.

    It passes the gradient to the Deferred, whose gradient function is that of the user's Function. PyTorch then passes
    the gradients of views of the value here, too.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, _: Any) -> Tensor:
        ctx.mark_dirty(value)
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:  # type: ignore[override]
        return None, grad
