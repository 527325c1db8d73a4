"""bfloat16 and half: results are computed in float32 and rounded once. Autocast casts to them as PyTorch does."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from cases import CONV2D, FUSED, MAX_POOL2D, Conv2dCase, FusedCase, Pool2dCase, assert_refused_alike, composed
from torch import Tensor
from torch.nn import functional as F

import fastconv.functional as FF
from fastconv import models

DTYPES = [torch.bfloat16, torch.float16]
pytestmark = [
    pytest.mark.usefixtures("two_threads"),
    pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning"),
]


def every_code(dtype: torch.dtype) -> Tensor:
    """Return all 65,536 values of a 16-bit type, and five more so that the last vector is not full."""
    codes = torch.arange(65536 + 5).to(torch.int16)
    return codes.view(dtype)


def bits(tensor: Tensor) -> Tensor:
    return tensor.view(torch.int16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_relu_equals_pytorchs_for_every_16_bit_value(dtype: torch.dtype, level: str) -> None:
    x = every_code(dtype)
    number = ~x.isnan()
    found, expected = FF.relu(x), F.relu(x)
    assert torch.equal(bits(found)[number], bits(expected)[number])
    assert torch.equal(found.isnan(), ~number)
    in_place = x.clone()
    assert FF.relu(in_place, inplace=True) is in_place
    assert torch.equal(bits(in_place), bits(found))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_gradient_of_relu_is_right_for_every_16_bit_value(dtype: torch.dtype, level: str) -> None:
    y = every_code(dtype)
    g = torch.randn(y.shape).to(dtype)
    found = torch.ops.fastconv.relu_backward(g, y)
    assert torch.equal(bits(found), bits(torch.where(y <= 0, torch.zeros_like(g), g)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_16_bit_value_survives_conversion_to_float32_and_back(dtype: torch.dtype, level: str) -> None:
    x = every_code(dtype).view(-1, 1, 1, 1)
    values, _ = torch.ops.fastconv.max_pool2d(x, (1, 1), (1, 1), (0, 0), (1, 1), False)
    number = ~x.isnan()
    assert torch.equal(bits(values)[number], bits(x)[number])
    assert torch.equal(values.isnan(), ~number)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_results_are_rounded_to_nearest_even_at_every_magnitude(dtype: torch.dtype, level: str) -> None:
    # a + b is exact in float32, so the result shows its rounding, with ties, overflow and subnormal results.
    x = every_code(dtype)
    a = x[x.isfinite() & (x.abs() > 1e-6)]
    ulp = (a.view(torch.int16) ^ 1).view(dtype) - a
    for share in (0.5, 0.25, 0.75, -0.5):
        pair = torch.stack([a, ulp * share], 1).view(-1, 2, 1, 1)
        found = FF.conv2d(pair, torch.ones(1, 2, 1, 1, dtype=dtype)).flatten()
        expected = pair.float().sum(1).to(dtype).flatten()
        assert torch.equal(bits(found), bits(expected))


def error(found: Tensor, exact: Tensor) -> float:
    return ((found.double() - exact).abs().max() / exact.abs().max().clamp_min(1e-30)).item() if exact.numel() else 0.0


def gradients(function: Callable[..., Tensor], tensors: list[Tensor], grad: Tensor) -> tuple[Tensor, ...]:
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    output = function(*leaves)
    return (output.detach(), *torch.autograd.grad(output, leaves, grad.to(output.dtype)))


@pytest.mark.parametrize("case", CONV2D, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_convolution_equals_that_of_float64_rounded_once(case: Conv2dCase, dtype: torch.dtype) -> None:
    given = [t.to(dtype) for t in case.tensors() if t is not None]
    wide = [t.double() for t in given]
    exact_output = F.conv2d(*wide, **case.arguments)
    grad = torch.randn_like(exact_output).to(dtype).double()
    exact = gradients(lambda *t: F.conv2d(*t, **case.arguments), wide, grad)
    found = gradients(lambda *t: FF.conv2d(*t, **case.arguments), given, grad)
    for a, b in zip(found, exact, strict=True):
        assert a.dtype is dtype
        assert error(a, b) <= torch.finfo(dtype).eps  # rounding to nearest errs by eps / 2


@pytest.mark.parametrize("case", FUSED[::2], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_fused_operators_agree_with_float32_on_the_same_values(case: FusedCase, dtype: torch.dtype) -> None:
    def function(*tensors: Tensor) -> Tensor:
        return case.function(*tensors, **case.arguments)

    given = [t.to(dtype) for t in case.conv.tensors() if t is not None]
    ones = torch.ones(()).expand(function(*given).shape)
    output, *found = gradients(function, given, ones)
    wide_output, *expected = gradients(function, [t.float() for t in given], ones)
    for a, b in zip([output, *found], [wide_output, *expected], strict=True):
        assert a.dtype is dtype
        assert torch.equal(a, b.to(dtype))


@pytest.mark.parametrize("case", MAX_POOL2D, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_max_pooling_equals_pytorchs(case: Pool2dCase, dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    x = case.tensor(dtype)
    if x.dim() == 4:
        x = x.to(memory_format=memory_format)
    found = FF.max_pool2d(x, **case.arguments, return_indices=True)
    expected = F.max_pool2d(x, **case.arguments, return_indices=True)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, check_stride=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_mixed_types_raise_pytorchs_errors(dtype: torch.dtype) -> None:
    x, w = torch.randn(1, 2, 5, 5), torch.randn(3, 2, 3, 3)
    for tensors in ((x.to(dtype), w), (x, w.to(dtype)), (x.to(dtype), w.to(dtype), torch.randn(3))):
        assert_refused_alike(FF.conv2d, F.conv2d, *tensors)


# ---- autocast ----

FUNCTIONS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "conv2d": (FF.conv2d, F.conv2d),
    "conv2d_relu": (FF.conv2d_relu, composed),
    "conv2d_relu_max_pool2d": (FF.conv2d_relu_max_pool2d, partial(composed, pool_kernel_size=2)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_autocast_casts_as_pytorch_does(name: str, dtype: torch.dtype, given: torch.dtype) -> None:
    ours, theirs = FUNCTIONS[name]
    tensors = [torch.randn(size).to(given) for size in ((2, 4, 10, 9), (5, 4, 3, 3), (5,))]
    results = []
    for function in (ours, theirs):
        leaves = [t.clone().requires_grad_() for t in tensors]
        with torch.autocast("cpu", dtype):
            output = function(*leaves)
        output.float().sum().backward()
        results.append((output, *(leaf.grad for leaf in leaves)))
    for a, b in zip(*results, strict=True):
        assert isinstance(a, Tensor)
        assert isinstance(b, Tensor)
        assert a.dtype is b.dtype
        eps = max(torch.finfo(dtype).eps, torch.finfo(given).eps)
        torch.testing.assert_close(a, b, rtol=0, atol=4 * eps * b.abs().max().item())


@pytest.mark.parametrize("function", [FF.relu, lambda x: FF.max_pool2d(x, 2)], ids=["relu", "max_pool2d"])
def test_autocast_leaves_pooling_and_relu_in_their_inputs_type(function: Callable[[Tensor], Tensor]) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            assert function(torch.randn(1, 2, 4, 4, dtype=dtype)).dtype is dtype


def test_autocast_works_inside_torch_compile() -> None:
    x, w = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def compiled(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return FF.conv2d_relu(x, w)

    found = compiled(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(found, FF.conv2d_relu(x, w))
    assert found.dtype is torch.bfloat16


def test_mnist_cnn_trains_in_bfloat16() -> None:
    torch.manual_seed(0)
    model = models.MnistCNN()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    x, target = torch.rand(32, 1, 28, 28), torch.arange(32) % 10
    x[torch.arange(32), 0, 2 * target + 4] += 2  # a bright line, whose height is the class
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert {p.dtype for p in model.parameters()} == {torch.float32}
