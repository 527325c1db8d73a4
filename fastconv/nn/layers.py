"""Max-pooling, batch norm and linear layers: layers of :mod:`fastconv.nn`."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # torch.jit.script looks for the names of PyTorch's code here

from fastconv import functional as FF
from fastconv._ahead import Ahead, batch_norm_ahead, keep_source, note_use, take_source
from fastconv._layer import Layer, is_observed, is_patched, scripted_as
from fastconv._ops.linear import MAY_BE_FASTER
from fastconv._scripted import scripted_batch_norm_relu

__all__ = ["BatchNorm2d", "BatchNormReLU2d", "Linear", "MaxPool2d"]


class MaxPool2d(Layer, torch.nn.MaxPool2d):
    """2-D max-pooling: the arguments, shapes and errors of :class:`torch.nn.MaxPool2d`.

    Args, shapes and errors: see :func:`fastconv.functional.max_pool2d`.

    Example:
        >>> MaxPool2d(2)(torch.randn(8, 16, 32, 32)).shape
        torch.Size([8, 16, 16, 16])
    """

    _torch_class = torch.nn.MaxPool2d

    @scripted_as(torch.nn.MaxPool2d.forward)
    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:  # type: ignore[override]
        if type(input) is Ahead:  # type: ignore[comparison-overlap]
            return input.passed()  # type: ignore[no-any-return]
        if is_patched():
            return super().forward(input)  # type: ignore[no-any-return]
        return FF.max_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            ceil_mode=self.ceil_mode,
            return_indices=self.return_indices,
        )


class BatchNorm2d(Layer, torch.nn.BatchNorm2d):
    """Batch normalisation: the arguments, parameters, buffers, shapes and errors of :class:`torch.nn.BatchNorm2d`.

    Args, shapes and errors: see :func:`fastconv.functional.batch_norm`.

    Example:
        >>> BatchNorm2d(16)(torch.randn(8, 16, 32, 32)).shape
        torch.Size([8, 16, 32, 32])
    """

    _torch_class = torch.nn.BatchNorm2d
    _conversion_attributes = ("_fuses",)
    #: Run with the next layers as one operator where possible. :func:`fastconv.convert` sets it.
    _fuses = False

    @scripted_as(torch.nn.BatchNorm2d.forward)
    def forward(self, input: Tensor) -> Tensor:
        if type(input) is Ahead:  # type: ignore[comparison-overlap]
            return input.passed()  # type: ignore[no-any-return]
        if is_patched() or torch.compiler.is_compiling():
            return super().forward(input)  # type: ignore[no-any-return]
        self._check_input_dim(input)
        arguments = self._arguments()
        if not self._fuses or type(self) is not BatchNorm2d:
            return FF.batch_norm(input, *arguments)
        result: Any = batch_norm_ahead(self, sys._getframe(0), input, *arguments)
        if result is None:
            result = FF.batch_norm(input, *arguments)
            note_use(self, sys._getframe(0), result)
        return result  # type: ignore[no-any-return]

    def _arguments(self) -> tuple[Any, ...]:
        """Count the batch in training. Return the arguments of ``FF.batch_norm`` after the input."""
        mean, var, batches, weight, bias = self._tensors()
        momentum = 0.0 if self.momentum is None else self.momentum
        if self.training and self.track_running_stats and batches is not None:
            batches.add_(1)
            if self.momentum is None:
                momentum = 1.0 / float(batches)
        batch = self.training or (mean is None and var is None)
        running = (mean, var) if not self.training or self.track_running_stats else (None, None)
        return *running, weight, bias, batch, momentum, self.eps

    def _tensors(self) -> tuple[Any, ...]:
        """Return running_mean, running_var, num_batches_tracked, weight and bias."""
        attributes = self.__dict__
        if type(self) is BatchNorm2d and not is_observed(self) and "num_batches_tracked" not in attributes:
            # Each of these attributes of a module would take six times as long.
            buffers, parameters = attributes["_buffers"], attributes["_parameters"]
            try:
                running = buffers["running_mean"], buffers["running_var"], buffers["num_batches_tracked"]
                return *running, parameters["weight"], parameters["bias"]
            except KeyError:  # The attribute is elsewhere, or missing.
                pass
        return self.running_mean, self.running_var, self.num_batches_tracked, self.weight, self.bias


class BatchNormReLU2d(BatchNorm2d):
    """:class:`BatchNorm2d` and ReLU in one operator, with the arguments, parameters and buffers of BatchNorm2d.

    ``forward`` takes a residual, which is added before the ReLU.

    Shapes and errors: see :func:`fastconv.functional.batch_norm_relu`.

    Example:
        >>> x = torch.randn(8, 16, 32, 32)
        >>> BatchNormReLU2d(16)(x, residual=x).min()
        tensor(0., grad_fn=<MinBackward1>)
    """

    _torch_class = None  # type: ignore[assignment]

    @scripted_as(scripted_batch_norm_relu)
    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        self._check_input_dim(input)
        return FF.batch_norm_relu(input, *self._arguments(), residual=residual)


class Linear(Layer, torch.nn.Linear):
    """Linear layer: the arguments, parameters, shapes and errors of :class:`torch.nn.Linear`.

    Args, shapes and errors: see :func:`fastconv.functional.linear`.

    Example:
        >>> Linear(64, 10)(torch.randn(8, 64)).shape
        torch.Size([8, 10])
    """

    _torch_class = torch.nn.Linear
    _conversion_attributes = ("_fuses",)
    #: Keep no input that backward can compute again. :func:`fastconv.convert` sets it.
    _fuses = False

    @scripted_as(torch.nn.Linear.forward)
    def forward(self, input: Tensor) -> Tensor:
        if not MAY_BE_FASTER or is_patched():
            return F.linear(input, self.weight, self.bias)
        if not self._fuses or type(self) is not Linear or torch.compiler.is_compiling():
            return FF.linear(input, self.weight, self.bias)
        source = take_source(self, input)
        result = FF.linear(input, self.weight, self.bias)
        if source is not None:
            keep_source(result, input, source)
        note_use(self, sys._getframe(0), result)
        return result
