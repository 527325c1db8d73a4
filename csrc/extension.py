"""The extension fastconv._C: its sources and the compiler's flags. setup.py lists the environment variables."""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pybind11
import torch

sys.path.insert(0, str(Path(__file__).parent / "cuda"))
import toolkit

TARGET = "-DTORCH_TARGET_VERSION=0x020a000000000000"

Stop = Callable[[str, str], NoReturn]


def say(line: str) -> None:
    print(f"fastconv: {line}", file=sys.stderr)  # pip shows it with -v


def choose_cuda(stop: Stop) -> Path | None:
    """Return the folder of the CUDA toolkit, or None to build for the CPU alone. Print the choice and its reason."""
    wanted = os.environ.get("FASTCONV_CUDA", "")
    if wanted not in ("", "0", "1"):
        stop(f"FASTCONV_CUDA={wanted} is neither 0 nor 1", "Unset it to use CUDA if torch and the toolkit allow it")
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
        # Without this list, cpp_extension compiles for the GPUs of this machine, and there are none.
        os.environ["TORCH_CUDA_ARCH_LIST"] = ";".join(toolkit.supported_by_torch(torch.cuda.get_arch_list()))
    targets = os.environ.get("TORCH_CUDA_ARCH_LIST") or "the GPUs of this machine"
    say(f"building with CUDA {toolkit.version(home)} from {home} for {targets}")
    return home


def compile_arguments(cuda_home: Path | None) -> list[str]:
    from torch.utils import cpp_extension

    # -isystem suppresses warnings about other projects' headers. The package pybind11 comes first, because torch has a
    # copy of its headers, and torch 2.11's copy does not compile with the stable ABI.
    system_headers = [pybind11.get_include(), *cpp_extension.include_paths(), sysconfig.get_paths()["include"]]
    arguments = [argument for path in system_headers for argument in ("-isystem", path)]
    arguments += ["-std=c++20", "-fvisibility=hidden", "-Wall", "-Wextra"]
    if os.environ.get("FASTCONV_WERROR") == "1":
        arguments += ["-Werror"]
    # Keep paths of the build machine out of __FILE__.
    here = Path(__file__).parent.parent.resolve()
    arguments += [f"-fmacro-prefix-map={path}/=" for path in (cpp_extension.include_paths()[0], here)]
    # Use only the stable ABI of torch 2.10 and later (docs/explanation/architecture.md).
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
    from torch.utils import cpp_extension

    arguments = [argument for path in cpp_extension.include_paths() for argument in ("-isystem", path)]
    # cpp_extension disables the conversions and operators of 16-bit types, which the kernels use.
    names = ["HALF_CONVERSIONS", "HALF_OPERATORS", "HALF2_OPERATORS", "BFLOAT16_CONVERSIONS"]
    arguments += [f"-U__CUDA_NO_{name}__" for name in names]
    arguments += ["-DUSE_CUDA", TARGET, "-std=c++20", "-Xcompiler", "-fvisibility=hidden"]
    # Add the architectures here: cpp_extension adds none if "arch" occurs in any flag, for example in a path.
    arguments += cpp_extension._get_cuda_arch_flags()
    return [*arguments, "-O1", "-lineinfo"] if os.environ.get("FASTCONV_DEBUG") == "1" else [*arguments, "-O3"]


def sources(cuda_home: Path | None) -> list[str]:
    folders = ("csrc", "csrc/cpu", "csrc/cpu/drivers", "csrc/cpu/memory", "csrc/cpu/kernels", "csrc/cuda")
    found = [path for folder in folders for path in Path(folder).glob("*.cpp")]
    return sorted(map(str, found if cuda_home is None else [*found, *Path("csrc/cuda").glob("*.cu")]))


def arguments_of_setup(stop: Stop) -> dict[str, Any]:
    """Return the arguments of setuptools.setup(). Call `stop` if FASTCONV_CUDA=1 and CUDA is missing."""
    cuda_home = choose_cuda(stop)
    if cuda_home is not None:
        os.environ["CUDA_HOME"] = str(cuda_home)  # cpp_extension reads it on import
    from torch.utils import cpp_extension

    class Build(cpp_extension.BuildExtension):
        """torch's BuildExtension, without linking torch_python and c10_cuda. The stable ABI does not need them."""

        def build_extensions(self) -> None:
            for extension in self.extensions:
                extension.include_dirs = []
                extension.libraries = [name for name in extension.libraries if name not in ("torch_python", "c10_cuda")]
            super().build_extensions()

    flags = {"cxx": compile_arguments(cuda_home)}
    extension = (cpp_extension.CppExtension if cuda_home is None else cpp_extension.CUDAExtension)(
        "fastconv._C",
        sources(cuda_home),
        depends=sorted(str(path) for path in Path("csrc").rglob("*") if path.suffix in (".h", ".cuh")),
        extra_compile_args=flags if cuda_home is None else {**flags, "nvcc": nvcc_arguments()},
        extra_link_args=sanitizers(),
    )
    return {
        "ext_modules": [extension],
        "cmdclass": {"build_ext": Build.with_options(use_ninja=True)},
    }
