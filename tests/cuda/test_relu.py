from __future__ import annotations

import pytest
import torch
from cases import LAYOUTS, assert_identical
from devices import FLOATING, Device
from torch.nn import functional as F

NAN, INF = float("nan"), float("inf")
every_dtype = pytest.mark.parametrize("dtype", FLOATING, ids=str)
# Sizes around 16 bytes, and around the 256 threads of a block.
SIZES = [(0,), (1,), (7,), (8,), (17,), (256,), (1023,), (2, 3, 4, 5), (3, 5, 19, 21)]


@every_dtype
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_relu_gives_pytorchs_values(size: tuple[int, ...], dtype: torch.dtype, device: Device) -> None:
    x = torch.randn(size).to(dtype)
    y = device.ops.relu(device.put(x))
    assert_identical([y.cpu()], [F.relu(x)])
    changed = device.put(x.clone())
    device.ops.relu_(changed)
    assert_identical([changed], [y])


@every_dtype
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_relu_backward_gives_pytorchs_gradient(size: tuple[int, ...], dtype: torch.dtype, device: Device) -> None:
    x, g = torch.randint(-2, 3, size).to(dtype).requires_grad_(), torch.randn(size).to(dtype)
    y = F.relu(x)
    (expected,) = torch.autograd.grad(y, x, g)
    assert_identical([device.ops.relu_backward(device.put(g), device.put(y.detach())).cpu()], [expected])


@every_dtype
def test_special_values_give_pytorchs_values_and_gradients(dtype: torch.dtype, device: Device) -> None:
    x = torch.tensor([NAN, -0.0, 0.0, -1.0, 1.0, INF, -INF, 1e-7], dtype=dtype).repeat(9).requires_grad_()
    g = torch.randn(72).to(dtype)
    expected = F.relu(x)
    y = device.ops.relu(device.put(x.detach()))
    assert_identical([y.cpu()], [expected.detach()])
    numbers = ~x.detach().isnan()
    assert torch.equal(torch.signbit(y.cpu())[numbers], torch.signbit(expected.detach())[numbers])
    gradient = device.ops.relu_backward(device.put(g), y)
    assert_identical([gradient.cpu()], list(torch.autograd.grad(expected, x, g)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_memory_layout_gives_pytorchs_result(layout: str, device: Device) -> None:
    x, g = LAYOUTS[layout](torch.randn(2, 17, 9, 10)).requires_grad_(), torch.randn(2, 17, 9, 10)
    expected = F.relu(x)
    (gradient,) = torch.autograd.grad(expected, x, g)
    y = device.ops.relu(device.put(x.detach()))
    assert y.stride() == expected.stride()
    assert_identical([y.cpu()], [expected.detach()])
    for grad_layout in LAYOUTS.values():
        assert_identical([device.ops.relu_backward(device.put(grad_layout(g)), y).cpu()], [gradient])
    changed = device.put(x.detach().clone() if layout != "sliced" else x.detach())
    device.ops.relu_(changed)
    assert_identical([changed], [y])


def test_misaligned_data_gives_pytorchs_result(device: Device) -> None:
    x = torch.randn(1000)
    for offset in range(1, 5):
        y = device.ops.relu(device.put(x)[offset:])
        assert_identical([y.cpu()], [F.relu(x[offset:])])
        whole = device.put(x.clone())
        device.ops.relu_(whole[offset:-1])
        assert_identical([whole.cpu()], [torch.cat([x[:offset], F.relu(x[offset:-1]), x[-1:]])])


def test_invalid_arguments_raise_errors(device: Device) -> None:
    x = device.put(torch.randn(3, 4))
    with pytest.raises(RuntimeError, match="expected grad_output of size"):
        device.ops.relu_backward(x, x[:2])
    with pytest.raises(RuntimeError, match="Please clone"):
        device.ops.relu_(x[:1].expand(3, 4))
    with pytest.raises(RuntimeError, match="not implemented for"):
        device.ops.relu(x.to(torch.complex64))
