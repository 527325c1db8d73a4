"""Builds the extension fastconv._C with torch's cpp_extension. All other settings are in pyproject.toml.

FASTCONV_CUDA=1|0    1: with CUDA, or an error. 0: without CUDA. Unset: with CUDA if torch and a toolkit have it.
TORCH_CUDA_ARCH_LIST GPUs to compile for, such as '8.6;9.0'. Unset: those of this machine, else all that torch supports.
FASTCONV_DEBUG=1     -O1 -g, assertions in the kernels and bounds checks of the standard library.
FASTCONV_SANITIZE=1  AddressSanitizer and UndefinedBehaviorSanitizer (make asan). thread: ThreadSanitizer (make tsan).
FASTCONV_COMPILE=0   Installs without compiling. The Makefile then compiles in build/, so that later builds are fast.
MAX_JOBS=n           Number of compilations in parallel.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from pathlib import Path

import setuptools

OLDEST_TORCH = (2, 10)
TARGET = "-DTORCH_TARGET_VERSION=0x020a000000000000"
OLDEST_SETUPTOOLS = 77  # the first release that accepts license = "MIT" in pyproject.toml


def stop(problem: str, remedy: str) -> None:
    """Exit with one line and no traceback, so that users of pip see what to do."""
    sys.exit(f"\nfastconv: {problem}. {remedy}\n")


if int(setuptools.__version__.split(".")[0]) < OLDEST_SETUPTOOLS:
    stop(f"setuptools {setuptools.__version__} is too old", f"Type: pip install 'setuptools>={OLDEST_SETUPTOOLS}'")

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
        "Install one (Debian, Ubuntu: apt install g++; Fedora: dnf install gcc-c++; macOS: xcode-select --install), "
        "or name it: CXX=/path/to/g++",
    )

try:
    import pybind11
except ImportError:
    stop("the build needs pybind11, which is not installed", "Type: pip install pybind11 ninja")

sys.path.insert(0, str(Path(__file__).parent / "csrc" / "cuda"))
import toolkit  # noqa: E402


def choose_cuda() -> Path | None:
    """Return the folder of the CUDA toolkit, or None to build for the CPU alone. Print the choice and its reason."""
    wanted = os.environ.get("FASTCONV_CUDA", "")
    if wanted not in ("", "0", "1"):
        stop(f"FASTCONV_CUDA={wanted} is neither 0 nor 1", "Unset it to use CUDA if torch and a toolkit have it")
    if wanted == "0":
        say("building for the CPU alone: FASTCONV_CUDA=0")
        return None
    try:
        home = toolkit.matching_home(torch.__version__, torch.version.cuda)
    except toolkit.NoCuda as problem:
        if wanted == "1":
            stop(str(problem), problem.remedy)
        say(f"building for the CPU alone: {problem}")
        return None
    if not os.environ.get("TORCH_CUDA_ARCH_LIST") and not torch.cuda.is_available():
        # Without this list, cpp_extension asks the GPUs of this machine, and there are none.
        os.environ["TORCH_CUDA_ARCH_LIST"] = ";".join(toolkit.supported_by_torch(torch.cuda.get_arch_list()))
    targets = os.environ.get("TORCH_CUDA_ARCH_LIST") or "the GPUs of this machine"
    say(f"building with CUDA {toolkit.version(home)} from {home} for {targets}")
    return home


def say(line: str) -> None:
    print(f"fastconv: {line}", file=sys.stderr)  # pip shows it with -v


cuda_home = None if os.environ.get("FASTCONV_COMPILE") == "0" else choose_cuda()
if cuda_home is not None:
    os.environ["CUDA_HOME"] = str(cuda_home)  # cpp_extension reads it on import

from torch.utils import cpp_extension  # noqa: E402


def compile_arguments() -> list[str]:
    # -isystem, because -Werror applies to our own headers only. pybind11's headers come first, because torch has a copy
    # of them that torch 2.11 does not allow together with the stable ABI.
    system_headers = [pybind11.get_include(), *cpp_extension.include_paths(), sysconfig.get_paths()["include"]]
    arguments = [argument for path in system_headers for argument in ("-isystem", path)]
    arguments += ["-std=c++20", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror"]
    # Keep paths of the build machine out of __FILE__.
    torch_headers = cpp_extension.include_paths()[0]
    arguments += [f"-fmacro-prefix-map={torch_headers}/=", f"-fmacro-prefix-map={Path(__file__).parent.resolve()}/="]
    # Use only the stable ABI of torch 2.10 and later (docs/architecture.md).
    arguments += [TARGET]
    if cuda_home is not None:
        arguments += [f"-DFASTCONV_CUDA={toolkit.version(cuda_home)}"]
    debug = os.environ.get("FASTCONV_DEBUG") == "1"
    if debug:
        arguments += ["-UNDEBUG", "-DFASTCONV_DEBUG", "-D_GLIBCXX_ASSERTIONS"]
    if not debug and not sanitizers():
        return [*arguments, "-O3", "-g0"]
    # At -O1, g++ 12 has false warnings about vectors that are set lane by lane and about variables that memcpy sets.
    arguments += ["-O1", "-g", "-Wno-maybe-uninitialized"]
    return [*arguments, *sanitizers(), "-fno-sanitize-recover=undefined"] if sanitizers() else arguments


def sanitizers() -> list[str]:
    chosen = os.environ.get("FASTCONV_SANITIZE", "")
    return {"1": ["-fsanitize=address,undefined"], "thread": ["-fsanitize=thread"]}.get(chosen, [])


def nvcc_arguments() -> list[str]:
    arguments = [argument for path in cpp_extension.include_paths() for argument in ("-isystem", path)]
    # cpp_extension disables the conversions and operators of 16-bit types, which the kernels use.
    names = ["HALF_CONVERSIONS", "HALF_OPERATORS", "HALF2_OPERATORS", "BFLOAT16_CONVERSIONS"]
    arguments += [f"-U__CUDA_NO_{name}__" for name in names]
    arguments += ["-DUSE_CUDA", TARGET, "-std=c++20", "-Xcompiler", "-fvisibility=hidden"]
    # Explicit, because cpp_extension adds no architectures if any flag (a path, for example) contains "arch".
    arguments += cpp_extension._get_cuda_arch_flags()
    return [*arguments, "-O1", "-lineinfo"] if os.environ.get("FASTCONV_DEBUG") == "1" else [*arguments, "-O3"]


def link_arguments() -> list[str]:
    return sanitizers()


class Extension(cpp_extension.BuildExtension):
    """torch's BuildExtension without the libraries outside of the stable ABI, which the extension does not use."""

    def build_extensions(self) -> None:
        for extension in self.extensions:
            extension.include_dirs = []
            extension.libraries = [name for name in extension.libraries if name not in ("torch_python", "c10_cuda")]
        super().build_extensions()


def sources() -> list[str]:
    folders = ("csrc", "csrc/cpu", "csrc/cpu/drivers", "csrc/cpu/memory", "csrc/cpu/kernels")
    found = [path for folder in folders for path in Path(folder).glob("*.cpp")]
    return sorted(map(str, found if cuda_home is None else [*found, *Path("csrc/cuda").glob("*.cu")]))


def compile_flags() -> dict[str, list[str]]:
    if cuda_home is None:
        return {"cxx": compile_arguments()}
    return {"cxx": compile_arguments(), "nvcc": nvcc_arguments()}


extension = (cpp_extension.CppExtension if cuda_home is None else cpp_extension.CUDAExtension)(
    "fastconv._C",
    sources(),
    depends=sorted(str(path) for path in Path("csrc").rglob("*") if path.suffix in (".h", ".cuh")),
    extra_compile_args=compile_flags(),
    extra_link_args=link_arguments(),
)
setuptools.setup(
    ext_modules=[] if os.environ.get("FASTCONV_COMPILE") == "0" else [extension],
    cmdclass={"build_ext": Extension.with_options(use_ninja=True)},
)
