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


def run(fault: str, seed: int, sanitize: bool = False, program: str = "faults") -> str:
    finished = subprocess.run(
        [emulated.faults(sanitize, program), fault, str(seed)], capture_output=True, text=True, check=False
    )
    return finished.stdout + finished.stderr


@pytest.mark.parametrize("program", ["faults", "matrices"])
@pytest.mark.parametrize("sanitize", [False, True], ids=["plain", "sanitized"])
@pytest.mark.parametrize("seed", [0, *SEEDS])
def test_a_correct_kernel_passes_in_every_order_of_threads(seed: int, sanitize: bool, program: str) -> None:
    assert run("none", seed, sanitize, program) == "right\n"


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
    "fault",
    [
        "missing_wait",
        "wait_for_one_group_too_few",
        "missing_barrier",
        "early_refill",
        "wrong_fragment",
        "wrong_transpose",
        "wrong_row",
        "missing_zero_fill",
    ],
)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_fault_in_a_product_on_tensor_cores_gives_wrong_results(fault: str, seed: int) -> None:
    assert run(fault, seed, program="matrices") == "wrong\n"


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("too_little_shared", "cp.async beyond shared memory"),
        ("misaligned_copy", "cp.async from a misaligned address"),
    ],
)
@pytest.mark.parametrize("seed", [0, *SEEDS])
def test_copies_beyond_shared_memory_or_from_a_misaligned_address_are_errors(
    fault: str, message: str, seed: int
) -> None:
    assert message in run(fault, seed, program="matrices")


def test_addresssanitizer_reports_an_asynchronous_copy_beyond_the_input() -> None:
    report = run("copy_beyond_input", 1, sanitize=True, program="matrices")
    assert "heap-buffer-overflow" in report
    assert "matrices.cpp:" in report


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


def test_an_asynchronous_copy_is_nan_until_it_is_waited_for_and_zero_outside(names: Any) -> None:
    x = torch.randint(1, 100, (32, 16), dtype=torch.uint8)
    to = torch.zeros(2, 32, 16, dtype=torch.uint8)
    names.copies(pointer(x), pointer(to))
    assert to[0].view(torch.float32).isnan().all()
    x[1::2] = 0
    assert torch.equal(to[1], x)


@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix_distributes_rows_or_columns_as_ptx_says(transposed: bool, names: Any) -> None:
    matrices = torch.arange(4 * 8 * 8, dtype=torch.int16).view(4, 8, 8)  # matrix, row, column
    to = torch.full((4, 32, 2), -1, dtype=torch.int16)
    names.load(pointer(matrices), pointer(to), ctypes.c_bool(transposed))
    expected = matrices.mT if transposed else matrices
    assert torch.equal(to, expected.reshape(4, 32, 2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_mma_has_the_fragments_of_ptx(dtype: torch.dtype, names: Any) -> None:
    per_register = 4 // dtype.itemsize
    depth = 8 * per_register
    a, b = (torch.randint(-9, 10, (size, depth)).to(dtype) for size in (16, 8))
    c = torch.randint(-9, 10, (16, 8)).float()
    # The registers of A: rows g and g + 8, then the same rows in the other half of depth. Those of B: both halves.
    of_a = a.view(2, 8, 2, 4, per_register).permute(2, 0, 1, 3, 4).contiguous()
    of_b = b.view(8, 2, 4, per_register).permute(1, 0, 2, 3).contiguous()
    sums = c.view(2, 8, 4, 2).permute(0, 3, 1, 2).contiguous()  # register, g, t
    multiply = {torch.float16: names.multiply_half, torch.bfloat16: names.multiply_bf16}.get(dtype, names.multiply_tf32)
    multiply(pointer(of_a), pointer(of_b), pointer(sums))
    assert torch.equal(sums.permute(0, 2, 3, 1).reshape(16, 8), c + a.float() @ b.float().T)


def test_tf32_keeps_10_bits_of_mantissa_and_rounds_ties_away_from_zero(names: Any) -> None:
    x = torch.cat([torch.randn(1000), torch.tensor([0.0, -0.0, float("inf"), -float("inf"), 1 + 2**-11, -1 - 2**-11])])
    to = torch.empty_like(x)
    names.round_tf32(pointer(x), pointer(to), ctypes.c_int64(len(x)))
    mantissa, exponent = x.double().abs().frexp()
    expected = ((mantissa * 2**11 + 0.5).floor() / 2**11).ldexp(exponent).copysign(x.double())
    assert torch.equal(to, torch.where(x.isinf(), x.double(), expected).float())
    nan = torch.full((1,), float("nan"))
    names.round_tf32(pointer(nan), pointer(nan), ctypes.c_int64(1))
    assert nan.isnan().all()
