"""The public names of the package. Importing this module loads torch and registers the operators."""

from __future__ import annotations

from typing import Any

import torch

from fastconv import environment
from fastconv._ops.library import _C, has_cuda
from fastconv.version import __version__

from fastconv import flops, functional, models, nn, optim, tuning  # isort: skip  after the operators
from fastconv.conversion import conversion_report, convert, register_for_fuse_modules, revert  # isort: skip
from fastconv.freezing import freeze  # isort: skip
from fastconv.override import enabled  # isort: skip
from fastconv.tuning import tune  # isort: skip

register_for_fuse_modules()
tuning.load_from_environment()

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


class Configuration(str):
    """A string whose ``repr`` is the string itself, so that notebooks and the interpreter show its lines."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def configuration() -> dict[str, Any]:
    """Return what :func:`show_config` shows, as a dictionary of plain types.

    Example:
        >>> configuration()["threads"] >= 1
        True
    """
    build = _C.build_info()
    return {
        "fastconv": __version__,
        "torch": torch.__version__,
        "torch_target": build["torch_target_version"],
        "cpu_level": _C.cpu_capability(),
        "cpu_levels": list(_C.cpu_capabilities()),
        "threads": torch.get_num_threads(),
        "compiler": build["compiler"],
        "cuda": build["cuda"] + (f" ({_gpus()})" if has_cuda() else ""),
        "environment": environment.settings(),
    }


def show_config() -> Configuration:
    """Describe this installation: versions, the ISA level in use, threads, the build and the environment.

    Returns:
        A ``str`` of several lines. Notebooks and the interpreter show it line by line.

    Example:
        >>> show_config()  # doctest: +ELLIPSIS
        fastconv ...
        torch ...
    """
    facts = configuration()
    levels = ", ".join(facts["cpu_levels"])
    settings = ", ".join(f"{name}={value or 'unset'}" for name, value in facts["environment"].items())
    return Configuration(
        "\n".join(
            [
                f"fastconv {facts['fastconv']}",
                f"torch {facts['torch']} (extension built for >= {facts['torch_target']})",
                f"CPU level {facts['cpu_level']} (available: {levels}; set FASTCONV_CPU_CAPABILITY to choose)",
                f"threads {facts['threads']}",
                f"compiler {facts['compiler']}",
                f"CUDA {facts['cuda']}",
                f"environment {settings}",
            ]
        )
    )


def _gpus() -> str:
    if not torch.cuda.is_available():
        return "no GPU here"
    return ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
