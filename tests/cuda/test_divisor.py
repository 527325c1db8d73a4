"""Tests of Divisor, over the entire range of dividends and divisors."""

from __future__ import annotations

import ctypes

import emulated
import numpy as np
import pytest


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    source = emulated.HERE / "units" / "divisor.cpp"
    return ctypes.CDLL(
        str(emulated.build("divisor.so", [source, emulated.EMULATION], ["-shared"], emulated.is_sanitized()))
    )


def around_powers_of_two(last: int) -> np.ndarray:
    values = {2**i + j for i in range(last + 1) for j in (-2, -1, 0, 1, 2)}
    return np.array(sorted(v for v in values if 0 <= v < 2**last), dtype=np.int64)


def address(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def pairs(last_n: int, last_divisor: int) -> tuple[np.ndarray, np.ndarray]:
    """Return pairs of numbers around powers of two, and random pairs of every magnitude."""
    random = np.random.default_rng()
    n, d = np.meshgrid(around_powers_of_two(last_n), around_powers_of_two(last_divisor)[1:])
    magnitudes = random.uniform(0, last_n, 100_000), random.uniform(0, last_divisor, 100_000)
    more_n, more_d = (np.exp2(m).astype(np.int64) for m in magnitudes)
    n, d = np.concatenate([n.ravel(), more_n]), np.concatenate([d.ravel(), more_d])
    # Neighbours of multiples of d, where wrong rounding changes the quotient.
    multiples = np.minimum(n // d * d + random.integers(-1, 2, n.size), 2**last_n - 1)
    return np.concatenate([n, np.maximum(multiples, 0)]), np.concatenate([d, d])


def test_64_bit_numbers_are_divided_exactly(library: ctypes.CDLL) -> None:
    n, d = pairs(62, 40)
    quotients, remainders = np.empty_like(n), np.empty_like(n)
    library.divide_64(*map(address, (n, d, quotients, remainders)), ctypes.c_int64(n.size))
    np.testing.assert_array_equal(quotients, n // d)
    np.testing.assert_array_equal(remainders, n % d)


def test_32_bit_numbers_are_divided_exactly(library: ctypes.CDLL) -> None:
    n, d = pairs(31, 40)
    small, quotients = n.astype(np.int32), np.empty(n.size, dtype=np.int32)
    library.divide_32(address(small), address(d), address(quotients), ctypes.c_int64(n.size))
    np.testing.assert_array_equal(quotients, n // d)
