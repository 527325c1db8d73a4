"""Measure converted networks, and the training of the MNIST CNN, against PyTorch on a GPU.

    python benchmarks/cuda_networks.py             inference and a training step of three networks
    python benchmarks/cuda_networks.py --mnist     images a second in training, with all data on the GPU: a step in a
                                                   CUDA graph, and the loop of ``fastconv train`` by backend

Each network runs twice: called from Python, as most programs do, and replayed from a CUDA graph, which excludes the
time of the CPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import torch
from cuda_measure import Results, microseconds, need, options, set_precision
from networks import NETWORKS, resnet20
from torch import Tensor, nn
from torch.nn import functional as F

import fastconv
from fastconv.benchmarking.ratios import VARIANTS
from fastconv.classifier.config import TrainingConfig
from fastconv.classifier.fit import Training
from fastconv.models import MnistCNN

IMAGES = 60_000


@dataclass(frozen=True)
class Network:
    make: Callable[[], nn.Module]
    images: tuple[int, int, int, int]


MODELS = {
    "MNIST CNN": Network(lambda: MnistCNN(torch.nn), (64, 1, 28, 28)),
    "ResNet-18": Network(NETWORKS["ResNet-18"].make, (32, 3, 224, 224)),
    "VGG-11": Network(NETWORKS["VGG-11-BN"].make, (32, 3, 224, 224)),
}
TINY = {"ResNet-20": Network(resnet20, (2, 3, 8, 8))}


def prepared(network: Network, variant: str, device: str, dtype: torch.dtype) -> tuple[nn.Module, Tensor]:
    """Return the model, converted for fastconv, and images."""
    backend, layout = variant.split()
    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    torch.manual_seed(0)
    model = network.make().to(device, dtype).to(memory_format=memory_format)  # type: ignore[call-overload]
    images = torch.randn(network.images, device=device, dtype=dtype).contiguous(memory_format=memory_format)
    return fastconv.convert(model) if backend == "fastconv" else model, images


def inference(model: nn.Module, images: Tensor) -> Callable[[], object]:
    model.eval()
    return torch.no_grad()(lambda: model(images))


def training(model: nn.Module, images: Tensor) -> Callable[[], object]:
    """Return a step of stochastic gradient descent. It can be captured, because it reads no value from the GPU."""
    model.train()
    target = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)

    def step() -> None:
        loss = F.cross_entropy(model(images), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def measure_networks(arguments: argparse.Namespace) -> None:
    results = Results("Converted networks", arguments)
    for name, network in (TINY if arguments.tiny else MODELS).items():
        for precision in arguments.precision:
            dtype = set_precision(precision)
            for mode in (inference, training):
                models = {v: prepared(network, v, arguments.device, dtype) for v in VARIANTS}
                functions = {variant: mode(*model) for variant, model in models.items()}
                for how, graph in (("from Python", False), ("CUDA graph", True)):
                    times = microseconds(functions, arguments, graph)
                    results.add(f"{name}, batch {network.images[0]}, {mode.__name__}", how, precision, times)


def mnist_step(variant: str, device: str, dtype: torch.dtype, count: int) -> Callable[[], object]:
    """Return a step of the MNIST CNN with Adam. It draws its own batch of 64, so a graph of it gets new images."""
    model, images = prepared(Network(MODELS["MNIST CNN"].make, (count, 1, 28, 28)), variant, device, torch.float32)
    labels = torch.randint(10, (count,), device=device)
    order, at = torch.randperm(count, device=device), torch.zeros((), dtype=torch.int64, device=device)
    batch = torch.arange(64, device=device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, capturable=device == "cuda", fused=True)
    autocast = torch.autocast(device, dtype, enabled=dtype is not torch.float32)

    def step() -> None:
        chosen = order[(at + batch) % count]
        at.add_(64)
        with autocast:
            logits = model(images.index_select(0, chosen))
        optimizer.zero_grad()
        F.cross_entropy(logits.float(), labels.index_select(0, chosen)).backward()
        optimizer.step()

    return step


def training_loop(backend: str, device: str, count: int) -> float:
    """Return the microseconds of a step of ``fastconv train``, with its Python code: the mean of the second epoch.

    Both backends record a step in a CUDA graph, during the first epoch.
    """
    config = TrainingConfig(backend=backend, device=device, epochs=2, validation_split=0.0)
    training = Training(torch.rand(count, 1, 28, 28), torch.randint(10, (count,)), config)
    training.run()
    return round(config.batch_size * 1e6 / training.history[-1].images_per_second, 2)


def measure_mnist(arguments: argparse.Namespace) -> None:
    results = Results("MNIST CNN, a training step of 64 images", arguments)
    for precision in arguments.precision:
        dtype, count = set_precision(precision), 256 if arguments.tiny else IMAGES
        steps = {variant: mnist_step(variant, arguments.device, dtype, count) for variant in VARIANTS}
        times = microseconds(steps, arguments)
        rates = {variant: f"{64e6 / time:,.0f} images/s" for variant, time in times.items()}
        results.add("MNIST CNN, batch 64, training with Adam", "CUDA graph", precision, times)
        print(rates, flush=True)
        if dtype is torch.float32:
            # In turn, twice, because the first one also starts the libraries.
            for _ in range(2):
                loops = {f"{b} channels_last": training_loop(b, arguments.device, count) for b in ("torch", "fastconv")}
            results.add("MNIST CNN, batch 64, training with Adam", "fastconv train", precision, loops)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--mnist", action="store_true", help="the training of the MNIST CNN instead of the networks")
    arguments = parser.parse_args()
    need(arguments.device)
    (measure_mnist if arguments.mnist else measure_networks)(arguments)


if __name__ == "__main__":
    main()
