"""Known networks, most of them with batch normalisation, on which bench_networks.py measures fastconv.convert.

Most are written as torchvision writes them: the same blocks, the same order of the members, in-place activations. So
convert meets the code that users have. MobileNetV1, RegNet-Y, ConvNeXt-T and ViT-S come from the package transformers.
All have random weights. The number of parameters of each is the published one, which a test checks.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

CLASSES = 1000


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut around them. The block of ResNet-18."""

    expansion = 1

    def __init__(self, C: int, width: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(C, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = downsample
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.conv1(x)
        out = self.bn1(out)
        out = self.relu(out)
        out = self.conv2(out)
        out = self.bn2(out)
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        out = self.relu(out)
        return out  # noqa: RET504  as torchvision


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with a shortcut around them. The block of ResNet-50."""

    expansion = 4

    def __init__(self, C: int, width: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(C, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.conv1(x)
        out = self.bn1(out)
        out = self.relu(out)
        out = self.conv2(out)
        out = self.bn2(out)
        out = self.relu(out)
        out = self.conv3(out)
        out = self.bn3(out)
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        out = self.relu(out)
        return out  # noqa: RET504  as torchvision


class ResNet(nn.Module):
    """He et al., "Deep residual learning for image recognition", 2015.

    (N, 3, H, W) -> (N, classes). The stem is a 7x7 convolution with a pool, or a 3x3 convolution for CIFAR's images.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        blocks: Sequence[int],
        widths: Sequence[int] = (64, 128, 256, 512),
        classes: int = CLASSES,
        channels: int = 3,
        small_images: bool = False,
    ) -> None:
        super().__init__()
        self.inplanes = widths[0]
        if small_images:
            self.conv1 = nn.Conv2d(channels, self.inplanes, 3, padding=1, bias=False)
        else:
            self.conv1 = nn.Conv2d(channels, self.inplanes, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(self.inplanes)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if small_images else nn.MaxPool2d(3, 2, padding=1)
        strides = (1, *[2] * (len(widths) - 1))
        stages = [self._stage(block, *of_stage) for of_stage in zip(widths, blocks, strides, strict=True)]
        self.layers = nn.Sequential(OrderedDict((f"layer{i}", stage) for i, stage in enumerate(stages, 1)))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(widths[-1] * block.expansion, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def _stage(self, block: type[BasicBlock] | type[Bottleneck], width: int, blocks: int, stride: int) -> nn.Sequential:
        members = []
        for i in range(blocks):
            step, out = stride if i == 0 else 1, width * block.expansion
            downsample = None
            if step != 1 or self.inplanes != out:
                downsample = nn.Sequential(nn.Conv2d(self.inplanes, out, 1, step, bias=False), nn.BatchNorm2d(out))
            members.append(block(self.inplanes, width, step, downsample))
            self.inplanes = out
        return nn.Sequential(*members)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x = self.bn1(x)
        x = self.relu(x)
        x = self.maxpool(x)
        x = self.layers(x)
        x = self.avgpool(x)
        return self.fc(torch.flatten(x, 1))


def resnet20(channels: int = 3, classes: int = 10) -> ResNet:
    """Return He et al.'s ResNet-20 for CIFAR's images, with a 1x1 convolution in the shortcut of each larger stage."""
    return ResNet(BasicBlock, (3, 3, 3), (16, 32, 64), classes, channels, small_images=True)


class VGG11BN(nn.Module):
    """Simonyan and Zisserman, "Very deep convolutional networks", 2014, configuration A with batch normalisation.

    (N, 3, H, W) -> (N, 1000). 123 of the 133 million parameters belong to the three linear layers.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        C = 3
        for width in (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"):
            if isinstance(width, int):
                layers += [nn.Conv2d(C, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
                C = width
            else:
                layers.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d((7, 7))
        self.classifier = nn.Sequential(
            *(nn.Linear(512 * 7 * 7, 4096), nn.ReLU(True), nn.Dropout()),
            *(nn.Linear(4096, 4096), nn.ReLU(True), nn.Dropout(), nn.Linear(4096, CLASSES)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


def conv_bn_relu6(C: int, K: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(C, K, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(K), nn.ReLU6(inplace=True))


class InvertedResidual(nn.Module):
    """A 1x1 convolution that widens, a depthwise 3x3 one, and a 1x1 one that narrows, without an activation."""

    def __init__(self, C: int, K: int, stride: int, expand_ratio: int) -> None:
        super().__init__()
        hidden = C * expand_ratio
        self.use_res_connect = stride == 1 and C == K
        layers: list[nn.Module] = [conv_bn_relu6(C, hidden, 1)] if expand_ratio != 1 else []
        layers += [conv_bn_relu6(hidden, hidden, 3, stride, hidden), nn.Conv2d(hidden, K, 1, bias=False)]
        self.conv = nn.Sequential(*layers, nn.BatchNorm2d(K))

    def forward(self, x: Tensor) -> Tensor:
        if self.use_res_connect:
            return x + self.conv(x)
        return self.conv(x)


class MobileNetV2(nn.Module):
    """Sandler et al., "MobileNetV2: inverted residuals and linear bottlenecks", 2018.

    (N, 3, H, W) -> (N, 1000).
    """

    def __init__(self) -> None:
        super().__init__()
        features: list[nn.Module] = [conv_bn_relu6(3, 32, 3, 2)]
        C = 32
        for expand, K, blocks, stride in (
            *((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2)),
            *((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
        ):
            for i in range(blocks):
                features.append(InvertedResidual(C, K, stride if i == 0 else 1, expand))
                C = K
        self.features = nn.Sequential(*features, conv_bn_relu6(C, 1280, 1))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, CLASSES))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.adaptive_avg_pool2d(self.features(x), (1, 1))
        return self.classifier(torch.flatten(x, 1))


class DenseLayer(nn.Module):
    """Batch norm, ReLU, 1x1 convolution, batch norm, ReLU, 3x3 convolution, on all results of the block so far."""

    def __init__(self, C: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(C)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(C, 4 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, inputs: list[Tensor]) -> Tensor:
        features = torch.cat(inputs, 1)  # a statement of its own, as in torchvision's DenseNet
        bottleneck = self.conv1(self.relu1(self.norm1(features)))
        return self.conv2(self.relu2(self.norm2(bottleneck)))


class DenseBlock(nn.ModuleDict):
    def __init__(self, layers: int, C: int, growth: int) -> None:
        super().__init__({f"denselayer{i + 1}": DenseLayer(C + i * growth, growth) for i in range(layers)})

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.values():
            features.append(layer(features))
        return torch.cat(features, 1)


class DenseNet121(nn.Module):
    """Huang et al., "Densely connected convolutional networks", 2016. (N, 3, H, W) -> (N, 1000)."""

    def __init__(self) -> None:
        super().__init__()
        C, growth = 64, 32
        self.features = nn.Sequential(
            OrderedDict[str, nn.Module](
                conv0=nn.Conv2d(3, C, 7, 2, padding=3, bias=False),
                norm0=nn.BatchNorm2d(C),
                relu0=nn.ReLU(inplace=True),
                pool0=nn.MaxPool2d(3, 2, padding=1),
            )
        )
        for i, layers in enumerate((6, 12, 24, 16), 1):
            self.features.add_module(f"denseblock{i}", DenseBlock(layers, C, growth))
            C += layers * growth
            if i < 4:
                transition = nn.Sequential(
                    OrderedDict[str, nn.Module](
                        norm=nn.BatchNorm2d(C),
                        relu=nn.ReLU(inplace=True),
                        conv=nn.Conv2d(C, C // 2, 1, bias=False),
                        pool=nn.AvgPool2d(2, 2),
                    )
                )
                self.features.add_module(f"transition{i}", transition)
                C //= 2
        self.features.add_module("norm5", nn.BatchNorm2d(C))
        self.classifier = nn.Linear(C, CLASSES)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        out = nn.functional.relu(self.features(x), inplace=True)
        out = nn.functional.adaptive_avg_pool2d(out, (1, 1))
        return self.classifier(torch.flatten(out, 1))


def double_conv(C: int, K: int) -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(C, K, 3, padding=1, bias=False), nn.BatchNorm2d(K), nn.ReLU(inplace=True)),
        *(nn.Conv2d(K, K, 3, padding=1, bias=False), nn.BatchNorm2d(K), nn.ReLU(inplace=True)),
    )


class UNet(nn.Module):
    """Ronneberger et al., "U-Net", 2015, with padding, batch normalisation and a quarter of the channels.

    (N, 3, H, W) -> (N, 21, H, W): a class for each pixel.
    """

    def __init__(self, width: int = 16, classes: int = 21) -> None:
        super().__init__()
        widths = [width * 2**i for i in range(5)]
        inputs = [3, *widths[:-1]]
        self.down = nn.ModuleList(double_conv(C, K) for C, K in zip(inputs, widths, strict=True))
        self.pool = nn.MaxPool2d(2)
        pairs = list(itertools.pairwise(reversed(widths)))
        self.up = nn.ModuleList(nn.ConvTranspose2d(C, K, 2, 2) for C, K in pairs)
        self.merge = nn.ModuleList(double_conv(2 * K, K) for _, K in pairs)
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skipped = []
        for i, block in enumerate(self.down):
            x = block(self.pool(x) if i else x)
            skipped.append(x)
        skipped.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat([skipped.pop(), up(x)], 1))
        return self.head(x)


class Logits(nn.Module):
    """A classifier of transformers that returns its logits, a tensor. (N, 3, H, W) -> (N, 1000)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(pixel_values=x, return_dict=True).logits


def mobilenet_v1() -> nn.Module:
    from transformers import MobileNetV1Config, MobileNetV1ForImageClassification

    # The package drops 99.9 % of the features in training, which leaves nothing to compare.
    return Logits(MobileNetV1ForImageClassification(MobileNetV1Config(num_labels=CLASSES, classifier_dropout_prob=0.0)))


def regnet_y() -> nn.Module:
    from transformers import RegNetConfig, RegNetForImageClassification

    config = RegNetConfig(
        num_labels=CLASSES,
        embedding_size=32,
        hidden_sizes=[48, 104, 208, 440],
        depths=[1, 3, 6, 6],
        groups_width=8,
        layer_type="y",
    )
    return Logits(RegNetForImageClassification(config))


def convnext_tiny() -> nn.Module:
    from transformers import ConvNextConfig, ConvNextForImageClassification

    return Logits(ConvNextForImageClassification(ConvNextConfig(num_labels=CLASSES)))


def vit_small() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 6, "image_size": 128}
    return Logits(ViTForImageClassification(ViTConfig(num_labels=CLASSES, **sizes)))


@dataclass(frozen=True)
class Network:
    """How to make the network, the height and width of its images, and the settings of a training step.

    The learning rate is so small that rounding errors do not grow much: with 1e-5, the losses of PyTorch's two memory
    formats differ by 2 % after 20 steps of MobileNetV1. It is large enough that the loss falls by 1 %.
    """

    make: Callable[[], nn.Module]
    size: int = 128
    training_batch: int = 8
    learning_rate: float = 1e-6
    package: str = ""  # that has the network


NETWORKS = {
    "ResNet-18": Network(lambda: ResNet(BasicBlock, (2, 2, 2, 2))),
    "ResNet-50": Network(lambda: ResNet(Bottleneck, (3, 4, 6, 3))),
    "VGG-11-BN": Network(VGG11BN),
    "MobileNetV1": Network(mobilenet_v1, package="transformers"),
    "MobileNetV2": Network(MobileNetV2),
    "RegNetY-400MF": Network(regnet_y, package="transformers"),
    "ConvNeXt-T": Network(convnext_tiny, package="transformers"),
    "ViT-S": Network(vit_small, package="transformers"),
    "DenseNet-121": Network(DenseNet121),
    "U-Net": Network(UNet),
    "CIFAR ResNet-20": Network(resnet20, size=32, training_batch=64, learning_rate=1e-3),
}
