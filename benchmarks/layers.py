"""Convolution layers of known networks, with the size of their input, for bench_layers.py.

The sizes are for images of 224x224, or of the network's own data set. Layers that several networks share appear once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

#: In the order of the report. The family of a layer is the first that fits.
FAMILIES = (
    "first layers",
    "depthwise",
    "groups",
    "1x1",
    "dilated",
    "other kernels",
    "512 channels",
    "stride 2",
    "5x5 and 7x7",
    "3x3",
)


@dataclass(frozen=True)
class Layer:
    """A convolution with the height and width of its input. ``padding`` -1 means kernel // 2 times dilation."""

    network: str
    C: int
    K: int
    kernel: tuple[int, int]
    size: tuple[int, int]
    stride: int = 1
    padding: int = -1
    dilation: int = 1
    groups: int = 1

    def __str__(self) -> str:
        extra = f" /{self.stride}" * (self.stride > 1) + f" g{self.groups}" * (self.groups > 1)
        extra += f" d{self.dilation}" * (self.dilation > 1)
        kernel, size = ("x".join(map(str, pair)) for pair in (self.kernel, self.size))
        return f"{self.network} {self.C}->{self.K} {kernel}{extra} {size}"

    @property
    def family(self) -> str:
        return next(family for family, fits in _families(self) if fits)

    @property
    def is_first(self) -> bool:
        """True if the input is an image, which needs no gradient."""
        return self.C <= 4 and self.groups == 1

    @property
    def pads(self) -> tuple[int, int]:
        if self.padding >= 0:
            return self.padding, self.padding
        return self.kernel[0] // 2 * self.dilation, self.kernel[1] // 2 * self.dilation

    @property
    def multiplications(self) -> int:
        """The number of multiplications for one image."""
        pairs = zip(self.size, self.pads, self.kernel, strict=True)
        P, Q = ((size + 2 * pad - self.dilation * (k - 1) - 1) // self.stride + 1 for size, pad, k in pairs)
        return P * Q * self.K * self.C // self.groups * self.kernel[0] * self.kernel[1]

    def module(self, conv: type[nn.Conv2d]) -> nn.Conv2d:
        return conv(self.C, self.K, self.kernel, self.stride, self.pads, self.dilation, self.groups)


def _families(layer: Layer) -> Iterator[tuple[str, bool]]:
    R, S = layer.kernel
    yield "first layers", layer.is_first
    yield "depthwise", layer.groups == layer.C
    yield "groups", layer.groups > 1
    yield "1x1", R == S == 1
    yield "dilated", layer.dilation > 1
    yield "other kernels", R != S or R > 7
    yield "512 channels", layer.C >= 512
    yield "stride 2", layer.stride > 1
    yield "5x5 and 7x7", R > 3
    yield "3x3", True


def _of(network: str, *rows: tuple[int, ...], kernel: int | tuple[int, int] = 3, **same: int) -> Iterator[Layer]:
    """The layers of a network. A row is (C, K, size of the input, stride, groups). Stride and groups default to 1."""
    for row in rows:
        C, K, size, stride, groups = (*row, *(1, 1)[len(row) - 3 :])
        pair = kernel if isinstance(kernel, tuple) else (kernel, kernel)
        yield Layer(network, C, K, pair, (size, size), stride, groups=groups, **same)


def _depthwise(network: str, *rows: tuple[int, ...], kernel: int = 3) -> Iterator[Layer]:
    """Depthwise layers. A row is (channels, size of the input, stride)."""
    yield from _of(network, *((C, C, size, stride, C) for C, size, stride in rows), kernel=kernel)


def _first_layers() -> Iterator[Layer]:
    yield from _of("ResNet", (3, 64, 224, 2), kernel=7)
    yield from _of("VGG-16", (3, 64, 224))
    yield from _of("MobileNet", (3, 32, 224, 2))
    yield from _of("AlexNet", (3, 64, 224, 4), kernel=11, padding=2)
    yield from _of("ConvNeXt-T", (3, 96, 224, 4), kernel=4, padding=0)
    yield from _of("YOLOv5n", (3, 16, 320, 2), kernel=6, padding=2)
    yield from _of("U-Net", (1, 64, 128))
    yield from _of("CIFAR ResNet-20", (3, 16, 32))
    yield from _of("LeNet-5", (1, 6, 28), kernel=5, padding=2)
    yield from _of("MnistCNN", (1, 32, 28), padding=0)


def _large_kernels() -> Iterator[Layer]:
    yield from _of("LeNet-5", (6, 16, 14), kernel=5, padding=0)
    yield from _of("AlexNet", (64, 192, 27), kernel=5)
    yield from _of("Inception-v3", (48, 64, 35), kernel=5)
    yield from _of("7x7", (64, 64, 28), kernel=7)
    yield from _of("Inception-v3", (160, 160, 17), kernel=(1, 7))
    yield from _of("Inception-v3", (192, 192, 17), kernel=(7, 1))
    yield Layer("text CNN", 1, 100, (3, 128), (64, 128), padding=0)
    yield from _of("SSIM", (3, 3, 224, 1, 3), kernel=11)
    yield from _of("blur", (1, 1, 224), kernel=15)
    yield from _of("ConvNeXt-T", (96, 192, 56, 2), kernel=2, padding=0)
    yield from _of("DeepLab", (256, 256, 28), dilation=12)
    yield from _of("DRN", (512, 512, 28), dilation=2)
    yield from _of("context", (64, 64, 56), dilation=2)


def _3x3() -> Iterator[Layer]:
    yield from _of("MnistCNN", (32, 64, 13), (64, 128, 5), padding=0)
    yield from _of("CIFAR ResNet-20", (16, 16, 32), (32, 32, 16), (64, 64, 8), (16, 32, 32, 2), (32, 64, 16, 2))
    yield from _of("ResNet", (64, 64, 56), (128, 128, 28), (256, 256, 14), (512, 512, 7))
    yield from _of("ResNet", (64, 128, 56, 2), (128, 256, 28, 2), (256, 512, 14, 2))
    yield from _of("VGG-16", (64, 64, 224), (128, 128, 112), (256, 256, 56), (512, 512, 28), (512, 512, 14))
    yield from _of("DenseNet-121", (128, 32, 56), (128, 32, 28), (128, 32, 14))
    yield from _of("Inception-v3", (64, 96, 35), (288, 384, 35, 2))
    yield from _of("U-Net", (128, 64, 128), (1024, 512, 16))
    yield from _of("AlexNet", (192, 384, 13), (384, 256, 13))
    yield from _of("YOLOv5n", (16, 32, 160, 2), (32, 32, 80), (64, 128, 40, 2))


def _1x1() -> Iterator[Layer]:
    yield from _of("ResNet-50", (64, 256, 56), (256, 64, 56), (256, 512, 56, 2), (512, 128, 28), kernel=1)
    yield from _of("ResNet-50", (256, 1024, 14), (1024, 256, 14), (512, 2048, 7), (2048, 512, 7), kernel=1)
    yield from _of("MobileNetV1", (32, 64, 112), (512, 512, 14), (1024, 1024, 7), kernel=1)
    yield from _of("MobileNetV2", (16, 96, 112), (144, 24, 56), (96, 576, 14), (320, 1280, 7), kernel=1)
    yield from _of("DenseNet-121", (256, 128, 56), (512, 128, 28), kernel=1)
    yield from _of("Inception-v3", (192, 64, 35), (768, 192, 17), kernel=1)


def _groups() -> Iterator[Layer]:
    yield from _depthwise("MobileNetV1", (32, 112, 1), (64, 112, 2), (128, 56, 1), (512, 14, 1), (1024, 7, 1))
    yield from _depthwise("MobileNetV2", (96, 112, 2), (144, 56, 1), (384, 14, 1), (960, 7, 1))
    yield from _depthwise("MobileNetV3", (72, 56, 2), (120, 28, 1), (672, 14, 2), (960, 7, 1), kernel=5)
    yield from _depthwise("EfficientNet-B0", (240, 28, 1), (480, 14, 1), kernel=5)
    yield from _depthwise("ConvNeXt-T", (96, 56, 1), (192, 28, 1), (384, 14, 1), (768, 7, 1), kernel=7)
    yield from _of("ResNeXt-50", (128, 128, 56, 1, 32), (256, 256, 28, 1, 32), (512, 512, 14, 1, 32))
    yield from _of("ResNeXt-50", (256, 256, 56, 2, 32))
    yield from _of("RegNetY-400MF", (48, 48, 56, 1, 6), (104, 104, 28, 1, 13), (208, 208, 28, 2, 26))


def layers() -> list[Layer]:
    found = [*_first_layers(), *_3x3(), *_1x1(), *_groups(), *_large_kernels()]
    return sorted(found, key=lambda layer: FAMILIES.index(layer.family))
