"""Networks built from a list of layers, given as text."""

from __future__ import annotations

import pytest
import torch

import fastconv
from fastconv.builder import build_cnn
from fastconv.models import MnistCNN, SimpleCNN

LARGE = "conv16x5same, conv16x2, pool3, pool, conv8x1, pool1, dropout.25, dense12, dropout0.5, dense7"


@pytest.mark.parametrize(
    ("description", "model"),
    [("conv32,pool,conv64,pool,conv128,dense128", MnistCNN), ("conv32, pool, conv64, pool, dense64", SimpleCNN)],
)
def test_mnist_cnn_and_simple_cnn_can_be_described(description: str, model: type[torch.nn.Module]) -> None:
    built, known = build_cnn(description), model()
    built.load_state_dict(known.state_dict())
    images = torch.rand(3, 1, 28, 28)
    assert torch.equal(built(images), known(images))


def test_the_network_has_the_described_layers() -> None:
    model = build_cnn(LARGE, shape=(3, 40, 32), classes=4)
    assert list(dict(model.named_children())) == [
        *("conv1", "conv2", "pool3", "conv3", "dropout5", "flatten", "dense1", "relu1"),
        *("dropout9", "dense2", "relu2", "dense3"),
    ]
    assert isinstance(model.get_submodule("conv2"), fastconv.nn.ConvReLUMaxPool2d)
    assert model(torch.rand(2, 3, 40, 32)).shape == (2, 4)
    assert [tuple(p.shape) for p in model.get_submodule("dense1").parameters()] == [(12, 8 * 6 * 5), (12,)]


def test_the_layers_of_fastconv_and_torch_give_the_same_network() -> None:
    ours, torchs = (build_cnn(LARGE, (2, 33, 47), 3, layers).eval() for layers in (fastconv.nn, torch.nn))
    torchs.load_state_dict(ours.state_dict())
    images = torch.rand(5, 2, 33, 47)
    torch.testing.assert_close(ours(images), torchs(images))
    assert not any(type(module).__module__.startswith("fastconv.nn") for module in torchs.modules())


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ("conv32, lstm4", "'lstm4' is not a layer: expected, for example, conv32, conv32x5"),
        ("", "'' is not a layer"),
        ("conv0", "'conv0' is not a layer"),
        ("conv99999999", "'conv99999999' is not a layer"),
        ("dropout5", "'dropout5' is not a layer"),
        ("dense5, conv3", "'conv3' comes after a dense layer"),
        ("dense5, pool", "'pool' comes after a dense layer"),
        ("conv4x4same", "'conv4x4same': an even kernel cannot keep the size"),
        ("pool, pool, pool, pool, pool", "'pool' leaves nothing of an image of 28 x 28 pixels"),
        ("conv4x29", "'conv4x29' leaves nothing of an image of 28 x 28 pixels"),
    ],
)
def test_an_invalid_description_is_refused(description: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_cnn(description)
