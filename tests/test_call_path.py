"""A call enters few functions on its way from Python to the operator."""

from __future__ import annotations

import pytest
from call_path import calls, python_functions

#: The most Python functions and files that each call may enter.
MOST = {
    "conv2d, contiguous": (3, 2),
    "conv2d, channels_last": (3, 2),
    "conv2d_relu_max_pool2d, backward": (2, 2),
}


@pytest.mark.parametrize("name", MOST)
def test_a_call_enters_few_python_functions(name: str) -> None:
    found = python_functions(calls()[name])
    assert found
    assert (len(found), len({file for file, _ in found})) <= MOST[name], found
