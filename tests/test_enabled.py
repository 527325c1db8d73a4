"""fastconv.enabled(): the calls that it routes to fastconv, and the calls and threads that it does not affect."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastconv

torch.manual_seed(0)  # pytest seeds only the tests themselves
x = torch.randn(2, 3, 9, 8)
w = torch.randn(4, 3, 3, 3)

#: Every way to call each function, and the name of the gradient function if fastconv computes it.
WAYS: list[tuple[str, Callable[[Tensor], Tensor]]] = [
    ("Conv2d", lambda x: F.conv2d(x, w, padding=1)),
    ("Conv2d", lambda x: torch.conv2d(x, w, stride=2)),
    ("Conv2d", lambda x: torch.conv2d(input=x, weight=w, dilation=2)),
    ("Conv2d", nn.Conv2d(3, 4, 3)),
    ("Conv2d", nn.Conv2d(3, 4, 3, padding=2, padding_mode="reflect")),
    ("Squeeze", lambda x: F.conv2d(x[0], w)),
    ("MaxPool2d", lambda x: F.max_pool2d(x, 2)),
    ("MaxPool2d", lambda x: F.max_pool2d(x, 2, return_indices=True)[0]),
    ("MaxPool2d", lambda x: F.max_pool2d_with_indices(x, 2)[0]),
    ("MaxPool2d", lambda x: torch.max_pool2d(x, (2, 3))),
    ("MaxPool2d", lambda x: torch.max_pool2d(x, 3, stride=1)),
    ("MaxPool2d", nn.MaxPool2d(2, padding=1)),
    ("ReLU", F.relu),
    ("ReLU", torch.relu),
    ("ReLU", Tensor.relu),
    ("ReLU", nn.ReLU()),
    ("ReLU", lambda x: F.relu(x.clone(), inplace=True)),
    ("ReLU", lambda x: F.relu_(x.clone())),
    ("ReLU", lambda x: torch.relu_(x.clone())),
    ("ReLU", lambda x: x.clone().relu_()),
    ("ReLU", lambda x: nn.ReLU(inplace=True)(x.clone())),
]


@pytest.mark.parametrize(("name", "call"), WAYS)
def test_every_way_to_call_a_function_is_routed_and_agrees(name: str, call: Callable[[Tensor], Tensor]) -> None:
    torchs, ours = x.clone().requires_grad_(), x.clone().requires_grad_()
    expected = call(torchs)
    with fastconv.enabled():
        found = call(ours)
    assert name in type(found.grad_fn).__name__
    torch.testing.assert_close(found, expected)
    grad = torch.randn_like(expected)
    expected.backward(grad)
    found.backward(grad)
    torch.testing.assert_close(ours.grad, torchs.grad)


def is_routed() -> bool:
    name = type(torch.relu(x.clone().requires_grad_()).grad_fn).__name__
    return name == "ReLUBackward"  # PyTorch's is called ReluBackward0


def test_enabled_nests_and_ends() -> None:
    context = fastconv.enabled()
    assert not is_routed()
    with context:
        with context, fastconv.enabled():
            assert is_routed()
        assert is_routed()
    assert not is_routed()


def test_enabled_ends_with_an_exception() -> None:
    with pytest.raises(ValueError, match="mine"), fastconv.enabled():
        raise ValueError("mine")
    assert not is_routed()


def test_enabled_decorates_recursive_functions() -> None:
    @fastconv.enabled()
    def depth(n: int) -> bool:
        """Its words."""
        return is_routed() if n == 0 else depth(n - 1) and is_routed()

    assert depth(3)
    assert not is_routed()
    assert depth.__name__ == "depth"
    assert depth.__doc__ == "Its words."


def test_enabled_does_not_affect_other_threads() -> None:
    found: dict[str, bool] = {}
    inside, done = threading.Event(), threading.Event()

    def enable() -> None:
        with fastconv.enabled():
            inside.set()
            done.wait()
            found["enabled"] = is_routed()

    thread = threading.Thread(target=enable)
    thread.start()
    inside.wait()
    found["other"] = is_routed()
    done.set()
    thread.join()
    assert found == {"enabled": True, "other": False}


def test_a_decorated_function_runs_in_several_threads_at_once() -> None:
    barrier = threading.Barrier(4)
    found = []

    @fastconv.enabled()
    def inside() -> None:
        barrier.wait()
        found.append(is_routed())
        barrier.wait()

    threads = [threading.Thread(target=inside) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 4
    assert not is_routed()


def test_fastconvs_own_functions_still_work() -> None:
    with fastconv.enabled():
        assert type(fastconv.functional.relu(x.clone().requires_grad_()).grad_fn).__name__ == "ReLUBackward"


def test_a_tensor_subclass_keeps_its_own_rules() -> None:
    class Named(Tensor):
        pass

    with fastconv.enabled():
        found = torch.relu(x.as_subclass(Named))
    assert type(found) is Named
    assert torch.equal(found.as_subclass(Tensor), torch.relu(x))


def test_calls_that_fastconv_does_not_support_go_to_pytorch() -> None:
    z = torch.randn(2, 3, 9, 8, dtype=torch.complex64)
    with fastconv.enabled():
        found = F.conv2d(z, w.to(torch.complex64))
        with pytest.raises(RuntimeError, match="clamp is not supported for complex types"):
            torch.relu(z)
    assert torch.equal(found, F.conv2d(z, w.to(torch.complex64)))


def test_a_model_compiles_as_one_graph() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with fastconv.enabled():
        torch.testing.assert_close(compiled(x), model(x))
