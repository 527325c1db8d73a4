"""Where the CUDA operators run: on a GPU, and everywhere in an emulation on the CPU (tests/cuda/emulation).

A test takes the fixture ``device`` and asks it for tensors and operators:

    y = device.ops.relu(device.put(x))

so every test runs on both, or is skipped with the reason.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from typing import Any

import emulated
import pytest
import torch
from devices import Device, no_gpu

import fastconv  # noqa: F401  defines the schemas


@pytest.fixture(scope="session")
def emulation() -> Any:
    """The emulation's library, whose operators are torch.ops.fastconv_emulated with the schemas of the real ones."""
    path = emulated.operators()
    library = torch.library.Library("fastconv_emulated", "DEF")
    for name in torch._C._dispatch_get_all_op_names():
        if name.startswith("fastconv::"):
            operator = getattr(torch.ops.fastconv, name.removeprefix("fastconv::"))
            library.define(str(operator.default._schema).removeprefix("fastconv::"))
    torch.ops.load_library(path)
    shared = ctypes.CDLL(str(path))
    shared.library = library  # defined as long as it lives
    return shared


@pytest.fixture(params=["emulated", "cuda"])
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    if request.param == "cuda":
        reason = no_gpu()
        if reason is not None:
            pytest.skip(reason)
        device = Device("cuda", torch.ops.fastconv)
    else:
        emulation = request.getfixturevalue("emulation")
        emulation.fastconv_emulation_set_seed(int(os.environ.get("FASTCONV_EMULATION_SEED", "1")))
        device = Device("cpu", torch.ops.fastconv_emulated)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # what an operator leaves unwritten is NaN
    yield device
    torch.use_deterministic_algorithms(before)
