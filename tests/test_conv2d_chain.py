"""The operator conv2d_chain: several calls of conv2d_inference, one after the other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastconv._ops.conv2d_inference import Activation

chain = torch.ops.fastconv.conv2d_chain
inference = torch.ops.fastconv.conv2d_inference

RELU, SILU, NONE = int(Activation.RELU), int(Activation.SILU), int(Activation.NONE)
#: A bottleneck: 1x1, depthwise 3x3, and 1x1 with the input added. Then 3x3 /2, which reads the second result.
STEPS = [
    [0, -1, 1, 1, 0, 0, 1, 1, 1, RELU, 0],
    [1, -1, 1, 1, 1, 1, 1, 1, 8, SILU, 0],
    [2, 0, 1, 1, 0, 0, 1, 1, 1, NONE, 0],
    [2, -1, 2, 2, 1, 1, 1, 1, 1, RELU, 0],
]


def arguments(dtype: torch.dtype = torch.float32, channels_last: bool = True, N: int = 2) -> tuple[Any, ...]:
    sizes = [(8, 4, 1, 1), (8, 1, 3, 3), (4, 8, 1, 1), (6, 8, 3, 3)]
    x = torch.randn(N, 4, 7, 7).to(dtype)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    weights = [torch.randn(size).to(dtype) for size in sizes]
    biases = [torch.randn(size[0]).to(dtype) for size in sizes]
    return [x], weights, biases, [n for step in STEPS for n in step], [0.0] * 4, [3, 4]


def one_by_one(inputs: list[Tensor], weights: Any, biases: Any, steps: Any, slopes: Any, results: Any) -> list[Tensor]:
    values = list(inputs)
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        read, add, *n, groups, activation, _ = steps[11 * i : 11 * i + 11]
        residual = None if add < 0 else values[add]
        constants = (n[0:2], n[2:4], n[4:6], groups, 0.0, activation, slopes[i])
        values.append(inference(values[read], weight, bias, None, None, None, None, residual, *constants))
    return [values[number] for number in results]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("N", [0, 1, 3])
def test_a_chain_is_bitwise_its_steps(dtype: torch.dtype, channels_last: bool, N: int) -> None:
    args = arguments(dtype, channels_last, N)
    for result, expected in zip(chain(*args), one_by_one(*args), strict=True):
        assert torch.equal(result, expected)
        assert result.stride() == expected.stride()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("add", [False, True])
def test_a_weight_of_one_dimension_scales_the_channels(dtype: torch.dtype, channels_last: bool, add: bool) -> None:
    x = (
        torch.randn(3, 5, 7, 9)
        .to(dtype)
        .to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    )
    scale, shift = torch.randn(2, 5).to(dtype)
    steps = [0, -1, 1, 1, 0, 0, 1, 1, 1, NONE, 0, 1, 0 if add else -1, 1, 1, 0, 0, 1, 1, 1, RELU, 0]
    (y,) = chain([x], [scale, scale], [shift, shift], steps, [0.0] * 2, [2])
    wide, factor, term = x.double(), scale.double()[:, None, None], shift.double()[:, None, None]
    first = (wide * factor + term).to(dtype).double()
    expected = (first * factor + term + (wide if add else 0)).relu()
    limit = {torch.float32: 1e-6, torch.float64: 1e-14, torch.bfloat16: 1e-2}[dtype]
    torch.testing.assert_close(y.double(), expected, rtol=limit, atol=limit)
    assert y.stride() == x.stride()
    empty = chain([x[:0]], [scale, scale], [shift, shift], steps, [0.0] * 2, [2])
    assert empty[0].shape == (0, 5, 7, 9)
    strided = chain([x[:, :, ::2, 1:]], [scale], [shift], steps[:11], [0.0], [1])[0]
    torch.testing.assert_close(strided.double(), first[:, :, ::2, 1:], rtol=limit, atol=limit)
    torch.library.opcheck(chain, ([x], [scale, scale], [shift, shift], steps, [0.0] * 2, [1, 2]))


def test_every_number_of_threads_gives_the_same_bits() -> None:
    args = arguments(N=5)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            results.append(chain(*args))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def test_the_inputs_do_not_change_and_results_share_no_memory() -> None:
    args = arguments()
    before = args[0][0].clone()
    kept = chain(*args)
    copies = [result.clone() for result in kept]
    chain(*args)
    assert torch.equal(args[0][0], before)
    assert all(torch.equal(result, copied) for result, copied in zip(kept, copies, strict=True))


def test_opcheck() -> None:
    torch.library.opcheck(chain, arguments())


def replaced(args: tuple[Any, ...], position: int, value: Any) -> tuple[Any, ...]:
    return (*args[:position], value, *args[position + 1 :])


@pytest.mark.parametrize("fake", [False, True])
@pytest.mark.parametrize(
    ("position", "change", "message"),
    [
        (3, lambda steps: steps[:-1], "expected 4 biases and slopes, and 11 numbers for each step"),
        (2, lambda biases: biases[:-1], "expected 4 biases and slopes"),
        (4, lambda slopes: [], "expected 4 biases and slopes"),
        (3, lambda steps: [5, *steps[1:]], "step 0 reads value 5, but there are 1"),
        (3, lambda steps: [-1, *steps[1:]], "step 0 reads value -1, but there are 1"),
        (3, lambda steps: [0, 1, *steps[2:]], "step 0 reads value 1, but there are 1"),
        (3, lambda steps: [*steps[:9], 17, *steps[10:]], "unknown activation 17"),
        (3, lambda steps: [*steps[:8], 3, *steps[9:]], "groups"),
        (5, lambda results: [9], "the chain returns value 9, but there are 5"),
        (5, lambda results: [0], "the chain returns value 0, which is an input"),
        (5, lambda results: [-1], "the chain returns value -1, which is an input"),
        (1, lambda weights: [weights[0].double(), *weights[1:]], "expected weight of type Float, but got Double"),
        (0, lambda inputs: [inputs[0][:, :3]], "to have 4 channels, but got 3 channels instead"),
        (1, lambda weights: [torch.ones(5), *weights[1:]], "weight should contain 4 elements not 5"),
        (1, lambda weights: [torch.ones(4), *weights[1:]], "bias should contain 4 elements not 8"),
        (0, lambda inputs: [], "step 0 reads value 0, but there are 0"),
    ],
)
def test_errors(fake: bool, position: int, change: Any, message: str) -> None:
    args = arguments()
    args = replaced(args, position, change(args[position]))
    if fake:
        args = torch.utils._pytree.tree_map_only(Tensor, lambda t: t.to("meta"), args)
    with pytest.raises(RuntimeError, match=message):
        chain(*args)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_residual_has_the_memory_format_of_the_result(device: str) -> None:
    inputs, weights, *rest = arguments(channels_last=False)
    weights[0] = weights[0].as_strided((8, 4, 1, 1), (4, 1, 4, 4))  # channels_last, so the results are, too
    args = torch.utils._pytree.tree_map_only(Tensor, lambda t: t.to(device), (inputs, weights, *rest))
    with pytest.raises(RuntimeError, match="expected a residual in the memory format of the result"):
        chain(*args)


def test_no_steps() -> None:
    assert chain([torch.randn(1, 1, 2, 2)], [], [], [], [], []) == []
