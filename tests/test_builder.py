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
        ("conv4, avgpool30", "'avgpool30' leaves nothing of an image of 28 x 28 pixels"),
        ("bn, conv4", "'bn' comes first: it must follow a layer"),
        ("tanh", "'tanh' must follow a convolution, a dense layer or bn"),
        ("conv4, pool, tanh", "'tanh' must follow a convolution, a dense layer or bn"),
        ("conv4, tanh, sigmoid", "'sigmoid' must follow a convolution, a dense layer or bn"),
        ("conv4, relu, relu", "'relu' must follow a convolution, a dense layer or bn"),
    ],
)
def test_an_invalid_description_is_refused(description: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_cnn(description)


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        *(("maxpool", "pool"), ("max-pool3", "pool3"), ("avg_pool3", "avgpool3"), ("AveragePool", "avgpool")),
        *(("convolution 32", "conv32"), ("conv-16", "conv16"), ("Conv2D(8)", "conv8"), ("fc10", "dense10")),
        *(("linear", "dense128"), ("dropout5", "dropout.5"), ("dropout0.25x", "dropout.5"), ("batchnorm", "bn")),
        *(("leaky_relu", "leakyrelu"), ("ReLU", "relu"), ("tan", "tanh"), ("sigmoidal", "sigmoid")),
    ],
)
def test_an_unknown_word_gets_a_suggestion(word: str, meant: str) -> None:
    with pytest.raises(ValueError, match="is not a layer") as caught:
        build_cnn(f"conv4, {word}")
    assert str(caught.value).endswith(f"; did you mean {meant!r}?")


@pytest.mark.parametrize(
    ("description", "expected"),
    [
        ("conv4, pool", ["ConvReLUMaxPool2d"]),
        ("conv4, relu, pool", ["ConvReLUMaxPool2d"]),
        ("conv4, avgpool", ["ConvReLU2d", "AvgPool2d"]),
        ("conv4, tanh, pool", ["Conv2d", "Tanh", "MaxPool2d"]),
        ("conv4, none, pool", ["Conv2d", "MaxPool2d"]),
        ("conv4, bn, pool", ["Conv2d", "_BatchNorm2d", "ReLU", "MaxPool2d"]),
        ("conv4, relu, bn, pool", ["ConvReLU2d", "_BatchNorm2d", "MaxPool2d"]),
        ("conv4, pool, bn", ["ConvReLUMaxPool2d", "_BatchNorm2d"]),
        ("conv4, bn, none", ["Conv2d", "_BatchNorm2d"]),
        ("conv4, bn, leakyrelu", ["Conv2d", "_BatchNorm2d", "LeakyReLU"]),
        ("pool, bn", ["MaxPool2d", "_BatchNorm2d"]),
        ("dense4, bn, dense3, sigmoid", ["Flatten", "Linear", "_BatchNorm1d", "ReLU", "Linear", "Sigmoid"]),
    ],
)
def test_a_relu_follows_a_layer_unless_another_activation_does(description: str, expected: list[str]) -> None:
    names = [type(module).__name__ for module in build_cnn(description)]
    end = ["Linear"] if "Flatten" in expected else ["Flatten", "Linear"]
    assert names == expected + end


EVERY = "conv6, bn, pool, conv8same, tanh, avgpool, conv4, leakyrelu, conv4, none, bn, dense12, bn, dense9, sigmoid"


def test_every_layer_computes_as_in_plain_pytorch() -> None:
    ours = build_cnn(EVERY, (3, 28, 28), 4)
    plain = build_cnn(EVERY, (3, 28, 28), 4, torch.nn)
    plain.load_state_dict(ours.state_dict())
    assert not any(type(module).__module__.startswith("fastconv.nn") for module in plain.modules())
    images = torch.rand(5, 3, 28, 28)
    for mode in (True, False):
        torch.testing.assert_close(ours.train(mode)(images), plain.train(mode)(images))
    x = images
    for module in ours.eval():
        known = {"_BatchNorm2d": torch.nn.functional.batch_norm, "_BatchNorm1d": torch.nn.functional.batch_norm}
        kind = type(module).__name__
        if kind in known:
            x = known[kind](x, module.running_mean, module.running_var, module.weight, module.bias)
        else:
            x = module(x)
    torch.testing.assert_close(ours(images), x)


def test_a_batch_of_one_image_trains_with_batch_normalisation() -> None:
    for description in ("conv4x8, bn, dense3, bn", "dense5, bn"):
        model = build_cnn(description, (1, 8, 8), 2)
        model(torch.rand(1, 1, 8, 8)).sum().backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        norm = next(module for module in model if isinstance(module, torch.nn.modules.batchnorm._BatchNorm))
        before = norm.running_mean.clone()  # type: ignore[union-attr]
        model(torch.rand(2, 1, 8, 8))
        assert not torch.equal(before, norm.running_mean)  # type: ignore[arg-type]
