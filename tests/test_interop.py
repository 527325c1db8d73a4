"""Converted models in PyTorch's other tools: torch.fx, quantisation, torch.jit, pruning, printing."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import Python
from torch import Tensor, nn
from torch.ao import quantization
from torch.ao.quantization import quantize_fx
from torch.fx.experimental.optimization import fuse
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.fusion import fuse_conv_bn_eval

import fastconv
from fastconv import nn as fnn

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.* is not supported"),
    pytest.mark.filterwarnings("ignore:Please use quant_min and quant_max"),
    pytest.mark.filterwarnings("ignore:must run observer before calling calculate_qparams"),
    pytest.mark.filterwarnings("ignore:.*TypedStorage is deprecated"),
    pytest.mark.filterwarnings("ignore:.*erase_node.*"),
]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = quantization.QuantStub(), quantization.DeQuantStub()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.features = nn.Sequential(
            nn.Conv2d(16, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()),
        )
        self.down = nn.Module()  # some programs build their blocks like this, without a class
        self.down.conv = nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect")
        self.dense = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.bn1(self.conv1(self.quant(x)))))
        x = self.down.conv(self.features(x))
        return self.dequant(self.dense(x.flatten(1)))


@pytest.fixture
def plain() -> nn.Module:
    torch.manual_seed(0)
    model = Net()
    for _ in range(2):
        model(images())  # moves the batch norm's statistics
    return model.eval()


@pytest.fixture
def model(plain: nn.Module) -> nn.Module:
    converted = fastconv.convert(copy.deepcopy(plain))
    assert type(converted.conv1) is type(converted.down.conv) is fnn.Conv2d
    assert type(converted.features) is fnn.Sequential
    return converted


def images() -> Tensor:
    return torch.randn(2, 3, 16, 16)


def nodes(module: torch.fx.GraphModule) -> list[tuple[str, str, str]]:
    return [(node.op, str(node.target), node.name) for node in module.graph.nodes]


# torch.fx


class EveryModuleIsALeaf(torch.fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return super().is_leaf_module(m, module_qualified_name) or isinstance(m, nn.Sequential)


def test_symbolic_trace_gives_the_graph_of_the_plain_model(plain: nn.Module, model: nn.Module) -> None:
    traced = torch.fx.symbolic_trace(model)
    assert nodes(traced) == nodes(torch.fx.symbolic_trace(plain))
    x = images()
    torch.testing.assert_close(traced(x), plain(x))


def test_custom_tracers_give_the_graph_of_the_plain_model(plain: nn.Module, model: nn.Module) -> None:
    graphs = [torch.fx.GraphModule(m, EveryModuleIsALeaf().trace(m)) for m in (model, plain)]
    assert nodes(graphs[0]) == nodes(graphs[1])
    x = images()
    torch.testing.assert_close(graphs[0](x), plain(x))


def test_a_graph_module_has_torchs_layers_with_the_models_parameters(model: nn.Module) -> None:
    traced = torch.fx.symbolic_trace(model)
    assert type(traced.conv1) is type(traced.down.conv) is nn.Conv2d
    assert type(traced.pool) is nn.MaxPool2d
    assert traced.conv1.weight is model.conv1.weight
    model.conv1.weight = nn.Parameter(torch.zeros_like(model.conv1.weight))
    assert traced.conv1.weight is model.conv1.weight
    assert type(model.conv1) is type(model.down.conv) is fnn.Conv2d  # the model stays converted


def test_a_graph_module_can_be_converted_copied_and_saved(model: nn.Module) -> None:
    model = nn.Sequential(model.conv1, model.bn1)  # fx cannot save string annotations, as Net has
    traced = fastconv.convert(torch.fx.symbolic_trace(model))
    x = images()
    for copied in (traced, copy.deepcopy(traced), pickle.loads(pickle.dumps(traced))):
        assert type(copied.get_submodule("0")) is fnn.Conv2d
        torch.testing.assert_close(copied(x), model(x))


def test_fx_folds_batch_norm_into_a_converted_convolution(plain: nn.Module, model: nn.Module) -> None:
    folded = fuse(model)
    assert nodes(folded) == nodes(fuse(plain))
    assert not any(node.target == "bn1" for node in folded.graph.nodes)
    x = images()
    torch.testing.assert_close(folded(x), plain(x))


def test_fx_replaces_the_relus_of_a_converted_model(plain: nn.Module, model: nn.Module) -> None:
    results = []
    for original in (plain, model):
        traced = torch.fx.symbolic_trace(original)
        for name, module in list(traced.named_modules()):
            if type(module) is nn.ReLU:
                traced.set_submodule(name, nn.GELU())
        results.append(traced(torch.ones(1, 3, 16, 16)))
    torch.testing.assert_close(results[1], results[0])


def test_hooks_stay_at_the_layers_of_a_graph_module(model: nn.Module) -> None:
    seen: list[Any] = []
    model.conv1.register_forward_hook(lambda module, args, output: seen.append(type(output)))
    traced = torch.fx.symbolic_trace(model)
    assert seen == []
    traced(images())
    assert seen == [Tensor]


def test_fused_layers_are_nodes_of_a_graph() -> None:
    network = fastconv.models.MnistCNN()
    traced = torch.fx.symbolic_trace(network)
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"][:3] == ["conv1", "conv2", "conv3"]
    x = torch.rand(2, 1, 28, 28)
    torch.testing.assert_close(traced(x), network(x))


def test_user_subclasses_are_traced_through_like_subclasses_of_torchs_layers() -> None:
    class Doubled(fnn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) * 2

    traced = torch.fx.symbolic_trace(nn.Sequential(Doubled(1, 1, 1)))
    assert "call_module" not in {node.op for node in traced.graph.nodes}
    assert "fastconv" not in repr(Doubled(1, 1, 1))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_layers_are_pickled_by_their_true_name(protocol: int) -> None:
    data = pickle.dumps(fnn.Conv2d(1, 2, 3), protocol)
    assert b"fastconv.nn" in data
    assert type(pickle.loads(data)) is fnn.Conv2d
    assert fnn.Conv2d.__module__ == "fastconv.nn"


# torch.ao.quantization


def calibrated(model: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    for _ in range(3):
        model(images())
    return model


def statically_quantised(model: nn.Module) -> nn.Module:
    fused = quantization.fuse_modules(
        model, [["conv1", "bn1", "relu"], ["features.0", "features.1"], ["features.3.0", "features.3.1"]]
    )
    fused.qconfig = quantization.get_default_qconfig("x86")
    return quantization.convert(calibrated(quantization.prepare(fused)))


def unfused_quantised(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    model.qconfig = quantization.get_default_qconfig("x86")
    model.bn1.qconfig = None
    model.conv1.qconfig = None  # stays in floating point, like everything before the next stub
    model.quant, model.features = nn.Identity(), nn.Sequential(quantization.QuantStub(), *model.features)
    return quantization.convert(calibrated(quantization.prepare(model)))


def trained_quantised(model: nn.Module) -> nn.Module:
    fused = quantization.fuse_modules_qat(model.train(), [["conv1", "bn1", "relu"], ["features.0", "features.1"]])
    fused.qconfig = quantization.get_default_qat_qconfig("x86")
    prepared = quantization.prepare_qat(fused)
    optimizer = torch.optim.SGD(prepared.parameters(), 0.01)
    torch.manual_seed(1)
    for _ in range(2):
        optimizer.zero_grad()
        prepared(images()).square().mean().backward()
        optimizer.step()
    return quantization.convert(prepared.eval())


def fx_quantised(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    model.quant, model.dequant = nn.Identity(), nn.Identity()
    mapping = quantization.get_default_qconfig_mapping("x86")
    return quantize_fx.convert_fx(calibrated(quantize_fx.prepare_fx(model, mapping, (images(),))))


@pytest.mark.parametrize("quantise", [statically_quantised, unfused_quantised, trained_quantised, fx_quantised])
def test_a_converted_model_is_quantised_as_the_plain_one(
    quantise: Callable[[nn.Module], nn.Module], plain: nn.Module, model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.quantized, "engine", "x86")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs, ours = quantise(plain), quantise(model)
    kinds = {name: type(module) for name, module in theirs.named_modules()}
    quantised = [name for name, kind in kinds.items() if "quantized" in kind.__module__ and "Conv" in kind.__name__]
    assert len(quantised) >= 3
    assert {name: str(type(module)) for name, module in ours.named_modules() if name in quantised} == {
        name: str(kinds[name]) for name in quantised
    }
    x = images()
    torch.testing.assert_close(ours(x), theirs(x), atol=0.05, rtol=0.05)  # a few steps of the 8-bit output
    assert type(model.conv1) is fnn.Conv2d  # a copy was quantised


def test_fused_layers_say_that_they_cannot_be_quantised() -> None:
    network = fastconv.models.MnistCNN()
    network.qconfig = quantization.get_default_qconfig("x86")
    with pytest.raises(TypeError, match=r"ConvReLUMaxPool2d cannot be quantised.*qconfig = None"):
        quantization.prepare(network)
    for layer in (network.conv1, network.conv2, network.conv3):
        layer.qconfig = None
    assert type(quantization.prepare(network).conv1) is fnn.ConvReLUMaxPool2d


def test_qconfig_is_an_attribute_like_any_other() -> None:
    layer = fnn.Conv2d(1, 1, 1)
    assert not hasattr(layer, "qconfig")
    layer.qconfig = None
    assert layer.qconfig is None
    assert type(layer) is fnn.Conv2d
    del layer.qconfig
    with pytest.raises(AttributeError, match="qconfig"):
        del layer.qconfig
    layer.qconfig = quantization.default_qconfig
    assert layer.qconfig is quantization.default_qconfig
    assert type(layer) is nn.Conv2d


# torch.jit


def test_script_compiles_a_converted_model_and_does_not_change_it(plain: nn.Module, model: nn.Module) -> None:
    before = {name: type(module) for name, module in model.named_modules()}
    scripted = torch.jit.script(model)
    assert {name: type(module) for name, module in model.named_modules()} == before
    x = images()
    torch.testing.assert_close(scripted(x), plain(x))
    torch.testing.assert_close(torch.jit.trace(model, x)(x), plain(x))


SCRIPTABLE: list[Callable[[], nn.Module]] = [
    fastconv.models.MnistCNN,
    lambda: fnn.ConvReLU2d(1, 4, 3, padding=1, padding_mode="circular"),
    lambda: fnn.ConvReLU2d(1, 4, 3, padding="same", bias=False),
    lambda: fnn.ConvReLUMaxPool2d(1, 4, 3, padding=2, padding_mode="reflect", pool_kernel_size=3, pool_stride=2),
    lambda: fnn.Sequential(fnn.Conv2d(1, 4, 3, stride=2), fnn.ReLU(), fnn.MaxPool2d(2, ceil_mode=True)),
    lambda: fnn.Sequential(fnn.Conv2d(1, 4, 3), fnn.ReLU(inplace=True), nn.Sequential(fnn.MaxPool2d((2, 3), 2))),
]


@pytest.mark.parametrize("make", SCRIPTABLE)
def test_script_gives_the_results_of_the_layers(make: Callable[[], nn.Module]) -> None:
    module = make()
    x = torch.rand(2, 1, 28, 28)
    torch.testing.assert_close(torch.jit.script(module)(x), module(x))


def test_a_scripted_model_loads_without_fastconv(model: nn.Module, tmp_path: Path, python: Python) -> None:
    x = images()
    torch.jit.script(model).save(tmp_path / "model.pt")
    torch.save({"x": x, "y": model(x).detach()}, tmp_path / "values.pt")
    program = (
        "import sys, torch, warnings\nsys.modules['fastconv'] = None\nwarnings.simplefilter('ignore')\n"
        "model, values = torch.jit.load('model.pt'), torch.load('values.pt')\n"
        "torch.testing.assert_close(model(values['x']), values['y'])\n"
    )
    done = python(program, folder=tmp_path)
    assert done.returncode == 0, done.stderr


# Other tools


def test_print_tells_which_layers_are_fastconvs(plain: nn.Module, model: nn.Module) -> None:
    assert "fastconv" not in repr(plain)
    assert "(conv1): fastconv.Conv2d(3, 16, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))" in repr(model)
    assert "(features): fastconv.Sequential(" in repr(model)
    assert "(pool): fastconv.MaxPool2d(" in repr(model)
    assert repr(fnn.ConvReLU2d(1, 2, 3)).startswith("fastconv.ConvReLU2d(1, 2, ")
    assert repr(fastconv.revert(model)) == repr(plain)


def test_print_tells_which_parametrised_layers_are_fastconvs() -> None:
    layer = fastconv.convert(parametrizations.weight_norm(nn.Conv2d(1, 2, 3)))
    assert repr(layer).startswith("fastconv.ParametrizedConv2d(")


def test_fuse_conv_bn_eval_folds_a_converted_convolution(model: nn.Module) -> None:
    folded = fuse_conv_bn_eval(model.conv1, model.bn1)
    x = images()
    torch.testing.assert_close(folded(x), model.bn1(model.conv1(x)))


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        parametrizations.orthogonal,
    ],
)
def test_pruned_and_parametrised_layers_give_torchs_results(change: Callable[[nn.Module], Any]) -> None:
    plain = nn.Conv2d(4, 4, 3)
    ours = fastconv.convert(copy.deepcopy(plain))
    for layer in (plain, ours):
        torch.manual_seed(0)
        change(layer.eval())
    x = torch.randn(2, 4, 9, 9)
    torch.testing.assert_close(ours(x), plain(x))


def test_sync_batch_norm_goes_into_a_converted_model(model: nn.Module) -> None:
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert type(synced.bn1) is nn.SyncBatchNorm
    assert type(synced.conv1) is fnn.Conv2d


def test_a_whole_model_can_be_saved_and_loaded(model: nn.Module) -> None:
    file = io.BytesIO()
    layers = nn.Sequential(model.conv1, model.pool, fnn.ReLU())
    torch.save(layers, file)
    x = images()
    file.seek(0)
    torch.testing.assert_close(torch.load(file, weights_only=False)(x), layers(x))
    file.seek(0)
    allowed = [fnn.Conv2d, fnn.MaxPool2d, fnn.ReLU, nn.Sequential]
    with torch.serialization.safe_globals(allowed):
        torch.testing.assert_close(torch.load(file, weights_only=True)(x), layers(x))


def test_the_profiler_sees_the_operators_and_the_shapes(model: nn.Module) -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile:
        model(images())
    events = profile.key_averages(group_by_input_shape=True)
    shapes = [event.input_shapes[0] for event in events if event.key.startswith("fastconv::conv2d")]
    assert [2, 3, 16, 16] in shapes
