"""Build the extension fastconv._C. csrc/extension.py has the compiler's flags, and pyproject.toml all other settings.

FASTCONV_CUDA=1|0    1: CUDA is required. 0: no CUDA. Unset: with CUDA if torch and the toolkit allow it.
TORCH_CUDA_ARCH_LIST GPUs to compile for, such as '8.6;9.0'. Unset: those of this machine, else all that torch supports.
FASTCONV_WERROR=1    Warnings are errors (make check). Unset: they are not, because newer compilers have new warnings.
FASTCONV_DEBUG=1     -O1 -g, assertions in the kernels and bounds checks of the standard library.
FASTCONV_SANITIZE=1  AddressSanitizer and UndefinedBehaviorSanitizer (make asan). thread: ThreadSanitizer (make tsan).
FASTCONV_COMPILE=0   No compilation. The Makefile sets this, and compiles in build/, so that later builds are fast.
MAX_JOBS=n           Number of compilations in parallel.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import NoReturn

import setuptools

OLDEST_TORCH = (2, 10)
OLDEST_SETUPTOOLS = 77  # the first release that accepts license = "MIT" in pyproject.toml
#: Commands that run without torch and without a compiler. dist_info could, too. It is not listed because pip runs it
#: first: a build without torch then fails before pip downloads anything.
LIGHT_COMMANDS = ("sdist", "egg_info")


def stop(problem: str, remedy: str) -> NoReturn:
    """Exit with one line and no traceback, so that users of pip see what to do."""
    sys.exit(f"\nfastconv: {problem}. {remedy}\n")


def compiles() -> bool:
    command = next((argument for argument in sys.argv[1:] if not argument.startswith("-")), "")
    return os.environ.get("FASTCONV_COMPILE") != "0" and command not in LIGHT_COMMANDS


def check_build_tools() -> None:
    """Stop with a message if the build lacks torch or a compiler."""
    try:
        import torch
    except ImportError:
        stop(
            "the build needs torch, which is not installed",
            "Type: pip install torch 'setuptools>=77' ninja pybind11 && pip install --no-build-isolation . "
            "(without build isolation, fastconv is built with the torch that you use)",
        )
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < OLDEST_TORCH:
        stop(f"torch {torch.__version__} is too old", "Type: pip install 'torch>=2.10'")
    compiler = (os.environ.get("CXX") or "c++").split()[0]
    if shutil.which(compiler) is None:
        stop(
            f"no C++ compiler: '{compiler}' is not on the path",
            "Install one (Debian, Ubuntu: apt install g++; Fedora: dnf install gcc-c++; macOS: xcode-select --install)"
            ", or name it: CXX=/path/to/g++",
        )


if int(setuptools.__version__.split(".")[0]) < OLDEST_SETUPTOOLS:
    stop(f"setuptools {setuptools.__version__} is too old", f"Type: pip install 'setuptools>={OLDEST_SETUPTOOLS}'")

if compiles():
    check_build_tools()
    sys.path.insert(0, str(Path(__file__).parent / "csrc"))
    import extension

    setuptools.setup(**extension.arguments_of_setup(stop))
else:
    setuptools.setup()
