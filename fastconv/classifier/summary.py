"""The table of a network's layers, in the form of Keras's summary."""

import html
import io
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Row:
    """One layer: its name, its class, the shape of its output and the number of its parameters."""

    name: str
    kind: str
    shape: str
    parameters: int


def rows(model: nn.Module, shape: tuple[int, int, int]) -> list[Row]:
    """Return the layers of ``model`` in the order in which they compute images of ``shape`` (C, H, W).

    A layer is a module without sub-modules, or one with parameters of its own. A layer that is called twice has two
    rows, and its parameters are counted in the first one.

    Example::

        >>> [row.shape for row in rows(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), (1, 2, 2))]
        ['(N, 4)', '(N, 2)']
    """
    found: list[Row] = []
    counted: set[int] = set()
    names = {module: name for name, module in model.named_modules()}

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        new = [parameter for parameter in module.parameters(recurse=False) if id(parameter) not in counted]
        counted.update(map(id, new))
        size = f"(N, {', '.join(map(str, output.shape[1:]))})" if isinstance(output, Tensor) else type(output).__name__
        name = names[module] or type(module).__name__
        found.append(Row(name, type(module).__name__, size, sum(parameter.numel() for parameter in new)))

    layers = [
        module for module in model.modules() if not list(module.children()) or list(module.parameters(recurse=False))
    ]
    hooks = [module.register_forward_hook(note) for module in layers]
    modes = {module: module.training for module in model.modules()}
    like = next(model.parameters(), torch.empty(0))
    try:
        with torch.inference_mode():
            model.eval()(torch.zeros(2, *shape, dtype=like.dtype, device=like.device))
    finally:
        for module, training in modes.items():
            module.training = training
        for hook in hooks:
            hook.remove()
    return found


def counts(model: nn.Module) -> tuple[int, int]:
    """Return the number of parameters that are trained, and of those that are not."""
    parameters = list(model.parameters())
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    return trained, sum(parameter.numel() for parameter in parameters) - trained


def line(title: str, model: nn.Module, shape: tuple[int, int, int], classes: int, settings: Mapping[str, Any]) -> str:
    """Return the network, its images and how it is compiled, in a line."""
    how = ", ".join(str(settings[name]) for name in ("optimizer", "loss") if name in settings)
    described = f"{title}: images {shape}, {classes} classes, {sum(counts(model)):,} parameters"
    return f"{described}; {how}" if how else described


def unfolding(line: str, text: str) -> str:
    """Return HTML that shows ``line``, and ``text`` when the reader clicks on it."""
    return f"<details><summary>{html.escape(line)}</summary><pre>{html.escape(text)}</pre></details>"


def text(title: str, model: nn.Module, shape: tuple[int, int, int]) -> str:
    """Return the table of the layers and the number of parameters as text."""
    from rich.box import ASCII, HEAVY_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=HEAVY_HEAD if "utf" in (sys.stdout.encoding or "utf-8").lower() else ASCII)
    table.add_column("Layer (type)")
    table.add_column("Output shape")
    table.add_column("Parameters", justify="right")
    for row in rows(model, shape):
        table.add_row(escape(f"{row.name} ({row.kind})"), row.shape, f"{row.parameters:,}")
    output = io.StringIO()
    Console(file=output, width=200, color_system=None, force_jupyter=False).print(table)
    trained, fixed = counts(model)
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    return (
        f"Model: {title}\n{output.getvalue()}Parameters: {trained + fixed:,} ({_bytes(size)})\n"
        f"Trainable: {trained:,}\nNot trainable: {fixed:,}"
    )


def _bytes(size: float) -> str:
    for unit in ("B", "KB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
