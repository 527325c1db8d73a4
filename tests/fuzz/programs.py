"""Small programs of several operators, in plain PyTorch and with fastconv: under enabled(), or as converted modules.

All numbers are small integers in float64, so every result is exact and must be equal to PyTorch's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastconv

from .compare import Mismatch, same, same_values
from .draw import Draw

Step = tuple[Any, ...]
_RELU, _POOL = nn.ReLU(), nn.MaxPool2d(2)


def relu(how: str, x: Tensor) -> Tensor:
    if how == "F":
        return F.relu(x)
    if how == "torch":
        return torch.relu(x)
    return x.relu() if how == "method" else _RELU(x)


def pool(how: str, x: Tensor, arguments: dict[str, Any]) -> Tensor:
    if how == "torch":
        return torch.max_pool2d(x, **arguments)
    if how == "indices":
        return F.max_pool2d(x, **arguments, return_indices=True)[0]
    return F.max_pool2d(x, **arguments)


def in_place(how: str, x: Tensor) -> Tensor:
    """Change a result in place. The input of a program may not change, because it is a leaf."""
    if how == "F":
        return F.relu(x, inplace=True)
    if how == "method":
        return x.relu_()
    return x.mul_(-1) if how == "mul" else x.add_(1)


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "transpose": lambda x: x.transpose(-1, -2),
    "batch and channels": lambda x: x.transpose(0, 1),
    "slice": lambda x: x[..., : (x.shape[-1] + 1) // 2],
    "every second": lambda x: x[:, :, ::2],
    "one channel": lambda x: x[:, :1],
    "flatten": lambda x: x.flatten(1).view(x.shape),
    "unsqueeze": lambda x: x.unsqueeze(0).squeeze(0),
    "expand": lambda x: x[:, :1].expand_as(x),
    "flip": lambda x: x.flip(-1),
}
POINTWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "clone": lambda x: x.clone(),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "negative": lambda x: -x,
    "twice": lambda x: 2 * x,
    "relu6": F.relu6,
    "abs": torch.abs,
    "clamp": lambda x: x.clamp(min=0),
    "detached": lambda x: x + x.detach(),
    "mean free": lambda x: x - x.sum((2, 3), keepdim=True),
    "add a channel's number": lambda x: x + torch.arange(x.shape[1], dtype=x.dtype).view(1, -1, 1, 1),
    "masked": lambda x: torch.where(x > 0, x, 0 * x),
}


def apply(step: Step, values: list[Tensor], weights: list[tuple[Tensor, Tensor | None]]) -> Tensor:
    """The result of one step. Its operands are indices into `values`."""
    kind, operand, *rest = step
    x = values[operand]
    if kind == "conv":
        weight, bias = weights[rest[0]]
        return F.conv2d(x, weight, bias, **rest[1])
    if kind == "relu":
        return relu(rest[0], x)
    if kind == "pool":
        return pool(rest[0], x, rest[1])
    if kind == "in place":
        return in_place(rest[0], x)
    if kind == "add":
        return x + values[rest[0]]
    if kind == "multiply":
        return x * values[rest[0]].sign()
    if kind == "cat":
        return torch.cat([x, values[rest[0]]], 1)
    if kind == "no_grad":
        with torch.no_grad():
            return apply(rest[0], values, weights)
    return (VIEWS if kind == "view" else POINTWISE)[rest[0]](x)


@dataclass
class Program:
    """Steps that append to a list of values. `outputs` are the indices of the values that are compared."""

    x: Tensor
    weights: list[tuple[Tensor, Tensor | None]]
    steps: list[Step]
    outputs: list[int]
    fuse: bool
    recorded: bool

    def run(self, context: AbstractContextManager[Any]) -> list[Tensor]:
        leaves = [t.clone().requires_grad_(self.recorded) for t in (self.x, *flat(self.weights))]
        rest = iter(leaves[1:])
        weights = [(next(rest), None if bias is None else next(rest)) for _, bias in self.weights]
        values = [leaves[0]]
        with context:
            for step in self.steps:
                values.append(apply(step, values, weights))
            outputs = [values[i] for i in self.outputs]
            loss = torch.stack([(o * (1 + torch.arange(o.numel()).view(o.shape) % 3)).sum() for o in outputs]).sum()
        if self.recorded and loss.requires_grad:
            loss.backward()
        found = [o.detach() for o in outputs]
        return [*found, *(torch.zeros(()) if t.grad is None else t.grad for t in leaves)]

    def check(self) -> None:
        try:
            expected = self.run(nullcontext())
        except RuntimeError:
            return  # the program is invalid: it changes a value in place that backward needs
        found = self.run(fastconv.enabled(fuse=self.fuse))
        compare(found, expected)


def compare(found: list[Tensor], expected: list[Tensor]) -> None:
    same("number of results", len(found), len(expected))
    for i, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        if theirs.numel() and theirs.abs().max() >= 2**50:
            continue
        same_values(f"result {i}", ours, theirs)


def flat(weights: list[tuple[Tensor, Tensor | None]]) -> list[Tensor]:
    return [t for pair in weights for t in pair if t is not None]


def draw_conv(draw: Draw, channels: int) -> tuple[Tensor, Tensor | None, dict[str, Any]]:
    """A convolution. Its weight has few non-zeros, so that results stay small."""
    k, kernel = draw.pick((1, 2, 3, 4, 16, 17)), draw.pick((1, 2, 3, 3, 3))
    groups = draw.pick([g for g in (1, 1, 2, channels) if channels % g == 0 and k % g == 0])
    size = (k, channels // groups, kernel, kernel)
    weight = draw.sparse(draw.integers(size, 1), max(0.0, 1 - 12 / max(1, size[1] * kernel * kernel)))
    bias = draw.integers((k,), 3) if draw.chance(0.6) else None
    arguments = {"padding": draw.pick((0, 1, 1)), "stride": draw.pick((1, 1, 1, 2)), "groups": groups}
    return weight, bias, arguments


def draw_pool(draw: Draw) -> dict[str, Any]:
    return draw.pick(({"kernel_size": 2}, {"kernel_size": 2}, {"kernel_size": 3, "stride": 2, "padding": 1},
                      {"kernel_size": 3, "stride": 1}, {"kernel_size": 2, "ceil_mode": True}))  # fmt: skip


def draw_case(draw: Draw) -> Any:
    return draw_program(draw) if draw.chance(0.5) else draw_model(draw)


def draw_program(draw: Draw) -> Program:
    n, c, side = draw.pick((1, 2, 3)), draw.pick((1, 2, 3, 16)), draw.pick((4, 6, 7, 9))
    x = draw.integers((n, c, side, side + draw.upto(1)), 3)
    program = Program(x, [], [], [], draw.chance(0.7), draw.chance(0.8))
    values = [x]
    count = 2 + draw.upto(4)
    while len(program.steps) < count:
        step = draw_step(draw, values, program)
        try:
            value = apply(step, [v.clone() for v in values], program.weights)
        except RuntimeError:
            continue  # sizes that do not fit
        if value.numel() == 0 or value.dim() != 4:
            continue
        program.steps.append(step)
        values.append(value)
    last = len(values) - 1
    program.outputs = [last, *(i for i in range(1, last) if draw.chance(0.15))]
    return program


def draw_step(draw: Draw, values: list[Tensor], program: Program) -> Step:
    last = len(values) - 1
    operand = last if draw.chance(0.7) else draw.upto(last)
    kind = draw.pick(
        ("conv", "conv", "relu", "relu", "pool", "pool", "in place", "add", "multiply", "cat", "view", "point")
    )
    if kind == "conv" or last == 0:
        weight, bias, arguments = draw_conv(draw, values[operand].shape[1])
        program.weights.append((weight, bias))
        step: Step = ("conv", operand, len(program.weights) - 1, arguments)
    elif kind == "relu":
        step = (kind, operand, draw.pick(("F", "torch", "method", "module")))
    elif kind == "pool":
        step = (kind, operand, draw.pick(("F", "F", "torch", "indices")), draw_pool(draw))
    elif kind == "in place":
        step = (kind, max(operand, 1), draw.pick(("F", "F", "method", "mul", "add")))
    elif kind in ("add", "multiply", "cat"):
        step = (kind, operand, draw.upto(last))
    else:
        step = (kind, operand, draw.pick(list(VIEWS if kind == "view" else POINTWISE)))
    return ("no_grad", step[1], step) if draw.chance(0.1) else step


# ---- modules --------------------------------------------------------------------------------------------------------


class Net(nn.Module):
    """A module whose forward runs steps: the index of a module, the index of its operand, and a flag.

    Steps may share a module. A step is skipped while its flag is False. In place of a module, -1 adds the last value.
    """

    def __init__(self, modules: list[nn.Module], steps: list[tuple[int, int, str]]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(modules)
        self.steps = steps
        self.flags = dict.fromkeys((flag for _, _, flag in steps if flag), True)

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for layer, operand, flag in self.steps:
            value = values[operand]
            if layer < 0:
                value = value + values[-1] if value.shape == values[-1].shape else value
            elif not flag or self.flags[flag]:
                value = self.layers[layer](value)
            values.append(value)
        return values[-1]


@dataclass
class Model:
    """A module, its calls (flags, train, recorded), and the indices of the layers that are then called alone."""

    module: nn.Module
    x: Tensor
    calls: list[tuple[dict[str, bool], bool, bool]]
    alone: list[int]

    def run(self, module: nn.Module) -> list[Tensor]:
        results = []
        for flags, train, recorded in self.calls:
            if isinstance(module, Net):
                module.flags.update(flags)
            module.train(train)
            module.zero_grad()
            x = self.x.clone().requires_grad_(recorded)
            with nullcontext() if recorded else torch.no_grad():
                y = module(x)
            results.append(y.detach().clone())
            if recorded:
                (y * (1 + torch.arange(y.numel()).view(y.shape) % 3)).sum().backward()
                results += [torch.zeros(()) if t.grad is None else t.grad.clone() for t in (x, *module.parameters())]
        layers = [m for m in module.modules() if isinstance(m, nn.Conv2d | nn.ReLU | nn.MaxPool2d)]
        for i in self.alone:
            layer = layers[i % len(layers)]
            x = self.x
            if isinstance(layer, nn.Conv2d):
                x = (torch.arange(2.0 * layer.in_channels * 36) % 7 - 3).double().view(2, layer.in_channels, 6, 6)
            results.append(layer(x.clone()).detach())
        return results

    def check(self) -> None:
        plain = copy.deepcopy(self.module)
        try:
            expected = self.run(plain)
        except RuntimeError:
            return
        model = copy.deepcopy(self.module)
        for name, change in (("convert", fastconv.convert), ("deepcopy", copy.deepcopy), ("revert", fastconv.revert)):
            model = change(model)
            try:
                compare(self.run(model), expected)
            except Mismatch as mismatch:
                raise Mismatch(f"after {name}: {mismatch}") from None


def draw_model(draw: Draw) -> Model:
    n, c, side = draw.pick((1, 2, 3)), draw.pick((1, 3, 16)), draw.pick((6, 8, 11))
    x = draw.integers((n, c, side, side), 3)
    modules: list[nn.Module] = []
    steps: list[tuple[int, int, str]] = []
    relus, pools = [nn.ReLU(inplace=draw.chance(0.3))], [nn.MaxPool2d(2)]
    channels = [c]
    for _ in range(1 + draw.upto(2)):
        operand = len(channels) - 1
        weight, bias, arguments = draw_conv(draw, channels[operand])
        conv = nn.Conv2d(channels[operand], len(weight), weight.shape[2], bias=bias is not None, **arguments).double()
        with torch.no_grad():
            conv.weight.copy_(weight)
            if bias is not None and conv.bias is not None:
                conv.bias.copy_(bias)
        add(modules, steps, channels, conv, operand, "")
        if draw.chance(0.8):
            layer: nn.Module = relus[0] if draw.chance(0.4) else nn.ReLU(inplace=draw.chance(0.3))
            add(modules, steps, channels, layer, -1, "use_relu" if draw.chance(0.3) else "")
        if draw.chance(0.15):
            steps.append((-1, draw.upto(len(channels) - 1), ""))
            channels.append(channels[steps[-1][1]])
        if draw.chance(0.6):
            layer = pools[0] if draw.chance(0.4) else nn.MaxPool2d(**draw_pool(draw))
            add(modules, steps, channels, layer, -1, "use_pool" if draw.chance(0.3) else "")
    if draw.chance(0.4):
        module: nn.Module = nn.Sequential(*modules)
        if draw.chance(0.3):
            module = nn.Sequential(nn.Sequential(*modules[: len(modules) // 2]), *modules[len(modules) // 2 :])
    else:
        module = Net(modules, steps)
    calls = [
        ({flag: draw.chance(0.6) for flag in ("use_relu", "use_pool")}, draw.chance(0.6), draw.chance(0.6))
        for _ in range(2 + draw.upto(1))
    ]
    return Model(module, x, calls, [draw.upto(20) for _ in range(draw.upto(2))])


def add(
    modules: list[nn.Module], steps: list[tuple[int, int, str]], channels: list[int], layer: nn.Module, operand: int,
    flag: str,
) -> None:  # fmt: skip
    modules.append(layer)
    steps.append((len(modules) - 1, operand, flag))
    channels.append(layer.out_channels if isinstance(layer, nn.Conv2d) else channels[operand])
