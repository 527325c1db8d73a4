"""The CUDA toolkit, and whether a build can have CUDA: for setup.py and for `make cuda`."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

#: What the kernels are compiled for where nothing else is said: compute capabilities.
ARCHITECTURES = ("7.5", "8.0", "8.6", "9.0", "10.0", "12.0")


class NoCuda(Exception):
    """Why a build has no CUDA, and what to do if one is wanted."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.remedy = remedy


def home() -> Path:
    """The toolkit's folder, which has bin/nvcc and include/cuda_runtime.h."""
    named = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    nvcc = shutil.which("nvcc")
    # Behind a link, the toolkit; a script of that name says nothing of where it is.
    guessed = ["/usr/local/cuda", "/opt/cuda", *([str(Path(nvcc).resolve().parents[1])] if nvcc else [])]
    for folder in named or guessed:
        if (Path(folder) / "bin" / "nvcc").exists() and (Path(folder) / "include" / "cuda_runtime.h").exists():
            return Path(folder)
    where = f"in {named[0]} (CUDA_HOME)" if named else "found"
    raise NoCuda(f"no CUDA toolkit {where}", "Install one, and name its folder: CUDA_HOME=/usr/local/cuda")


def version(folder: Path) -> str:
    """Such as 13.0."""
    text = subprocess.run([folder / "bin" / "nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    match = re.search(r"release (\d+\.\d+)", text)
    return match[1] if match else "unknown"


def served_by(names: list[str]) -> list[str]:
    """Of torch's architectures, such as sm_90, the capabilities that the kernels are compiled for."""
    served = [capability for capability in ARCHITECTURES if f"sm_{capability.replace('.', '')}" in names]
    return served or list(ARCHITECTURES)


def matching_home(torch_version: str, torch_cuda: str | None) -> Path:
    """The toolkit's folder, if it is one that goes with this torch.

    Raises:
        NoCuda: there is none.
    """
    if torch_cuda is None:
        raise NoCuda(
            f"torch {torch_version} is built without CUDA",
            "Install a CUDA build of torch: see pytorch.org's 'Get started'",
        )
    folder = home()
    found = version(folder)
    # Minor versions work together, major ones do not.
    if found.split(".")[0] != torch_cuda.split(".")[0]:
        raise NoCuda(
            f"torch {torch_version} is built with CUDA {torch_cuda}, and the toolkit in {folder} is {found}",
            f"Install toolkit {torch_cuda} and name its folder (CUDA_HOME=...), or a torch that is built with {found}",
        )
    return folder
