"""Print a checksum of the results of a fixed set of operator calls, so that a refactoring can be compared bit by bit.

The set covers every operator, floating dtype, memory format and ISA level, and shapes that reach every algorithm.

    python tests/checksums.py --write before.json     # on the old code
    python tests/checksums.py --compare before.json   # on the new code: prints the calls that differ, exit code 1

Compare on one machine only: results differ between CPUs with different ISA levels.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastconv import _C
from fastconv import functional as FF
from fastconv._ops.conv2d_inference import Activation, conv2d_inference

# (N, C, H, W), (K, R, S), stride, padding, dilation, groups: one for each algorithm, and odd sizes.
CONVOLUTIONS = [
    ((4, 1, 28, 28), (32, 3, 3), 1, 0, 1, 1),
    ((4, 3, 32, 32), (16, 5, 5), 1, 2, 1, 1),
    ((4, 32, 13, 13), (64, 3, 3), 1, 0, 1, 1),
    ((2, 64, 5, 5), (128, 3, 3), 1, 1, 1, 1),
    ((1, 128, 2, 2), (128, 3, 3), 1, 1, 1, 1),
    ((2, 24, 17, 15), (40, 3, 3), 2, 1, 1, 1),
    ((2, 48, 14, 14), (48, 1, 1), 1, 0, 1, 1),
    ((2, 32, 20, 20), (32, 3, 3), 1, 1, 1, 32),
    ((2, 12, 19, 11), (18, 3, 2), 1, (2, 1), (2, 3), 3),
    ((9, 7, 9, 9), (11, 4, 3), (1, 2), 1, 1, 1),
    ((1, 16, 700, 310), (16, 3, 3), 1, 1, 1, 1),
]
POOLS: list[dict[str, Any]] = [
    {},
    {"pool_kernel_size": 3, "pool_stride": 2, "pool_padding": 1},
    {"pool_kernel_size": (2, 1), "pool_ceil_mode": True},
]
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
#: Inputs of batch norm: matrices, images with many or few pixels, and channels that do not fill a vector.
NORMALIZED = [(64, 33), (3, 5, 17, 23), (8, 64, 7, 7), (2, 3, 150, 90)]


def draw(shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool, seed: int, zeros: float = 0) -> torch.Tensor:
    generator = np.random.default_rng(seed)
    values = generator.standard_normal(shape)
    values[generator.random(shape) < zeros] = 0
    tensor = torch.from_numpy(values).to(dtype)
    return tensor.contiguous(memory_format=torch.channels_last) if channels_last and len(shape) == 4 else tensor


def calls() -> Iterator[tuple[str, list[torch.Tensor]]]:
    """Each call's name and its results."""
    yield from convolutions()
    yield from poolings()
    yield from batch_norms()
    yield from inference()


def convolutions() -> Iterator[tuple[str, list[torch.Tensor]]]:
    for number, ((N, C, H, W), (K, R, S), *geometry) in enumerate(CONVOLUTIONS):
        for dtype in DTYPES if H < 100 else DTYPES[::2]:
            for channels_last in (False, True):
                x = draw((N, C, H, W), dtype, channels_last, number).requires_grad_()
                w = draw((K, C // geometry[-1], R, S), dtype, channels_last, number + 100).requires_grad_()
                b = draw((K,), dtype, False, number + 200).requires_grad_()
                functions = {"conv2d": FF.conv2d, "conv2d_relu": FF.conv2d_relu}
                for i, pool in enumerate(POOLS):
                    functions[f"conv2d_relu_max_pool2d {i}"] = lambda *args, pool=pool: FF.conv2d_relu_max_pool2d(
                        *args, **pool
                    )
                for name, function in functions.items():
                    if H > 100 and name[-1] in "12":
                        continue
                    y = function(x, w, b, *geometry)
                    for zeros in (0, 0.7):
                        gradient = draw(tuple(y.shape), dtype, channels_last, number + 300, zeros)
                        results = torch.autograd.grad(y, (x, w, b), gradient, retain_graph=True)
                        yield f"{name} {number} {dtype} nhwc={channels_last} zeros={zeros}", [y, *results]


def poolings() -> Iterator[tuple[str, list[torch.Tensor]]]:
    for dtype in (*DTYPES, torch.int32, torch.uint8):
        for channels_last in (False, True):
            x = (draw((3, 5, 17, 23), torch.float64, channels_last, 1) * 50).to(dtype)
            for i, pool in enumerate(({}, {"stride": 2, "padding": 1, "dilation": 1}, {"ceil_mode": True})):
                values, indices = FF.max_pool2d(x, 3, return_indices=True, **pool)  # type: ignore[call-overload]
                yield f"max_pool2d {i} {dtype} nhwc={channels_last}", [values, indices]
                if dtype.is_floating_point:
                    z = x.clone().requires_grad_()
                    y = FF.max_pool2d(z, 3, **pool)
                    gradient = draw(tuple(y.shape), dtype, channels_last, 2)
                    yield (
                        f"max_pool2d {i} {dtype} nhwc={channels_last} backward",
                        [*torch.autograd.grad(y, z, gradient)],
                    )
            yield f"relu {dtype} nhwc={channels_last}", [FF.relu(x)]


def batch_norms() -> Iterator[tuple[str, list[torch.Tensor]]]:
    for number, shape in enumerate(NORMALIZED):
        for dtype in DTYPES:
            for channels_last in (False, True):
                x, residual = (draw(shape, dtype, channels_last, number + i).requires_grad_() for i in (400, 500))
                w, b = (draw((shape[1],), dtype, False, number + i).requires_grad_() for i in (600, 700))
                gradient = draw(shape, dtype, channels_last, number + 800)
                for training in (False, True):
                    mean, variance = (draw((shape[1],), dtype, False, number + i).abs() for i in (900, 1000))
                    y = FF.batch_norm(x, mean, variance, w, b, training)
                    z = FF.batch_norm_relu(x, mean, variance, w, b, training, residual=residual)
                    name = f"{number} {dtype} nhwc={channels_last} training={training}"
                    yield f"batch_norm {name}", [y, mean, variance, *torch.autograd.grad(y, (x, w, b), gradient)]
                    yield f"batch_norm_relu {name}", [z, *torch.autograd.grad(z, (x, w, b, residual), gradient)]


def inference() -> Iterator[tuple[str, list[torch.Tensor]]]:
    for number, ((N, C, H, W), (K, R, S), *geometry) in enumerate(CONVOLUTIONS[:-1]):
        pairs = [pair if isinstance(pair, tuple) else (pair, pair) for pair in geometry[:3]]
        for dtype in DTYPES:
            for channels_last in (False, True):
                x = draw((N, C, H, W), dtype, channels_last, number)
                w = draw((K, C // geometry[-1], R, S), dtype, channels_last, number + 100)
                b, mean, scale, shift = (draw((K,), dtype, False, number + i) for i in (200, 1100, 1200, 1300))
                norm = mean, mean.abs() + 1, scale, shift
                size = FF.conv2d(x, w, b, *geometry).shape
                residual = draw(tuple(size), dtype, channels_last, number + 1400)
                for activation in Activation:
                    rest = *pairs, geometry[-1], 1e-5, activation, 0.1
                    y = conv2d_inference(x, w, b, *norm, residual, *rest)
                    name = f"{number} {dtype} nhwc={channels_last} {activation.name}"
                    yield f"conv2d_inference {name}", [y]


def checksum(results: list[torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for result in results:
        logical = result.detach().contiguous().view(-1)
        digest.update(str((tuple(result.shape), result.stride(), result.dtype)).encode())
        digest.update(logical.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", type=Path, metavar="FILE", help="write the checksums")
    action.add_argument("--compare", type=Path, metavar="FILE", help="compare with these checksums")
    args = parser.parse_args()
    found = {}
    for level in _C.cpu_capabilities():
        _C.set_cpu_capability(level)
        found.update({f"{level} {name}": checksum(results) for name, results in calls()})
    if args.write:
        args.write.write_text(json.dumps(found, indent=0))
        print(f"{len(found)} calls")
        return 0
    expected = json.loads(args.compare.read_text())
    different = sorted(name for name in expected if found.get(name) != expected[name])
    print(*different, sep="\n")
    print(f"{len(expected)} calls, {len(different)} differ")
    return 1 if different else 0


if __name__ == "__main__":
    raise SystemExit(main())
