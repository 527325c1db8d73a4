"""The layers in programs that trace, export or checkpoint them, or use other processes, threads or wrappers."""

from __future__ import annotations

import copy
import os
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset

import fastconv
from fastconv import nn as fnn

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        fnn.ConvReLUMaxPool2d(1, 8, 3), fnn.Conv2d(8, 8, 3), fnn.ReLU(), fnn.MaxPool2d(2), fnn.ConvReLU2d(8, 16, 3),
        nn.Flatten(), nn.LazyLinear(10),
    )  # fmt: skip


@pytest.fixture
def model() -> nn.Sequential:
    model = network()
    model(images())
    return model


def images(seed: int = 0) -> Tensor:
    return torch.rand(4, 1, 18, 18, generator=torch.Generator().manual_seed(seed))


def gradients(model: nn.Module, x: Tensor, call: Callable[..., Tensor] | None = None) -> list[Tensor]:
    model.zero_grad()
    F.cross_entropy((call or model)(x), torch.arange(4)).backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def assert_equal(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected) > 0
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_an_exported_model_gives_the_same_results(model: nn.Sequential) -> None:
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(model, (images(),), dynamic_shapes=({0: batch},))
    names = {str(node.target) for node in program.graph.nodes if "fastconv" in str(node.target)}
    assert "fastconv.conv2d_relu_max_pool2d.default" in names
    for x in (images(1), images(2)[:3]):
        torch.testing.assert_close(program.module()(x), model(x))


def test_a_traced_model_gives_the_same_results_and_needs_no_fastconv(model: nn.Sequential) -> None:
    traced = torch.jit.trace(model, images())
    assert "fastconv::" not in str(traced.inlined_graph)
    torch.testing.assert_close(traced(images(1)), model(images(1)))
    assert_equal(gradients(traced, images(1)), gradients(model, images(1)))


def test_fake_tensors_pass_through(model: nn.Sequential) -> None:
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True):
        out = model(torch.empty(7, 1, 18, 18))
    assert out.shape == (7, 10)


def test_inference_mode_gives_the_same_results(model: nn.Sequential) -> None:
    expected = model(images())
    with torch.inference_mode():
        found = model(images())
    assert found.is_inference()
    assert torch.equal(found.clone(), expected)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_activations_gives_the_same_gradients(model: nn.Sequential, use_reentrant: bool) -> None:
    expected = gradients(model, images())
    x = images().requires_grad_()
    assert_equal(gradients(model, x, lambda x: checkpoint(model, x, use_reentrant=use_reentrant)), expected)  # type: ignore[arg-type]


def test_copies_and_pickles_give_the_same_gradients(model: nn.Sequential) -> None:
    expected = gradients(model, images())
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_equal(gradients(twin, images()), expected)


def test_eight_threads_at_once_get_the_same_gradients(model: nn.Sequential) -> None:
    models = [copy.deepcopy(model) for _ in range(8)]
    expected = [gradients(m, images(seed)) for seed, m in enumerate(models)]
    found: dict[int, list[Tensor]] = {}
    barrier = threading.Barrier(len(models))

    def work(seed: int) -> None:
        barrier.wait()
        for _ in range(5):
            found[seed] = gradients(models[seed], images(seed))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(len(models))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in range(len(models)):
        assert_equal(found[seed], expected[seed])


def child(threads: int, state: dict[str, Tensor], results: Any) -> None:
    torch.set_num_threads(threads)
    model = network()
    model(images())
    model.load_state_dict(state)
    results.put([g.numpy() for g in gradients(model, images(1))])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_another_process_gets_the_same_gradients(model: nn.Sequential, method: str) -> None:
    torch.set_num_threads(2)
    expected = gradients(model, images(1))  # this also starts the threads of this process
    context = torch.multiprocessing.get_context(method)
    threads = 1 if method == "fork" else 2  # PyTorch: after an OpenMP region, a forked process must use one thread
    if method == "fork":
        torch.set_num_threads(threads)
    results = context.SimpleQueue()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    process = context.Process(target=child, args=(threads, state, results))
    process.start()
    found = [torch.from_numpy(g) for g in results.get()]
    process.join(60)
    assert process.exitcode == 0
    assert_equal(found, expected)


class Features(Dataset[Tensor]):
    """Images that the worker convolves."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Tensor:
        with torch.no_grad():
            return fastconv.functional.conv2d_relu(images(index), torch.ones(3, 1, 3, 3))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_of_a_data_loader_may_call_fastconv(method: str) -> None:
    dataset = Features()
    workers = 2 if method == "fork" else 1  # a process that is spawned imports torch
    loader = DataLoader(dataset, batch_size=2, num_workers=workers, multiprocessing_context=method)
    found = torch.cat(list(loader))
    assert torch.equal(found, torch.stack([dataset[i] for i in range(6)]))


def replica(rank: int, path: str, results: Any) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
    model = network()
    model(images())
    parallel = nn.parallel.DistributedDataParallel(model)
    F.cross_entropy(parallel(images(rank)), torch.arange(4)).backward()
    if rank == 0:
        results.put([p.grad.numpy() for p in model.parameters() if p.grad is not None])
    torch.distributed.barrier()
    os._exit(0)  # the shutdown of gloo's threads sometimes aborts


def test_distributed_data_parallel_averages_the_gradients(model: nn.Sequential, tmp_path: Path) -> None:
    context = torch.multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    processes = [context.Process(target=replica, args=(r, str(tmp_path / "store"), results)) for r in range(2)]
    for process in processes:
        process.start()
    found = [torch.from_numpy(g) for g in results.get()]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    each = [gradients(model, images(rank)) for rank in range(2)]
    assert_equal(found, [(a + b) / 2 for a, b in zip(*each, strict=True)])


def test_a_wrapper_subclass_handles_the_call() -> None:
    x, w = images(), torch.randn(3, 1, 3, 3)
    found = fastconv.functional.conv2d(TwoTensor(x, 2 * x), TwoTensor(w, w))
    assert isinstance(found, TwoTensor)
    torch.testing.assert_close(found.a, F.conv2d(x, w))
    torch.testing.assert_close(found.b, F.conv2d(2 * x, w))


def test_an_in_place_change_of_a_parameter_takes_effect_in_the_next_call(model: nn.Sequential) -> None:
    with torch.inference_mode():
        before = model(images())
    first = model[0]
    assert isinstance(first, fnn.ConvReLUMaxPool2d)
    for change in (lambda w: w.data.mul_(2), lambda w: w.data.copy_(torch.ones_like(w)), lambda w: w.data.zero_()):
        change(first.weight)
        with torch.inference_mode():
            after = model(images())
        assert not torch.equal(after, before)
        before = after
