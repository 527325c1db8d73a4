"""Layers that compute the next ones, too, because the program passes their results on at once: see ``fusion``.

Modules: ``bytecode`` (what a function does with a result), ``lookahead`` (the layers and tensors of this call),
``fusion`` (computes several steps as one operator).
"""

from fastconv._ahead.fusion import Ahead, batch_norm_ahead, convolution_ahead, register, register_sequential

__all__ = ["Ahead", "batch_norm_ahead", "convolution_ahead", "register", "register_sequential"]
