"""The ways to run a network that bench_networks.py compares, and the files that their processes exchange.

``prepare`` writes the weights, the images and the exact outputs of a network to a folder. Each variant has a process of
its own, in which ``make_inference`` or ``make_training`` reads them and returns the functions to time. Both also write
what the checks compare.
"""

from __future__ import annotations

import copy
import importlib.util
import itertools
import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from networks import NETWORKS
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

import fastconv

BASE = "torch channels_last"
NCHW = "torch NCHW"
COMPILE = "torch.compile"
OURS, FROZEN = "fastconv", "fastconv frozen"
ONNX_RUNTIME, OPENVINO = "ONNX Runtime", "OpenVINO"
#: Training and inference, then inference only.
TRAINING = (BASE, NCHW, COMPILE, OURS)
INFERENCE = (*TRAINING, FROZEN, "torch folded", ONNX_RUNTIME, OPENVINO)
#: The networks for which torch.compile runs by default. The compiler needs about 1.5 minutes for a network.
COMPILED = ("ResNet-18",)
#: Seconds to wait after a turn. Measured with two threads: those of ONNX Runtime spin for 0.14 s after a call, those of
#: PyTorch for less than 0.03 s.
PAUSES = {**dict.fromkeys(INFERENCE, 0.05), ONNX_RUNTIME: 0.2}

#: The images of each kind of inference.
BATCHES = {"batch-1": 1, "batch-8": 8}
#: The loss and the running statistics are compared after this number of training steps.
COMPARED_STEPS = 20

Functions = dict[str, Callable[[], object]]


def missing(variant: str) -> str | None:
    """Return why a variant cannot run here."""
    needed = {ONNX_RUNTIME: ("onnxscript", "onnxruntime"), OPENVINO: ("onnxscript", "openvino")}
    for package in needed.get(variant, ()):
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed: pip install 'fastconv[benchmark]'"
    if variant == FROZEN and not hasattr(fastconv, "freeze"):
        return "this version of fastconv has no freeze()"
    return None


def prepare(name: str, folder: Path, with_onnx: bool) -> None:
    """Write state.pt, and model.onnx if it is needed. The outputs in state.pt are computed in float64.

    Batch norm gets random weights and biases, and the statistics of the images. So folding it changes the weights.
    """
    network = NETWORKS[name]
    torch.manual_seed(0)
    model = network.make()
    images = torch.randn(max(*BATCHES.values(), network.training_batch), 3, network.size, network.size)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, std=0.1)
        norm.momentum = 1.0
    with torch.no_grad():
        model(images)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    if with_onnx:
        export_onnx(model.eval(), images[:2], folder / "model.onnx")
    state = {"model": copy.deepcopy(model.state_dict()), "images": images}
    with torch.no_grad():
        state["expected"] = model.double().eval()(images[: max(BATCHES.values())].double())
    torch.save(state, folder / "state.pt")


def export_onnx(model: nn.Module, images: Tensor, path: Path) -> None:
    shapes = ({0: torch.export.Dim("batch")},)
    logging.disable(logging.WARNING)  # the exporter warns that torchvision is not installed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (images,), path, dynamo=True, input_names=["x"], dynamic_shapes=shapes, verbose=False)


def load(name: str, folder: Path, variant: str) -> tuple[nn.Module, Tensor, Tensor]:
    """Return the network in plain PyTorch, the images, and the exact outputs for the first ones in evaluation mode."""
    state = torch.load(folder / "state.pt", weights_only=True)
    torch.manual_seed(0)
    model = NETWORKS[name].make()
    model.load_state_dict(state["model"])
    memory_format = torch.contiguous_format if variant == NCHW else torch.channels_last
    model.to(memory_format=memory_format)  # type: ignore[call-overload]
    return model, state["images"].contiguous(memory_format=memory_format), state["expected"]


def fold_batch_norms(model: nn.Module) -> nn.Module:
    """Fold each batch norm that follows a convolution in the order of the members. Return a copy for evaluation."""
    model = copy.deepcopy(model).eval()
    for module in list(model.modules()):
        for (name, first), (next_name, second) in itertools.pairwise(list(module.named_children())):
            if type(first) is nn.Conv2d and type(second) is nn.BatchNorm2d:
                setattr(module, name, fuse_conv_bn_eval(first, second))
                setattr(module, next_name, nn.Identity())
    return model


def runner(name: str, folder: Path, variant: str, threads: int) -> tuple[Callable[[Any], Any], Tensor, Tensor]:
    """Return a function from images to outputs, the images, and the exact outputs."""
    model, images, expected = load(name, folder, variant)
    model.eval()
    path = folder / "model.onnx"
    if variant == ONNX_RUNTIME:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return lambda x: session.run(None, {"x": x})[0], images, expected
    if variant == OPENVINO:
        import openvino

        core = openvino.Core()
        # By default, OpenVINO computes in bfloat16 on a CPU that has instructions for it.
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "f32",
        }
        compiled = core.compile_model(core.read_model(path), "CPU", settings)
        return lambda x: compiled(x)[0], images, expected
    run: Callable[[Any], Any] = model
    if variant == "torch folded":
        run = fold_batch_norms(model)
    elif variant == COMPILE:
        run = torch.compile(model, dynamic=False)
    elif variant == OURS:
        run = fastconv.convert(model)
    elif variant == FROZEN:
        run = fastconv.freeze(model, record_calls=True)
    return run, images, expected


def make_inference(name: str, folder: Path, variant: str, batches: list[str], threads: int) -> Functions:
    """Return the functions to time, by the names of the batches. Write the largest error of an output."""
    run, images, expected = runner(name, folder, variant, threads)
    uses_numpy = variant in (ONNX_RUNTIME, OPENVINO)

    def function(x: Tensor) -> Callable[[], object]:
        if uses_numpy:
            array = x.contiguous().numpy()
            return lambda: run(array)

        def infer() -> Any:
            with torch.inference_mode():
                return run(x)

        return infer

    functions = {batch: function(images[: BATCHES[batch]].clone()) for batch in batches}
    differences = []
    for batch, infer in functions.items():
        # Twice, because fastconv packs weights in the second call.
        for _ in range(2):
            output = torch.as_tensor(infer())
            differences.append(relative_difference(output, expected[: BATCHES[batch]]))
    (folder / f"{variant}, inference.json").write_text(json.dumps(max(differences)))
    return functions


def make_training(name: str, folder: Path, variant: str, threads: int) -> Functions:
    """Return a training step. After COMPARED_STEPS of them, write the loss and the running statistics."""
    step, model = training(name, folder, variant)
    steps = 0

    def counted() -> None:
        nonlocal steps
        if steps == COMPARED_STEPS:
            statistics = {key: value.clone() for key, value in model.state_dict().items() if "running_" in key}
        loss = step()
        if steps == COMPARED_STEPS:
            torch.save({"loss": loss.item(), "statistics": statistics}, folder / f"{variant}, training.pt")
        steps += 1

    return {"training": counted}


def training(name: str, folder: Path, variant: str) -> tuple[Callable[[], Tensor], nn.Module]:
    """Return a function that does forward, cross-entropy, backward and SGD with momentum, and the network."""
    model, images, outputs = load(name, folder, variant)
    images = images[: NETWORKS[name].training_batch]
    _, classes, *pixels = outputs.shape
    labels = torch.randint(classes, (len(images), *pixels), generator=torch.Generator().manual_seed(1))
    if variant == OURS:
        fastconv.convert(model)
    model.train()
    run = torch.compile(model, dynamic=False) if variant == COMPILE else model
    optimizer = torch.optim.SGD(model.parameters(), NETWORKS[name].learning_rate, momentum=0.9)
    steps = 0

    def step() -> Tensor:
        nonlocal steps
        torch.manual_seed(steps)  # for dropout
        steps += 1
        optimizer.zero_grad()
        loss = F.cross_entropy(run(images), labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step, model


def relative_difference(actual: Tensor, expected: Tensor) -> float:
    """Return the largest difference over the largest expected value."""
    if actual.shape != expected.shape:
        raise ValueError(f"the shape must be {tuple(expected.shape)}, not {tuple(actual.shape)}")
    return float((actual - expected).abs().max() / expected.abs().max())
