"""The operators in PyTorch's machinery: opcheck, torch.compile, torch.func, threads."""

from __future__ import annotations

import copy
import itertools
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import CONV2D, FUSED, MAX_POOL2D, Conv2dCase, FusedCase, Pool2dCase
from helpers import check_operator
from sweep import over
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import fastconv
import fastconv.functional as FF
from fastconv import models

ours = torch.ops.fastconv
pytestmark = [
    pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
FORMATS = [torch.contiguous_format, torch.channels_last]
Function = Callable[..., Tensor]


def geometry(case: Conv2dCase) -> tuple[Any, ...] | None:
    pairs = []
    for name, default in (("stride", 1), ("padding", 0), ("dilation", 1)):
        value = case.arguments.get(name, default)
        if isinstance(value, str):
            return None
        pairs.append((value, value) if isinstance(value, int) else value)
    return (*pairs, case.arguments.get("groups", 1))


CONVOLUTIONS = [c for c in CONV2D if geometry(c) and c.H < 20][::3]


# Every third case is compiled, each time with other gradients and another memory format of them.
@pytest.mark.parametrize(("number", "case"), [*enumerate(CONVOLUTIONS)], ids=str)
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
def test_convolutions_pass_opcheck(number: int, case: Conv2dCase, memory_format: torch.memory_format) -> None:
    turn = number // 3 if number % 3 == 0 else None
    x, w, b = case.tensors()
    x = x.to(memory_format=memory_format)
    numbers = geometry(case)
    assert numbers is not None
    g = torch.randn_like(ours.conv2d(x, w, b, *numbers))
    check_operator(ours.conv2d, (x, w, b, *numbers), turn is not None)
    for index, needed in enumerate(itertools.product((True, False), repeat=2)):
        check_operator(ours.conv2d_backward, (g, x, w, *needed, *numbers), turn is not None and turn % 4 == index)
    for last in (False, True):
        compiled = turn is not None and turn % 2 == last
        check_operator(ours.conv2d_backward_data, (g, w, tuple(x.shape), *numbers, last), compiled)
        check_operator(ours.conv2d_backward_weight, (g, x, (case.R, case.S), *numbers, last), compiled)


@pytest.mark.parametrize("case", [c for c in MAX_POOL2D if len(c.size) == 4][:6], ids=str)
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
def test_max_pooling_passes_opcheck(case: Pool2dCase, memory_format: torch.memory_format) -> None:
    x = case.tensor().to(memory_format=memory_format)
    names = ("kernel_size", "stride", "padding", "dilation")
    defaults = (case.arguments["kernel_size"], 0, 1)
    values = [case.arguments.get(name, default) for name, default in zip(names, (None, *defaults), strict=True)]
    pairs = [(v, v) if isinstance(v, int) else v for v in values]
    check_operator(ours.max_pool2d, (x, *pairs, case.arguments.get("ceil_mode", False)))
    y, indices = ours.max_pool2d(x, *pairs, case.arguments.get("ceil_mode", False))
    for last in (False, True):
        arguments = (torch.randn_like(y), indices, tuple(x.shape), *pairs, last)
        check_operator(ours.max_pool2d_backward, arguments, last == (memory_format is torch.channels_last))


def windows(pool: dict[str, Any]) -> tuple[Any, ...]:
    """Kernel size, stride, padding and dilation, in pairs."""
    values = [
        pool["kernel_size"],
        pool.get("stride", pool["kernel_size"]),
        pool.get("padding", 0),
        pool.get("dilation", 1),
    ]
    return tuple((value, value) if isinstance(value, int) else value for value in values)


#: The cases that one operator computes and that are fast to check.
SMALL = [c for c in FUSED if geometry(c.conv) and c.conv.W < 60 and (c.pool or {}).get("kernel_size") != 16]


# Every fourth case: Winograd, few channels, padding, dilation, groups, no images. Every third of them is compiled, each
# time with other gradients.
@pytest.mark.parametrize(("number", "case"), [*enumerate(SMALL[::4])], ids=str)
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
def test_fused_operators_pass_opcheck(number: int, case: FusedCase, memory_format: torch.memory_format) -> None:
    turn = number // 3 if number % 3 == 0 else None
    x, w, b = case.conv.tensors()
    x = x.to(memory_format=memory_format)
    numbers = geometry(case.conv)
    assert numbers is not None
    if case.pool is None:
        operator, backward, pool = ours.conv2d_relu, ours.conv2d_relu_backward, ()
        arguments = (x, w, b, *numbers)
    else:
        operator, backward = ours.conv2d_relu_max_pool2d, ours.conv2d_relu_max_pool2d_backward
        pool = windows(case.pool)
        arguments = (x, w, b, *numbers, *pool, case.pool.get("ceil_mode", False))
    check_operator(operator, arguments, turn is not None)
    y, argmax = operator(*arguments)
    for index, needed in enumerate(itertools.product((True, False), repeat=2)):
        inputs = (torch.randn_like(y), argmax, x, w, *needed, *numbers, *pool)
        check_operator(backward, inputs, turn is not None and turn % 4 == index)


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
def test_relu_passes_opcheck(memory_format: torch.memory_format) -> None:
    x = torch.randn(2, 3, 4, 5).to(memory_format=memory_format)
    check_operator(ours.relu, (x,))
    check_operator(ours.relu_, (x.clone(),))
    check_operator(ours.relu_backward, (torch.randn_like(x), x.relu()))
    check_operator(ours.relu_backward, (torch.randn(x.shape), x.relu()))
    check_operator(ours.relu, (x[:, :, 1:],))


def block(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return FF.max_pool2d(FF.relu(FF.conv2d(x, w, b, padding="same")), 2)


def plain_block(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.max_pool2d(F.relu(F.conv2d(x, w, b, padding="same")), 2)


def fused_block(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return FF.conv2d_relu_max_pool2d(x, w, b, padding="same", pool_kernel_size=2)


def fused_block_without_pool(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return FF.conv2d_relu(x, w, b, padding="same")


def plain_block_without_pool(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.relu(F.conv2d(x, w, b, padding="same"))


BLOCKS = [(block, plain_block), (fused_block, plain_block), (fused_block_without_pool, plain_block_without_pool)]
NAMES = ["composed", "fused", "fused without pool"]
every_block = pytest.mark.parametrize(("block", "plain_block"), BLOCKS, ids=NAMES)


def block_tensors(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(2, 3, 8, 8, dtype=dtype), torch.randn(4, 3, 3, 2, dtype=dtype), torch.randn(4, dtype=dtype)


@over(name=NAMES, backend=["aot_eager", "inductor"], dynamic=[False, True])
def test_a_block_compiles_as_one_graph(name: str, backend: str, dynamic: bool) -> None:
    block, plain_block = BLOCKS[NAMES.index(name)]
    if backend == "inductor" and shutil.which(os.environ.get("CXX", "g++")) is None:
        pytest.skip("inductor needs a C++ compiler")
    torch._dynamo.reset()
    compiled = torch.compile(block, fullgraph=True, backend=backend, dynamic=dynamic)
    for size in (8, 9) if dynamic or backend == "aot_eager" else (8,):  # C++ is compiled for each fixed size
        x, w, b = block_tensors()
        x = torch.randn(2, 3, size, 8, dtype=torch.float64)
        leaves = [t.requires_grad_() for t in (x, w, b)]
        y, expected = compiled(*leaves), plain_block(*leaves)
        torch.testing.assert_close(y, expected)
        g = torch.randn_like(y)
        torch.testing.assert_close(torch.autograd.grad(y, leaves, g), torch.autograd.grad(expected, leaves, g))


@pytest.mark.parametrize("transform", ["grad", "jvp"])
@pytest.mark.parametrize(("mine", "theirs"), [(FF.conv2d, F.conv2d), *BLOCKS[1:]])
def test_transforms_inside_of_compiled_code_are_right_or_refused(
    mine: Function, theirs: Function, transform: str
) -> None:
    """Dynamo does not trace a Function with a jvp, but breaks the graph. With tracing, the gradient would be zero."""
    x, w, b = block_tensors()

    def derivative(function: Function, w: Tensor) -> Tensor:
        if transform == "grad":
            return torch.func.grad(lambda w: function(x, w, b).square().sum())(w)
        return torch.func.jvp(lambda w: function(x, w, b), (w,), (torch.ones_like(w),))[1]

    torch._dynamo.reset()
    compiled = torch.compile(lambda w: derivative(mine, w), backend="aot_eager")
    torch.testing.assert_close(compiled(w), derivative(theirs, w))
    with pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(lambda w: derivative(mine, w), backend="aot_eager", fullgraph=True)(w)


def test_relu_in_place_compiles_as_one_graph() -> None:
    torch._dynamo.reset()
    x = torch.randn(3, 4, requires_grad=True)
    y = torch.compile(lambda x: FF.relu(x * 2, inplace=True), fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(y, F.relu(x * 2))
    torch.testing.assert_close(torch.autograd.grad(y.sum(), x)[0], 2.0 * (x > 0))


def test_a_training_step_of_mnist_cnn_compiles_as_one_graph() -> None:
    torch._dynamo.reset()
    model = models.MnistCNN()
    images, labels = torch.rand(4, 1, 28, 28), torch.randint(10, (4,))
    eager = torch.autograd.grad(F.cross_entropy(model(images), labels), list(model.parameters()))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    gradients = torch.autograd.grad(F.cross_entropy(compiled(images), labels), list(model.parameters()))
    torch.testing.assert_close(gradients, eager)


@every_block
@pytest.mark.parametrize(
    "transform",
    [
        lambda f, x, w, b: torch.func.grad(lambda *t: f(*t).square().sum(), argnums=(0, 1, 2))(x, w, b),
        lambda f, x, w, b: torch.func.vmap(lambda image: f(image[None], w, b)[0])(x),
        lambda f, x, w, b: torch.func.vmap(lambda scale: f(x, w * scale, b))(torch.arange(3.0, dtype=x.dtype)),
        lambda f, x, w, b: torch.func.vmap(torch.func.grad(lambda w, image: f(image[None], w, b).sum()), (None, 0))(
            w, x
        ),
        lambda f, x, w, b: torch.func.jacrev(lambda w: f(x, w, b).sum((0, 2, 3)))(w),
        lambda f, x, w, b: torch.func.jacfwd(lambda b: f(x, w, b).sum((0, 2, 3)))(b),
        lambda f, x, w, b: torch.func.hessian(lambda b: f(x, w, b).square().sum())(b),
        lambda f, x, w, b: torch.func.jvp(lambda x, w: f(x, w, b), (x, w), (torch.ones_like(x), torch.ones_like(w))),
    ],
    ids=["grad", "vmap images", "vmap weights", "gradients by image", "jacrev", "jacfwd", "hessian", "jvp"],
)
def test_torch_func_transforms_give_pytorchs_results(
    transform: Callable[..., Any], block: Function, plain_block: Function
) -> None:
    tensors = block_tensors()
    torch.testing.assert_close(transform(block, *tensors), transform(plain_block, *tensors))


@every_block
def test_meta_tensors_have_the_right_size(block: Function, plain_block: Function) -> None:
    x, w = torch.empty(2, 3, 8, 8, device="meta"), torch.empty(4, 3, 3, 3, device="meta", requires_grad=True)
    b = torch.empty(4, device="meta")
    y, expected = block(x, w, b), plain_block(x, w, b)
    assert y.is_meta
    assert y.shape == expected.shape
    assert torch.autograd.grad(y.sum(), w)[0].shape == w.shape


@pytest.mark.parametrize("case", [case for case in FUSED if case.conv.N], ids=str)
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
def test_fused_meta_tensors_have_the_strides_of_real_ones(case: FusedCase, memory_format: torch.memory_format) -> None:
    x, w, b = case.conv.tensors()
    real = case.function(x.to(memory_format=memory_format), w, b, **case.arguments)
    x, w, b = (None if t is None else t.to("meta") for t in (x.to(memory_format=memory_format), w, b))
    meta = case.function(x, w, b, **case.arguments)
    assert (meta.shape, meta.stride(), meta.dtype) == (real.shape, real.stride(), real.dtype)


def test_a_subclass_with_torch_function_sees_pytorchs_functions() -> None:
    class Seeing(torch.Tensor):
        seen: list[Any] = []  # noqa: RUF012

        @classmethod
        def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            cls.seen.append(function)
            return super().__torch_function__(function, types, args, kwargs or {})

    x, w = torch.randn(1, 3, 8, 8).as_subclass(Seeing), torch.randn(4, 3, 3, 3)
    functions: dict[Any, list[Any]] = {
        lambda: FF.relu(FF.conv2d(x, w)): [F.conv2d, F.relu],
        lambda: FF.conv2d_relu(x, w): [F.conv2d, F.relu],
        lambda: FF.conv2d_relu_max_pool2d(x, w): [F.conv2d, F.relu],
        lambda: FF.max_pool2d(x, 2): [F.max_pool2d],
        lambda: FF.batch_norm(x, None, None, training=True): [F.batch_norm],
        lambda: FF.batch_norm_relu(x, None, None, training=True, residual=x): [F.batch_norm, F.relu],
    }
    for function, expected in functions.items():
        Seeing.seen.clear()
        y = function()
        assert isinstance(y, Seeing)
        assert [seen for seen in Seeing.seen if seen in expected] == expected
        assert not any("fastconv" in str(getattr(seen, "__module__", "")) for seen in Seeing.seen)


@every_block
def test_four_python_threads_may_call_at_once(block: Function, plain_block: Function) -> None:
    x, w, b = block_tensors(torch.float32)
    expected = block(x, w, b)
    wrong: list[int] = []

    def work() -> None:
        wrong.extend(i for i in range(50) if not torch.equal(block(x, w, b), expected))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.alone
@pytest.mark.skipif(not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2, reason="one core")
def test_two_threads_share_the_work() -> None:
    script = """
import os, threading, torch, fastconv.functional as FF
torch.set_num_threads(2)
x, w = torch.randn(64, 32, 32, 32), torch.randn(64, 32, 3, 3)
FF.conv2d(x, w)
def seconds():  # of CPU time, of each thread of the process
    times = []
    for task in os.listdir('/proc/self/task'):
        fields = open(f'/proc/self/task/{task}/stat').read().rsplit(')', 1)[1].split()
        times.append((int(fields[11]) + int(fields[12])))
    return sorted(times)
before = seconds()
for _ in range(30):
    FF.conv2d(x, w)
grown = sorted(b - a for a, b in zip(before, seconds()))
print(grown[-2] > 0.4 * grown[-1] > 0)
"""
    # OMP_WAIT_POLICY: a thread that waits must not use CPU time.
    result = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "OMP_WAIT_POLICY": "passive"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert result.stdout.strip() == "True", result.stderr


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * 2


CHECKPOINTED: dict[str, Callable[[], nn.Module]] = {
    "conv": lambda: nn.Conv2d(3, 4, 3),
    "conv, relu": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()),
    "conv, relu, pool": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2)),
    "norm, relu, conv": lambda: nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 8, 3)),
    "norm, relu, pool": lambda: nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2)),
    "norm, silu, conv": lambda: nn.Sequential(nn.BatchNorm2d(3), nn.SiLU(), nn.Conv2d(3, 8, 3)),
    "linear": lambda: nn.Sequential(nn.Linear(8, 6), nn.ReLU()),
}


@pytest.mark.parametrize("with_function", [False, True])
@pytest.mark.parametrize("block", CHECKPOINTED.values(), ids=CHECKPOINTED.keys())
def test_second_gradients_of_a_checkpoint(block: Callable[[], nn.Module], with_function: bool) -> None:
    """A checkpoint unpacks each saved tensor once in a backward pass. A second time is an error."""
    theirs = block()
    mine, x = fastconv.convert(copy.deepcopy(theirs)), torch.randn(2, 3, 8, 8)
    found = []
    for model in (mine, theirs):

        def run(x: Tensor, model: nn.Module = model) -> Tensor:
            y: Tensor = model(x)
            return Doubled.apply(y) if with_function else y  # type: ignore[no-any-return]

        input = x.clone().requires_grad_()
        y = checkpoint(run, input, use_reentrant=False)
        (dx,) = torch.autograd.grad(y.sin().sum(), input, create_graph=True)  # type: ignore[union-attr]
        inputs = [input, *model.parameters()]
        found.append([dx, *torch.autograd.grad(dx.square().sum(), inputs, materialize_grads=True)])
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)
