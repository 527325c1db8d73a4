"""The report of :func:`fastconv.convert`: a line for each layer of a model, as text, HTML or a rich table."""

import html
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Line", "Report"]

_HEADINGS = ("", "layer", "becomes", "why")


@dataclass(frozen=True)
class Line:
    """The result of the conversion for one layer."""

    name: str
    layer: str
    becomes: str  # "converted", "fused" or "left"
    why: str = ""

    def cells(self) -> tuple[str, str, str, str]:
        return self.name or "(the model)", self.layer, self.becomes, self.why


@dataclass(repr=False)
class Report:
    """The result of :func:`fastconv.convert` for each layer, and the reason. Print it, or let a notebook show it."""

    lines: list[Line] = field(default_factory=list)

    def __str__(self) -> str:
        rows = [line.cells() for line in self.lines]
        widths = [max((len(row[i]) for row in rows), default=0) for i in range(3)]
        table = ["  ".join([*map(str.ljust, row[:3], widths), row[3]]).rstrip() for row in rows]
        return "\n".join([self.summary(), *table])

    __repr__ = __str__

    def summary(self) -> str:
        counts = {name: sum(line.becomes == name for line in self.lines) for name in ("converted", "fused", "left")}
        return "layers: {converted} converted, {fused} fused, {left} left to PyTorch".format(**counts)

    def _repr_html_(self) -> str:
        """Return HTML in the notebook's own colours: no background, and lines in the colour of the text."""
        border = "border-bottom: 1px solid color-mix(in srgb, currentColor 25%, transparent)"
        style = f"text-align: left; padding: 2px 12px 2px 0; {border}"

        def row(tag: str, cells: tuple[str, ...], extra: str = "") -> str:
            fields = "".join(f'<{tag} style="{extra}{style}">{html.escape(cell)}</{tag}>' for cell in cells)
            return f"<tr>{fields}</tr>"

        rows = [row("td", line.cells(), "opacity: 0.65; " if line.becomes == "left" else "") for line in self.lines]
        return (
            f'<div><p style="margin: 4px 0"><b>{html.escape(self.summary())}</b></p>'
            f'<table style="border-collapse: collapse; color: inherit"><thead>{row("th", _HEADINGS)}</thead>'
            f"<tbody>{''.join(rows)}</tbody></table></div>"
        )

    def __rich__(self) -> Any:
        from rich.table import Table

        table = Table(title=self.summary())
        for heading in _HEADINGS:
            table.add_column(heading)
        for line in self.lines:
            table.add_row(*line.cells())
        return table
