"""Packed weights that are kept from call to call: found only by their content, and bounded."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
import torch
from torch import Tensor

import fastconv
import fastconv.functional as FF

kept = fastconv._C.packed_weights
SHAPES = [
    pytest.param((1, 16, 20, 20), (24, 16, 3, 3), id="winograd"),
    pytest.param((1, 64, 5, 5), (128, 64, 3, 3), id="direct"),
    pytest.param((1, 8, 9, 9), (8, 1, 3, 3), id="depthwise"),
]


def convolve(x: Tensor, w: Tensor) -> Tensor:
    return FF.conv2d_relu(x, w, groups=x.shape[1] // w.shape[1])


@pytest.mark.parametrize(("size", "weight_size"), SHAPES)
def test_the_second_sight_keeps_and_the_third_finds(size: tuple[int, ...], weight_size: tuple[int, ...]) -> None:
    x, w = torch.randn(size), torch.randn(weight_size)
    hits = kept()["hits"]  # how many bytes are kept depends on what has to make room
    first, second = convolve(x, w), convolve(x, w)
    assert kept()["hits"] == hits
    third = convolve(x, w.clone())  # another address, the same values
    assert kept()["hits"] == hits + 1
    assert torch.equal(first, second)
    assert torch.equal(first, third)


@pytest.mark.parametrize(("size", "weight_size"), SHAPES)
def test_no_way_to_change_a_weight_goes_unseen(size: tuple[int, ...], weight_size: tuple[int, ...]) -> None:
    x, w = torch.randn(size), torch.nn.Parameter(torch.randn(weight_size))

    def exchange(w: Tensor) -> None:  # the sum, and the values as a set, stay what they are
        flat = w.data.view(-1)
        flat[0], flat[-1] = flat[-1].item(), flat[0].item()

    def behind_its_back(w: Tensor) -> None:
        w.detach().numpy()[0] += 1

    def negate_one(w: Tensor) -> None:
        w.data.view(-1)[w.numel() // 2] *= -1

    with torch.no_grad():
        for change in (exchange, behind_its_back, negate_one, lambda w: w.data.copy_(torch.randn(weight_size))):
            for _ in range(3):
                convolve(x, w)
            change(w)
            expected = convolve(x.double(), w.double())
            torch.testing.assert_close(convolve(x, w).double(), expected, rtol=1e-4, atol=1e-4)


def test_sizes_orders_groups_types_and_levels_are_told_apart() -> None:
    values = torch.ones(16 * 16 * 9)
    x = torch.randn(1, 16, 20, 20)
    weights = [
        values.view(16, 16, 3, 3),
        values.view(16, 16, 3, 3).to(memory_format=torch.channels_last),
        values.view(36, 16, 2, 2),
        values.view(144, 16, 1, 1),
        values.view(144, 16, 1, 1).double(),
        values.view(48, 8, 3, 2),
    ]
    before = fastconv._C.cpu_capability()
    for _ in range(3):
        for level in fastconv._C.cpu_capabilities():
            fastconv._C.set_cpu_capability(level)
            for w in weights:
                found = convolve(x.to(w.dtype), w)
                expected = torch.nn.functional.conv2d(x.double(), w.double(), groups=16 // w.shape[1]).relu()
                torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
    fastconv._C.set_cpu_capability(before)


def test_training_keeps_nothing() -> None:
    x, w = torch.randn(2, 16, 20, 20), torch.randn(16, 16, 3, 3, requires_grad=True)
    start = kept()
    for _ in range(5):
        convolve(x, w).sum().backward()
        with torch.no_grad():
            w -= 0.01 * torch.randn_like(w)
    assert kept()["hits"] == start["hits"]
    assert kept()["bytes"] <= start["bytes"]


def test_threads_may_want_the_same_weight_at_once() -> None:
    x, w = torch.randn(1, 64, 20, 20), torch.randn(64, 64, 3, 3)
    expected = convolve(x, w)
    barrier = threading.Barrier(8)
    found: list[bool] = []

    def work() -> None:
        barrier.wait()
        found.extend(torch.equal(convolve(x, w), expected) for _ in range(20))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 160


FRESH = """
import torch, fastconv, fastconv.functional as FF
kept = fastconv._C.packed_weights
x, w = torch.randn(1, 16, 20, 20), torch.randn(24, 16, 3, 3, requires_grad=True)
for _ in range(3):  # in training, each is another
    FF.conv2d_relu(x, w).sum().backward()
    with torch.no_grad():
        w -= 0.01 * torch.randn_like(w)
print(kept())
FF.conv2d_relu(x, w)
print(kept())
FF.conv2d_relu(x, w)
print(kept()["bytes"] >= w.numel() * 4, kept()["hits"])
"""


def test_a_fresh_process_keeps_what_it_has_seen_twice_and_nothing_else() -> None:
    result = subprocess.run([sys.executable, "-c", FRESH], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == ["{'bytes': 0, 'hits': 0}", "{'bytes': 0, 'hits': 0}", "True 0"]


BOUND = """
import torch, fastconv, fastconv.functional as FF
x = torch.randn(1, 64, 20, 20)
weights = [torch.randn(128, 64, 3, 3) for _ in range(12)]  # half a MB each as Winograd wants them
most = 0
for _ in range(2):
    for w in weights:
        for _ in range(3):
            y = FF.conv2d(x, w)
        torch.testing.assert_close(y, torch.nn.functional.conv2d(x, w), rtol=1e-3, atol=1e-3)
        most = max(most, fastconv._C.packed_weights()["bytes"])
print(most, fastconv._C.packed_weights()["hits"])
"""


@pytest.mark.parametrize(("megabytes", "keeps"), [("2", True), ("0", False)])
def test_what_is_kept_is_bounded(megabytes: str, keeps: bool) -> None:
    environment = {**os.environ, "FASTCONV_CACHE_MB": megabytes}
    result = subprocess.run([sys.executable, "-c", BOUND], env=environment, capture_output=True, text=True, check=True)
    most, hits = map(int, result.stdout.split())
    assert most <= int(megabytes) << 20
    assert (most > 0) is keeps
    assert (hits == 24) is keeps
