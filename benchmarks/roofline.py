"""Estimate the times of the CUDA kernels of MnistCNN's three convolutions. docs/explanation/cuda.md has the table.

    python benchmarks/roofline.py

No GPU is needed. For each kernel, the table has the useful FLOP, the bytes if each tensor is read or written once,
their ratio, and the time of the roofline model: the longer of FLOP / peak and bytes / bandwidth (Williams, Waterman,
Patterson, "Roofline", 2009). The last columns have the FLOP that blocks execute, including the edges of tiles, and the
time with at most one multiprocessor per block. Launches (2 to 3 us each outside of a CUDA graph) are not counted.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from math import ceil


@dataclass(frozen=True)
class Gpu:
    name: str
    multiprocessors: int
    float32: float  # FLOP/s, fused multiply-adds counted as two
    half: float  # FLOP/s of tensor cores, dense, sums in float
    bandwidth: float  # bytes/s


#: NVIDIA's H100 datasheet, the PCIe card.
H100_PCIE = Gpu("H100 PCIe", 114, 51.2e12, 756e12, 2.039e12)


@dataclass(frozen=True)
class Block:
    """A convolution with stride 1 and without padding, ReLU, and pooling (`pool` is 1 for none)."""

    name: str
    N: int
    C: int
    H: int
    K: int
    R: int
    pool: int

    @property
    def P(self) -> int:
        return self.H - self.R + 1

    @property
    def pooled(self) -> int:
        return self.P // self.pool

    @property
    def taps(self) -> int:
        return self.R * self.R * self.C


BLOCKS = [
    Block("conv1 + ReLU + pool", 64, 1, 28, 32, 3, 2),
    Block("conv2 + ReLU + pool", 64, 32, 13, 64, 3, 2),
    Block("conv3 + ReLU", 64, 64, 5, 128, 3, 1),
]


@dataclass(frozen=True)
class Tile:
    """A tile of csrc/cuda/kernels/conv2d_tiles.cuh. `depth` is the depth of a chunk."""

    rows: int
    columns: int
    depth: int


#: The tiles of float and of half, with the least number of blocks for each.
TILES = {
    False: [(Tile(128, 64, 16), 256), (Tile(64, 32, 16), 128), (Tile(32, 16, 32), 1)],
    True: [(Tile(64, 64, 32), 64), (Tile(32, 32, 32), 1)],
}
WANTED_BLOCKS = 512


def tile(rows: int, columns: int, products: int, half: bool) -> Tile:
    """Return the tile that with_tile of conv2d_tiles.cuh chooses for `products` products of rows x columns results."""
    for t, least_blocks in TILES[half][:-1]:
        half_full = 2 * rows > t.rows and 2 * columns > t.columns
        if half_full and ceil(rows / t.rows) * ceil(columns / t.columns) * products >= least_blocks:
            return t
    return TILES[half][-1][0]


def pieces(block: Block) -> tuple[int, int]:
    """Return the number of pieces in conv2d_backward_weight.cuh, and the pixels of each."""
    pixels = block.N * block.P**2
    blocks = ceil(block.K / 64) * ceil(block.taps / 64)
    length = min(max(256, ceil(ceil(pixels * min(blocks, WANTED_BLOCKS) / WANTED_BLOCKS) / 32) * 32), 8192)
    return ceil(pixels / length), length


@dataclass(frozen=True)
class Kernel:
    name: str
    flop: float
    bytes: float
    executed: float
    blocks: int


def kernels(block: Block, half: bool) -> list[Kernel]:
    size = 2 if half else 4
    b = block
    x, w, y = b.N * b.C * b.H**2, b.K * b.taps, b.N * b.K * b.pooled**2

    def product(name: str, rows: int, columns: int, depth: int, useful: float, tensors: float, cuts: int = 1) -> Kernel:
        t = tile(rows, columns, cuts, half)
        blocks = ceil(rows / t.rows) * ceil(columns / t.columns) * cuts
        executed = 2.0 * blocks * t.rows * t.columns * ceil(ceil(depth / cuts) / t.depth) * t.depth
        return Kernel(name, useful, tensors, executed, blocks)

    # Pixels outside of all pooling windows are not computed.
    pixels = b.N * (b.pooled * b.pool) ** 2
    sums = 2.0 * pixels * b.K * b.taps
    result = [product("forward", pixels, b.K, b.taps, sums, (x + w + y) * size + y)]
    if b.C > 1:  # the images need no gradient
        depth = b.R * b.R * b.K
        result.append(product("backward_data", b.N * b.H**2, b.C, depth, sums, (x + w + y) * size + y))
    cuts, _ = pieces(b)
    workspace = 4.0 * cuts * b.K * (b.taps + 1)
    weight = product("backward_weight", b.K, b.taps, b.N * b.P**2, sums, (x + y) * size + y + workspace, cuts)
    adding = cuts * b.K * (b.taps + 1)
    last = Kernel("add_pieces", adding, workspace + (w + b.K) * size, adding, ceil(b.K * (b.taps + 1) / 256))
    return [*result, weight, last]


def table(gpu: Gpu, half: bool) -> str:
    peak = gpu.half if half else gpu.float32
    lines = [
        f"{gpu.name}, batch {BLOCKS[0].N}, {'half, tensor cores' if half else 'float32'}:",
        "",
        "| block | kernel | MFLOP | MB | FLOP / byte | bound by | roofline, us | blocks | executed MFLOP "
        "| with tiles, us |",
        "| --- | --- | --: | --: | --: | --- | --: | --: | --: | --: |",
    ]
    total = [0.0, 0.0]
    for block in BLOCKS:
        for kernel in kernels(block, half):
            # add_pieces adds in float, without tensor cores.
            speed = gpu.float32 if kernel.name == "add_pieces" else peak
            arithmetic, memory = kernel.flop / speed, kernel.bytes / gpu.bandwidth
            busy = min(1.0, kernel.blocks / gpu.multiprocessors)
            bound, tiled = max(arithmetic, memory), max(kernel.executed / (speed * busy), memory)
            total = [total[0] + bound, total[1] + tiled]
            lines.append(
                f"| {block.name} | {kernel.name} | {kernel.flop / 1e6:.1f} | {kernel.bytes / 1e6:.2f} "
                f"| {kernel.flop / kernel.bytes:.1f} | {'arithmetic' if arithmetic > memory else 'memory'} "
                f"| {bound * 1e6:.2f} | {kernel.blocks} | {kernel.executed / 1e6:.1f} | {tiled * 1e6:.2f} |"
            )
    lines.append(f"| all | | | | | | {total[0] * 1e6:.1f} | | | {total[1] * 1e6:.1f} |")
    return "\n".join(lines)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print(table(H100_PCIE, half=False), table(H100_PCIE, half=True), sep="\n\n")


if __name__ == "__main__":
    main()
