"""Compile the unchanged CUDA sources for the CPU, as C++ on top of the emulation in tests/cuda/emulation.

With FASTCONV_SANITIZE=1 the libraries use AddressSanitizer, whose runtime must be preloaded (make asan does that).
"""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
HERE = ROOT / "tests" / "cuda"
CXX = os.environ.get("CXX") or "c++"


EMULATION = HERE / "emulation" / "emulation.cpp"


def is_sanitized() -> bool:
    return os.environ.get("FASTCONV_SANITIZE") == "1"


def _sanitizer(sanitize: bool) -> list[str]:
    return ["-fsanitize=address"] if sanitize else []


def instructions() -> list[str]:
    """Return flags for fused multiply-add and for half, if this CPU has the instructions.

    Otherwise each one is a call of a library. Then the tests of conv2d take a fifth longer. The compiler must not fuse
    other products and sums: sums would depend on the kernel that computes them.
    """
    cpuinfo = Path("/proc/cpuinfo")
    names = set(cpuinfo.read_text().split()) if cpuinfo.exists() else set()
    return [*(f"-m{name}" for name in ("fma", "f16c") if name in names), "-ffp-contract=off"]


def compile_flags(sanitize: bool) -> list[str]:
    arguments = ["-std=c++20", "-fPIC", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-O1", *instructions()]
    arguments += ["-isystem", str(Path(torch.__file__).parent / "include"), "-I", str(HERE / "emulation")]
    arguments += ["-DTORCH_TARGET_VERSION=0x020a000000000000"]
    return arguments + (["-g", "-fno-omit-frame-pointer"] if sanitize else []) + _sanitizer(sanitize)


def torch_libraries() -> list[str]:
    folder = Path(torch.__file__).parent / "lib"
    return [f"-L{folder}", f"-Wl,-rpath,{folder}", "-ltorch", "-ltorch_cpu", "-lc10"]


@contextlib.contextmanager
def locked(file: Path) -> Iterator[None]:
    """Let one process at a time run the block. Other workers of pytest-xdist wait."""
    import fcntl

    with open(file, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build(name: str, sources: list[Path], link: list[str], sanitize: bool) -> Path:
    """Return a library or program below build/. Compile it again if its sources or the files they include changed."""
    folder = ROOT / "build" / "emulation" / ("asan" if sanitize else "plain") / name
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / name
    objects = [folder / f"{source.parent.name}_{source.name}.o" for source in sources]
    lines = [
        "rule compile",
        f"  command = {CXX} {' '.join(compile_flags(sanitize))} -MMD -MF $out.d -x c++ -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = {CXX} $in {' '.join([*link, *_sanitizer(sanitize)])} -o $out",
        *(f"build {to}: compile {source}" for source, to in zip(sources, objects, strict=True)),
        f"build {target}: link {' '.join(map(str, objects))}",
    ]
    command = [sys.executable, "-m", "ninja", "-C", str(folder)]
    with locked(folder / "lock"):
        (folder / "build.ninja").write_text("\n".join(lines) + "\n")
        finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        raise RuntimeError(f"{name} does not compile:\n{finished.stdout}{finished.stderr}")
    return target


@functools.cache
def operators() -> Path:
    """Build the library of all CUDA operators, for torch.ops.load_library."""
    csrc = ROOT / "csrc"
    sources = [csrc / "checks.cpp", csrc / "tensor.cpp", *sorted((csrc / "cuda").glob("*.cu"))]
    sources += [EMULATION, HERE / "emulation" / "ops.cpp"]
    return build("operators.so", sources, ["-shared", *torch_libraries()], is_sanitized())


@functools.cache
def names() -> Path:
    """Build a library of kernels that test the emulation itself, for ctypes."""
    return build("names.so", [HERE / "faults" / "names.cpp", EMULATION], ["-shared"], is_sanitized())


@functools.cache
def faults(sanitize: bool, program: str = "faults") -> Path:
    """Build a program with planted faults: ``faults`` or ``matrices``."""
    return build(program, [HERE / "faults" / f"{program}.cpp", EMULATION], [], sanitize)
