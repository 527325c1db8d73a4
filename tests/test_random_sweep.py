"""Each algorithm, forced through the plan on random shapes, is as exact as PyTorch.

``make test-all`` runs 2,000 shapes, ``make test`` the first of them. Values are normally distributed, half of the
gradient is zero. The same shapes are tested in 16 bits, where each result is rounded once. ``fuzz`` tests random calls
of the public functions, this file tests the algorithms.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from fuzz.draw import LEVELS, Draw
from sweep import FULL
from torch import Tensor
from torch.nn import functional as F

from fastconv import _C

SEED, PART = 22, 250
CASES = 2000 if FULL else PART
#: An error may be this many times PyTorch's. Errors are root mean squares.
MOST_TIMES_PYTORCH = 2.0
#: PyTorch's error is sometimes nearly zero by chance, above all if there are few results. An error is always accepted
#: if it is at most that of a plain loop: half a unit in the last place for each partial sum.
HALF_UNIT = 2.0**-24

PASSES = ("forward", "backward_data", "backward_weight")
POOL = ((2, 2), (2, 2), (0, 0), (1, 1))
GATED = 255  # the value in argmax of a result that ReLU set to 0
OPTIONS = (
    "winograd", "small_output", "sparse_gradient", "few_channels", "pool_in_registers", "weight_as_patches",
    "thin_groups", "gemm", "pairs", "image_filter",
)  # fmt: skip
#: For each algorithm, the options that are set to "always" or left to the plan. All others are set to "never".
ALGORITHMS = {
    "direct": (),
    "pool_in_registers": ("pool_in_registers",),
    "thin_groups": ("thin_groups",),
    "winograd_2": ("winograd",),
    "winograd_3": ("winograd",),
    "small_output": ("small_output",),
    "sparse_gradient": ("sparse_gradient",),
    "weight_as_patches": ("sparse_gradient", "weight_as_patches"),
    "gemm": ("gemm",),
    "few_channels": ("few_channels",),
    "image_filter": ("image_filter",),
}
#: For 16 bits: two algorithms that read 16 bits, and two that read float32.
ALGORITHMS_16 = ("pairs", "thin_groups", "gemm", "direct")
#: The largest error of rounding a number, as a share of the number, and in the subnormal range of float16.
ROUNDING = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
SUBNORMAL = 2.0**-25
#: An error in float32 is at most this many times the error that a plain loop is expected to have.
MOST_TIMES_LOOP = 16


@dataclass
class Case:
    """A convolution and its operands in float32."""

    number: int
    x: Tensor
    w: Tensor
    b: Tensor
    g: Tensor
    geometry: tuple[Any, ...]  # stride, padding, dilation, groups
    level: str
    argmax: Tensor = field(init=False)

    def __post_init__(self) -> None:
        gate = torch.where(self.g == 0, GATED, 0).to(torch.uint8)
        self.argmax = gate.contiguous(memory_format=torch.channels_last)

    def __str__(self) -> str:
        x, w = ("x".join(map(str, t.shape)) for t in (self.x, self.w))
        return f"case {self.number}: {x}, {w}, {self.geometry}, {self.level}, strides {self.x.stride()}"


def draw_case(number: int) -> Case:
    draw = Draw(SEED, number)
    while True:
        shape = draw.winograd() if draw.chance(0.35) else draw.convolution()
        if draw.chance(0.12):  # Winograd has tiles of 3 x 3 only with 32 channels or more
            shape = draw.winograd()
            n, _, *image = shape["x"]
            c, k = draw.pick((32, 33, 48)), draw.pick((16, 31, 32, 48))
            shape |= {"x": (n, c, *image), "w": (k, c, 3, 3)}
        arguments = shape["arguments"]
        padding = arguments.get("padding", 0)
        stride, dilation = (arguments.get(name, 1) for name in ("stride", "dilation"))
        pairs = [(value, value) if isinstance(value, int) else value for value in (stride, padding, dilation)]
        if 0 in shape["x"] or isinstance(padding, str):
            continue
        geometry = (*pairs, arguments.get("groups", 1))
        try:
            x, w = (torch.empty(shape[name], device="meta") for name in ("x", "w"))
            size = F.conv2d(x, w, None, *geometry).shape
        except RuntimeError:  # the kernel is larger than the image
            continue
        memory_format = torch.channels_last if draw.chance(0.6) else torch.contiguous_format
        sizes = (shape["x"], shape["w"], shape["w"][:1], tuple(size))
        x, w, b, g = (draw.normal(size).float() for size in sizes)
        x, w, g = (t.contiguous(memory_format=memory_format) for t in (x, w, draw.sparse(g, 0.5)))
        return Case(number, x, w, b, g, geometry, draw.pick(LEVELS))


@pytest.fixture(autouse=True)
def _level_and_algorithms() -> Iterator[None]:
    level = _C.cpu_capability()
    yield
    _C.set_cpu_capability(level)
    _C.set_algorithms({})


def by_pytorch(case: Case, dtype: torch.dtype) -> dict[str, Tensor]:
    """The results of all passes, and of a fused ReLU and pool, by PyTorch."""
    x, w, b, g = (t.to(dtype) for t in (case.x, case.w, case.b, case.g))
    if case.w.shape[-1] == 1:  # PyTorch 2.13 crashes on some channels_last images with kernels of one column
        x, w, g = (t.contiguous() for t in (x, w, g))
    stride, padding, dilation, groups = case.geometry
    aten = torch.ops.aten.convolution_backward
    grad_x, grad_w, grad_b = aten(
        g, x, w, [len(b)], stride, padding, dilation, False, [0, 0], groups, [True, True, True]
    )
    y = F.conv2d(x, w, b, *case.geometry)
    results = {"forward": y, "relu": F.relu(y), "backward_data": grad_x, "backward_weight": grad_w, "grad_b": grad_b}
    if min(y.shape[2:]) >= 2:
        results["pool"] = F.max_pool2d(F.relu(y), 2)
    return results


def by_fastconv(case: Case) -> Iterator[tuple[str, dict[str, Any], dict[str, Tensor]]]:
    """Run every pass, unfused and fused. Yields the name of the pass, the options of its plan and its results."""
    ops, x, w, g, geometry = torch.ops.fastconv, case.x, case.w, case.g, case.geometry
    last = not x.is_contiguous()
    yield "forward", {}, {"forward": ops.conv2d(x, w, case.b, *geometry)}
    yield "forward", {"relu": True}, {"relu": ops.conv2d_relu(x, w, case.b, *geometry)[0]}
    if min(g.shape[2:]) >= 2:
        yield "forward", {"pool": POOL}, {"pool": ops.conv2d_relu_max_pool2d(x, w, case.b, *geometry, *POOL)[0]}
    yield "backward_data", {}, {"backward_data": ops.conv2d_backward_data(g, w, x.shape, *geometry, last)}
    grad_w, grad_b = ops.conv2d_backward_weight(g, x, w.shape[2:], *geometry, last)
    yield "backward_weight", {}, {"backward_weight": grad_w, "grad_b": grad_b}
    gradients = ops.conv2d_relu_backward(g, case.argmax, x, w, True, True, *geometry)
    yield "backward_data", {"relu": True}, {"backward_data": gradients[0]}
    yield "backward_weight", {"relu": True}, {"backward_weight": gradients[1], "grad_b": gradients[2]}


def force(algorithm: str) -> None:
    wanted = ALGORITHMS.get(algorithm, (algorithm,))
    side = int(algorithm[-1]) if algorithm.startswith("winograd") else -1
    _C.set_algorithms({name: "always" if name in wanted else "never" for name in OPTIONS}, side)


def summed_channels(case: Case, pass_: str) -> int:
    """The channels that each result is summed over."""
    return case.w.shape[1] if pass_ == "forward" else case.w.shape[0] // case.geometry[3]


def is_accepted(case: Case, algorithm: str, pass_: str, options: dict[str, Any]) -> bool:
    """Whether the plan uses the forced algorithm for this call."""
    if algorithm.startswith("winograd") and pass_ != "backward_weight" and summed_channels(case, pass_) < 8:
        return False  # the plan and fastconv.tune() do not use it, because its error is up to 4 times PyTorch's
    last = not case.w.is_contiguous() or case.w.shape[1] == 1 or case.w.shape[2:] == (1, 1)
    plan = _C.plan(pass_, case.x.shape, case.w.shape, *case.geometry, channels_last=last, nonzero=0.5, **options)
    if algorithm == "pool_in_registers":
        return plan["algorithm"] == "direct" and plan.get("pool_in_registers", False)
    if algorithm == "weight_as_patches":
        return plan.get("weight_as_patches", False)
    if algorithm == "winograd_3":
        return plan["algorithm"] == "winograd" and any(3 in tile[:2] for tile in plan["tiles"])
    return plan["algorithm"] == algorithm.removesuffix("_2")


def size(t: Tensor) -> float:
    return float(t.double().pow(2).mean().sqrt())


def errors_of_a_loop(case: Case) -> dict[str, float]:
    """The error of summing the terms of each result one after another, as root mean square.

    It is a little larger than expected, the more so the fewer results there are.
    """
    squares = Case(case.number, case.x**2, case.w**2, case.b**2, case.g**2, case.geometry, case.level)
    K, C, R, S = case.w.shape
    of_forward, of_data, of_weight = C * R * S, K // case.geometry[3] * R * S, case.g.numel() // K
    terms = {"backward_data": of_data, "backward_weight": of_weight, "grad_b": of_weight}
    # The largest partial sum has the size sqrt(sum of the squared terms), and the last sums are as large as that.
    return {
        name: HALF_UNIT
        * (1 + (terms.get(name, of_forward) / 6) ** 0.5)
        * (1 + 2 / sums.numel() ** 0.5)
        * float(sums.mean().sqrt())
        for name, sums in by_pytorch(squares, torch.float64).items()
    }


@pytest.mark.parametrize("first", range(0, CASES, PART))
def test_every_algorithm_is_at_most_twice_as_inexact_as_pytorch(first: int) -> None:
    torch.set_num_threads(1)
    mistakes, counts = [], Counter[str]()
    for number in range(first, first + PART):
        case = draw_case(number)
        _C.set_cpu_capability(case.level)
        exact, theirs, loop = by_pytorch(case, torch.float64), by_pytorch(case, torch.float32), errors_of_a_loop(case)
        allowed = {name: max(MOST_TIMES_PYTORCH * size(theirs[name] - exact[name]), loop[name]) for name in exact}
        for algorithm in ALGORITHMS:
            force(algorithm)
            for pass_, options, results in by_fastconv(case):
                if not is_accepted(case, algorithm, pass_, options):
                    continue
                counts[f"{algorithm} {pass_}"] += 1
                for name, found in results.items():
                    error = size(found - exact[name])
                    if not error <= allowed[name]:
                        mistakes.append(f"{case}: {algorithm} {name}: {error:.2e}, allowed {allowed[name]:.2e}")
    assert mistakes == []
    assert {name for name in ALGORITHMS if sum(counts[f"{name} {pass_}"] for pass_ in PASSES) < 5} == set(), counts


@pytest.mark.parametrize("first", range(0, CASES, PART))
def test_every_algorithm_rounds_16_bits_once(first: int) -> None:
    torch.set_num_threads(1)
    mistakes = []
    for number in range(first, first + PART):
        dtype = (torch.bfloat16, torch.float16)[number % 2]
        drawn = draw_case(number)
        x, w, b, g = (t.to(dtype) for t in (drawn.x, drawn.w, drawn.b, drawn.g))
        case = replace(drawn, x=x, w=w, b=b, g=g)
        _C.set_cpu_capability(case.level)
        wide = replace(drawn, x=x.double(), w=w.double(), b=b.double(), g=g.double())
        exact, loop = by_pytorch(wide, torch.float64), errors_of_a_loop(wide)
        for algorithm in ALGORITHMS_16:
            force(algorithm)
            for _, options, results in by_fastconv(case):
                for name, found in results.items():
                    allowed = ROUNDING[dtype] * exact[name].abs() + MOST_TIMES_LOOP * loop[name] + SUBNORMAL
                    worst = float(((found.double() - exact[name]).abs() / allowed).max())
                    if not worst <= 1:
                        mistakes.append(f"{case}: {dtype}, {algorithm} {name} {options}: {worst:.2f} times the limit")
    assert mistakes == []
