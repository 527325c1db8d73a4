"""Compiles the CUDA sources, unchanged, for the CPU: C++ over the emulation in tests/cuda/emulation.

FASTCONV_SANITIZE=1 gives a library under AddressSanitizer (make asan), which needs its runtime preloaded.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
HERE = ROOT / "tests" / "cuda"
CPP = os.environ.get("CXX") or "c++"


def flags() -> list[str]:
    torch_folder = Path(torch.__file__).parent
    arguments = ["-std=c++20", "-fPIC", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
    arguments += ["-isystem", str(torch_folder / "include"), "-I", str(HERE / "emulation")]
    arguments += ["-DTORCH_TARGET_VERSION=0x020a000000000000"]
    if os.environ.get("FASTCONV_SANITIZE") == "1":
        return [*arguments, "-O1", "-g", "-fsanitize=address", "-fno-omit-frame-pointer"]
    return [*arguments, "-O1"]


def link_flags() -> list[str]:
    folder = Path(torch.__file__).parent / "lib"
    arguments = ["-shared", f"-L{folder}", f"-Wl,-rpath,{folder}", "-ltorch", "-ltorch_cpu", "-lc10"]
    return [*arguments, "-fsanitize=address"] if os.environ.get("FASTCONV_SANITIZE") == "1" else arguments


def build(name: str, sources: list[Path]) -> Path:
    """A shared library of the sources, below build/, compiled again where they or what they include changed."""
    folder = ROOT / "build" / "emulation" / ("asan" if os.environ.get("FASTCONV_SANITIZE") == "1" else "plain") / name
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / f"{name}.so"
    objects = [folder / f"{source.parent.name}_{source.name}.o" for source in sources]
    (folder / "build.ninja").write_text(
        "\n".join(
            [
                "rule compile",
                f"  command = {CPP} {' '.join(flags())} -MMD -MF $out.d -x c++ -c $in -o $out",
                "  depfile = $out.d",
                "  deps = gcc",
                "rule link",
                f"  command = {CPP} $in {' '.join(link_flags())} -o $out",
                *(f"build {to}: compile {source}" for source, to in zip(sources, objects, strict=True)),
                f"build {library}: link {' '.join(map(str, objects))}",
                "",
            ]
        )
    )
    command = [sys.executable, "-m", "ninja", "-C", str(folder)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        raise RuntimeError(f"the emulation does not compile:\n{finished.stdout}{finished.stderr}")
    return library


def build_operators() -> Path:
    """All CUDA operators."""
    csrc = ROOT / "csrc"
    sources = [csrc / "checks.cpp", csrc / "tensor.cpp", *sorted((csrc / "cuda").glob("*.cu"))]
    return build("operators", sources + sorted((HERE / "emulation").glob("*.cpp")))
