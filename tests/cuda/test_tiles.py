"""Tests of the choice of the tile for each launch. It needs no GPU."""

from __future__ import annotations

import ctypes
import random
import sys

import emulated
import pytest

sys.path.insert(0, str(emulated.ROOT / "benchmarks"))
import roofline


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    source = emulated.HERE / "units" / "tiles.cpp"
    return ctypes.CDLL(
        str(emulated.build("tiles.so", [source, emulated.EMULATION], ["-shared"], emulated.is_sanitized()))
    )


def chosen(
    library: ctypes.CDLL, size: int, tensor_cores: bool, rows: int, columns: int, count: int
) -> tuple[int, int, int]:
    """Return the rows, the columns and the depth of a chunk of the tile."""
    found = (ctypes.c_int * 3)()
    library.choose_tile(size, tensor_cores, *map(ctypes.c_int64, (rows, columns, count)), found)
    return found[0], found[1], found[2]


#: The products of each pass over MNIST's convolutions at batch 64: rows, columns, and pieces of depth.
CONV1 = {"forward": (64 * 26 * 26, 32, 1), "backward_weight": (32, 9, 169)}
CONV2 = {"forward": (64 * 10 * 10, 64, 1), "backward_data": (64 * 13 * 13, 32, 1), "backward_weight": (64, 288, 31)}
CONV3 = {"forward": (64 * 9, 128, 1), "backward_data": (64 * 25, 64, 1), "backward_weight": (128, 576, 3)}


@pytest.mark.parametrize(
    ("size", "tensor_cores", "usual", "smallest"),
    [
        (4, False, (64, 32, 16), (32, 16, 32)),
        (2, False, (64, 64, 32), (32, 32, 32)),
        (4, True, (64, 64, 16), (32, 32, 16)),
        (2, True, (64, 64, 32), (32, 32, 32)),
    ],
    ids=["float", "half", "float on tensor cores", "half on tensor cores"],
)
def test_conv1_and_conv3_of_mnist_have_small_tiles(
    size: int, tensor_cores: bool, usual: tuple[int, int, int], smallest: tuple[int, int, int], library: ctypes.CDLL
) -> None:
    for product in [CONV1["backward_weight"], *CONV3.values()]:
        assert chosen(library, size, tensor_cores, *product) == smallest
    for product in [CONV2["forward"], CONV2["backward_weight"]]:
        assert chosen(library, size, tensor_cores, *product) == usual
    # 32 columns fill only half of 64.
    for product in [CONV1["forward"], CONV2["backward_data"]]:
        assert chosen(library, size, tensor_cores, *product) == (usual if usual[1] == 32 else smallest)


def test_large_tiles_need_many_blocks_that_are_more_than_half_full(library: ctypes.CDLL) -> None:
    assert chosen(library, 4, False, 128 * 128, 128, 1) == (128, 64, 16)
    assert chosen(library, 4, False, 128 * 128 - 128, 128, 1) == (64, 32, 16)
    assert chosen(library, 4, False, 64, 64, 10**6) == (64, 32, 16)
    assert chosen(library, 4, False, 65, 33, 256) == (128, 64, 16)
    assert chosen(library, 4, True, 128 * 256, 128, 1) == (128, 128, 16)
    assert chosen(library, 4, True, 128 * 255, 128, 1) == (64, 64, 16)
    assert chosen(library, 8, True, 10**6, 10**3, 1) == (64, 32, 16)
    assert chosen(library, 8, False, 1, 1, 1) == (64, 32, 16)


def test_the_roofline_model_has_the_same_tiles(library: ctypes.CDLL) -> None:
    generator = random.Random(1)
    for _ in range(3000):
        product = [int(2 ** generator.uniform(0, most)) for most in (16, 10, 9)]
        for half in (False, True):
            tile = roofline.tile(*product, half)
            assert (tile.rows, tile.columns, tile.depth) == chosen(library, 2 if half else 4, False, *product), product
