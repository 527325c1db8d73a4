"""The cache of packed weights. It finds weights only by their content, and its size is limited."""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from forked import Python
from sweep import FULL
from torch import Tensor

import fastconv
import fastconv.functional as FF

packed_weights = fastconv._C.packed_weights
SHAPES = [
    pytest.param((1, 16, 20, 20), (24, 16, 3, 3), id="winograd"),
    pytest.param((1, 64, 5, 5), (128, 64, 3, 3), id="direct"),
    pytest.param((1, 8, 9, 9), (8, 1, 3, 3), id="depthwise"),
]


def convolve(x: Tensor, w: Tensor) -> Tensor:
    return FF.conv2d_relu(x, w, groups=x.shape[1] // w.shape[1])


@pytest.mark.parametrize(("size", "weight_size"), SHAPES)
def test_the_second_call_caches_and_the_third_finds_it(size: tuple[int, ...], weight_size: tuple[int, ...]) -> None:
    x, w = torch.randn(size), torch.randn(weight_size)
    hits = packed_weights()["hits"]  # the bytes may fall if entries are evicted
    first, second = convolve(x, w), convolve(x, w)
    assert packed_weights()["hits"] == hits
    third = convolve(x, w.clone())  # another address, the same values
    assert packed_weights()["hits"] == hits + 1
    assert torch.equal(first, second)
    assert torch.equal(first, third)


@pytest.mark.parametrize(("size", "weight_size"), SHAPES)
def test_every_change_of_a_weight_is_noticed(size: tuple[int, ...], weight_size: tuple[int, ...]) -> None:
    x, w = torch.randn(size), torch.nn.Parameter(torch.randn(weight_size))

    def exchange(w: Tensor) -> None:  # the sum and the set of values stay the same
        flat = w.data.view(-1)
        flat[0], flat[-1] = flat[-1].item(), flat[0].item()

    def write_through_numpy(w: Tensor) -> None:
        w.detach().numpy()[0] += 1

    def negate_one(w: Tensor) -> None:
        w.data.view(-1)[w.numel() // 2] *= -1

    with torch.no_grad():
        for change in (exchange, write_through_numpy, negate_one, lambda w: w.data.copy_(torch.randn(weight_size))):
            for _ in range(3):
                convolve(x, w)
            change(w)
            expected = convolve(x.double(), w.double())
            torch.testing.assert_close(convolve(x, w).double(), expected, rtol=1e-4, atol=1e-4)


# Shapes of weights: small, depthwise, of more than the 64 words that the cache samples for its hint, and for Winograd.
# Weights of few elements have few twins.
TWIN_SIZES = [(1, 1, 1, 1), (2, 1, 3, 3), (3, 2, 1, 5), (8, 1, 3, 3), (4, 3, 5, 5), (16, 16, 3, 3)]
TWINS = 100_000 if FULL else 20_000


def twins(weight: np.ndarray, seed: int) -> Iterator[tuple[bool, np.ndarray]]:
    """Yield arrays that differ a little from `weight`, each with False if a value may be huge or NaN, else True."""
    rng, n, j = np.random.default_rng(seed), weight.size, 0
    while True:
        for kind in ("issue", "signs", "swap", "shift", "pattern", "row", "bit", "byte"):
            twin = weight.copy()
            if kind == "issue":  # an earlier hash missed these changes of signs: it read 64-bit words in eight lanes
                twin[[i for i in (2 * j + 1, 2 * j + 16, 2 * j + 17) if i < n]] *= -1
                j = (j + 1) % n
            elif kind == "signs":
                twin[rng.integers(n, size=rng.integers(1, 5))] *= -1
            elif kind == "swap":
                first, second = rng.integers(n, size=2)
                twin[[first, second]] = twin[[second, first]]
            elif kind == "shift":
                twin = np.roll(twin, rng.integers(n))
            elif kind == "pattern":
                twin *= rng.choice([-1, 1], size=n)
            elif kind == "row":  # one run of elements moves by one
                first = rng.integers(n)
                twin[first : first + 9] = np.roll(twin[first : first + 9], 1)
            elif kind == "bit":
                twin.view(np.uint8)[rng.integers(twin.nbytes)] ^= 1 << rng.integers(8)
            else:
                twin.view(np.uint8)[rng.integers(twin.nbytes)] = rng.integers(256)
            yield kind not in ("bit", "byte"), twin


def test_none_of_many_similar_weights_is_mistaken_for_a_cached_weight() -> None:
    """Each weight is used in a convolution. Values are integers, so that a stale result differs by 1 or more."""
    torch.set_num_threads(1)
    orders = (torch.contiguous_format, torch.channels_last)
    cases = list(itertools.product(TWIN_SIZES, (torch.float32, torch.float64), orders))
    tried = compared = 0
    for index, (size, dtype, order) in enumerate(cases):
        K, C, R, S = size
        groups = K if size == (8, 1, 3, 3) else 1
        x = torch.randint(1, 9, (3, C * groups, 8, 8)).to(dtype)  # one image, or two, might not use the cache
        values = torch.randint(1, 9, (K * C * R * S,)).mul(torch.randint(2, (K * C * R * S,)) * 2 - 1).to(dtype)

        def shaped(values: Tensor, size: tuple[int, ...] = size, order: torch.memory_format = order) -> Tensor:
            K, C, R, S = size
            return values.view(K, R, S, C).permute(0, 3, 1, 2) if order == torch.channels_last else values.view(size)

        for _ in range(4):
            known = FF.conv2d(x, shaped(values), groups=groups)
        hits = packed_weights()["hits"]
        wanted = (TWINS - tried) // (len(cases) - index)
        found, expected, seen = [], [], {hashlib.sha1(values.numpy()).digest()}
        for ordinary, twin in itertools.islice(twins(values.numpy(), index), 4 * wanted):
            if len(seen) > wanted:
                break
            digest = hashlib.sha1(twin).digest()
            if digest in seen:
                continue
            seen.add(digest)
            y = FF.conv2d(x, shaped(torch.from_numpy(twin)), groups=groups)
            if ordinary:
                found.append(y[:1].clone())
                expected.append(torch.from_numpy(twin))
        assert packed_weights()["hits"] == hits, (size, dtype, order)
        for start in range(0, len(found), 500):
            weights = torch.cat([shaped(twin) for twin in expected[start : start + 500]])
            if groups > 1:  # group the twins by channel
                weights = weights.view(-1, K, R, S).transpose(0, 1).reshape(-1, 1, R, S)
            right = torch.nn.functional.conv2d(x[:1], weights, groups=groups)[0]
            rows, columns = right.shape[1:]
            if groups > 1:
                right = right.view(K, -1, rows, columns).transpose(0, 1)
            right = right.reshape(-1, K, rows, columns)
            torch.testing.assert_close(torch.cat(found[start : start + 500]), right, rtol=1e-4, atol=0.1)
        assert torch.equal(FF.conv2d(x, shaped(values), groups=groups), known)
        tried += len(seen) - 1
        compared += len(found)
    assert tried == TWINS
    assert compared > TWINS // 2


def test_views_of_one_memory_are_distinguished() -> None:
    """The weights share their memory or have equal bytes, but other strides, signs, sizes or types."""
    # Random bfloat16 values, whose bits are ordinary numbers in every other type, too.
    x, memory = torch.randn(1, 16, 12, 12), torch.randn(4 * 16 * 16 * 9).bfloat16().view(torch.float32)
    half = memory[: 16 * 16 * 9]
    w = half.view(16, 16, 3, 3)
    weights = [
        w,
        half.view(16, 3, 3, 16).permute(0, 3, 1, 2),
        w.flip(3),
        w.transpose(2, 3),
        w.transpose(0, 1),
        torch._neg_view(w),
        memory[1:][: half.numel()].view(16, 16, 3, 3),
        memory.view(16, 32, 3, 3)[:, ::2],
        memory.view(32, 16, 3, 3)[1::2],
        memory.view(16, 16, 3, 6)[..., ::2],
        memory.view(16, 16, 6, 3)[:, :, 1:4],
        half.view(16, 16, 9, 1),
        half.view(16, 16, 1, 9),
        half.view(144, 16, 1, 1),
        half.view(36, 16, 2, 2),
        half.view(144, 4, 2, 2),
        half.view(torch.float64).view(8, 16, 3, 3),
        half[:1].view(1, 1, 1, 1).expand(16, 16, 3, 3),
        half.view(torch.bfloat16).view(32, 16, 3, 3),
        half.view(torch.float16).view(32, 16, 3, 3),
    ]
    for _ in range(4):
        for w in weights:
            groups = 16 // w.shape[1]
            found = FF.conv2d(x.to(w.dtype), w, groups=groups).double()
            expected = torch.nn.functional.conv2d(x.to(w.dtype).double(), w.double(), groups=groups)
            tolerance = 1e-4 if w.dtype.itemsize >= 4 else 2e-2
            scale = expected.abs().max().item()
            torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * scale)


def test_sizes_orders_groups_types_and_levels_are_distinguished() -> None:
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


def test_training_caches_no_weights() -> None:
    x, w = torch.randn(2, 16, 20, 20), torch.randn(16, 16, 3, 3, requires_grad=True)
    start = packed_weights()
    for _ in range(5):
        convolve(x, w).sum().backward()
        with torch.no_grad():
            w -= 0.01 * torch.randn_like(w)
    assert packed_weights()["hits"] == start["hits"]
    assert packed_weights()["bytes"] <= start["bytes"]


def test_threads_may_use_the_same_weight_at_once() -> None:
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
packed_weights = fastconv._C.packed_weights
x, w = torch.randn(1, 16, 20, 20), torch.randn(24, 16, 3, 3, requires_grad=True)
for _ in range(3):  # in training, each weight is new
    FF.conv2d_relu(x, w).sum().backward()
    with torch.no_grad():
        w -= 0.01 * torch.randn_like(w)
print(packed_weights())
FF.conv2d_relu(x, w)
print(packed_weights())
FF.conv2d_relu(x, w)
print(packed_weights()["bytes"] >= w.numel() * 4, packed_weights()["hits"])
"""


def test_a_new_process_caches_only_a_weight_that_it_has_used_twice(python: Python) -> None:
    assert python(FRESH).stdout.splitlines() == ["{'bytes': 0, 'hits': 0}", "{'bytes': 0, 'hits': 0}", "True 0"]


BOUND = """
import torch, fastconv, fastconv.functional as FF
x = torch.randn(1, 64, 20, 20)
weights = [torch.randn(128, 64, 3, 3) for _ in range(12)]  # half a MB each when packed for Winograd
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
def test_the_cache_is_limited(megabytes: str, keeps: bool, python: Python) -> None:
    done = python(BOUND, environment={"FASTCONV_CACHE_MB": megabytes})
    assert done.returncode == 0, done.stderr
    most, hits = map(int, done.stdout.split())
    assert most <= int(megabytes) << 20
    assert (most > 0) is keeps
    assert (hits == 24) is keeps
