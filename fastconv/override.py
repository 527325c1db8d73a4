"""Use fastconv in code that cannot be edited: ``with fastconv.enabled():``."""

from collections.abc import Callable
from contextlib import ContextDecorator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from fastconv import functional as FF
from fastconv._deferred import BACKWARD, Deferred, defer
from fastconv._layer import is_watched, register_mode
from fastconv._ops.overrides import accept_fastconv

__all__ = ["enabled"]


def _relu_(input: Tensor) -> Tensor:
    return FF.relu(input, inplace=True)


def _max_pool2d(
    input: Tensor,
    kernel_size: FF.Size2,
    stride: FF.Size2 | None = (),
    padding: FF.Size2 = 0,
    dilation: FF.Size2 = 1,
    ceil_mode: bool = False,
) -> Any:
    """As :func:`torch.max_pool2d`, whose default stride is an empty tuple."""
    return FF.max_pool2d(input, kernel_size, None if stride == () else stride, padding, dilation, ceil_mode)


def _max_pool2d_with_indices(
    input: Tensor,
    kernel_size: FF.Size2,
    stride: FF.Size2 | None = None,
    padding: FF.Size2 = 0,
    dilation: FF.Size2 = 1,
    ceil_mode: bool = False,
    return_indices: bool = True,
) -> Any:
    """As :func:`torch.nn.functional.max_pool2d_with_indices`, which always returns indices."""
    return FF.max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices=True)


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None, *, out: Tensor | None = None) -> Tensor:
    """As :func:`torch.nn.functional.linear`, which also takes ``out``."""
    return FF.linear(input, weight, bias) if out is None else F.linear(input, weight, bias, out=out)  # type: ignore[call-arg]


#: fastconv's replacement of each function that the override protocol reports. ``F.conv2d`` is ``torch.conv2d``, and
#: ``F.relu_`` is ``torch.relu_``. The modules of torch.nn call these functions.
ROUTES: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.conv2d: FF.conv2d,
    F.max_pool2d: FF.max_pool2d,
    F.max_pool2d_with_indices: _max_pool2d_with_indices,
    torch.max_pool2d: _max_pool2d,
    F.relu: FF.relu,
    torch.relu: FF.relu,
    torch.relu_: _relu_,
    Tensor.relu: FF.relu,
    Tensor.relu_: _relu_,
    F.batch_norm: FF.batch_norm,
    F.linear: _linear,
}


#: The tensor types whose own ``__torch_function__`` need not be called.
_OWN_TYPES = {Tensor, torch.nn.Parameter, Deferred}


class enabled(TorchFunctionMode, ContextDecorator):  # lower case, as torch.no_grad
    """A context in which fastconv computes this thread's calls of PyTorch's functions.

    The context covers ``conv2d``, ``max_pool2d``, ``max_pool2d_with_indices``, ``relu``, ``batch_norm`` and ``linear``
    of ``torch.nn.functional``, ``torch.conv2d``, ``torch.max_pool2d``, ``torch.relu``, ``Tensor.relu``, and the
    in-place forms. So it covers all code that calls them, such as the layers of :mod:`torch.nn` and Keras on its torch
    backend. Values, gradients, memory formats and errors are PyTorch's. PyTorch handles what fastconv does not support:
    see :mod:`fastconv.functional`.

    The context uses PyTorch's override protocol (:class:`torch.overrides.TorchFunctionMode`). Nothing is patched, other
    threads are not affected, and contexts nest. It also works as a decorator. Within it, each call of any function of
    PyTorch takes about a microsecond longer. :func:`fastconv.convert` has no such cost.

    Args:
        fuse: let convolutions wait for a bias, a ReLU and a max-pool, and run them as one operator: see
            :mod:`fastconv._deferred`. A convolution then returns a tensor of a subclass, which is computed when needed.
            Values and gradients are those of :func:`fastconv.functional.conv2d_relu_max_pool2d`. docs/howto/convert.md
            lists the differences that a program can notice.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3), torch.nn.ReLU(), torch.nn.MaxPool2d(2))
        >>> with enabled():
        ...     model(torch.randn(4, 1, 28, 28)).shape
        torch.Size([4, 8, 13, 13])
    """

    def __init__(self, fuse: bool = False) -> None:
        super().__init__()
        self._fuse = fuse

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.compiler.is_compiling():
            return ROUTES.get(func, func)(*args, **kwargs)
        if not accept_fastconv(types) or (func not in BACKWARD and is_watched()):
            return func(*args, **kwargs)
        if self._fuse and func is torch.conv2d:
            result = defer(*args, **kwargs)
            if result is not None:
                return result
        if func in BACKWARD and _OWN_TYPES.issuperset(types):
            with self:  # so that activation checkpointing recomputes with fastconv, too
                return BACKWARD[func](*args, **kwargs)
        return ROUTES.get(func, func)(*args, **kwargs)


register_mode(enabled)
