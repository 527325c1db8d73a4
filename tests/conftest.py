from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from fastconv import _C


@pytest.fixture(params=_C.cpu_capabilities())
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every ISA level that this machine has, in turn."""
    before = _C.cpu_capability()
    _C.set_cpu_capability(request.param)
    yield request.param
    _C.set_cpu_capability(before)


@pytest.fixture(autouse=True)
def _fixed_seed_and_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
