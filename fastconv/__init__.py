"""fastconv: convolution, max-pooling and ReLU for PyTorch on the CPU, forward and backward.

import fastconv.functional as FF   # conv2d, max_pool2d, relu: torch.nn.functional's arguments
from fastconv import nn as fnn     # Conv2d, MaxPool2d, ReLU: torch.nn's layers
fastconv.optim.Adam(...)           # torch.optim's Adam, with less Python around the kernel
fastconv.convert(model)            # replaces the layers of any model
with fastconv.enabled(): ...       # PyTorch's own functions and layers, computed by fastconv
"""

from __future__ import annotations

from fastconv import startup  # noqa: F401  # isort: skip  first: it explains a failed import below

import torch

from fastconv import environment
from fastconv._ops.library import _C, has_cuda
from fastconv.version import __version__

from fastconv import flops, functional, models, nn, optim  # isort: skip  after the operators
from fastconv.conversion import conversion_report, convert, register_for_fuse_modules, revert  # isort: skip
from fastconv.override import enabled  # isort: skip

register_for_fuse_modules()

__all__ = [
    "_C",
    "__version__",
    "conversion_report",
    "convert",
    "enabled",
    "environment",
    "flops",
    "functional",
    "models",
    "nn",
    "optim",
    "revert",
    "show_config",
]


class Configuration(str):
    """A text whose ``repr`` is the text itself, so that notebooks and the interpreter show its lines."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def show_config() -> Configuration:
    """Describe this installation: versions, the ISA level in use, threads, the build and the environment.

    Returns:
        A ``str`` of several lines. Notebooks and the interpreter show it line by line.

    Example:
        >>> show_config()  # doctest: +ELLIPSIS
        fastconv ...
        torch ...
    """
    build = _C.build_info()
    levels = ", ".join(_C.cpu_capabilities())
    settings = ", ".join(f"{name}={value or 'unset'}" for name, value in environment.settings().items())
    return Configuration(
        "\n".join(
            [
                f"fastconv {__version__}",
                f"torch {torch.__version__} (extension built for >= {build['torch_target_version']})",
                f"CPU level {_C.cpu_capability()} (available: {levels}; set FASTCONV_CPU_CAPABILITY to choose)",
                f"threads {torch.get_num_threads()}",
                f"compiler {build['compiler']}",
                f"CUDA {build['cuda']}{f' ({_gpus()})' if has_cuda() else ''}",
                f"environment {settings}",
            ]
        )
    )


def _gpus() -> str:
    if not torch.cuda.is_available():
        return "no GPU here"
    return ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
