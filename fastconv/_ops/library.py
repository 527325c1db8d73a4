"""Load the compiled extension, which defines the operators ``torch.ops.fastconv``."""

from __future__ import annotations

import torch

from fastconv.installation import not_built

__all__ = ["FLOATING_DTYPES", "HAS_CUDA", "REAL_DTYPES", "_C", "has_cuda"]

#: The oldest torch that has the stable ABI that the extension uses.
OLDEST_TORCH = (2, 10)


def _check_torch() -> None:
    major, minor = (int(part) for part in torch.__version__.split(".")[:2])
    if (major, minor) < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        raise ImportError(
            f"fastconv needs torch >= {oldest}, but found torch {torch.__version__}: pip install 'torch>={oldest}'"
        )


_check_torch()

try:
    from fastconv import _C
except ImportError as error:
    if getattr(error, "name", None) == "fastconv._C" or "cannot import name '_C'" in str(error):
        raise ImportError(not_built()) from error
    raise ImportError(
        f"fastconv's extension does not load with torch {torch.__version__}: {error}\n"
        "Build it again: pip install --no-build-isolation --force-reinstall fastconv"
    ) from error

_C.environment()  # Raises ValueError for an invalid environment variable at import, not in the first call.


def has_cuda() -> bool:
    """Return whether the extension is built with CUDA, so that the operators accept a GPU's tensors."""
    return _C.build_info()["cuda"] != "no"


HAS_CUDA = has_cuda()
#: The dtypes that convolutions accept on every device, and max-pooling and ReLU on a GPU.
FLOATING_DTYPES = frozenset({torch.float32, torch.float64, torch.bfloat16, torch.float16})
#: The dtypes that max-pooling and ReLU accept on the CPU.
REAL_DTYPES = FLOATING_DTYPES | {torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64}
