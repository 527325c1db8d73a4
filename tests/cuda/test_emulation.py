"""Tests of the emulation: it behaves like CUDA, and it finds the planted faults."""

from __future__ import annotations

import ctypes
import subprocess
from typing import Any

import emulated
import pytest
import torch
from torch import Tensor

SEEDS = (1, 2, 3)


@pytest.fixture(scope="module")
def names() -> Any:
    library = ctypes.CDLL(str(emulated.names()))
    library.set_seed(1)
    return library


def pointer(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def run(fault: str, seed: int, sanitize: bool = False) -> str:
    finished = subprocess.run(
        [emulated.faults(sanitize), fault, str(seed)], capture_output=True, text=True, check=False
    )
    return finished.stdout + finished.stderr


@pytest.mark.parametrize("sanitize", [False, True], ids=["plain", "sanitized"])
@pytest.mark.parametrize("seed", [0, *SEEDS])
def test_a_correct_kernel_passes_in_every_order_of_threads(seed: int, sanitize: bool) -> None:
    assert run("none", seed, sanitize) == "right\n"


@pytest.mark.parametrize("fault", ["missing_barrier", "missing_last_barrier"])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_missing_barrier_gives_wrong_results(fault: str, seed: int) -> None:
    assert run(fault, seed) == "wrong\n"


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("divergent_barrier", "is reached by 64 of 96 threads"),
        ("two_barriers", "wait at different barriers"),
        ("absent_lane", "whose mask does not include it"),
    ],
)
@pytest.mark.parametrize("seed", [0, *SEEDS])
def test_threads_that_would_wait_forever_are_an_error(fault: str, message: str, seed: int) -> None:
    assert message in run(fault, seed)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("store_beyond_shared", "heap-buffer-overflow"),
        ("store_beyond_output", "heap-buffer-overflow"),
        ("load_beyond_input", "heap-buffer-overflow"),
    ],
)
def test_addresssanitizer_reports_an_access_out_of_bounds_with_its_line(fault: str, message: str) -> None:
    report = run(fault, 1, sanitize=True)
    assert message in report
    assert "faults.cpp:" in report


@pytest.mark.parametrize("seed", [0, *SEEDS])
def test_uninitialised_shared_memory_is_nan(seed: int, names: Any) -> None:
    assert run("unwritten_shared", seed) == "wrong\n"
    values = torch.zeros(64)
    names.shared(pointer(values), 3)  # the last block must not see values of the other blocks
    assert values.isnan().all()


def test_every_thread_of_every_block_runs_once_with_its_indices(names: Any) -> None:
    to = torch.full((4, 3, 2, 7, 6, 5, 6), -1, dtype=torch.int32)
    names.threads(pointer(to))
    z, y, x, tz, ty, tx = torch.meshgrid(
        *(torch.arange(n, dtype=torch.int32) for n in (4, 3, 2, 7, 6, 5)), indexing="ij"
    )
    assert torch.equal(to, torch.stack([x, y, z, tx, ty, tz], -1))


@pytest.mark.parametrize("width", [32, 16, 8, 4])
def test_shuffles_and_ballots_behave_as_in_cuda(width: int, names: Any) -> None:
    to = torch.full((5, 32), -1, dtype=torch.int32)
    names.shuffles(pointer(to), width)
    lane = torch.arange(32)
    first = lane // width * width
    up, down, xor = lane - 3, lane + 3, lane ^ 5
    assert to[0].tolist() == (first + 3 % width).tolist()
    assert to[1].tolist() == torch.where(up >= first, up, lane).tolist()
    assert to[2].tolist() == torch.where(down < first + width, down, lane).tolist()
    # In CUDA a lane may read from an earlier group, but not from a later one.
    assert to[3].tolist() == torch.where(xor < first + width, xor, lane).tolist()
    assert to[4].tolist() == [sum(1 << i for i in range(0, 31, 3))] * 32


def test_the_halves_of_a_warp_shuffle_independently(names: Any) -> None:
    to = torch.full((32,), -1, dtype=torch.int32)
    names.half_a_warp(pointer(to))
    assert to.tolist() == [lane ^ (1 if lane < 16 else 2) for lane in range(32)]


def test_a_seed_shuffles_threads_and_blocks_and_seed_0_does_not(names: Any) -> None:
    orders = []
    for seed in (0, 1, 1, 2):
        names.set_seed(seed)
        count, to = torch.zeros(1, dtype=torch.int32), torch.full((10, 40), -1, dtype=torch.int32)
        names.order(pointer(count), pointer(to), 10)
        assert sorted(to.flatten().tolist()) == list(range(400))
        orders.append(to)
    ascending, first, again, other = orders
    assert ascending.flatten().tolist() == list(range(400))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first.argsort(1), ascending.argsort(1))
    assert not torch.equal(first.amin(1), first.amin(1).sort().values)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_16_bit_types_round_as_in_pytorch(dtype: torch.dtype, names: Any) -> None:
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype).float()
    between = (every[:-1] + every[1:]) / 2
    x = torch.cat([every, between, torch.randn(10_000) * torch.logspace(-30, 30, 10_000)])
    to, back = torch.empty_like(x, dtype=dtype), torch.empty_like(x)
    convert = names.convert_half if dtype == torch.float16 else names.convert_bf16
    convert(pointer(x), pointer(to), pointer(back), ctypes.c_int64(len(x)))
    torch.testing.assert_close(to, x.to(dtype), rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(back, x.to(dtype).float(), rtol=0, atol=0, equal_nan=True)
    numbers = ~x.isnan()
    assert torch.equal(to.view(torch.int16)[numbers], x.to(dtype).view(torch.int16)[numbers])
