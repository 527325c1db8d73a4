"""A call enters few functions on its way from Python to the kernel."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from call_path import CPP, calls, functions_of, python_functions

ROOT = Path(__file__).parents[1]
#: The most Python functions and files that each call may enter.
MOST_PYTHON = {
    "conv2d, contiguous": (2, 1),
    "conv2d, channels_last": (2, 1),
    "conv2d_relu_max_pool2d, backward": (1, 1),
}
#: The same with C++. Backward goes to two kernels, one for each gradient.
MOST = {
    "conv2d, contiguous": (8, 6),
    "conv2d, channels_last": (8, 6),
    "conv2d_relu_max_pool2d, backward": (9, 8),
}


def within(found: list[tuple[str, str]], most: tuple[int, int]) -> bool:
    """Whether there are at most so many functions and files."""
    return len(found) <= most[0] and len({file for file, _ in found}) <= most[1]


@pytest.mark.parametrize("name", MOST_PYTHON)
def test_a_call_enters_few_python_functions(name: str) -> None:
    found = python_functions(calls()[name])
    assert found
    assert within(found, MOST_PYTHON[name]), found


@pytest.mark.parametrize("name", MOST)
def test_a_call_enters_few_functions(name: str) -> None:
    assert within(functions_of(name), MOST[name]), functions_of(name)


@pytest.mark.parametrize("call", CPP)
def test_each_listed_cpp_function_is_in_its_file(call: str) -> None:
    """The list is written by hand, so it is compared with the sources."""
    for file, function in CPP[call]:
        code = (ROOT / "csrc" / file).read_text()
        assert function == "the kernel" or re.search(rf"\b{function.rpartition(':')[2]}(<T>)?\(", code), (
            file,
            function,
        )
