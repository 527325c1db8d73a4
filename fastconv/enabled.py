"""fastconv for code that cannot be edited: ``with fastconv.enabled():``."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ContextDecorator, suppress
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from fastconv import functional as FF
from fastconv.deferred import Deferring

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
    """As :func:`torch.max_pool2d`, to which no stride is an empty one."""
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
    """As :func:`torch.nn.functional.max_pool2d_with_indices`, which returns indices whatever it is told."""
    return FF.max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices=True)


#: What fastconv does in place of each function, by the function that the override protocol names. ``F.conv2d`` is
#: ``torch.conv2d``, ``F.relu_`` is ``torch.relu_``; the modules of torch.nn call the functions.
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
}


class enabled(TorchFunctionMode, ContextDecorator):  # as torch.no_grad is
    """Within it, this thread's calls of PyTorch's conv2d, max_pool2d and relu are served by fastconv.

    That is ``torch.nn.functional.conv2d``, ``max_pool2d``, ``max_pool2d_with_indices`` and ``relu``, ``torch.conv2d``,
    ``torch.max_pool2d``, ``torch.relu``, ``Tensor.relu``, their in-place forms, and what calls these: the layers of
    :mod:`torch.nn`, Keras on its torch backend. Values, gradients, memory formats and errors stay PyTorch's; what
    fastconv does not serve goes on to PyTorch, see :mod:`fastconv.functional`.

    By PyTorch's own override protocol (:class:`torch.overrides.TorchFunctionMode`): nothing is patched, other threads
    see nothing of it, and it may be nested, or used as a decorator. Each call of any function of PyTorch costs about a
    microsecond more in it; :func:`fastconv.convert` has no such cost.

    Args:
        fuse: let convolutions wait for a bias, a ReLU and a max-pool to be fused with, see :mod:`fastconv.deferred`.
            Their results are tensors of a subclass, that are computed when something looks at them, at the latest on
            leaving. Values and gradients then are those of :func:`fastconv.functional.conv2d_relu_max_pool2d`.

    Raises:
        RuntimeError: with ``fuse``, where the input or the weight of a convolution was changed before its result was
            looked at, in a way that PyTorch's functions do not show, as by C++ code; where the gradient with respect to
            a result that was fused away is asked for after it was.

    What fusing does not see: an input that changes meanwhile through memory that it shares with a NumPy array. Who does
    not take its results: C code that reads a tensor's memory (``to_dlpack``, not ``from_dlpack``),
    :class:`torch.nn.Parameter` (detach and clone first), and a function that is compiled with ``fullgraph=True``, as an
    argument. ``torch.utils.checkpoint`` computes again outside of any such context, unless it has ``context_fn=lambda:
    (contextlib.nullcontext(), fastconv.enabled(fuse=True))``.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3), torch.nn.ReLU(), torch.nn.MaxPool2d(2))
        >>> with enabled():
        ...     model(torch.randn(4, 1, 28, 28)).shape
        torch.Size([4, 8, 13, 13])
    """

    def __init__(self, fuse: bool = False) -> None:
        super().__init__()
        self._deferring = Deferring(ROUTES) if fuse else None

    def __exit__(self, kind: type[BaseException] | None, *exception: Any) -> None:
        super().__exit__(kind, *exception)
        if self._deferring is None:
            return
        if kind is None:
            self._deferring.settle_all()
        elif not kind.__module__.startswith("torch."):  # checkpoint so ends computing again, and counts what is saved
            with suppress(Exception):  # that one counts
                self._deferring.settle_all()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if self._deferring is None or torch.compiler.is_compiling():
            return ROUTES.get(func, func)(*args, **(kwargs or {}))
        return self._deferring.call(func, types, args, kwargs or {})
