"""What :func:`fastconv.convert` tells of a model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["Line", "Report"]


@dataclass(frozen=True)
class Line:
    """What becomes of a layer."""

    name: str
    layer: str
    becomes: str  # "converted", "fused" or "left"
    why: str = ""


@dataclass
class Report:
    """What :func:`convert` makes of a model's layers, and why. Print it."""

    lines: list[Line] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        rows = [(line.name or "(the model)", line.layer, line.becomes, line.why) for line in self.lines]
        widths = [max((len(row[i]) for row in rows), default=0) for i in range(3)]
        table = ["  ".join([*map(str.ljust, row[:3], widths), row[3]]).rstrip() for row in rows]
        return "\n".join([self.summary(), *table, *self.notes])

    def summary(self) -> str:
        counts = {what: sum(line.becomes == what for line in self.lines) for what in ("converted", "fused", "left")}
        return "layers: {converted} converted, {fused} fused, {left} left to PyTorch".format(**counts)

    def __rich__(self) -> Any:
        from rich.table import Table

        table = Table(title=self.summary(), caption="\n".join(self.notes) or None)
        for heading in ("", "layer", "becomes", "why"):
            table.add_column(heading)
        for line in self.lines:
            table.add_row(line.name or "(the model)", line.layer, line.becomes, line.why)
        return table
