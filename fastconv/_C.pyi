"""The compiled extension (csrc/module.cpp). Importing it defines the operators ``torch.ops.fastconv``."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

def cpu_capability() -> str: ...
def cpu_capabilities() -> list[str]: ...
def set_cpu_capability(name: str) -> None: ...
def plan(
    pass_: Literal["forward", "backward_data", "backward_weight"],
    input_size: Sequence[int],
    weight_size: Sequence[int],
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    *,
    relu: bool = False,
    pool: Sequence[Sequence[int]] | None = None,
    dtype: str = "float32",
    channels_last: bool = True,
    nonzero: float = 1.0,
    finite: bool = True,
) -> dict[str, Any]: ...
def set_algorithms(choices: Mapping[str, str], winograd: int = -1, band: int = 0) -> None: ...
def packed_weights() -> dict[str, int]: ...
def environment() -> dict[str, str]: ...
def build_info() -> dict[str, str]: ...
