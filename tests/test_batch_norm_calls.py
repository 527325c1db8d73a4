"""Batch norm in PyTorch's machinery: transforms, opcheck, errors, autograd, fastconv.enabled()."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from helpers import check_operator
from sweep import FULL
from torch import Tensor
from torch.nn import functional as F

import fastconv
import fastconv.functional as FF

ours = torch.ops.fastconv


def composed(*args: Any, residual: Tensor | None = None, **kwargs: Any) -> Tensor:
    """PyTorch's functions in place of FF.batch_norm_relu."""
    y = F.batch_norm(*args, **kwargs)
    return F.relu(y if residual is None else y + residual)


def penalty(f: Any, x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return f(x, None, None, w, b, True).square().sum()


@pytest.mark.parametrize(
    "transform",
    [
        lambda f, *tensors: torch.func.grad(lambda *t: penalty(f, *t), (0, 1, 2))(*tensors),
        lambda f, x, w, b: torch.func.vmap(lambda x: f(x, None, None, w, b, True))(torch.stack([x, 2 * x + 1])),
        lambda f, x, w, b: torch.func.vmap(torch.func.grad(lambda x: f(x, b, b * b, w, None).sum()))(x[:, None]),
        lambda f, x, w, b: torch.func.jvp(lambda x: f(x, None, None, w, b, True), (x,), (x.sin(),)),
        lambda f, x, w, b: torch.func.hessian(lambda w: penalty(f, x, w, b))(w),
    ],
    ids=["grad", "vmap", "gradients by image", "jvp", "hessian"],
)
def test_torch_func_transforms_give_pytorchs_results(transform: Any) -> None:
    tensors = torch.randn(4, 3, 5, 5), torch.randn(3), torch.randn(3)
    for mine, theirs in ((FF.batch_norm, F.batch_norm), (FF.batch_norm_relu, composed)):
        torch.testing.assert_close(transform(mine, *tensors), transform(theirs, *tensors))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_operators_pass_opcheck(memory_format: torch.memory_format, dtype: torch.dtype) -> None:
    x, g, r = (torch.randn(2, 5, 4, 3).to(dtype).contiguous(memory_format=memory_format) for _ in range(3))
    mean, var, weight, bias = torch.randn(5), torch.rand(5) + 0.5, torch.randn(5), torch.randn(5)
    check_operator(ours.batch_norm_statistics, (x, mean, var, 0.1, 1e-5))
    check_operator(ours.batch_norm_statistics, (x[:, :, 1:], None, None, 0.1, 1e-5))
    for activation, (turn, residual) in itertools.product(range(6), enumerate((r, r.contiguous(), None))):
        compiled = activation % 3 == turn
        check_operator(ours.batch_norm, (x, weight, bias, mean, var, residual, False, 1e-5, activation), compiled)
        if activation < 3 and (FULL or activation):
            inputs = (g, x, weight, None, mean, var, residual, True, 1e-5, activation, True, residual is not None)
            check_operator(ours.batch_norm_backward, inputs, compiled)
    check_operator(ours.batch_norm_backward, (g, x, None, bias, mean, var, None, False, 1e-5, 0, False, True))


def test_the_operators_refuse_arguments_that_do_not_fit() -> None:
    x, v = torch.randn(2, 5, 4, 3), torch.ones(5)

    def statistics(*vectors: Tensor | None) -> Any:
        return ours.batch_norm_statistics(x, *vectors, 0.1, 1e-5)

    def backward(g: Tensor, y: Tensor | None, activation: int) -> Any:
        return ours.batch_norm_backward(g, x, v, v, v, v, y, True, 1e-5, activation, True, True)

    for call, message in [
        (lambda: statistics(torch.ones(4), None), "running_mean should contain 5 elements not 4"),
        (lambda: statistics(v, torch.ones(5, 1)), "running_var should contain 5 elements not 5"),
        (lambda: statistics(v, torch.ones(10)[::2]), "expected a contiguous running_var"),
        (lambda: statistics(v.int(), None), "\"batch_norm\" not implemented for 'Int'"),
        (lambda: ours.batch_norm_statistics(torch.ones(3), None, None, 0.1, 1e-5), "at least 2 dimensions"),
        (lambda: ours.batch_norm(x, v[:4], None, v, v, None, True, 1e-5, 0), "weight should contain 5 elements not 4"),
        (lambda: ours.batch_norm(x, v, v, v, v, x[:1], True, 1e-5, 0), r"expected residual of size \[2, 5, 4, 3\]"),
        (lambda: ours.batch_norm(x, v, v, v, v, None, True, 1e-5, 6), "unknown activation 6"),
        (lambda: backward(x[:1], None, 0), "expected grad_output of size"),
        (lambda: backward(x, x.double(), 1), "expected output of size .* and type Float"),
        (lambda: backward(x, None, 3), "batch_norm_backward has no gradient of activation 3"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            call()
    assert torch.equal(v, torch.ones(5))


FLOAT = torch.randn(2, 3, 4, 4)
VECTORS = [torch.ones(2), *[torch.ones(3, dtype=t) for t in (torch.float64, torch.bfloat16, torch.int32)], 1.0]
REFUSED: list[tuple[Any, dict[str, Any]]] = [
    (torch.randn(1, 3), {}), (torch.randn(1, 3, 1, 1), {}), (torch.randn(3), {}), (None, {}), ([1.0], {}),
    (FLOAT.int(), {}), (FLOAT.bool(), {}), (torch.randn(2, 4, 4, 4), {}), (torch.randn(0, 3, 4, 4), {}),
    *[(FLOAT, {name: value}) for name in ("running_mean", "running_var", "weight", "bias") for value in VECTORS],
    (FLOAT, {"running_mean": None, "training": False}), (FLOAT, {"running_var": None, "training": False}),
    *[(FLOAT, {"eps": eps}) for eps in (0.0, -1.0, "1", None)],
    *[(FLOAT, {"momentum": momentum}) for momentum in (None, "1", 1j)],
    *[(FLOAT, {"training": training}) for training in (None, "x")],
]  # fmt: skip


@pytest.mark.parametrize(
    ("x", "changed"), REFUSED, ids=lambda v: str(v)[:60] if isinstance(v, dict) else str(getattr(v, "shape", v))
)
def test_batch_norm_raises_pytorchs_errors_and_changes_nothing_else(x: Any, changed: dict[str, Any]) -> None:
    found = []
    for function in (FF.batch_norm, F.batch_norm, FF.batch_norm_relu, composed):
        vectors = {name: torch.ones(3) for name in ("running_mean", "running_var", "weight", "bias")}
        arguments = {**vectors, "training": True, **changed}
        try:
            function(x, **arguments)
            found.append(("", ""))
        except Exception as error:
            found.append((type(error).__name__, str(error)))
        found[-1] += tuple(v.tolist() for v in vectors.values())  # type: ignore[assignment]
    assert found[0] == found[1]
    assert found[2] == found[3]


def test_running_statistics_that_are_not_contiguous_are_updated_in_place() -> None:
    x, memory = torch.randn(4, 3, 5, 5), torch.zeros(2, 3, 2)
    mean, var = memory[0, :, 0], memory[1, :, 0]
    FF.batch_norm(x, mean, var, training=True)
    plain = torch.zeros(3), torch.zeros(3)
    F.batch_norm(x, *plain, training=True)
    torch.testing.assert_close((mean, var), plain)
    assert not memory[..., 1].any()


def test_autograd_sees_a_change_of_the_input_but_not_of_the_running_statistics() -> None:
    """As in PyTorch."""
    for batch_norm in (FF.batch_norm, F.batch_norm):
        x, mean, var, w = torch.randn(4, 3, 5), torch.zeros(3), torch.ones(3), torch.ones(3, requires_grad=True)
        before = w * mean, w * var
        y = batch_norm(x, mean, var, w, training=True)
        for saved in before:
            saved.sum().backward()
        z = batch_norm(x, mean, var, w)
        batch_norm(x, mean, var, training=True)
        z.sum().backward()
        x.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


def test_only_the_gradients_that_are_needed_are_computed() -> None:
    tensors = [torch.randn(4, 3, 5, 6), torch.randn(3), torch.randn(3), torch.randn(4, 3, 5, 6)]
    for needed in itertools.product((False, True), repeat=4):
        leaves = [t.clone().requires_grad_(n) for t, n in zip(tensors, needed, strict=True)]
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        results = [
            f(leaves[0], None, None, *leaves[1:3], True, residual=leaves[3]) for f in (FF.batch_norm_relu, composed)
        ]
        assert [y.requires_grad for y in results] == [any(needed)] * 2
        if wanted:
            torch.testing.assert_close(
                *[torch.autograd.grad(y, wanted, tensors[3]) for y in results], rtol=1e-4, atol=1e-5
            )


def test_enabled_serves_batch_norm() -> None:
    x = torch.randn(4, 3, 5, 6, requires_grad=True)
    for fuse in (False, True):
        with fastconv.enabled(fuse=fuse):
            y = F.batch_norm(x, None, None, training=True)
            with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
                F.batch_norm(x[:1, :, :1, :1], None, None, training=True)
        assert type(y.grad_fn).__name__ == "BatchNormBackward"
        torch.testing.assert_close(y, F.batch_norm(x, None, None, training=True))
