"""The benchmark of known networks: the networks, its variants, its checks and its tables."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rich")
sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import bench_networks
import network_checks
import network_report
import network_variants
import networks
import torch
import train_resnet20
from network_variants import BASE, COMPARED_STEPS, OURS
from torch import nn

import fastconv

#: As published with torchvision's or transformers' weights, with two exceptions. The U-Net is narrower than the
#: published one. ViT-S has 65 positions for images of 128 x 128, and not 197.
PARAMETERS = {
    "ResNet-18": 11_689_512,
    "ResNet-50": 25_557_032,
    "VGG-11-BN": 132_868_840,
    "MobileNetV1": 4_231_976,
    "MobileNetV2": 3_504_872,
    "RegNetY-400MF": 4_344_144,
    "ConvNeXt-T": 28_589_128,
    "ViT-S": 22_050_664 - (197 - 65) * 384,
    "DenseNet-121": 7_978_856,
    "U-Net": 1_942_917,
    "CIFAR ResNet-20": 272_474,
}
SMALL = networks.Network(networks.resnet20, size=16, training_batch=4)


def make(name: str) -> nn.Module:
    network = networks.NETWORKS[name]
    if network.package:
        pytest.importorskip(network.package, reason="make bench-networks installs it")
    return network.make()


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the state of a small network, whose name is "small"."""
    monkeypatch.setitem(networks.NETWORKS, "small", SMALL)
    network_variants.prepare("small", tmp_path, with_onnx=False)
    return tmp_path


def record(mode: str, **found: Any) -> network_checks.Record:
    empty: Any = {"network": "net", "mode": mode, "seconds": {}, "checks": {}, "megabytes": {}}
    return {**empty, **found}


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_networks_have_the_published_numbers_of_parameters(name: str) -> None:
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in make(name).parameters()) == PARAMETERS[name]


def test_every_network_is_checked() -> None:
    assert set(networks.NETWORKS) == set(PARAMETERS)


@pytest.mark.parametrize("name", ["ResNet-18", "MobileNetV1", "MobileNetV2", "RegNetY-400MF", "narrow U-Net"])
def test_folding_and_converting_do_not_change_the_outputs(name: str) -> None:
    torch.manual_seed(0)
    model = (networks.UNet(width=8) if name == "narrow U-Net" else make(name)).double()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
        model(images)
        expected = model.eval()(images)
        folded = network_variants.fold_batch_norms(model)
        assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
        assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
        torch.testing.assert_close(folded(images), expected)
        torch.testing.assert_close(fastconv.convert(model)(images), expected)


def test_a_batch_norm_without_a_convolution_before_it_is_not_folded() -> None:
    torch.manual_seed(0)
    model = networks.DenseLayer(8, 4).double()
    images = [torch.randn(2, 8, 6, 6, dtype=torch.float64)]
    model(images)
    folded = network_variants.fold_batch_norms(model)
    assert [name for name, module in folded.named_children() if isinstance(module, nn.BatchNorm2d)] == ["norm1"]
    torch.testing.assert_close(folded(images), model.eval()(images))


@pytest.mark.parametrize("variant", [BASE, "torch NCHW", "torch folded", OURS])
def test_a_variant_writes_how_far_its_outputs_are_from_the_exact_ones(variant: str, prepared: Path) -> None:
    functions = network_variants.make_inference("small", prepared, variant, ["batch-1", "batch-8"], 1)
    outputs: Any = {name: function() for name, function in functions.items()}
    assert {name: len(output) for name, output in outputs.items()} == {"batch-1": 1, "batch-8": 8}
    assert network_checks.inference_checks(prepared, [variant])[variant]["difference"] < 1e-5


def test_the_difference_of_a_wrong_variant_is_large(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_variants.fastconv, "convert", lambda model: nn.Sequential(model, nn.ReLU()))
    network_variants.make_inference("small", prepared, OURS, ["batch-8"], 1)
    checks = network_checks.inference_checks(prepared, [OURS])
    assert len(network_checks.failures([record("batch-8", checks=checks)])) == 1


def test_loss_and_running_statistics_are_compared_after_some_steps(prepared: Path) -> None:
    steps = {name: network_variants.make_training("small", prepared, name, 1)["training"] for name in (BASE, OURS)}
    for step in steps.values():
        for _ in range(COMPARED_STEPS):
            step()
    assert network_checks.training_checks(prepared, steps) == {}
    for step in steps.values():
        step()
    checks = network_checks.training_checks(prepared, steps)
    assert checks[BASE] == {"loss": 0, "statistics": 0}
    assert network_checks.failures([record("training", checks=checks)]) == []


def test_differences_that_are_too_large_or_nan_are_failures() -> None:
    checks = {
        BASE: {"difference": 0.0},
        OURS: {"difference": 2e-5, "loss": float("nan"), "statistics": 1e-6},
        "ONNX Runtime": {"difference": 2e-5},
        "OpenVINO": {"difference": 1e-2},
        "torch.compile": {"loss": 0.5, "statistics": 1e-6},
    }
    found = network_checks.failures([record("batch-1", checks=checks)])
    assert [sentence.split(":")[0] for sentence in found] == [
        "net, batch-1, fastconv",
        "net, batch-1, fastconv",
        "net, batch-1, OpenVINO",
    ]


def test_differences_that_pytorch_has_too_are_no_failures() -> None:
    checks = {
        BASE: {"difference": 1e-5, "loss": 0.0, "statistics": 0.0},
        "torch NCHW": {"difference": 1e-5, "loss": 5e-5, "statistics": 1e-4},
        OURS: {"difference": 2e-5, "loss": 4e-4, "statistics": 9e-4},
    }
    assert network_checks.failures([record("training", checks=checks)]) == []
    checks[OURS] = {"difference": 4e-5, "loss": 6e-4, "statistics": 2e-3}
    assert len(network_checks.failures([record("training", checks=checks)])) == 3


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the kernel does not report peaks")
def test_the_peak_memory_of_a_step_holds_at_least_gradients_and_activations(tmp_path: Path) -> None:
    name = "CIFAR ResNet-20"
    network_variants.prepare(name, tmp_path, with_onnx=False)
    megabytes = network_checks.peak_memories(name, tmp_path, [BASE, OURS], 1)
    # 64 images of 16x32x32 values: the results of 7 convolutions and of 7 batch norms are saved for backward.
    least = 14 * 64 * 16 * 32 * 32 * 4 / 1e6
    for found in megabytes.values():
        assert least / 2 < found["step"] < found["all"] < 10 * least


def test_the_tables_have_ratios_to_pytorch_in_channels_last() -> None:
    seconds = {BASE: [0.2, 0.2, 0.4], OURS: [0.1, 0.2, 0.1], "OpenVINO": [0.05, 0.1, 0.1]}
    megabytes = {BASE: {"all": 200.0, "step": 100.0}, OURS: {"all": 150.0, "step": 50.0}}
    slow = {BASE: [0.1], OURS: [0.2]}
    records = [
        record("batch-1", seconds=seconds, checks={OURS: {"difference": 2e-6}}),
        record("batch-1", seconds=seconds) | {"network": "other"},
        record("training", seconds=slow, checks={OURS: {"loss": 3e-6, "statistics": 0.0}}),
        record("memory", megabytes=megabytes),
    ]
    found = {title: rows for title, _, rows in network_report.tables(records)}  # type: ignore[arg-type]
    assert list(found.values()) == [
        [["net", "2.00", "", "0.50", "0.75"], ["other", "2.00", "", "", ""]],
        [
            ["net", "200.0", "2.00", "4.00"],
            ["other", "200.0", "2.00", "4.00"],
            ["geometric mean", "", "2.00", "4.00"],
        ],
        [["net", "100.0", "0.50"]],
        [["net", "200", "150", "0.75", "100", "50", "0.50"]],
        [["fastconv", "2e-06", "3e-06", "0e+00"]],
    ]
    info = {"cpu": "a CPU", "threads": 2, "level": "avx2", "preloaded": "", "torch": "1", "fastconv": "2"}
    info |= {"compiler": "g++", "rounds": 3, "packages": {"openvino": "3"}}
    text = network_report.markdown([{"machine": info, "networks": records}])
    assert "| net | 200.0 | 2.00 | 4.00 |" in text
    assert "slower than PyTorch by more than 3 % in 1 of 3: net, training step (0.50)." in text
    assert "a CPU, 2 threads" in text
    assert "openvino 3" in text


def test_torch_compile_runs_for_one_network_unless_it_is_asked_for() -> None:
    variants = [BASE, "torch.compile", OURS]
    assert bench_networks.variants_of("U-Net", variants, asked_for=False) == [BASE, OURS]
    assert bench_networks.variants_of("U-Net", variants, asked_for=True) == variants
    assert bench_networks.variants_of("ResNet-18", variants, asked_for=False) == variants


def test_pytorch_in_channels_last_always_runs_and_missing_variants_have_a_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(network_variants.importlib.util, "find_spec", lambda package: None)
    variants, reasons = bench_networks.chosen([OURS, "OpenVINO"])
    assert variants == [BASE, OURS]
    assert "pip install 'fastconv[benchmark]'" in reasons["OpenVINO"]


def test_resnet20_trains_with_and_without_convert_alike() -> None:
    images, labels = torch.rand(2 * train_resnet20.BATCH, 1, 8, 8), torch.arange(2 * train_resnet20.BATCH) % 10
    losses = []
    for convert in (False, True):
        torch.manual_seed(0)
        model = networks.resnet20(channels=1)
        if convert:
            fastconv.convert(model)
        optimizer = torch.optim.SGD(model.parameters(), 1e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, 2)
        losses.append(train_resnet20.train_epoch(model, images, labels, optimizer, schedule))
        assert 0 <= train_resnet20.evaluate(model, images, labels) <= 1
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_the_summary_of_the_training_has_accuracies_and_the_ratio_of_the_times() -> None:
    runs = [
        {"variant": variant, "seed": seed, "seconds": seconds, "accuracy": 0.9 + 0.02 * seed, "losses": []}
        for seed in (0, 1)
        for variant, seconds in (("torch", 3.0), ("fastconv", 2.0))
    ]
    expected = "accuracy: torch 91.00% +- 1.41%, fastconv 91.00% +- 1.41%; PyTorch's time over fastconv's: 1.50"
    assert train_resnet20.summary(runs) == expected
    assert train_resnet20.table_of(runs).row_count == 2
