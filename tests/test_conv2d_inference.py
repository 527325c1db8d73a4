"""The operator conv2d_inference: a convolution with a batch norm, a residual and an activation, against PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import CONV2D, LAYOUTS, LEVELS, THREADS, Conv2dCase, assert_identical, conv, root_mean_square
from sweep import FULL, over
from torch import Tensor
from torch.library import opcheck
from torch.nn import functional as F

from fastconv import _C
from fastconv._ops.conv2d_inference import Activation

operator = torch.ops.fastconv.conv2d_inference
NAN, INF = float("nan"), float("inf")
SLOPE, EPS = 0.125, 1e-3
ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    Activation.NONE: lambda y: y,
    Activation.RELU: F.relu,
    Activation.RELU6: F.relu6,
    Activation.LEAKY_RELU: lambda y: F.leaky_relu(y, SLOPE),
    Activation.HARDSWISH: F.hardswish,
    Activation.SILU: F.silu,
}
#: Whether there is a batch norm, with weight and bias, and the memory format of the residual.
EPILOGUES = [
    (norm, affine, residual)
    for norm, affine in ((True, True), (True, False), (False, False))
    for residual in (None, "contiguous", "channels_last", "batch last")
]
#: One case for each algorithm, with tails of channels, pixels and tiles.
SHAPES = {
    "direct": [
        conv(3, 5, 9, 7, 37, 3, 3, padding=1, stride=2), conv(2, 19, 9, 9, 70, 1, 1),
        conv(2, 34, 6, 7, 66, 3, 3, groups=2),
    ],
    "direct, one channel": [conv(5, 1, 12, 11, 33, 3, 3)],
    "winograd": [conv(2, 3, 9, 7, 5, 3, 3, padding=1), conv(3, 17, 12, 13, 33, 3, 3)],
    "small_output": [conv(3, 16, 9, 7, 37, 3, 2, padding=1, stride=2), conv(1, 32, 4, 4, 7, 1, 1)],
    "image_filter": [conv(2, 3, 11, 23, 3, 3, 5, groups=3, padding=2), conv(3, 2, 9, 18, 4, 2, 3, padding=1)],
    "thin_groups": [
        conv(2, 37, 9, 8, 37, 3, 3, groups=37, padding=1), conv(2, 18, 9, 8, 18, 3, 3, groups=9, padding=1, stride=2),
    ],
}  # fmt: skip

pytestmark = [
    pytest.mark.usefixtures("algorithms_as_measured"),
    pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning"),
]


def geometry(case: Conv2dCase) -> tuple[Any, ...]:
    values = [case.arguments.get(name, default) for name, default in (("stride", 1), ("padding", 0), ("dilation", 1))]
    return (*((v, v) if isinstance(v, int) else v for v in values), case.arguments.get("groups", 1))


class Call:
    """A call of the operator, with random tensors."""

    def __init__(
        self, case: Conv2dCase, epilogue: Any, dtype: torch.dtype, activation: Activation, vectors: Any = None
    ) -> None:
        norm, affine, residual = epilogue
        self.numbers, self.activation = geometry(case), activation
        self.x, self.w, self.b = (t if t is None else t.to(dtype) for t in case.tensors())
        self.w = self.w / (case.C // case.arguments.get("groups", 1) * case.R * case.S) ** 0.5
        self.norm: list[Tensor | None] = [None] * 4
        if norm:
            self.norm[:2] = torch.randn(case.K), torch.rand(case.K) + 0.5
        if affine:
            self.norm[2:] = torch.randn(case.K), 3 * torch.randn(case.K)
        self.norm = [t if t is None else t.to(vectors or dtype) for t in self.norm]
        self.r = None if residual is None else LAYOUTS[residual](2 * torch.randn(self.composed(self.x).shape).to(dtype))

    def composed(self, x: Tensor, dtype: torch.dtype | None = None, complete: bool = False) -> Tensor:
        """PyTorch's operators."""
        w, b, r, *norm = (
            t if t is None or dtype is None else t.to(dtype)
            for t in (self.w, self.b, self.r if complete else None, *self.norm)
        )
        y = F.conv2d(x if dtype is None else x.to(dtype), w, b, *self.numbers)
        if not complete:
            return y
        if norm[0] is not None and y.numel():
            y = F.batch_norm(y, *norm, eps=EPS)
        return ACTIVATIONS[self.activation](y if r is None else y + r)

    def run(self) -> Tensor:
        return operator(self.x, self.w, self.b, *self.norm, self.r, *self.numbers, EPS, int(self.activation), SLOPE)

    def check(self, tolerance: float = 5e-6) -> None:
        exact = self.composed(self.x, torch.float64, True)
        found = self.run()
        assert found.dtype == self.x.dtype
        assert found.stride() == self.composed(self.x).stride() or found.numel() < 2 or 1 in found.shape[1:]
        reduced = found.dtype in (torch.bfloat16, torch.float16)
        allowed = (
            torch.finfo(found.dtype).eps if reduced else tolerance if found.dtype == torch.float32 else 1e-12
        ) * (exact.abs() + 4)
        assert found.shape == exact.shape
        wrong = (found.double() - exact).abs() > allowed
        assert not wrong.any(), (int(wrong.sum()), wrong.nonzero()[:4].tolist())


CASES = [case for case in CONV2D if not isinstance(case.arguments.get("padding"), str)]


# Pairs of values: every combination would be 167,000 calls (14 minutes). All passed once, on 28 November 2026.
@over(
    full=False,
    case=CASES if FULL else CASES[::2],
    epilogue=EPILOGUES,
    activation=ACTIVATIONS,
    types=[(torch.float32, None), (torch.float64, None), (torch.bfloat16, torch.float32), (torch.float16, None)],
    layout=["contiguous", "channels_last", "transposed"],
    level=LEVELS,
)
def test_the_results_are_pytorchs(
    case: Conv2dCase, epilogue: Any, activation: Activation, types: Any, layout: str, level: str
) -> None:
    call = Call(case, epilogue, types[0], activation, types[1])
    call.x = LAYOUTS[layout](call.x)
    tensors = [t for t in (call.x, call.w, call.r, *call.norm) if t is not None]
    before = [t.clone() for t in tensors]
    call.check(2e-5)
    assert_identical(tensors, before)


@over(
    full=False,
    name=SHAPES,
    choice=["always", "never", "torch"],
    epilogue=EPILOGUES,
    activation=ACTIVATIONS,
    layout=["contiguous", "channels_last"],
    band=[0, 1, 300],
    level=LEVELS,
)
def test_every_algorithm_applies_the_epilogue(
    name: str, choice: str, epilogue: Any, activation: Activation, layout: str, band: int, level: str
) -> None:
    forced = ("winograd", "small_output", "image_filter")
    algorithm, others = name if name in forced else "", dict.fromkeys(forced, "never")
    for case in SHAPES[name]:
        chosen = {"torch": "always"} if choice == "torch" else {**others, **({algorithm: choice} if algorithm else {})}
        _C.set_algorithms(chosen, -1, band)
        call = Call(case, epilogue, torch.float32, activation)
        call.x = LAYOUTS[layout](call.x)
        call.check(2e-5)
        if choice == "always":
            numbers = call.numbers
            plan = _C.plan("forward", call.x.shape, call.w.shape, *numbers, channels_last=False)["algorithm"]
            last = _C.plan("forward", call.x.shape, call.w.shape, *numbers, channels_last=True)["algorithm"]
            assert name.split(",")[0] in (plan, last)
        first = call.run()  # the weight is packed, then found in the cache
        assert_identical([call.run(), call.run()], [first, first])


@over(
    name=SHAPES,
    activation=[Activation.NONE, Activation.RELU6, Activation.SILU],
    dtype=[torch.float32, torch.bfloat16],
    layout=["contiguous", "channels_last"],
)
def test_the_results_are_bitwise_the_same_for_every_number_of_threads(
    name: str, activation: Activation, dtype: torch.dtype, layout: str
) -> None:
    _C.set_algorithms({name: "always"} if name in ("winograd", "small_output", "image_filter") else {})
    for case in [*SHAPES[name], conv(2, 16, 40, 37, 33, 3, 3, padding=1)]:
        call, found = Call(case, (True, True, "channels_last"), dtype, activation), []
        call.x = LAYOUTS[layout](call.x)
        for threads in THREADS:
            torch.set_num_threads(threads)
            found.append(call.run())
        assert_identical(found[1:], found[:1] * 3)


VALUES = [
    NAN, INF, -INF, 0.0, -0.0, 1e-40, -1e-40, 1e30, -1e30, 87.0, -87.0, 88.4, -88.4, 88.8, -88.8, 104.0, -104.0, 3.0,
    -3.0, 5.9999995, 6.0, 6.0000005, -2.9999998, 2.9999998, 0.5, -0.5, 1.0, -1.0, 17.3, -17.3,
]  # fmt: skip


@over(
    activation=ACTIVATIONS, dtype=[torch.float32, torch.float64], shape=[(1, 1), (5, 1), (37, 1), (2, 19)], level=LEVELS
)
def test_activations_have_pytorchs_values(activation: Activation, dtype: torch.dtype, shape: Any, level: str) -> None:
    """A convolution that copies its input, in the direct kernel and in the one for thin groups, and a batch norm."""
    K, C = shape
    values = torch.cat([torch.tensor(VALUES), torch.linspace(-20, 20, 226)]).to(dtype)
    x = values.view(1, 1, 16, 16).expand(1, C, 16, 16).contiguous(memory_format=torch.channels_last)
    expected = ACTIVATIONS[activation](values).view(1, 1, 16, 16)
    arguments = (None, None, None, None, None, None, (1, 1), (0, 0), (1, 1))
    vector = torch.zeros(C, dtype=dtype), torch.ones(C, dtype=dtype)
    found = {"batch norm": torch.ops.fastconv.batch_norm(x, None, None, *vector, None, True, 0.0, int(activation))}
    if C == 1:
        found["direct"] = operator(x, torch.ones(K, 1, 1, 1, dtype=dtype), *arguments, 1, EPS, int(activation), SLOPE)
    depthwise = torch.ones(C, 1, 1, 1, dtype=dtype)
    found["depthwise"] = operator(x, depthwise, *arguments, C, EPS, int(activation), SLOPE)
    tolerance = 2e-6 if dtype == torch.float32 else 1e-14
    for name, y in found.items():
        if name == "batch norm" and activation == Activation.LEAKY_RELU:
            continue  # its slope is 0 there
        torch.testing.assert_close(y, expected.expand_as(y), rtol=tolerance, atol=1e-35, equal_nan=True)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_images_that_are_not_finite_get_pytorchs_results(activation: Activation, layout: str, level: str) -> None:
    """Winograd's tiles spread NaN and infinity. Those images are computed again, with their epilogue."""
    for choice in ("always", "never"):
        _C.set_algorithms({"winograd": choice})
        call = Call(conv(4, 16, 9, 8, 19, 3, 3), (True, True, "contiguous"), torch.float32, activation)
        call.x = LAYOUTS[layout](call.x)
        call.x[1, 2, 3, 4], call.x[3, 0, 0, 0], call.x[3, 1, 8, 7] = NAN, INF, -INF
        assert call.r is not None
        call.r[0, 3, 2, 1], call.r[2, 3, 2, 1] = NAN, -INF
        call.norm[3][2] = INF  # type: ignore[index]
        expected = call.composed(call.x, torch.float64, True)
        torch.testing.assert_close(call.run().double(), expected, rtol=1e-4, atol=1e-4, equal_nan=True)


def test_a_batch_norm_after_a_large_bias_is_as_accurate_as_pytorchs() -> None:
    """The bias is subtracted from the mean, and not added to each sum first."""
    call = Call(conv(4, 8, 9, 9, 19, 3, 3), (True, True, None), torch.float32, Activation.NONE)
    assert call.b is not None
    call.b += 1e4
    call.norm[0] = call.b + torch.randn(19)
    exact = call.composed(call.x, torch.float64, True)
    errors = [root_mean_square(y.double() - exact) for y in (call.run(), call.composed(call.x, None, True))]
    assert errors[0] <= errors[1]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_the_operator_passes_opcheck(layout: str) -> None:
    for case in SHAPES["direct"][:1] + SHAPES["thin_groups"][:1]:
        for epilogue in (EPILOGUES[1], EPILOGUES[6], EPILOGUES[8]):
            call = Call(case, epilogue, torch.float32, Activation.RELU)
            x = LAYOUTS[layout](call.x)
            opcheck(operator, (x, call.w, call.b, *call.norm, call.r, *call.numbers, EPS, 1, 0.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_no_images_and_no_channels_give_pytorchs_results(dtype: torch.dtype) -> None:
    Call(conv(0, 3, 8, 8, 4, 3, 3), (True, True, "contiguous"), dtype, Activation.RELU).check()
    call = Call(conv(2, 1, 8, 8, 4, 3, 3), (True, True, "contiguous"), dtype, Activation.SILU)
    call.x, call.w = call.x[:, :0], call.w[:, :0]
    expected = ACTIVATIONS[Activation.SILU](
        F.batch_norm(call.b.double().view(1, 4, 1, 1).expand(2, 4, 6, 6), *[v.double() for v in call.norm], eps=EPS)
        + call.r
    )  # type: ignore[union-attr, arg-type, operator]
    torch.testing.assert_close(call.run().double(), expected, rtol=1e-2, atol=1e-2)


def test_arguments_that_do_not_fit_are_refused() -> None:
    call = Call(conv(2, 3, 8, 8, 4, 3, 3), (True, True, "contiguous"), torch.float32, Activation.RELU)
    r, norm = call.r, call.norm
    assert r is not None
    for name, value, message in [
        ("r", r[:1], r"expected residual of size \[2, 4, 6, 6\] and type Float, but got size \[1, 4, 6, 6\]"),
        ("r", r.double(), "and type Float, but got size .* and type Double"),
        ("norm", [None, *norm[1:]], "expected running_mean and running_var, or neither"),
        *[("norm", [v if i != j else torch.ones(5) for j, v in enumerate(norm)], f"{name} should contain 4 elements")
          for i, name in enumerate(("running_mean", "running_var", "weight", "bias"))],
        ("norm", [*norm[:3], torch.ones(4, 1)], "bias should contain 4 elements not 4"),
        ("norm", [*norm[:3], torch.ones(4).int()], "not implemented for 'Int'"),
        ("activation", 6, "unknown activation 6"),
        ("activation", -1, "unknown activation -1"),
        ("w", call.w.double(), "expected weight of type Float, but got Double"),
        ("x", call.x[:, :2], "to have 3 channels, but got 2 channels instead"),
    ]:  # fmt: skip
        before = getattr(call, name)
        setattr(call, name, value)
        with pytest.raises(RuntimeError, match=message):
            call.run()
        setattr(call, name, before)
    call.check()
