"""Find the CUDA toolkit, and decide whether to build with CUDA. setup.py and `make cuda` use this."""

import os
import re
import shutil
import subprocess
from pathlib import Path

#: The compute capabilities that the kernels are compiled for by default.
ARCHITECTURES = ("7.5", "8.0", "8.6", "9.0", "10.0", "12.0")


class NoCuda(Exception):
    """The reason why a build has no CUDA, and how to get a build with CUDA (`remedy`)."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.remedy = remedy


def home() -> Path:
    """Return the toolkit's folder, which has bin/nvcc and include/cuda_runtime.h."""
    named = [(os.environ[name], name) for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    nvcc = shutil.which("nvcc")
    # A symbolic link named nvcc leads to the toolkit. A wrapper script of that name does not.
    guessed = ["/usr/local/cuda", "/opt/cuda", *([str(Path(nvcc).resolve().parents[1])] if nvcc else [])]
    for folder in [folder for folder, _ in named] or guessed:
        if (Path(folder) / "bin" / "nvcc").exists() and (Path(folder) / "include" / "cuda_runtime.h").exists():
            return Path(folder)
    where = "in " + " or ".join(f"{folder} ({name})" for folder, name in named) if named else "found"
    raise NoCuda(f"no CUDA toolkit {where}", "Install one, and name its folder: CUDA_HOME=/usr/local/cuda")


def version(folder: Path) -> str:
    """Return the toolkit's version, for example 13.0."""
    text = subprocess.run([folder / "bin" / "nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    match = re.search(r"release (\d+\.\d+)", text)
    return match[1] if match else "unknown"


def supported_by_torch(torch_architectures: list[str]) -> list[str]:
    """Return the ARCHITECTURES that torch supports, too (sm_90 is 9.0). If torch supports none of them, return all."""
    common = [capability for capability in ARCHITECTURES if f"sm_{capability.replace('.', '')}" in torch_architectures]
    return common or list(ARCHITECTURES)


def matching_home(torch_version: str, torch_cuda: str | None) -> Path:
    """Return the folder of a toolkit that is compatible with this torch.

    Raises:
        NoCuda: if there is none.
    """
    if torch_cuda is None:
        raise NoCuda(
            f"torch {torch_version} is built without CUDA",
            "Install a CUDA build of torch: see pytorch.org's 'Get started'",
        )
    folder = home()
    found = version(folder)
    # Minor versions are compatible with each other, major versions are not.
    if found.split(".")[0] != torch_cuda.split(".")[0]:
        raise NoCuda(
            f"torch {torch_version} is built with CUDA {torch_cuda}, and the toolkit in {folder} is {found}",
            f"Install toolkit {torch_cuda} and name its folder (CUDA_HOME=...), or a torch that is built with {found}",
        )
    return folder
