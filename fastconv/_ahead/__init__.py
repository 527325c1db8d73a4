"""Layers that compute the next ones, too, because the program passes their results on at once: see ``fusion``.

Modules: ``bytecode`` and ``stack`` (what a function does with a result), ``lookahead`` and ``values`` (the layers and
tensors of this call), ``layers`` and ``groups`` (which of them one operator computes), ``fusion`` (computes them).
"""

from fastconv._ahead.fusion import Ahead, batch_norm_ahead, convolution_ahead, is_before_norm, register_sequential
from fastconv._ahead.layers import register, register_convolution

__all__ = [
    "Ahead", "batch_norm_ahead", "convolution_ahead", "is_before_norm", "register", "register_convolution",
    "register_sequential",
]  # fmt: skip
