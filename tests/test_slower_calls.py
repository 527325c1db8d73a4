"""The rules that leave calls to PyTorch (csrc/cpu/slower_calls.cpp), and the page that lists them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import assert_identical, composed, with_gradients

import fastconv.functional as FF
from fastconv import _C

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "pytorch_calls.md"

#: For each rule, a call that it leaves to PyTorch: pass, input, weight, stride, padding, dilation, groups.
EXAMPLES: dict[str, tuple[Any, ...]] = {
    "padding": ("backward_weight", (1, 256, 28, 28), (256, 256, 3, 3), 1, 12, 12, 1),
    "forward_depthwise_stride": ("forward", (8, 64, 112, 112), (64, 1, 3, 3), 2, 1, 1, 64),
    "forward_depthwise_sets": ("forward", (8, 512, 14, 14), (512, 1, 3, 3), 1, 1, 1, 512),
    "forward_writes": ("forward", (1, 3, 224, 224), (64, 3, 3, 3), 1, 1, 1, 1),
    "forward_1x1": ("forward", (8, 1024, 14, 14), (256, 1024, 1, 1), 1, 0, 1, 1),
    "forward_one_row": ("forward", (1, 160, 17, 17), (160, 160, 1, 7), 1, (0, 3), 1, 1),
    "forward_stride": ("forward", (8, 128, 28, 28), (256, 128, 3, 3), 2, 1, 1, 1),
    "forward_dilation": ("forward", (1, 64, 56, 56), (64, 64, 3, 3), 1, 2, 2, 1),
    "data_groups": ("backward_data", (1, 512, 14, 14), (512, 16, 3, 3), 1, 1, 1, 32),
    "data_depthwise_sets": ("backward_data", (8, 512, 14, 14), (512, 1, 3, 3), 1, 1, 1, 512),
    "data_image": ("backward_data", (1, 3, 224, 224), (64, 3, 7, 7), 2, 3, 1, 1),
    "data_few_channels": ("backward_data", (8, 8, 28, 28), (16, 8, 3, 3), 1, 1, 1, 1),
    "data_1x1": ("backward_data", (8, 512, 7, 7), (2048, 512, 1, 1), 1, 0, 1, 1),
    "data_one_row": ("backward_data", (1, 192, 17, 17), (192, 192, 7, 1), 1, (3, 0), 1, 1),
    "weight_depthwise_stride": ("backward_weight", (8, 64, 112, 112), (64, 1, 3, 3), 2, 1, 1, 64),
    "weight_first_layer": ("backward_weight", (8, 3, 320, 320), (16, 3, 6, 6), 2, 2, 1, 1),
    "weight_one_row": ("backward_weight", (1, 160, 17, 17), (160, 160, 1, 7), 1, (0, 3), 1, 1),
    "bfloat16_forward": ("forward", (8, 64, 28, 28), (64, 64, 3, 3), 1, 1, 1, 1),
    "bfloat16_forward_depthwise": ("forward", (8, 128, 56, 56), (128, 1, 3, 3), 1, 1, 1, 128),
    "bfloat16_data": ("backward_data", (8, 64, 28, 28), (64, 64, 3, 3), 1, 1, 1, 1),
    "bfloat16_data_depthwise": ("backward_data", (8, 128, 56, 56), (128, 1, 3, 3), 1, 1, 1, 128),
    "bfloat16_weight": ("backward_weight", (8, 64, 28, 28), (64, 64, 3, 3), 1, 1, 1, 1),
}


@pytest.fixture(autouse=True)
def _rules_in_use() -> Iterator[None]:
    _C.set_algorithms({"torch": "measured"})
    yield
    _C.set_algorithms({})


def has_bfloat16_products() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and "avx512_bf16" in cpuinfo.read_text()


def plan(rule: str) -> dict[str, Any]:
    pass_, x, w, *geometry, groups = EXAMPLES[rule]
    pairs = [(value, value) if isinstance(value, int) else value for value in geometry]
    reduced = rule.startswith("bfloat16")
    last = groups > 1 or not reduced  # in channels_last, fastconv multiplies pairs if groups is 1
    return _C.plan(pass_, x, w, *pairs, groups, dtype="bfloat16" if reduced else "float32", channels_last=last)


@pytest.mark.parametrize("rule", EXAMPLES)
def test_each_rule_leaves_its_example_to_pytorch(rule: str) -> None:
    if rule.startswith("bfloat16") and not has_bfloat16_products():
        assert plan(rule)["algorithm"] != "torch"
    else:
        assert plan(rule) == {"algorithm": "torch", "rule": rule}


def test_dx_of_a_fused_operator_with_few_channels_goes_to_pytorch_unless_zeros_are_skipped() -> None:
    call = ("backward_data", (8, 12, 28, 28), (16, 12, 3, 3), (1, 1), (1, 1))
    assert _C.plan(*call, relu=True)["rule"] == "data_few_channels"
    assert _C.plan(*call, relu=True)["algorithm"] == "torch"
    assert _C.plan(*call, relu=True, nonzero=0.1)["algorithm"] == "sparse_gradient"
    assert _C.plan(*call, relu=True, dtype="float64")["algorithm"] == "direct"
    assert _C.plan("backward_data", (8, 16, 28, 28), (16, 16, 3, 3), relu=True)["algorithm"] != "torch"
    _C.set_algorithms({})  # FASTCONV_ALGORITHM=own
    assert _C.plan(*call, relu=True)["algorithm"] == "direct"


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_gradients_of_a_fused_operator_that_pytorch_computes_are_right(
    pooled: bool, memory_format: torch.memory_format
) -> None:
    """All numbers are small integers, so every order of summation gives the same result."""
    x, w, b = (torch.randint(-2, 3, size).float() for size in ((4, 8, 30, 29), (16, 8, 3, 3), (16,)))
    x = x.contiguous(memory_format=memory_format)
    pool = {"pool_kernel_size": 2} if pooled else {}
    ours = FF.conv2d_relu_max_pool2d if pooled else FF.conv2d_relu
    expected = with_gradients(composed, (x, w, b), padding=1, **pool)
    with torch.profiler.profile(acc_events=True) as profile:
        found = with_gradients(ours, (x, w, b), padding=1, **pool)
    assert "aten::convolution_backward" in {event.name for event in profile.events()}
    assert_identical(found, expected)
    assert found[1].stride() == expected[1].stride()


def test_there_is_an_example_of_each_rule() -> None:
    assert list(EXAMPLES) == _C.rules_for_torch()


def test_pytorchs_operator_may_be_chosen_without_a_rule() -> None:
    _C.set_algorithms({"torch": "always"})
    assert _C.plan("forward", (1, 1, 9, 9), (1, 1, 3, 3)) == {"algorithm": "torch", "rule": None}


@pytest.mark.skipif(not PAGE.exists(), reason="the documentation is not here")
def test_the_page_lists_each_rule_with_its_pass_type_and_measurement() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", PAGE.read_text(), re.MULTILINE)
    assert [row[0] for row in rows] == _C.rules_for_torch()
    passes = {"forward": "forward", "dx": "backward_data", "dw": "backward_weight"}
    for name, pass_, dtype, _, figures in rows:
        assert re.search(r"\d\.\d\d", figures), name
        if name != "padding":
            assert passes[pass_] == EXAMPLES[name][0]
            assert dtype == ("bfloat16" if name.startswith("bfloat16") else "float32")


@pytest.mark.skipif(not PAGE.exists(), reason="the documentation is not here")
def test_the_figures_of_the_page_are_in_the_sources() -> None:
    source = (Path(__file__).parents[1] / "csrc" / "cpu" / "slower_calls.cpp").read_text()
    table = "\n".join(line for line in PAGE.read_text().splitlines() if line.startswith("| `"))
    figures = set(re.findall(r"\b\d\.\d\d\b", table))
    assert figures
    assert figures <= set(re.findall(r"\b\d\.\d\d\b", source))
