"""List the functions that a call enters on its way to the kernel, with their files.

    python tests/call_path.py

The Python functions are recorded with ``sys.setprofile``. Functions of PyTorch between them are not listed.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import fastconv
import fastconv.functional as FF

PACKAGE = Path(fastconv.__file__).parent

_FORWARD = [
    ("cpu/conv2d.cpp", "conv2d"),
    ("checks.cpp", "check_conv2d"),
    ("cpu/conv2d.cpp", "run_forward"),
    ("cpu/plan.cpp", "plan_forward"),
    ("cpu/drivers/direct.cpp", "direct_forward"),
    ("cpu/kernels/direct_forward.h", "the kernel"),
]
#: The C++ functions of each call, from the operator to the kernel: (file below csrc/, function). The list is written by
#: hand. It leaves out accessors, and the functions that a driver calls for its tiles.
CPP: dict[str, list[tuple[str, str]]] = {
    "conv2d, contiguous": _FORWARD,
    "conv2d, channels_last": _FORWARD,
    "conv2d_relu_max_pool2d, backward": [
        ("cpu/conv2d_relu_max_pool2d.cpp", "conv2d_relu_max_pool2d_backward"),
        ("checks.cpp", "check_conv2d_relu_max_pool2d_backward"),
        ("cpu/conv2d_backward.cpp", "run_backward"),
        ("cpu/conv2d_backward.cpp", "backward"),
        ("cpu/plan.cpp", "plan_backward"),
        ("cpu/drivers/sparse_gradient.cpp", "sparse_backward"),
        ("cpu/kernels/sparse_gradient_3x3.h", "the kernel"),
        ("cpu/kernels/sparse_gradient.h", "the kernel"),
    ],
}


def python_functions(call: Callable[[], object]) -> list[tuple[str, str]]:
    """The functions of fastconv that ``call`` enters, in order and without repetitions: (file, function)."""
    found: dict[tuple[str, str], None] = {}

    def note(frame: FrameType, event: str, _: Any) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(PACKAGE):
            found[str(path.relative_to(PACKAGE)), frame.f_code.co_name] = None

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return list(found)


def calls() -> dict[str, Callable[[], object]]:
    """The calls of CPP by name."""
    w, b = torch.randn(16, 8, 3, 3), torch.randn(16)
    contiguous = torch.randn(2, 8, 12, 12)
    channels_last = contiguous.contiguous(memory_format=torch.channels_last)
    y = FF.conv2d_relu_max_pool2d(contiguous.clone().requires_grad_(), w.clone().requires_grad_(), b)
    return {
        "conv2d, contiguous": torch.no_grad()(lambda: FF.conv2d(contiguous, w, b)),
        "conv2d, channels_last": torch.no_grad()(lambda: FF.conv2d(channels_last, w, b)),
        "conv2d_relu_max_pool2d, backward": lambda: y.sum().backward(retain_graph=True),
    }


def functions_of(name: str) -> list[tuple[str, str]]:
    """All functions that a call enters: (file, function)."""
    functions = [(f"fastconv/{file}", function) for file, function in python_functions(calls()[name])]
    return functions + [(f"csrc/{file}", function) for file, function in CPP[name]]


def main() -> None:
    for name in CPP:
        functions = functions_of(name)
        print(f"{name}: {len(functions)} functions in {len({file for file, _ in functions})} files")
        for file, function in functions:
            print(f"    {file:<40} {function}")


if __name__ == "__main__":
    main()
