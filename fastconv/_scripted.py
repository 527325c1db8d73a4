"""The fused layers on PyTorch's operators. ``torch.jit.script`` compiles these functions from their source."""

from typing import Any, Optional

from torch import Tensor
from torch.nn import functional as F
from torch.nn.modules.utils import _pair

__all__ = ["scripted_batch_norm_relu", "scripted_relu", "scripted_relu_max_pool"]


def scripted_relu(self: Any, input: Tensor, weight: Tensor, bias: Optional[Tensor]) -> Tensor:  # noqa: UP045
    if self.padding_mode != "zeros":
        input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
        return F.relu(F.conv2d(input, weight, bias, self.stride, _pair(0), self.dilation, self.groups))
    return F.relu(F.conv2d(input, weight, bias, self.stride, self.padding, self.dilation, self.groups))


def scripted_relu_max_pool(self: Any, input: Tensor, weight: Tensor, bias: Optional[Tensor]) -> Tensor:  # noqa: UP045
    if self.padding_mode != "zeros":
        input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
        conv = F.conv2d(input, weight, bias, self.stride, _pair(0), self.dilation, self.groups)
    else:
        conv = F.conv2d(input, weight, bias, self.stride, self.padding, self.dilation, self.groups)
    return F.max_pool2d(
        F.relu(conv),
        self.pool_kernel_size,
        self.pool_stride,
        self.pool_padding,
        self.pool_dilation,
        self.pool_ceil_mode,
    )


def scripted_batch_norm_relu(self: Any, input: Tensor, residual: Optional[Tensor] = None) -> Tensor:  # noqa: UP045
    self._check_input_dim(input)
    momentum = 0.0 if self.momentum is None else self.momentum
    if self.training and self.track_running_stats and self.num_batches_tracked is not None:
        self.num_batches_tracked.add_(1)
        if self.momentum is None:
            momentum = 1.0 / float(self.num_batches_tracked)
    batch = self.training or (self.running_mean is None and self.running_var is None)
    tracked = not self.training or self.track_running_stats
    mean, var = self.running_mean if tracked else None, self.running_var if tracked else None
    y = F.batch_norm(input, mean, var, self.weight, self.bias, batch, momentum, self.eps)
    return F.relu(y if residual is None else y + residual)
