"""Random sizes, values and memory layouts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

import fastconv

T = TypeVar("T")

THREADS = (1, 2, 3, 8)
LEVELS = fastconv._C.cpu_capabilities()
ALGORITHMS = (
    "winograd", "small_output", "sparse_gradient", "gemm", "few_channels", "pool_in_registers", "weight_as_patches",
    "image_filter",
)  # fmt: skip
CHANNELS = (1, 1, 2, 3, 3, 4, 5, 7, 8, 15, 16, 16, 17, 31, 32, 32, 33, 47, 48, 64, 65)
MANY_CHANNELS = (127, 128, 192, 256, 384, 509, 512)
SIDES = (1, 2, 3, 4, 5, 5, 6, 7, 8, 9, 10, 11, 13, 14, 17, 19, 28)
KERNELS = (1, 1, 2, 3, 3, 3, 3, 3, 3, 4, 5, 7)
FLOATING = (torch.float32, torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16)
INTEGERS = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)


class Draw:
    """A source of random choices for one case."""

    def __init__(self, seed: int, case: int) -> None:
        self.rng = np.random.default_rng([seed, case])

    def pick(self, choices: Sequence[T]) -> T:
        return choices[int(self.rng.integers(len(choices)))]

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def upto(self, most: int) -> int:
        """An integer from 0 to `most`, both included."""
        return int(self.rng.integers(most + 1))

    def one_or_two(self, choices: Sequence[int]) -> int | tuple[int, int]:
        return self.pick(choices) if self.chance(0.6) else (self.pick(choices), self.pick(choices))

    # ---- sizes ----

    def convolution(self) -> dict[str, Any]:
        """Sizes and arguments of a convolution of moderate cost."""
        while True:
            many = self.chance(0.06)
            c, k = (self.pick(MANY_CHANNELS if many and self.chance(0.7) else CHANNELS) for _ in range(2))
            n = self.pick((1, 1, 2, 2, 3, 5, 9))
            h, w = (self.pick(SIDES[:7] if many else SIDES) for _ in range(2))
            r, s = (self.pick(KERNELS) for _ in range(2))
            if self.chance(0.6):
                s = r
            groups = 1
            if self.chance(0.25):
                groups = self.pick([d for d in range(1, c + 1) if c % d == 0])
                if self.chance(0.4):
                    groups = c
                # as many outputs as inputs, as for thin groups
                k = c if self.chance(0.6 if groups == c else 0.3) else groups * self.pick((1, 1, 2, 3, 5, 8))
            arguments: dict[str, Any] = {}
            if groups > 1:
                arguments["groups"] = groups
            if self.chance(0.25):
                arguments["dilation"] = self.one_or_two((1, 2, 3))
            how = self.rng.random()
            if how < 0.1:
                arguments["padding"] = "same"
            elif how < 0.15:
                arguments["padding"] = "valid"
            elif how < 0.6:
                arguments["padding"] = self.one_or_two((0, 1, 1, 1, 2, 3, 6))
            if arguments.get("padding") != "same" and self.chance(0.25):
                arguments["stride"] = self.one_or_two((1, 2, 3, 5))
            if self.chance(0.02):
                n = 0
            elif self.chance(0.01):
                c, groups = 0, 1
                arguments.pop("groups", None)
            elif self.chance(0.01):
                h = 0
            pads = 2 * max(_pair(arguments.get("padding", 0))) if not isinstance(arguments.get("padding"), str) else r
            cost = n * (h + pads) * (w + pads) * max(k, 1) * (c // groups) * r * s
            if cost <= (4e7 if self.chance(0.02) else 3e6):
                return {"x": (n, c, h, w), "w": (k, c // groups, r, s), "arguments": arguments}

    def winograd(self) -> dict[str, Any]:
        """Sizes and arguments of a convolution of several images that Winograd's algorithm can compute."""
        n, c, k = self.pick((2, 3, 5)), self.pick(CHANNELS[:17]), self.pick(CHANNELS[:17])
        h, w = (self.pick(SIDES[2:12]) for _ in range(2))
        return {"x": (n, c, h, w), "w": (k, c, 3, 3), "arguments": {"padding": self.pick((0, 1, 1, 2))}}

    def pool(self, prefix: str = "") -> dict[str, Any]:
        """Arguments of a max-pool."""
        kernel = self.one_or_two((1, 2, 2, 2, 3, 3, 4, 5))
        arguments: dict[str, Any] = {"kernel_size": kernel}
        if self.chance(0.5):
            arguments["stride"] = self.one_or_two((1, 2, 3))
        if self.chance(0.35):
            arguments["padding"] = tuple(self.upto(side // 2) for side in _pair(kernel))
        if self.chance(0.2):
            arguments["dilation"] = self.one_or_two((1, 2, 3))
        if self.chance(0.3):
            arguments["ceil_mode"] = True
        return {prefix + name: value for name, value in arguments.items()}

    # ---- values ----

    def integers(self, size: Sequence[int], most: int) -> Tensor:
        return torch.from_numpy(self.rng.integers(-most, most + 1, size).astype(np.float64))

    def normal(self, size: Sequence[int]) -> Tensor:
        return torch.from_numpy(self.rng.standard_normal(size))

    def where(self, size: Sequence[int], probability: float) -> Tensor:
        return torch.from_numpy(np.asarray(self.rng.random(size) < probability))

    def sparse(self, values: Tensor, zeros: float = 0.9) -> Tensor:
        return torch.where(self.where(values.shape, zeros), 0.0, values)

    def sprinkled(self, values: Tensor, specials: Sequence[float], probability: float) -> Tensor:
        chosen = torch.tensor(specials, dtype=torch.float64)[
            torch.from_numpy(self.rng.integers(len(specials), size=tuple(values.shape)))
        ]
        return torch.where(self.where(values.shape, probability), chosen, values)

    # ---- memory ----

    def layout(self, values: Tensor) -> tuple[Tensor, str]:
        """The values in a random memory layout, and its name. The layouts `expanded` repeat some values."""
        name = self.pick(["contiguous", "channels_last", *LAYOUTS] if values.dim() == 4 else ["contiguous", *LAYOUTS])
        if name == "contiguous" or values.dim() < 2:
            return values.contiguous(), "contiguous"
        if name == "channels_last":
            return values.contiguous(memory_format=torch.channels_last), name
        return LAYOUTS[name](values), name


def _off_by_one(t: Tensor) -> Tensor:
    memory = t.new_empty(t.numel() + 1)
    memory[1:] = t.contiguous().flatten()
    return memory[1:].view(t.shape)


def _off_by_one_channels_last(t: Tensor) -> Tensor:
    return _off_by_one(t.movedim(-3, -1)).movedim(-1, -3) if t.dim() > 2 else _off_by_one(t)


def _sliced(t: Tensor) -> Tensor:
    big = t.new_full([size + 2 for size in t.shape], torch.nan if t.is_floating_point() else 77)
    part = big[(slice(1, -1),) * t.dim()]
    part.copy_(t)
    return part


def _stepped(t: Tensor) -> Tensor:
    big = t.new_full([*t.shape[:-1], 2 * t.shape[-1]], torch.nan if t.is_floating_point() else 77)
    big[..., ::2] = t
    return big[..., ::2]


def _expanded(t: Tensor) -> Tensor:
    return t[:1].expand_as(t) if len(t) else t


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "off by one": _off_by_one,
    "off by one, channels_last": _off_by_one_channels_last,
    "sliced": _sliced,
    "every second": _stepped,
    "transposed": lambda t: t.transpose(-1, -2).contiguous().transpose(-1, -2),
    "batch last": lambda t: t.movedim(0, -1).contiguous().movedim(-1, 0),
    "expanded": _expanded,
    "expanded in the last": lambda t: t[..., :1].expand_as(t) if t.numel() else t,
}


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)
