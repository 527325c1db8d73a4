"""fastconv: faster convolution, max-pooling, ReLU and batch norm for PyTorch on the CPU, forward and backward.

import fastconv.functional as FF   # conv2d, max_pool2d, relu, with the arguments of torch.nn.functional
from fastconv import nn as fnn     # Conv2d, MaxPool2d, ReLU, with the arguments of torch.nn
fastconv.optim.Adam(...)           # torch.optim's Adam, with less Python overhead
fastconv.convert(model)            # replaces the layers of any model
with fastconv.enabled(): ...       # PyTorch's own functions and layers, computed by fastconv
with fastconv.tune(): ...          # times the algorithms for each convolution, and keeps the fastest
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastconv import startup  # first: it explains a failed import below
from fastconv.version import __version__

__all__ = [
    "_C",
    "__version__",
    "conversion_report",
    "convert",
    "enabled",
    "environment",
    "flops",
    "freeze",
    "functional",
    "models",
    "nn",
    "optim",
    "revert",
    "show_config",
    "tune",
    "tuning",
]

if TYPE_CHECKING or not startup.is_command():
    from fastconv.public import conversion_report, convert, enabled, freeze, revert, show_config, tune  # isort: skip  loads torch
    from fastconv import _C, environment, flops, functional, models, nn, optim, tuning  # isort: skip
else:
    # The command `fastconv` loads torch only if it has to compute: `fastconv --help` takes 0.2 s instead of 2 s.
    def __getattr__(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module 'fastconv' has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module("fastconv.public"), name)
