"""Compile all CUDA sources for every architecture, and print the registers, shared memory and spills of each kernel.

This needs nvcc and the headers of any build of torch, but no GPU. With a CUDA build of torch, it also links and imports
the extension. `make cuda` runs it. It fails if a source gives a warning or an error, or if a kernel spills registers.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from toolkit import ARCHITECTURES, NoCuda, home, version
from torch.utils import cpp_extension

HERE = Path(__file__).parent
BUILD = Path("build") / "cuda"
TARGETS = [f"sm_{capability.replace('.', '')}" for capability in ARCHITECTURES]


@dataclass
class Usage:
    """The resources of a kernel on one architecture, as ptxas reports them. `shared` and `spilled` are bytes."""

    registers: int
    shared: int
    spilled: int


def nvcc_command(folder: Path) -> list[str]:
    command = [str(folder / "bin" / "nvcc"), "-std=c++20", "-O3", "--expt-relaxed-constexpr", "-Xptxas", "-v"]
    # Warning 128 is about a loop that never runs. Template arguments make some loops empty.
    command += ["--Werror", "all-warnings", "-diag-suppress", "128"]
    command += ["-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020a000000000000"]
    command += [argument for path in cpp_extension.include_paths() for argument in ("-isystem", path)]
    return command + [f"-gencode=arch=compute_{t.removeprefix('sm_')},code={t}" for t in TARGETS]


def compile_sources(folder: Path) -> list[Path]:
    """Compile the sources that changed, with ninja. Return the path of the ptxas log of each source."""
    BUILD.mkdir(parents=True, exist_ok=True)
    sources = sorted(HERE.glob("*.cu"))
    logs = [BUILD.resolve() / f"{source.stem}.log" for source in sources]
    command = " ".join(nvcc_command(folder))
    lines = [
        "rule nvcc",
        f"  command = {command} -MD -MF $out.d -MT $out -c $in -o $out.o > $out 2>&1 || (cat $out; rm $out; false)",
        "  depfile = $out.d",
        "  deps = gcc",
        "  description = $in",
        *(f"build {log}: nvcc {source.resolve()}" for log, source in zip(logs, sources, strict=True)),
    ]
    (BUILD / "build.ninja").write_text("\n".join(lines) + "\n")
    if subprocess.run([sys.executable, "-m", "ninja", "-C", str(BUILD)], check=False).returncode != 0:
        sys.exit("the CUDA sources do not compile")
    return logs


def usages(log: str) -> Iterator[tuple[str, str, Usage]]:
    """Return the mangled name, the architecture and the usage of each kernel in the log."""
    entries = re.split(r"ptxas info\s*: Compiling entry function ", log)[1:]
    for entry in entries:
        name, target = re.match(r"'(\S+)' for '(\S+)'", entry).groups()  # type: ignore[union-attr]
        # Functions that were not inlined into the kernel have their own lines. So spills are summed.
        spilled = sum(map(int, re.findall(r"(\d+) bytes spill (?:stores|loads)", entry)))
        registers = re.search(r"Used (\d+) registers", entry)
        shared = re.search(r"(\d+) bytes smem", entry)
        assert registers is not None
        yield name, target, Usage(int(registers[1]), int(shared[1]) if shared else 0, spilled)


def readable(names: list[str]) -> list[str]:
    """Demangle and shorten names: gemm<FmaTile<float, 128, 64, 8, 8>, 4, ...>."""
    text = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    result = []
    for line in text.splitlines():
        short = line.removeprefix("void ").replace("fastconv::cuda::", "").replace("__nv_bfloat16", "bf16")
        short = short.replace("__half", "half").replace("(int)", "").replace(" >", ">")
        depth = 0
        for i, letter in enumerate(short):
            depth += (letter == "<") - (letter == ">")
            if letter == "(" and depth == 0:
                short = short[:i]
                break
        result.append(short)
    return result


def print_table(logs: list[Path]) -> int:
    """Print the usage of all kernels. Return the number of kernels that spill on at least one architecture."""
    kernels: dict[tuple[str, str], dict[str, Usage]] = defaultdict(dict)
    for log in logs:
        for name, target, usage in usages(log.read_text()):
            kernels[log.stem, name][target] = usage
    table = Table("source", "kernel", "shared, bytes", *(t for t in TARGETS), title="registers, and bytes spilled")
    names = readable([name for _, name in kernels])
    spilling = 0
    for (source, _), name, by_target in zip(kernels, names, kernels.values(), strict=True):
        cells = []
        for target in TARGETS:
            usage = by_target[target]
            cells.append(f"{usage.registers}" + (f" [red]({usage.spilled} B)[/red]" if usage.spilled else ""))
        shared = sorted({usage.shared for usage in by_target.values()})
        table.add_row(source, name, " to ".join(map(str, {shared[0], shared[-1]})), *cells)
        spilling += any(usage.spilled for usage in by_target.values())
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    print(f"{len(kernels)} kernels, {len(TARGETS)} architectures, {spilling} kernels with spills")
    return spilling


def link(folder: Path) -> None:
    """Build the extension with CUDA below build/, and load it."""
    library = BUILD.resolve() / "lib"
    environment = {**os.environ, "FASTCONV_CUDA": "1", "CUDA_HOME": str(folder)}
    command = [sys.executable, "setup.py", "--quiet", "build_ext"]
    command += ["--build-temp", str(BUILD.resolve() / "temp"), "--build-lib", str(library)]
    subprocess.run(command, check=True, env=environment)
    (extension,) = library.glob("fastconv/_C*.so")
    code = f"import torch; torch.ops.load_library({str(extension)!r}); print(torch.ops.fastconv.conv2d.default)"
    subprocess.run([sys.executable, "-c", code], check=True)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU here"
    print(f"linked and loaded with torch {torch.__version__}; {gpu}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--optional", action="store_true", help="succeed if there is no CUDA toolkit")
    optional = parser.parse_args().optional
    try:
        folder = home()
    except NoCuda as problem:
        print(f"CUDA: {problem}, so the CUDA sources are not compiled. {problem.remedy}")
        return 0 if optional else 1
    print(f"CUDA {version(folder)} in {folder}")
    spilling = print_table(compile_sources(folder))
    if torch.version.cuda is None:
        print(f"torch {torch.__version__} is built without CUDA, so the extension is not linked")
    else:
        link(folder)
    return 1 if spilling else 0


if __name__ == "__main__":
    sys.exit(main())
