"""The C library keeps freed memory for the next results: see docs/reference/environment.md."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

#: Prints the page faults of a function that allocates, fills and frees megabytes, in its fifth call. It calls malloc
#: directly, because a tensor also has small blocks. One of them at the top of the heap can prevent that glibc trims it.
PROGRAM = """
import ctypes
import resource
import torch
import fastconv.functional as FF

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]

def page_faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [libc.malloc(1 << 22) for _ in range({blocks})]
    for block in blocks:
        ctypes.memset(block, 1, 1 << 22)
    for block in blocks:
        libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

{call}
print([page_faults() for _ in range(5)][-1])
"""
FORWARD = "FF.conv2d(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 3, 3))"
BACKWARD = "FF.conv2d(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 3, 3, requires_grad=True)).sum().backward()"
SMALL, LARGE = 12, 60  # blocks of 4 MB: less than 64 MB, and more

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")

pytestmark = [
    pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have other rules"),
    pytest.mark.skipif(
        HUGE_PAGES.exists() and "[always]" in HUGE_PAGES.read_text(), reason="a page fault then gets 2 MB, not 4 KB"
    ),
]


def page_faults_per_block(call: str, blocks: int, **variables: str) -> float:
    """Return the page faults of a block. A block of 4 MB has 1,024 pages."""
    others = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_", "LD_PRE"))}
    program = [sys.executable, "-c", PROGRAM.format(call=call, blocks=blocks)]
    run = subprocess.run(program, env={**others, **variables}, capture_output=True, text=True, check=True)
    return int(run.stdout) / blocks


@pytest.mark.parametrize(("call", "blocks"), [(FORWARD, SMALL), (BACKWARD, SMALL), (BACKWARD, LARGE)])
def test_freed_memory_is_kept(call: str, blocks: int) -> None:
    assert page_faults_per_block(call, blocks) < 100


@pytest.mark.parametrize(("call", "blocks"), [("", SMALL), (FORWARD, LARGE)])
def test_an_import_changes_nothing_and_inference_keeps_64_mb(call: str, blocks: int) -> None:
    assert page_faults_per_block(call, blocks) > 900


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("FASTCONV_KEEP_MB", "0"),
        ("FASTCONV_KEEP_MB", "30"),
        ("MALLOC_TRIM_THRESHOLD_", "1000000"),
        ("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=1000000"),
    ],
)
def test_settings_of_the_user_are_kept(variable: str, value: str) -> None:
    assert page_faults_per_block(BACKWARD, SMALL, **{variable: value}) > 900
