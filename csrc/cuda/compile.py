"""Compile all CUDA sources for every architecture, and print the resources of each kernel.

These are registers, shared memory, spills and occupancy on each architecture, and the static number of matrix products,
multiply-adds and loads on one of them. The counts need cuobjdump: of the toolkit or the package nvidia-cuda-cuobjdump.

This needs nvcc and the headers of any build of torch, but no GPU. With a CUDA build of torch, it also links and imports
the extension. `make cuda` runs it. It fails if a source gives a warning or an error, or if a kernel spills registers.
`make cuda ARGS='--target sm_90'` compiles for one architecture, which takes a sixth of the time.
"""

import argparse
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import resources
import torch
from resources import Instructions, Launch, Usage
from rich.console import Console
from rich.table import Table
from toolkit import ARCHITECTURES, NoCuda, home, version
from torch.utils import cpp_extension

HERE = Path(__file__).parent
BUILD = Path("build") / "cuda"
TARGETS = [f"sm_{capability.replace('.', '')}" for capability in ARCHITECTURES]


def nvcc_command(folder: Path, targets: Sequence[str]) -> list[str]:
    command = [str(folder / "bin" / "nvcc"), "-std=c++20", "-O3", "--expt-relaxed-constexpr", "-Xptxas", "-v"]
    # Warning 128 is about a loop that never runs. Template arguments make some loops empty.
    command += ["--Werror", "all-warnings", "-diag-suppress", "128"]
    command += ["-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020a000000000000"]
    command += [argument for path in cpp_extension.include_paths() for argument in ("-isystem", path)]
    return command + [f"-gencode=arch=compute_{t.removeprefix('sm_')},code={t}" for t in targets]


def compile_sources(folder: Path, targets: Sequence[str]) -> list[Path]:
    """Compile the sources that changed, with ninja. Return the path of the ptxas log of each source.

    ``log.o`` is the object, and the folder ``log.keep`` has the PTX.
    """
    build = BUILD / "-".join(targets) if list(targets) != TARGETS else BUILD
    build.mkdir(parents=True, exist_ok=True)
    sources = sorted(HERE.glob("*.cu"))
    logs = [build.resolve() / f"{source.stem}.log" for source in sources]
    command = " ".join(nvcc_command(folder, targets))
    keep = "mkdir -p $out.keep && "
    files = "--keep --keep-dir $out.keep -MD -MF $out.d -MT $out -c $in -o $out.o > $out 2>&1"
    lines = [
        "rule nvcc",
        f"  command = {keep}{command} {files} || (cat $out; rm $out; false)",
        "  depfile = $out.d",
        "  deps = gcc",
        "  description = $in",
        *(f"build {log}: nvcc {source.resolve()}" for log, source in zip(logs, sources, strict=True)),
    ]
    (build / "build.ninja").write_text("\n".join(lines) + "\n")
    if subprocess.run([sys.executable, "-m", "ninja", "-C", str(build)], check=False).returncode != 0:
        sys.exit("the CUDA sources do not compile")
    return logs


def launches_of(log: Path, targets: Sequence[str]) -> dict[str, dict[str, Launch]]:
    """Return the launches of a source's kernels on each architecture. With one architecture, nvcc omits its name."""
    found = {}
    for target in targets:
        name = f"{log.stem}.compute_{target.removeprefix('sm_')}.ptx" if len(targets) > 1 else f"{log.stem}.ptx"
        found[target] = resources.launches((log.parent / f"{log.name}.keep" / name).read_text())
    return found


def cuobjdump(folder: Path) -> Path | None:
    """Find the program, in the toolkit, on the path, or in the package nvidia-cuda-cuobjdump."""
    installed = [Path(path) / "nvidia" / "cu13" / "bin" / "cuobjdump" for path in sys.path]
    for program in [folder / "bin" / "cuobjdump", *installed]:
        if program.exists():
            return program
    found = shutil.which("cuobjdump")
    return Path(found) if found else None


def instructions_of(logs: list[Path], target: str, folder: Path) -> dict[str, Instructions]:
    """Count the instructions of all kernels on one architecture. Empty without cuobjdump."""
    program = cuobjdump(folder)
    if program is None:
        print("instructions are not counted: there is no cuobjdump. pip install nvidia-cuda-cuobjdump")
        return {}
    found: dict[str, Instructions] = {}
    for log in logs:
        command = [program, "-sass", "-arch", target, f"{log}.o"]
        found |= resources.instructions(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return found


def readable(names: list[str]) -> list[str]:
    """Demangle and shorten names: gemm<FmaTile<float, 128, 64, 8, 8>, 4, ...>."""
    command = ["c++filt", "--no-params"]
    text = subprocess.run(command, input="\n".join(names), capture_output=True, text=True, check=True).stdout
    text = text.replace("fastconv::cuda::", "").replace("__nv_bfloat16", "bf16").replace("__half", "half")
    return text.replace("(int)", "").replace(" >", ">").splitlines()


def of_target(target: str, usage: Usage, launch: Launch) -> str:
    """Return the cell of a kernel on one architecture: registers, occupancy and spills."""
    share = resources.occupancy(target, usage, launch)
    text = f"{usage.registers} {'?' if share is None else f'{share:.0%}'}"
    return text + (f" [red]({usage.spilled} B)[/red]" if usage.spilled else "")


def of_shared(usages: Sequence[Usage], launch: Launch) -> str:
    """Return the cell of shared memory, such as "8192 to 9216 + 40960": static, then dynamic if there is any."""
    static = sorted({usage.shared for usage in usages})
    text = " to ".join(map(str, sorted({static[0], static[-1]})))
    return text if launch.dynamic == 0 else f"{text} + {'?' if launch.dynamic is None else launch.dynamic}"


def print_table(logs: list[Path], targets: Sequence[str], folder: Path) -> int:
    """Print the resources of all kernels. Return the number of kernels that spill on at least one architecture."""
    kernels: dict[tuple[str, str], dict[str, Usage]] = defaultdict(dict)
    launches = {log.stem: launches_of(log, targets) for log in logs}
    for log in logs:
        for name, target, usage in resources.usages(log.read_text()):
            kernels[log.stem, name][target] = usage
    counted = "sm_90" if "sm_90" in targets else targets[0]
    instructions = instructions_of(logs, counted, folder)
    headings = ["mma", "FMA", "LDS", "LDG", "cp.async"] if instructions else []
    table = Table("source", "kernel", "threads", "shared, bytes", *targets, *headings)
    table.title = "registers, occupancy, and bytes spilled"
    if instructions:
        table.title += f"; instructions on {counted}"
    names = readable([name for _, name in kernels])
    spilling = 0
    for (source, mangled), name, by_target in zip(kernels, names, kernels.values(), strict=True):
        launch = {target: launches[source][target][mangled] for target in targets}
        cells = [of_target(target, by_target[target], launch[target]) for target in targets]
        counts = instructions.get(mangled)
        numbers = [counts.mma, counts.fma, counts.shared_loads, counts.global_loads, counts.copies] if counts else []
        shared = of_shared(list(by_target.values()), launch[targets[0]])
        table.add_row(source, name, str(launch[targets[0]].threads), shared, *cells, *map(str, numbers))
        spilling += any(usage.spilled for usage in by_target.values())
    Console(width=None if sys.stdout.isatty() else 240).print(table)
    print(f"{len(kernels)} kernels, {len(targets)} architectures, {spilling} kernels with spills")
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
    parser.add_argument("--target", nargs="+", default=TARGETS, choices=TARGETS, help="compile for these only")
    arguments = parser.parse_args()
    try:
        folder = home()
    except NoCuda as problem:
        print(f"CUDA: {problem}, so the CUDA sources are not compiled. {problem.remedy}")
        return 0 if arguments.optional else 1
    print(f"CUDA {version(folder)} in {folder}")
    logs = compile_sources(folder, arguments.target)
    spilling = print_table(logs, arguments.target, folder)
    if arguments.target != TARGETS:
        print("the extension is not linked, because it is not compiled for all architectures")
    elif torch.version.cuda is None:
        print(f"torch {torch.__version__} is built without CUDA, so the extension is not linked")
    else:
        link(folder)
    return 1 if spilling else 0


if __name__ == "__main__":
    sys.exit(main())
