"""Builds fastconv's extension, fastconv._C, with torch's cpp_extension. Everything else is in pyproject.toml.

FASTCONV_DEBUG=1     -O1 -g and the standard library's bounds checks
FASTCONV_SANITIZE=1  AddressSanitizer and UndefinedBehaviorSanitizer (make asan)
FASTCONV_COMPILE=0   no extension, only the metadata: the Makefile lets ninja compile afterwards, in a folder that stays
MAX_JOBS=n           compilations at a time
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from pathlib import Path

import setuptools

OLDEST_TORCH = (2, 10)
OLDEST_SETUPTOOLS = 77  # reads the license and the packages as pyproject.toml writes them


def stop(problem: str, remedy: str) -> None:
    """One line and no traceback, which is what a person who types ``pip install`` needs to see."""
    sys.exit(f"\nfastconv: {problem}. {remedy}\n")


if int(setuptools.__version__.split(".")[0]) < OLDEST_SETUPTOOLS:
    stop(f"setuptools {setuptools.__version__} is too old", f"Type: pip install 'setuptools>={OLDEST_SETUPTOOLS}'")

try:
    import torch
except ImportError:
    stop(
        "torch is not there to build with",
        "Type: pip install torch 'setuptools>=77' ninja pybind11 && pip install --no-build-isolation . "
        "(without build isolation: fastconv builds with the torch that you run)",
    )

if tuple(int(part) for part in torch.__version__.split(".")[:2]) < OLDEST_TORCH:
    stop(f"torch {torch.__version__} is too old", "Type: pip install 'torch>=2.10'")

compiler = (os.environ.get("CXX") or "c++").split()[0]
if shutil.which(compiler) is None:
    stop(
        f"no C++ compiler: '{compiler}' is not on the path",
        "Install one (Debian, Ubuntu: apt install g++; Fedora: dnf install gcc-c++; macOS: xcode-select --install), "
        "or name it: CXX=/path/to/g++",
    )

try:
    import pybind11
except ImportError:
    stop("pybind11 is not there to build with", "Type: pip install pybind11 ninja")

from torch.utils import cpp_extension  # noqa: E402


def compile_arguments() -> list[str]:
    # Other people's headers are system headers: -Werror is for our own.
    system_headers = [*cpp_extension.include_paths(), pybind11.get_include(), sysconfig.get_paths()["include"]]
    arguments = [argument for path in system_headers for argument in ("-isystem", path)]
    arguments += ["-std=c++20", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror"]
    # The stable ABI of torch 2.10 and later, and nothing else of torch: see docs/architecture.md.
    arguments += ["-DTORCH_TARGET_VERSION=0x020a000000000000"]
    if os.environ.get("FASTCONV_SANITIZE") == "1":
        return [*arguments, "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
    if os.environ.get("FASTCONV_DEBUG") == "1":
        return [*arguments, "-O1", "-g", "-UNDEBUG", "-D_GLIBCXX_ASSERTIONS"]
    return [*arguments, "-O3", "-g0"]


def link_arguments() -> list[str]:
    return ["-fsanitize=address,undefined"] if os.environ.get("FASTCONV_SANITIZE") == "1" else []


class Extension(cpp_extension.BuildExtension):
    """torch's, without torch_python: the extension uses no Python binding of torch, so it need not match one."""

    def build_extensions(self) -> None:
        for extension in self.extensions:
            extension.include_dirs = []
            extension.libraries = [library for library in extension.libraries if library != "torch_python"]
        super().build_extensions()


def sources() -> list[str]:
    folders = ("csrc", "csrc/cpu", "csrc/cpu/kernels")
    return sorted(str(path) for folder in folders for path in Path(folder).glob("*.cpp"))


extension = cpp_extension.CppExtension(
    "fastconv._C",
    sources(),
    depends=sorted(str(path) for path in Path("csrc").rglob("*.h")),
    extra_compile_args=compile_arguments(),
    extra_link_args=link_arguments(),
)
setuptools.setup(
    ext_modules=[] if os.environ.get("FASTCONV_COMPILE") == "0" else [extension],
    cmdclass={"build_ext": Extension.with_options(use_ninja=True)},
)
