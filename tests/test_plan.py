"""fastconv._C.plan names the algorithm of a call, and each algorithm is exact on every shape that it accepts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import has_wide_avx512
from torch.nn import functional as F

import fastconv.functional as FF
from fastconv import _C

DOCS = Path(__file__).parents[1] / "docs"
POOL = ((2, 2), (2, 2), (0, 0), (1, 1))
PASSES = ("forward", "backward_data", "backward_weight")
#: Sizes of the input and the weight, stride, padding and dilation.
MOSTLY_PADDING = ((1, 8, 28, 28), (8, 8, 3, 3), (1, 1), (40, 40), (40, 40))

pytestmark = pytest.mark.usefixtures("algorithms_as_measured")


def plan(*args: Any, **kwargs: Any) -> dict[str, Any]:
    return _C.plan(*args, **kwargs)


@pytest.mark.parametrize(
    ("arguments", "options", "algorithm"),
    [
        (("forward", (64, 32, 13, 13), (64, 32, 3, 3)), {}, "winograd"),
        (("forward", (64, 32, 13, 13), (64, 32, 5, 5)), {}, "direct"),
        (("forward", (64, 1, 28, 28), (32, 1, 3, 3)), {"pool": POOL}, "direct"),
        (("forward", (1, 512, 2, 2), (512, 512, 3, 3), (1, 1), (1, 1)), {}, "direct"),
        (("forward", (1, 512, 3, 3), (512, 512, 3, 3), (1, 1), (1, 1)), {"channels_last": False}, "direct"),
        (("forward", (1, 8, 9, 9), (8, 1, 3, 3), (1, 1), (1, 1), (1, 1), 8), {}, "thin_groups"),
        (("backward_data", (1, 8, 9, 9), (8, 1, 3, 3), (1, 1), (1, 1), (1, 1), 8), {}, "thin_groups"),
        (("backward_data", (1, 8, 9, 9), (8, 1, 3, 3), (1, 1), (1, 1), (1, 1), 8), {"finite": False}, "direct"),
        (("backward_weight", (1, 8, 9, 9), (8, 1, 3, 3), (1, 1), (1, 1), (1, 1), 8), {}, "thin_groups"),
        *(
            ((pass_, (1, C, 20, 30), (C, 1, 3, 3), (1, 1), (1, 1), (1, 1), C), {}, "image_filter")
            for pass_ in ("forward", "backward_data", "backward_weight")
            for C in (1, 3, 4)
        ),
        (("forward", (1, 1, 20, 30), (4, 1, 5, 5)), {"channels_last": False}, "image_filter"),
        (("forward", (1, 1, 20, 30), (4, 1, 5, 5)), {"relu": True}, "direct"),
        (("backward_data", (1, 1, 20, 30), (4, 1, 5, 5)), {"pool": POOL}, "direct"),
        (("forward", (1, 1, 30, 20), (4, 1, 5, 5)), {}, "direct"),
        (("forward", (1, 1, 200, 30), (4, 1, 5, 5), (1, 1), (0, 0), (20, 1)), {}, "direct"),
        (("forward", (1, 64, 20, 30), (3, 64, 3, 3)), {}, "image_filter"),
        (("forward", (1, 65, 20, 30), (3, 65, 3, 3)), {}, "direct"),
        (("backward_data", (8, 3, 64, 64), (32, 3, 3, 3)), {}, "image_filter"),
        (("backward_weight", (1, 64, 20, 30), (3, 64, 5, 5)), {}, "gemm"),
        (("forward", (1, 1, 20, 30), (5, 1, 5, 5)), {}, "direct"),
        (("forward", (1, 3, 20, 30), (3, 1, 1, 7), (1, 1), (0, 3), (1, 1), 3), {}, "thin_groups"),
        (("forward", (1, 3, 20, 30), (3, 1, 3, 3), (2, 2), (1, 1), (1, 1), 3), {}, "thin_groups"),
        (("backward_data", (1, 1, 20, 30), (1, 1, 3, 3)), {"finite": False}, "direct"),
        (("backward_data", (64, 64, 14, 14), (64, 64, 3, 3)), {}, "winograd"),
        (("backward_data", (64, 64, 14, 14), (64, 64, 3, 3)), {"nonzero": 0.1}, "sparse_gradient"),
        (("backward_data", (64, 64, 14, 14), (64, 64, 3, 3)), {"nonzero": 0.1, "finite": False}, "winograd"),
        (("backward_data", (64, 64, 14, 14), (64, 64, 3, 3), (2, 2)), {}, "direct"),
        (("backward_weight", (64, 32, 13, 13), (64, 32, 3, 3)), {}, "winograd"),
        (("backward_weight", (64, 32, 13, 13), (64, 32, 3, 3)), {"nonzero": 0.5}, "winograd"),
        (("backward_weight", (64, 32, 13, 13), (64, 32, 3, 3)), {"nonzero": 0.3}, "sparse_gradient"),
        (("backward_weight", (64, 32, 13, 13), (64, 32, 5, 5)), {}, "gemm"),
        (("backward_weight", (64, 32, 13, 13), (64, 32, 5, 5)), {"nonzero": 0.5}, "sparse_gradient"),
        (("backward_weight", (64, 1, 28, 28), (32, 1, 3, 3)), {"pool": POOL}, "few_channels"),
        (("backward_weight", (64, 1, 28, 28), (32, 1, 3, 3)), {}, "direct"),
    ],
)
def test_the_plan_names_the_algorithm(arguments: Any, options: dict[str, Any], algorithm: str) -> None:
    if _C.cpu_capability() == "default" and algorithm == "winograd":
        pytest.skip("Winograd's tiles are at most 2 x 2 without AVX2")
    assert plan(*arguments, **options)["algorithm"] == algorithm


def test_few_outputs_have_an_algorithm_of_their_own_except_on_zen_5(level: str) -> None:
    algorithm = "direct" if has_wide_avx512() else "small_output"
    assert plan("forward", (1, 512, 3, 3), (512, 512, 3, 3), (1, 1), (1, 1))["algorithm"] == algorithm


@pytest.mark.parametrize("pass_", PASSES)
def test_the_plan_leaves_calls_that_are_mostly_padding_to_pytorch(pass_: str) -> None:
    assert plan(pass_, *MOSTLY_PADDING)["algorithm"] != "torch"  # the tests run with FASTCONV_ALGORITHM=own
    _C.set_algorithms({"torch": "measured"})
    assert plan(pass_, *MOSTLY_PADDING)["algorithm"] == "torch"
    assert plan(pass_, *MOSTLY_PADDING, relu=True)["algorithm"] != "torch"


def test_the_plan_leaves_no_call_with_sizes_above_32_bits_to_pytorch() -> None:
    """F.conv2d would cut the padding to 32 bits, and return a result of a wrong size."""
    _C.set_algorithms({"torch": "always"})
    for padding, dilation in ((2**30, 2**30), (2**31, 2**31), (2**35, 1)):
        call = ("forward", (1, 1, 1, 4), (1, 1, 1, 3), (1, 1), (0, padding), (1, dilation))
        assert plan(*call)["algorithm"] == "direct"
    assert plan("forward", (1, 1, 1, 4), (1, 1, 1, 3), (1, 1), (0, 2**20), (1, 2**20))["algorithm"] == "torch"


# A GPU: the passes that its plan keeps for fastconv with TF32, without it, and in half. Each pair of sizes is a row of
# docs/explanation/cuda.md. The last ones are near those rows.
FIRST, SECOND, THIRD = (1, 28, 32), (32, 13, 64), (64, 5, 128)
FORWARD, _, WEIGHT = PASSES
GPU_PLANS: list[tuple[tuple[int, tuple[int, int, int], bool], tuple[set[str], set[str], set[str]]]] = [
    ((64, FIRST, True), ({FORWARD, WEIGHT}, {FORWARD, WEIGHT}, set())),
    ((64, SECOND, True), (set(), {*PASSES}, {FORWARD})),
    ((64, THIRD, False), (set(), set(), set())),
    ((1024, SECOND, True), (set(), {FORWARD}, {FORWARD})),
    ((1024, THIRD, False), (set(), set(), set())),
    ((32, (64, 56, 64), False), (set(), set(), set())),
    ((32, (256, 14, 256), False), (set(), set(), set())),
    ((64, FIRST, False), (set(), set(), set())),
    ((1, FIRST, True), (set(), set(), set())),
    ((1024, FIRST, True), (set(), set(), set())),
    ((64, (3, 28, 32), True), (set(), set(), set())),
    ((64, (64, 13, 64), True), (set(), set(), set())),
    ((256, SECOND, True), (set(), {FORWARD}, {FORWARD})),
]


@pytest.mark.parametrize(("call", "kept"), GPU_PLANS, ids=[str(call) for call, _ in GPU_PLANS])
def test_the_plan_for_a_gpu_keeps_what_was_measured_as_faster(call: Any, kept: Any) -> None:
    _C.set_algorithms({"torch": "measured"})
    N, (C, H, K), pooled = call
    sizes = ((N, C, H, H), (K, C, 3, 3))
    options: dict[str, Any] = {"pool": POOL} if pooled else {"relu": True}
    options["cuda_capability"] = 90
    for wanted, more in zip(kept, ({}, {"tf32": False}, {"dtype": "float16"}), strict=True):
        plans = {name: plan(name, *sizes, **options, **more) for name in PASSES}
        assert {name for name in PASSES if plans[name]["algorithm"] == "own"} == wanted
        for name in wanted:
            assert plans[name]["rule"] in _C.rules_for_fastconv()
        for left in (
            {**options, "cuda_capability": 80},
            {**options, "dtype": "bfloat16"},
            {**options, "dtype": "float64"},
            {"cuda_capability": 90},  # without a ReLU
        ):
            assert plan("forward", *sizes, **{**more, **left}) == {"algorithm": "torch"}
    if pooled and C > 1:
        channels_first = plan("forward", *sizes, **options, tf32=False, channels_last=False)
        assert channels_first == {"algorithm": "torch"}


def test_each_rule_for_a_gpu_has_an_example() -> None:
    _C.set_algorithms({"torch": "measured"})
    found = set()
    for N, (C, H, K) in [(64, FIRST), (64, SECOND)]:
        for name in PASSES:
            for more in ({"tf32": False}, {"dtype": "float16"}):
                sizes = ((N, C, H, H), (K, C, 3, 3))
                found.add(plan(name, *sizes, pool=POOL, cuda_capability=90, **more).get("rule"))
    assert found - {None} == set(_C.rules_for_fastconv())


@pytest.mark.skipif(not DOCS.exists(), reason="the documentation is not here")
def test_the_page_lists_the_rules_for_a_gpu_with_measured_figures() -> None:
    page = (DOCS / "reference" / "pytorch_calls.md").read_text()
    rows = re.findall(r"^\| `(cuda_\w+)` \| (\w+) \| [^|]+ \| ([^|]+) \|$", page, re.MULTILINE)
    assert [row[0] for row in rows] == _C.rules_for_fastconv()
    cells = {cell for row in json.loads((DOCS / "data" / "tables.json").read_text())["cuda"]["rows"] for cell in row}
    measured = {number for cell in cells for number in cell.split(", ")}
    source = (DOCS.parent / "csrc" / "cuda" / "plan.cpp").read_text()
    for name, _, figures in rows:
        pairs = re.findall(r"([\d.]+) / ([\d.]*\d)", figures)
        assert pairs, name
        assert all({theirs, ours} <= measured for theirs, ours in pairs), name
        assert all(re.search(rf"{theirs} / +{ours}\b", source) for theirs, ours in pairs), name


def test_own_and_always_hold_for_a_gpu_too() -> None:
    call = ("forward", (2, 3, 9, 9), (4, 3, 3, 3))
    assert plan(*call, cuda_capability=75) == {"algorithm": "own", "rule": None}  # the tests run with own
    _C.set_algorithms({"torch": "always"})
    assert plan("forward", (64, 1, 28, 28), (32, 1, 3, 3), pool=POOL, cuda_capability=90) == {"algorithm": "torch"}


def test_winograds_tiles_cover_the_image() -> None:
    tiles = plan("forward", (2, 32, 17, 15), (32, 32, 3, 3), (1, 1), (1, 1))["tiles"]
    assert sum(mh * rows * mw * columns for mh, mw, rows, columns in tiles) >= 17 * 15


def test_the_plan_refuses_invalid_arguments() -> None:
    with pytest.raises(RuntimeError, match="Kernel size can't be greater than actual input size"):
        plan("forward", (1, 1, 2, 2), (1, 1, 3, 3))
    with pytest.raises(ValueError, match="expected pass_ to be forward"):
        plan("sideways", (1, 1, 3, 3), (1, 1, 3, 3))
    with pytest.raises(ValueError, match="expected dtype to be float32"):
        plan("forward", (1, 1, 3, 3), (1, 1, 3, 3), dtype="int8")
    with pytest.raises(ValueError, match="expected nonzero to be between 0 and 1"):
        plan("backward_data", (1, 1, 3, 3), (1, 1, 3, 3), nonzero=float("nan"))


# Each algorithm, and shapes that it accepts: input, weight, stride, padding.
FORCED = {
    "winograd": [((2, 3, 9, 7), (5, 3, 3, 3), 1, 1), ((1, 16, 4, 4), (16, 16, 3, 3), 1, 0)],
    "small_output": [((3, 16, 9, 7), (5, 16, 3, 2), 2, 1), ((1, 32, 4, 4), (7, 32, 1, 1), 1, 0)],
    "sparse_gradient": [((2, 3, 9, 7), (5, 3, 3, 3), 1, 1), ((3, 17, 8, 8), (6, 17, 5, 5), 2, 2)],
    "gemm": [((2, 3, 9, 7), (5, 3, 3, 3), 1, 1), ((3, 40, 8, 8), (30, 40, 1, 1), 2, 0)],
    "few_channels": [((2, 1, 9, 9), (5, 1, 3, 3), 1, 0), ((2, 3, 12, 12), (9, 3, 5, 5), 1, 2)],
}


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("choice", ["always", "never"])
@pytest.mark.parametrize("algorithm", FORCED)
def test_each_algorithm_is_exact_if_it_is_forced(
    algorithm: str, choice: str, channels_last: bool, pooled: bool, level: str
) -> None:
    """All numbers are small integers, so every order of summation gives the same float64 result."""
    _C.set_algorithms({algorithm: choice}, 2)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    for input_size, weight_size, stride, padding in FORCED[algorithm]:
        x, w = (
            torch.randint(-2, 3, size).double().contiguous(memory_format=memory_format).requires_grad_()
            for size in (input_size, weight_size)
        )
        b = torch.randint(-2, 3, weight_size[:1]).double().requires_grad_()
        y = F.relu(F.conv2d(x, w, b, stride, padding))
        expected = F.max_pool2d(y, 2) if pooled else y
        fused = FF.conv2d_relu_max_pool2d if pooled else FF.conv2d_relu
        gradient = torch.randint(-1, 2, expected.shape).double()
        found = fused(x, w, b, stride, padding)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        for ours, theirs in zip(
            torch.autograd.grad(found, (x, w, b), gradient),
            torch.autograd.grad(expected, (x, w, b), gradient),
            strict=True,
        ):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
        if choice == "always" and algorithm in ("winograd", "small_output") and not pooled:
            chosen = plan("forward", input_size, weight_size, (stride,) * 2, (padding,) * 2)["algorithm"]
            assert chosen == algorithm


def test_an_unknown_algorithm_or_choice_is_refused() -> None:
    with pytest.raises(ValueError, match="expected any of torch, winograd, small_output"):
        _C.set_algorithms({"fast": "always"})
    with pytest.raises(ValueError, match="expected 'always', 'never' or 'measured'"):
        _C.set_algorithms({"winograd": "sometimes"})
    with pytest.raises(ValueError, match="expected band to be at least 0"):
        _C.set_algorithms({}, band=-1)
