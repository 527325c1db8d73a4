"""Run the tests of the CUDA operators on a GPU, if there is one, and in an emulation on the CPU.

A test takes the fixture ``device`` and asks it for tensors and operators:

    y = device.ops.relu(device.put(x))

The emulation is in tests/cuda/emulation. Without a GPU, the cases that need one are left out. The end of the output
states their number.
"""

from __future__ import annotations

import ctypes
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import emulated
import pytest
import torch
from devices import Device, no_gpu

import fastconv  # noqa: F401  defines the schemas


@pytest.fixture(scope="session")
def emulation() -> Any:
    """Load the emulation. Its operators are torch.ops.fastconv_emulated.*, with the schemas of torch.ops.fastconv.*."""
    path = emulated.operators()
    library = torch.library.Library("fastconv_emulated", "DEF")
    for name in torch._C._dispatch_get_all_op_names():
        if name.startswith("fastconv::"):
            operator = getattr(torch.ops.fastconv, name.removeprefix("fastconv::"))
            library.define(str(operator.default._schema).removeprefix("fastconv::"))
    torch.ops.load_library(path)
    shared = ctypes.CDLL(str(path))
    shared.library = library  # keeps the operators defined
    return shared


@pytest.fixture(params=["emulated", "cuda"] if no_gpu() is None else ["emulated"])
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    """Run the test in the emulation, and on a GPU if there is one."""
    if request.param == "cuda":
        device = Device("cuda", torch.ops.fastconv)
    else:
        emulation = request.getfixturevalue("emulation")
        emulation.fastconv_emulation_set_seed(int(os.environ.get("FASTCONV_EMULATION_SEED", "1")))
        device = Device("cpu", torch.ops.fastconv_emulated)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # new tensors are NaN, which exposes elements that are never written
    yield device
    torch.use_deterministic_algorithms(before)


@pytest.fixture
def tile(device: Device, request: pytest.FixtureRequest) -> Iterator[Callable[[int], None]]:
    """Choose the tile in the emulation, by its place in the lists of conv2d_tiles.cuh. A GPU has its usual choice."""
    if device.name == "cuda":
        yield lambda place: None
        return
    emulation = request.getfixturevalue("emulation")
    yield emulation.fastconv_emulation_set_tile
    emulation.fastconv_emulation_set_tile(-1)


@pytest.fixture
def emulated_operators(emulation: Any) -> Iterator[None]:
    """Replace the CPU's operators by the emulated ones."""
    emulation.fastconv_emulation_set_seed(1)
    library = torch.library.Library("fastconv", "IMPL")
    for name in torch._C._dispatch_get_all_op_names():
        if name.startswith("fastconv_emulated::"):
            opname = name.removeprefix("fastconv_emulated::")
            emulated = getattr(torch.ops.fastconv_emulated, opname).default
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the operators are replaced on purpose
                library.impl(opname, emulated, "CPU", allow_override=True)
    yield
    library._destroy()
