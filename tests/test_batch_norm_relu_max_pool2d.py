"""The operator batch_norm_relu_max_pool2d, against PyTorch, float64 and fastconv's operators."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from cases import LAYOUTS, LEVELS, MAX_POOL2D, THREADS, Pool2dCase, assert_as_accurate, assert_identical, with_gradients
from helpers import check_operator
from sweep import over
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F

import fastconv.functional as FF
from fastconv._ops import batch_norm as _batch_norm
from fastconv._ops.arguments import fused_pool_arguments
from fastconv._ops.batch_norm_relu_max_pool2d import batch_norm_relu_max_pool2d

ours = torch.ops.fastconv
NAN, INF = float("nan"), float("inf")
DTYPES = [torch.float32, torch.float64]
CASES = [case for case in MAX_POOL2D if len(case.size) == 4 and math.prod(case.size) > 1]
#: Tails of planes and channels, a tile of some rows of a large image, and planes of less than one vector.
CASES += [
    Pool2dCase((2, 70, 33, 35), {"kernel_size": 2}),
    Pool2dCase((1, 3, 130, 150), {"kernel_size": 3, "stride": 2, "padding": 1}),
    Pool2dCase((1, 65, 40, 37), {"kernel_size": (4, 2), "padding": (2, 0)}),
    Pool2dCase((1, 2, 33, 31), {"kernel_size": (15, 17)}),  # 255 positions
]


def pool_of(arguments: dict[str, Any]) -> Any:
    defaults = {"stride": None, "padding": 0, "dilation": 1, "ceil_mode": False}
    return fused_pool_arguments(**{**defaults, **arguments})


def fused(x: Tensor, weight: Tensor | None, bias: Tensor | None, training: bool = True, **arguments: Any) -> Tensor:
    """Call the operator, with a mean of 0.3 and a variance of 2 if they are constants."""
    mean, spread = torch.full((2, x.shape[1]), 0.3, dtype=x.dtype)
    spread.fill_(2)
    if training:
        mean, spread = _batch_norm.statistics(x, None, None, 0.1, 1e-5)
    return batch_norm_relu_max_pool2d(x, weight, bias, mean, spread, training, 1e-5, pool_of(arguments))


def composed(
    functions: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, training: bool = True, **arguments: Any
) -> Tensor:
    """The same by three functions of ``functions``."""
    mean, var = torch.full((2, x.shape[1]), 0.3, dtype=x.dtype)
    var.fill_(2)
    running = (None, None) if training else (mean, var)
    y = functions.relu(functions.batch_norm(x, *running, weight, bias, training))
    return functions.max_pool2d(y, **arguments)  # type: ignore[no-any-return]


def gradient_of(case: Pool2dCase, dtype: torch.dtype) -> Tensor:
    return torch.randn(F.max_pool2d(torch.zeros(case.size), **case.arguments).shape).to(dtype)


# Few channels: the error of a channel's sum may be more than twice an even smaller one.
@over(
    case=[case for case in CASES if case.size[1] > 2], layout=LAYOUTS, affine=[True, False], training=[True, False],
    level=LEVELS,
)  # fmt: skip
def test_values_and_gradients_are_as_accurate_as_pytorchs(
    case: Pool2dCase, layout: str, affine: bool, training: bool, level: str
) -> None:
    x, C = LAYOUTS[layout](torch.randn(case.size) * 3 + 1), case.size[1]
    vectors = (torch.randn(C), torch.randn(C)) if affine else (None, None)
    g, options = gradient_of(case, torch.float32), {"training": training, **case.arguments}
    double = [None if t is None else t.double() for t in (x, *vectors)]
    exact = with_gradients(lambda *t, **o: composed(F, *t, **o), double, g.double(), **options)
    expected = with_gradients(lambda *t, **o: composed(F, *t, **o), (x, *vectors), g, **options)
    found = with_gradients(fused, (x, *vectors), LAYOUTS[layout](g), **options)
    assert [t.stride() for t in found] == [t.stride() for t in expected]
    assert_as_accurate(found, expected, exact)


@over(case=CASES, layout=LAYOUTS, dtype=DTYPES, special=[None, NAN, INF, -INF, 0.0], level=LEVELS)
def test_every_bit_is_that_of_the_operators_that_are_not_fused(
    case: Pool2dCase, layout: str, dtype: torch.dtype, special: float | None, level: str
) -> None:
    """With small integers, windows have ties. With a weight of 0, all values of a channel are equal, or -0.0."""
    x, C = case.tensor(dtype), case.size[1]
    if special is not None:
        x[torch.rand(x.shape) < 0.1] = special
    weight, bias = torch.randn(C).to(dtype), torch.randn(C).to(dtype)
    weight[::3] = 0
    bias[::2] = -0.0
    g = gradient_of(case, dtype)
    for training in (False, True):
        options, tensors = {"training": training, **case.arguments}, (LAYOUTS[layout](x), weight, bias)
        found = with_gradients(fused, tensors, LAYOUTS[layout](g), **options)
        expected = with_gradients(lambda *t, **o: composed(FF, *t, **o), tensors, LAYOUTS[layout](g), **options)
        assert_identical(found, expected)
        assert torch.equal(found[0].signbit(), expected[0].signbit())


@pytest.mark.parametrize(
    ("window", "position"),
    [
        ([[1, 2], [2, 2]], 1),
        ([[1, NAN], [3, 4]], 1),
        ([[2, NAN], [NAN, 1]], 2),
        ([[-1, 0], [-3, -INF]], 255),
        ([[-1, 0], [0, INF]], 3),
        ([[2**-31, 2**-30], [0, -(2**-30)]], 0),  # With the bias, all are 1.
    ],
)
def test_argmax_is_the_first_of_the_rounded_maxima(window: list[list[float]], position: int, level: str) -> None:
    for channels in (1, 3, 40):
        x = torch.tensor(window, dtype=torch.float32).expand(1, channels, 2, 2)
        mean, var, bias = torch.zeros(channels), torch.ones(channels), torch.ones(channels)
        for layout in ("contiguous", "channels_last"):
            operands = LAYOUTS[layout](x), None, None if position == 255 else bias, mean, var
            argmax = ours.batch_norm_relu_max_pool2d(*operands, False, 1e-9, (2, 2), (2, 2), (0, 0), (1, 1), False)[1]
            assert argmax.flatten().tolist() == [position] * channels


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("case", [*CASES, Pool2dCase((40, 70, 28, 27), {"kernel_size": 2})], ids=str)
def test_the_operator_is_bitwise_the_same_for_every_number_of_threads(case: Pool2dCase, layout: str) -> None:
    x, C = LAYOUTS[layout](torch.randn(case.size)), case.size[1]
    tensors, g, found = (x, torch.randn(C), torch.randn(C)), gradient_of(case, torch.float32), []
    for threads in THREADS:
        torch.set_num_threads(threads)
        found.append(with_gradients(fused, tensors, g, **case.arguments))
    for other in found[1:]:
        assert_identical(found[0], other)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("arguments", [{"kernel_size": 2}, {"kernel_size": 3, "stride": 2, "padding": 1}], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_the_operator_passes_gradcheck_in_first_and_second_order(
    arguments: dict[str, Any], training: bool, layout: str
) -> None:
    # Finite differences are wrong at ties and where ReLU bends, so all values are apart.
    x = torch.randperm(2 * 3 * 4 * 5).double().view(2, 3, 4, 5) / 20 + 0.013
    w, b = torch.tensor([1.5, -0.7, 0.9]).double(), torch.tensor([0.11, 0.23, -0.31]).double()
    inputs = [t.requires_grad_() for t in (LAYOUTS[layout](x), w, b)]
    function = lambda *t: fused(*t, training=training, **arguments)  # noqa: E731
    assert gradcheck(function, inputs, check_batched_grad=True)
    assert gradgradcheck(function, inputs)


def test_only_the_gradients_that_are_needed_are_computed() -> None:
    tensors = torch.randn(4, 3, 5, 6), torch.randn(3), torch.randn(3)
    for needed in range(1, 8):
        leaves = [t.clone().requires_grad_(bool(needed >> i & 1)) for i, t in enumerate(tensors)]
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        grads = [torch.autograd.grad(f(*leaves, kernel_size=2).sum(), wanted) for f in (fused, composed_by_torch)]
        torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)
    assert not fused(*tensors, kernel_size=2).requires_grad


def composed_by_torch(*tensors: Tensor, **arguments: Any) -> Tensor:
    return composed(F, *tensors, **arguments)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_operators_pass_opcheck(memory_format: torch.memory_format, dtype: torch.dtype) -> None:
    x = torch.randn(2, 5, 8, 7).to(dtype).contiguous(memory_format=memory_format)
    mean, var, weight = torch.randn(5), torch.rand(5) + 0.5, torch.randn(5).to(dtype)
    windows = (3, 3), (2, 2), (1, 1), (1, 1)
    for vectors, up in (((weight, weight), False), ((None, None), True)):
        arguments = (x, *vectors, mean, var, False, 1e-5, *windows, up)
        check_operator(ours.batch_norm_relu_max_pool2d, arguments)
        y, argmax = ours.batch_norm_relu_max_pool2d(*arguments)
        backward = (y, argmax, x, vectors[0], mean, var, True, 1e-5, not up, *windows)
        check_operator(ours.batch_norm_relu_max_pool2d_backward, backward)


def test_the_operators_refuse_arguments_that_do_not_fit() -> None:
    x, v, bytes_ = torch.randn(2, 5, 4, 4), torch.ones(5), torch.zeros(2, 5, 2, 2, dtype=torch.uint8)
    kernel: Any = (2, 2)

    def forward(x: Tensor = x, weight: Tensor | None = None, kernel: Any = kernel) -> Any:
        return ours.batch_norm_relu_max_pool2d(x, weight, None, v, v, True, 1e-5, kernel, kernel, (0, 0), (1, 1), False)

    def backward(g: Tensor = x[:, :, :2, :2], argmax: Tensor = bytes_) -> Any:
        return ours.batch_norm_relu_max_pool2d_backward(
            g, argmax, x, v, v, v, True, 1e-5, True, kernel, kernel, (0, 0), (1, 1)
        )

    forward(), backward()
    for call, message in [
        (lambda: forward(x[0]), "mean should contain 4 elements not 5"),
        (lambda: forward(x[:, :, 0]), "expected a 4-dimensional input"),
        (lambda: forward(x.bfloat16()), "\"batch_norm_relu_max_pool2d\" not implemented for 'BFloat16'"),
        (lambda: forward(weight=v[:4]), "weight should contain 5 elements not 4"),
        (lambda: forward(kernel=(16, 16)), "expected a pool of at most 255 pixels"),
        (lambda: forward(kernel=(5, 1)), "Output size is too small"),
        (lambda: backward(x), "expected grad_output and argmax of size"),
        (lambda: backward(argmax=bytes_.int()), "expected argmax of type Byte"),
        (lambda: backward(x[:, :, :2, :2].double()), "expected grad_output of type Float, but got Double"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            call()


def test_bytes_outside_of_the_window_or_the_image_pass_no_gradient() -> None:
    x, v = torch.randn(1, 3, 5, 5), torch.ones(3)
    for layout in ("contiguous", "channels_last"):
        argmax = LAYOUTS[layout](torch.tensor([0, 200, 255]).view(1, 3, 1, 1).expand(1, 3, 3, 3).to(torch.uint8))
        pool = (3, 3), (2, 2), (1, 1), (1, 1)
        dx, _, db = ours.batch_norm_relu_max_pool2d_backward(
            torch.ones(1, 3, 3, 3), argmax, LAYOUTS[layout](x), v, v, v, False, 0.0, True, *pool
        )
        assert db.tolist() == [4.0, 0.0, 0.0]  # Position 0 of the other windows is in the padding.
        assert dx.sum((0, 2, 3)).tolist() == [4.0, 0.0, 0.0]
