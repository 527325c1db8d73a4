r"""Linear layers as in :func:`torch.nn.functional.linear`. ``fastconv.functional`` exports the function."""

from __future__ import annotations

import torch  # noqa: F401  the example uses it
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import has_torch_function

from fastconv._ops import linear as _linear
from fastconv._ops.overrides import handle_override

__all__ = ["linear"]


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    r"""Linear layer, as :func:`torch.nn.functional.linear`.

    .. math::
        y = x W^T + b

    A linear layer is a 1x1 convolution. fastconv computes only calls for which it was measured to be faster than
    PyTorch. They are in float32, on AMD CPUs from Zen 5 on, with AVX-512, and have at least two rows, four outputs and
    2 million products. PyTorch computes all other calls, and the calls within autocast, transforms of
    :mod:`torch.func` and compiled code.

    Args:
        input: (..., C).
        weight: (K, C).
        bias: (K,), or None.

    Returns:
        (..., K).

    Raises:
        RuntimeError: invalid sizes or dtypes, with PyTorch's message.

    Example:
        >>> x, w = torch.randn(8, 16, 64), torch.randn(128, 64)
        >>> linear(x, w).shape
        torch.Size([8, 16, 128])
    """
    tensors = (input, weight) if bias is None else (input, weight, bias)
    if has_torch_function(tensors):
        return handle_override(linear, F.linear, tensors, input, weight, bias)
    if _linear.is_supported(input, weight, bias):
        return _linear.linear(input, weight, bias)
    return F.linear(input, weight, bias)
