"""Networks in plain torch.nn, on which fastconv.convert is measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LeNet5(nn.Module):
    """LeCun et al., "Gradient-based learning applied to document recognition", 1998, with ReLU and max-pooling.

    (N, 1, 32, 32) -> (N, 10).
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.pool = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.conv2(x)))
        x = F.relu(self.fc1(x.flatten(1)))
        return self.fc3(F.relu(self.fc2(x)))


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions with batch norm, and a shortcut around them."""

    def __init__(self, C: int, K: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(C, K, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(K)
        self.conv2 = nn.Conv2d(K, K, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(K)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = nn.Sequential()
        if stride != 1 or C != K:
            self.downsample = nn.Sequential(nn.Conv2d(C, K, 1, stride, bias=False), nn.BatchNorm2d(K))

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu(y + self.downsample(x))


class ResNet18(nn.Module):
    """He et al., "Deep residual learning for image recognition", 2015, for CIFAR-10: a 3 x 3 stem without a pool.

    (N, 3, 32, 32) -> (N, 10).
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = nn.Sequential(BasicBlock(64, 64, 1), BasicBlock(64, 64, 1))
        self.layer2 = nn.Sequential(BasicBlock(64, 128, 2), BasicBlock(128, 128, 1))
        self.layer3 = nn.Sequential(BasicBlock(128, 256, 2), BasicBlock(256, 256, 1))
        self.layer4 = nn.Sequential(BasicBlock(256, 512, 2), BasicBlock(512, 512, 1))
        self.fc = nn.Linear(512, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))


class VGG11(nn.Module):
    """Simonyan and Zisserman, "Very deep convolutional networks", 2014, with a head for CIFAR-10.

    (N, 3, 32, 32) -> (N, 10).
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        C = 3
        for width in (64, "pool", 128, "pool", 256, 256, "pool", 512, 512, "pool", 512, 512, "pool"):
            if isinstance(width, int):
                layers += [nn.Conv2d(C, width, 3, padding=1), nn.ReLU(inplace=True)]
                C = width
            else:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(512, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


def mnist_cnn() -> nn.Module:
    """Return the network of fastconv.models.MnistCNN, in plain torch.nn."""
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(64, 128, 3), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(1152, 128), nn.ReLU(), nn.Linear(128, 10)),
    )


def simple_cnn() -> nn.Module:
    """Return the network of fastconv.models.SimpleCNN, in plain torch.nn."""
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(1600, 64), nn.ReLU(), nn.Linear(64, 10)),
    )


@dataclass(frozen=True)
class Network:
    make: Callable[[], nn.Module]
    size: tuple[int, int, int]

    def images(self, batch: int) -> Tensor:
        return torch.rand(batch, *self.size)


NETWORKS = {
    "LeNet-5": Network(LeNet5, (1, 32, 32)),
    "SimpleCNN": Network(simple_cnn, (1, 28, 28)),
    "MnistCNN": Network(mnist_cnn, (1, 28, 28)),
    "ResNet-18": Network(ResNet18, (3, 32, 32)),
    "VGG-11": Network(VGG11, (3, 32, 32)),
}
