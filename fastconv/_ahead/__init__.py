"""Layers that also compute the layers after them, if the program uses their results for nothing else: see ``fusion``.

Modules: ``bytecode`` and ``stack`` (what a function does with a result), ``lookahead`` and ``values`` (the layers and
tensors of this call), ``layers`` and ``groups`` (which of them one operator computes), ``fusion`` (computes them),
``recompute`` (what backward computes again instead of keeping it).
"""

from fastconv._ahead.fusion import (
    Ahead,
    batch_norm_ahead,
    convolution_ahead,
    may_wait,
    note_use,
    register_sequential,
)
from fastconv._ahead.layers import register, register_convolution
from fastconv._ahead.recompute import keep_source, take_source

__all__ = [
    "Ahead", "batch_norm_ahead", "convolution_ahead", "keep_source", "may_wait", "note_use", "register",
    "register_convolution", "register_sequential", "take_source",
]  # fmt: skip
